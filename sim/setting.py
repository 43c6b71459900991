"""What all plans of a comparison share: model, machine, layout and the steps to replay, made from a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import Cluster, build_cluster
from placement.layout import ExpertLayout
from scenarios.catalog import find_trace
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import ScenarioError, TraceError
from scenarios.models import ModelCard
from scenarios.training_specs import TrainingSpec
from scenarios.workload_specs import WorkloadSpec
from sim.ranks import Ranks, group_cluster, layout_of, ranks_of
from sim.size import check_workload
from sim.steps import chosen, dropped, judged_steps, numbered, routed_model, spread_steps, with_room
from traces.batches import Batches
from traces.drops import RouteShares, route_shares
from traces.routes import masked
from traces.routing import RoutingTrace
from traces.split import label_sequences, select_sequences, split_sequences
from traces.stats import expert_loads
from traces.storage import load_trace
from traces.synth import fit_knobs, knobs_from_spec, synthesise

FIT_TOKENS = 1 << 15  # enough to know which of 256 experts follow which: 128 tokens an expert at the least top-k


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """One model on one machine under one workload; one is equal to itself alone, so that prices may be kept by it.

    fit_loads    int64[layer, expert]: routed tokens of the sequences that plans are fitted on; where devices or steps
                 have a capacity, of the steps `fit_batches`.
    fit_batches  composes `sim.steps.FIT_STEPS` steps of the same sequences, once, for solvers that look at steps or
                 tokens.
    fit_tokens   int64[token]: those sequences' tokens, indices into the trace; at most `FIT_TOKENS`.
    batches      the steps that plans are judged on, of other sequences.
    routes       what became of their choices, where the workload changes routes.
    cluster      the devices of one expert group, as they see each other; ranks: where that group lies in the whole
                 cluster, None where it is the cluster.
    pool         the machine of the experts, where it is another one; layout: of the experts on either.
    is_first, is_last  whether the model's embedding and its head are here: parts of a pipeline lack one or both.
    updates      whether a training step ends with the update; all microbatches of a step but the last one do not.
    """

    model: ModelCard
    cluster: Cluster
    layout: ExpertLayout
    attention_tp: int
    workload: WorkloadSpec
    trace: RoutingTrace
    fit_loads: NDArray[np.int64]
    fit_sequences: int
    batches: Batches
    judged_sequences: int
    pool: Cluster | None = None
    routes: RouteShares | None = None
    fit_batches: Callable[[], Batches] | None = None
    fit_tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    ranks: Ranks | None = None
    is_first: bool = True
    is_last: bool = True
    updates: bool = True
    training: TrainingSpec = field(default_factory=TrainingSpec)

    @property
    def n_devices(self) -> int:
        """Devices of the cluster and of the pool."""
        return self.cluster.n_devices + (self.pool.n_devices if self.pool is not None else 0)

    @property
    def simulated_devices(self) -> int:
        """Devices of the larger pool, rounded up to whole groups of tensor-parallel attention."""
        most = max(self.cluster.n_devices, self.expert_cluster.n_devices)
        return -(-most // self.attention_tp) * self.attention_tp

    @property
    def expert_cluster(self) -> Cluster:
        """The machine that holds the experts."""
        return self.pool or self.cluster

    @property
    def n_groups(self) -> int:
        """Expert groups of a stage; each does the same on other tokens."""
        return 1 if self.ranks is None else self.ranks.experts.edp

    @property
    def n_vocabularies(self) -> int:
        """Matrices of the vocabulary that are here: of embedding and head, or both in one."""
        return max(self.is_first, self.is_last) if self.model.tied_embeddings else self.is_first + self.is_last

    @property
    def n_stages(self) -> int:
        """Pipeline stages."""
        return 1 if self.ranks is None else self.ranks.n_stages

    @property
    def trains(self) -> bool:
        """Whether steps have a backward pass."""
        return self.workload.phase == "train"

    @property
    def exchange_passes(self) -> int:
        """How often tokens, or their gradients, travel to experts and back in a step."""
        return 1 if not self.trains else 3 if self.training.recompute == "full" else 2


def make_setting(
    *,
    model: ModelCard,
    cluster: ClusterSpec,
    parallel: ParallelSpec,
    workload: WorkloadSpec,
    trace: RoutingTrace,
    seed: int,
    base: Path = Path(),
    alike: Setting | None = None,
    training: TrainingSpec | None = None,
) -> Setting:
    """The setting of these specs; a file of kernel constants is relative to `base`.

    alike  a setting of the same trace, workload, devices of an expert group and seed, whose steps this one takes over.
    Raises ScenarioError or TraceError where they contradict each other.
    """
    whole = build_cluster(cluster, base)
    pool = None if cluster.experts is None else build_cluster(cluster.experts, base)
    ranks = ranks_of(whole, parallel if pool is None else parallel.model_copy(update={"experts": None}))
    machine = group_cluster(whole, ranks)
    layout = layout_of(machine, pool, parallel, ranks)
    check_workload(workload, model, machine.n_devices)
    check_trace(trace, model)
    own_model = routed_model(model, workload.routing)
    if alike is not None:
        return replace(
            alike,
            model=own_model,
            cluster=machine,
            layout=layout,
            attention_tp=ranks.attention.tp,
            ranks=ranks,
            pool=pool,
            training=training or TrainingSpec(),
        )
    asked = chosen(numbered(trace, model, workload.routing), workload.routing)
    trace = with_room(asked, workload.routing)
    parts = sequence_parts(trace, workload, seed)

    own = (parts.judged, workload, machine.n_devices, ranks.attention.tp, seed)
    batches = dropped(judged_steps(trace, *own), workload.routing)
    fit_batches = cache(partial(spread_steps, trace, parts.fit, workload, machine.n_devices, seed))
    fitted = fit_batches().trace if batches.trace is not trace else select_sequences(trace, parts.fit)
    return Setting(
        model=own_model,
        cluster=machine,
        layout=layout,
        attention_tp=ranks.attention.tp,
        ranks=ranks,
        workload=workload,
        trace=trace,
        fit_loads=expert_loads(fitted),
        fit_sequences=len(parts.fit) if workload.split.fit > 0 else 0,
        fit_batches=fit_batches,
        fit_tokens=_tokens_of(trace, parts.fit)[:FIT_TOKENS],
        batches=batches,
        judged_sequences=len(parts.judged),
        routes=route_shares(judged_steps(asked, *own), batches) if workload.routing.changes else None,
        pool=pool,
        training=training or TrainingSpec(),
    )


def _tokens_of(trace: RoutingTrace, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the tokens of some sequences."""
    spans = [np.arange(trace.offsets[s], trace.offsets[s + 1]) for s in sequences.tolist()]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceParts:
    """Sequences int64[n] to fit plans on, to judge them on, and of the shifted domain (none where there is none)."""

    fit: NDArray[np.int64]
    judged: NDArray[np.int64]
    shifted: NDArray[np.int64]


def sequence_parts(trace: RoutingTrace, workload: WorkloadSpec, seed: int) -> SequenceParts:
    """The parts of `workload.split`; with fit: 0 plans are fitted on the sequences that judge them.

    Raises TraceError where a part stays empty, or no sequence has the label of the shifted domain.
    """
    split = workload.split
    fit, judged = split_sequences(trace, split.fit, split.evaluate, seed)
    shifted = np.empty(0, np.int64) if split.shifted is None else label_sequences(trace, split.shifted)
    fit, judged = (np.setdiff1d(part, shifted) for part in (fit, judged))
    if len(judged) == 0 or (len(fit) == 0 and split.fit > 0):
        raise TraceError(f"outside of the shifted domain '{split.shifted}' a part is empty; name a smaller domain")
    return SequenceParts(fit=fit if len(fit) else judged, judged=judged, shifted=shifted)


def open_trace(workload: WorkloadSpec, model: ModelCard, base: Path) -> RoutingTrace:
    """The workload's trace: read from its file (relative to `base`) or the library, or made up by its knobs."""
    if workload.trace is not None:
        return load_trace(find_trace(workload.trace, base))
    spec = workload.synthetic
    if spec is None:
        raise ScenarioError("workload names neither a trace nor a synthesis")
    fitted = fit_knobs(load_trace(find_trace(spec.fit, base))) if spec.fit is not None else None
    trace = synthesise(knobs_from_spec(spec, model, fitted), np.random.default_rng(spec.seed))
    if model.experts_by_layer is not None:
        there = [range(count) for count in model.experts_by_layer]
        trace = masked(trace, there, np.random.default_rng([spec.seed, 2]))
    return trace


def check_trace(trace: RoutingTrace, model: ModelCard) -> None:
    """Raise TraceError where `trace` cannot come from `model`."""
    pairs = {
        "experts": (trace.n_experts, model.n_experts),
        "MoE layers": (trace.n_layers, len(model.moe_layers)),
        "routed experts per token": (trace.top_k, model.choices),
    }
    wrong = [f"{got} {name} where {model.name} has {want}" for name, (got, want) in pairs.items() if got != want]
    if trace.variable_k and trace.top_k >= model.choices:
        wrong = [text for text in wrong if "per token" not in text]
    if wrong:
        raise TraceError(
            f"the trace ({trace.provenance.model}) has {', and '.join(wrong)}; choose the trace's own model"
        )


def check_plain(setting: Setting, purpose: str) -> None:
    """Raise ScenarioError where experts have devices of their own or layers several runs, unknown to `purpose`."""
    if setting.model.iterations > 1:
        raise ScenarioError(
            f"{purpose} knows one run of a layer, and there are {setting.model.iterations}; compare plans with "
            "`moesim compare`"
        )
    if setting.pool is not None:
        raise ScenarioError(
            f"{purpose} knows one pool of devices, and cluster.experts gives the experts their own; compare plans with "
            "`moesim compare`"
        )


def sides_of(setting: Setting) -> tuple[Setting, ...]:
    """The setting, and with two pools that of the machine of the experts."""
    return (setting,) if setting.pool is None else (setting, replace(setting, cluster=setting.pool, pool=None))
