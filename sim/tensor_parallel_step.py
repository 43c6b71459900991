"""Steps of an engine whose tensor-parallel devices hold the same tokens and sum partial results by all-reduces.

The simulator shares the tokens of a step out over the devices, and sends them to their experts and back. An engine with
tensor-parallel attention does neither: an all-reduce after attention and one after the experts take the place of
gather, scatter, dispatch and combine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from hwmodels.cluster import Cluster
from hwmodels.collectives import collective_s
from hwmodels.devices import Device
from hwmodels.kernels import Kernels
from hwmodels.library import find_collectives, find_kernels
from hwmodels.validation.step_rows import ServedModel
from placement.reduction import reduce_trace
from scenarios.catalog import find_model
from scenarios.cluster_specs import AttentionParallelSpec, ClusterSpec, ExpertParallelSpec, ParallelSpec
from scenarios.errors import HardwareError
from scenarios.models import ModelCard
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import SynthesisSpec, WorkloadSpec
from sim.durations import Duration, ExchangeTime
from sim.forward import build_step
from sim.kernel_pricing import token_bytes
from sim.laws import LAWS
from sim.policies import POLICIES
from sim.pricing import price
from sim.program import compile_program
from sim.session import solve_placement
from sim.setting import Setting, make_setting, open_trace
from sim.vector import execute
from traces.routing import RoutingTrace

STEPS = 4
ROUTING = SynthesisSpec(tokens=8192)
"""Routing is assumed: a made-up trace by the shipped knobs, seed 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Machine and software of a step: node card, kernel cards in order of precedence, and the all-reduce it calls."""

    node: str
    kernels: tuple[str, ...]
    all_reduce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Devices of one node: attention over `tp` of them, experts on `moe_ep` ranks of `moe_tp`."""

    tp: int
    moe_tp: int
    moe_ep: int


@lru_cache(maxsize=4096)
def step_s(served: ServedModel, engine: Engine, layout: Layout, phase: str, tokens: int, context_tokens: int) -> float:
    """Mean time of a step [s] of `tokens` over the whole group, each attending to `context_tokens`; no host time.

    Raises ScenarioError where tokens do not divide over the devices, HardwareError where a constant is missing.
    """
    setting = _setting(served, engine, layout, phase, tokens, context_tokens)
    placement = solve_placement(setting, PlacementSpec())
    reduction = reduce_trace(setting.batches.trace, setting.batches.tokens, placement, setting.layout)
    schedule = ScheduleSpec()
    step = build_step(setting.model, chunks=1, attention_tp=layout.tp)
    op_list = compile_program(POLICIES[schedule.overlap], step)
    all_reduce_s = _all_reduce_s(setting, engine, tokens)
    prices = price(setting, placement, reduction, schedule.exchange).changed(
        lambda _kind, duration: _halved(duration, all_reduce_s)
    )
    finished = execute(op_list, prices.durations(op_list), law=LAWS[schedule.exchange.law])
    return float(finished.end_s.max(axis=(0, -1)).mean())


@lru_cache(maxsize=8)
def _model(served: ServedModel) -> ModelCard:
    """The shipped card, its dense weights in another data type where one is given."""
    model = find_model(served.card, Path())
    return model if served.weight_dtype is None else model.model_copy(update={"weight_dtype": served.weight_dtype})


def _setting(
    served: ServedModel, engine: Engine, layout: Layout, phase: str, tokens: int, context_tokens: int
) -> Setting:
    workload = WorkloadSpec.model_validate(
        {
            "synthetic": ROUTING,
            "phase": phase,
            "tokens_per_device": tokens // layout.tp,
            "context_tokens": context_tokens,
            "steps": STEPS,
        }
    )
    setting = make_setting(
        model=_model(served),
        cluster=ClusterSpec(node=engine.node, devices_per_node=layout.tp),
        parallel=ParallelSpec(
            attention=AttentionParallelSpec(dp=1, tp=layout.tp),
            experts=ExpertParallelSpec(ep=layout.moe_ep, tp=layout.moe_tp),
        ),
        workload=workload,
        trace=_trace(served),
        seed=0,
    )
    return replace(setting, cluster=with_kernels(setting.cluster, engine.kernels))


@lru_cache(maxsize=8)
def _trace(served: ServedModel) -> RoutingTrace:
    return open_trace(WorkloadSpec(synthetic=ROUTING), _model(served), Path())


def with_kernels(cluster: Cluster, names: tuple[str, ...]) -> Cluster:
    """The cluster with the constants of the named cards, the first that has an operation and data type, then bases."""
    return replace(cluster, device=Device(card=cluster.device.card, kernels=stacked_kernels(*names)))


def stacked_kernels(*names: str) -> Kernels:
    """The named cards one after the other, then the cards that they rest on, each once."""
    chains = [find_kernels(name).cards for name in names]
    ordered = [chain[0] for chain in chains] + [card for chain in chains for card in chain[1:]]
    return Kernels(cards=tuple({card.name: card for card in ordered}.values()))


def _all_reduce_s(setting: Setting, engine: Engine, tokens: int) -> float:
    """Time of the engine's all-reduce of the hidden states of all tokens, or NCCL's where that is faster."""
    link = setting.cluster.intra
    cards = [find_collectives(link.name, library) for library in (engine.all_reduce, "nccl")]
    known = [card for card in cards if card is not None]
    if not known:
        raise HardwareError(f"{link.name}: nobody measured all-reduces of {engine.all_reduce} or nccl")
    total_bytes = tokens * token_bytes(setting, None)
    n_devices, bytes_per_s = setting.layout.n_devices, link.bytes_per_s.value
    return min(float(collective_s("all-reduce", total_bytes, n_devices, card, bytes_per_s)) for card in known)


def _halved(duration: Duration, all_reduce_s: float) -> Duration:
    """Half an all-reduce in place of a gather, scatter, dispatch or combine."""
    if not isinstance(duration, ExchangeTime):
        return duration
    half = np.full_like(duration.send_s, 0.5 * all_reduce_s)
    return ExchangeTime(send_s=half, receive_s=half, group_size=duration.group_size)
