"""Which parts of a scenario do not go together yet: refused by name, never simulated as if one were not there."""

from __future__ import annotations

from scenarios.errors import ScenarioError
from scenarios.routing_specs import RoutingSpec
from sim.pool_pricing import check_pools
from sim.session import Plan
from sim.setting import Setting

TOGETHER = {("cluster.experts", "serving")}
"""Pairs of the lists below that do go together."""


def check_together(setting: Setting, plan: Plan) -> None:
    """Raise ScenarioError where a plan has parts that do not go together, or pools that its schedule does not fit."""
    check_pools(setting, plan.schedule)
    model, workload, memory = setting.model, setting.workload, plan.memory
    special = {
        "cluster.experts": setting.pool is not None,
        "several runs of a layer (iterations)": model.iterations > 1,
        "model.experts_by_layer": model.experts_by_layer is not None,
        "schedule.exchange.algorithm coherent": plan.schedule.exchange.algorithm == "coherent",
    }
    others = {
        "workload.phase train": setting.trains,
        "a pipeline (parallel pp, workload.microbatches)": setting.n_stages > 1 or workload.microbatches is not None,
        "parallel.attention.cp": setting.ranks is not None and setting.ranks.attention.cp > 1,
        "memory.offload": memory.offload is not None,
        "memory.stream": memory.stream is not None,
        "workload.generate": workload.generate is not None,
        "schedule.pim": plan.schedule.pim != "none",
        "serving": plan.serving is not None,
        "serving.prefill": plan.serving is not None and plan.serving.prefill is not None,
        "serving.scaling and serving.failures": plan.serving is not None and bool(plan.serving.changes),
    }
    _check_widths(setting, plan)
    _check_guesses(plan, workload.routing)
    if plan.serving is not None and workload.batches.pool > 1:
        raise ScenarioError("workload.batches and serving do not go together: under load requests come and go in turn")
    for first in (name for name, there in special.items() if there):
        for second in (name for name, there in others.items() if there and (first, name) not in TOGETHER):
            raise ScenarioError(f"{first} and {second} do not go together yet; leave one of them out")


def _check_widths(setting: Setting, plan: Plan) -> None:
    """Experts in several widths are known to forward passes that read them where they are, or copy them whole."""
    if setting.widths is None:
        return
    others = {
        "workload.phase train": setting.trains,
        "several runs of a layer (iterations)": setting.model.iterations > 1,
        "schedule.pim": plan.schedule.pim != "none",
        "schedule.move": plan.schedule.move is not None,
    }
    for other in (name for name, there in others.items() if there):
        raise ScenarioError(f"bits and {other} do not go together yet; leave one of them out")


def _check_guesses(plan: Plan, routing: RoutingSpec) -> None:
    """Steps with a capacity of their own have routes of their own, which do not say what a request did before."""
    offload = plan.memory.offload
    own = routing.capacity_factor is not None and routing.group != "sequence"
    if own and offload is not None and offload.prefetch is not None and offload.prefetch.by == "activation":
        raise ScenarioError(
            f"memory.offload.prefetch: activation looks at a request's past, which workload.routing.group "
            f"{routing.group} does not keep; use group sequence, or another guess"
        )
