"""Tiny models, machines, traces and settings, small enough to follow by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cluster import Cluster
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.models import ModelCard
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import WorkloadSpec
from sim import metrics as measure
from sim.engine import replay
from sim.metrics import Execution
from sim.priced_steps import execute_schedule
from sim.ranks import Ranks
from sim.session import reduced
from sim.setting import Setting
from tests.devices import link, round_gpu
from traces.batches import compose_batches
from traces.routing import Ids, Provenance, RoutingTrace, id_dtype
from traces.stats import expert_loads


def tiny_model(**fields: Any) -> ModelCard:
    """Two MoE layers of 8 experts, top-2, with 4 query heads on 2 key-value heads."""
    shape: dict[str, Any] = {
        "name": "tiny",
        "sources": {"default": {"source": "test", "kind": "assumed"}},
        "n_layers": 2,
        "hidden_size": 64,
        "vocab_size": 256,
        "attention": gqa(),
        "n_experts": 8,
        "top_k": 2,
        "expert_intermediate_size": 32,
    }
    return ModelCard.model_validate(shape | fields)


def gqa(**fields: Any) -> dict[str, Any]:
    """Attention of 4 query heads on 2 key-value heads of 16 values."""
    return {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 16} | fields


def tiny_cluster(n_nodes: int = 1, devices_per_node: int = 4, **parts: Any) -> Cluster:
    """Nodes of round GPUs; 80 GB/s and 5 us inside a node, 8 GB/s and 20 us between nodes."""
    network = link("10 GB/s", "20 us").model_copy(update={"name": "network", "kind": "infiniband"})
    usual: dict[str, Any] = {"device": round_gpu(), "intra": link(), "inter": network, "host": None, "host_link": None}
    return Cluster(name="tiny", n_nodes=n_nodes, devices_per_node=devices_per_node, **(usual | parts))


def trace_of(ids: ArrayLike, n_experts: int, lengths: ArrayLike | None = None, **fields: Any) -> RoutingTrace:
    """A trace of ids [layer, k, token] in sequences of `lengths` (default: one); -1 marks an unused place."""
    rows = np.asarray(ids)
    variable_k = bool((rows < 0).any())
    offsets = np.cumsum([0, *np.atleast_1d(rows.shape[2] if lengths is None else lengths)])
    usual: dict[str, Any] = {
        "positions": np.concatenate([np.arange(n) for n in np.diff(offsets)]).astype(np.int32),
        "moe_layers": tuple(range(rows.shape[0])),
        "phase": "decode",
        "provenance": Provenance(model="tiny", source="test", kind="synthetic"),
    }
    return RoutingTrace(
        ids=cast(Ids, rows.astype(id_dtype(n_experts, variable_k=variable_k))),  # -1 becomes the largest id
        n_experts=n_experts,
        offsets=offsets.astype(np.int64),
        variable_k=variable_k,
        **(usual | fields),
    )


def random_ids(
    shape: tuple[int, int, int], n_experts: int, seed: int = 0, unused_frac: float = 0.0
) -> NDArray[np.int64]:
    """ids [layer, k, token], skewed, no expert twice in a token; later places are unused (-1) with `unused_frac`."""
    n_layers, top_k, n_tokens = shape
    rng = np.random.default_rng(seed)
    scores = rng.gumbel(size=(n_layers, n_experts, n_tokens)) + rng.standard_normal((n_layers, n_experts, 1))
    ids = np.argsort(-scores, axis=1)[:, :top_k]
    ids[:, 1:][rng.random(ids[:, 1:].shape) < unused_frac] = -1
    return ids


def random_trace(model: ModelCard, n_sequences: int = 12, sequence_tokens: int = 16, seed: int = 0) -> RoutingTrace:
    """Skewed routing of `model` in sequences of one length."""
    shape = (len(model.moe_layers), model.top_k, n_sequences * sequence_tokens)
    ids = random_ids(shape, model.n_experts, seed)
    return trace_of(ids, model.n_experts, [sequence_tokens] * n_sequences, moe_layers=model.moe_layers)


def random_placement(
    n_layers: int, n_experts: int, n_ranks: int, n_slots: int, seed: int = 0, **fields: Any
) -> Placement:
    """Random slots in which every expert lies once or more often; ranks hold different numbers of slots."""
    rng = np.random.default_rng(seed)
    extra = rng.integers(0, n_experts, (n_layers, n_slots - n_experts))
    experts = np.concatenate([np.tile(np.arange(n_experts), (n_layers, 1)), extra], axis=1)
    return Placement(
        expert_of_slot=rng.permuted(experts, axis=1),
        rank_of_slot=np.sort(rng.integers(0, n_ranks, (n_layers, n_slots)), axis=1),
        n_experts=n_experts,
        n_ranks=n_ranks,
        **({"name": "random"} | fields),
    )


def even_placement(model: ModelCard, n_ranks: int, **fields: Any) -> Placement:
    """Expert e on rank e // (experts / ranks), in every layer."""
    slots = np.tile(np.arange(model.n_experts), (len(model.moe_layers), 1))
    return Placement.from_slots(slots, n_ranks, n_experts=model.n_experts, **({"name": "even"} | fields))


def tiny_setting(
    model: ModelCard,
    cluster: Cluster,
    trace: RoutingTrace,
    *,
    attention_tp: int = 1,
    expert_tp: int = 1,
    ranks: Ranks | None = None,
    **load: Any,
) -> Setting:
    """A setting judged and fitted on the whole trace; `load` holds fields of the workload."""
    workload = WorkloadSpec(trace="none", **({"tokens_per_device": 4, "steps": 3} | load))
    sequences = np.arange(trace.n_sequences)
    batches = compose_batches(
        trace,
        sequences,
        phase=workload.phase,
        shape=(workload.steps, cluster.n_devices, workload.tokens_per_device),
        context_tokens=workload.context_tokens,
        rng=np.random.default_rng(0),
    )
    return Setting(
        model=model,
        cluster=cluster,
        layout=ExpertLayout(n_devices=cluster.n_devices, devices_per_node=cluster.devices_per_node, tp=expert_tp),
        attention_tp=attention_tp,
        workload=workload,
        trace=trace,
        fit_loads=expert_loads(trace),
        fit_sequences=len(sequences),
        batches=batches,
        judged_sequences=len(sequences),
        ranks=ranks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that a simulation of one placement gives."""

    reduction: Reduction
    execution: Execution
    metrics: dict[str, float]
    breakdown_s: dict[str, float]


def measured(setting: Setting, placement: Placement, schedule: ScheduleSpec | None = None) -> Measured:
    """Reduce, price, execute and measure, as `sim.run.simulate` does with a solver's placement."""
    schedule = schedule or ScheduleSpec()
    reduction = reduced(setting, placement, schedule)
    execution = execute_schedule(setting, placement, reduction, schedule)
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    return Measured(
        reduction=reduction,
        execution=execution,
        metrics={
            **measure.time_metrics(execution, begins_s, setting, schedule.step_overhead),
            **measure.load_metrics(setting, placement, reduction),
            **measure.traffic_metrics(setting, reduction, schedule),
        },
        breakdown_s=measure.breakdown_s(execution, schedule.step_overhead),
    )
