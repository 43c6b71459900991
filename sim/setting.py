"""What all plans of a comparison share: model, machine, layout and the steps to replay, made from a scenario."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import Cluster, build_cluster
from placement.layout import ExpertLayout
from scenarios.catalog import find_trace
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import ScenarioError, TraceError
from scenarios.models import ModelCard
from scenarios.schedule_specs import ExchangeSpec
from scenarios.workload_specs import WorkloadSpec
from sim.program import EXCHANGE_LANES, INSIDE_LANES, Chunk, Layer, Step, Tiling, Work
from sim.size import check_workload
from sim.steps import as_chosen, chosen, composed, numbered, routed_model, spread_steps, with_room
from traces.batches import Batches
from traces.drops import RouteShares, route_shares
from traces.routes import masked, with_gate_weights
from traces.routing import RoutingTrace
from traces.split import label_sequences, select_sequences, split_sequences
from traces.stats import expert_loads
from traces.storage import load_trace
from traces.synth import fit_knobs, knobs_from_spec, synthesise


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model on one machine under one workload.

    fit_loads    int64[layer, expert]: routed tokens of the sequences that plans are fitted on; where devices or steps
                 have a capacity, of the steps `fit_batches`.
    fit_batches  `sim.steps.FIT_STEPS` steps of the same sequences, for solvers that look at steps or tokens.
    batches      the steps that plans are judged on, of other sequences.
    routes       what became of their choices, where the workload changes routes.
    cluster      machine of attention, and of the experts unless they have a `pool` of their own; layout: of experts.
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
    fit_batches: Batches | None = None
    routes: RouteShares | None = None

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


def make_setting(
    *,
    model: ModelCard,
    cluster: ClusterSpec,
    parallel: ParallelSpec,
    workload: WorkloadSpec,
    trace: RoutingTrace,
    seed: int,
    base: Path = Path(),
) -> Setting:
    """The setting of these specs; a file of kernel constants is relative to `base`.

    Raises ScenarioError or TraceError where they contradict each other.
    """
    machine = build_cluster(cluster, base)
    pool = None if cluster.experts is None else build_cluster(cluster.experts, base)
    layout, attention_tp = _layout(machine, pool, parallel)
    check_workload(workload, model, machine.n_devices)
    check_trace(trace, model)
    asked = chosen(numbered(trace, model, workload.routing), workload.routing)
    trace = with_room(asked, workload.routing)
    parts = sequence_parts(trace, workload, seed)
    judged = parts.judged, workload, (workload.steps, machine.n_devices)
    batches = composed(trace, *judged, np.random.default_rng([seed, 1]))
    fit_batches = spread_steps(trace, parts.fit, workload, machine.n_devices, np.random.default_rng([seed, 2]))
    routes = None
    if workload.routing.changes:
        routes = route_shares(as_chosen(asked, *judged, np.random.default_rng([seed, 1])), batches)
    return Setting(
        model=routed_model(model, workload.routing),
        cluster=machine,
        layout=layout,
        attention_tp=attention_tp,
        workload=workload,
        trace=trace,
        fit_loads=expert_loads(select_sequences(trace, parts.fit) if fit_batches.trace is trace else fit_batches.trace),
        fit_sequences=len(parts.fit) if workload.split.fit > 0 else 0,
        fit_batches=fit_batches,
        batches=batches,
        judged_sequences=len(parts.judged),
        routes=routes,
        pool=pool,
    )


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
    if spec.gate_spread is None:
        return trace
    return with_gate_weights(trace, spec.gate_spread, np.random.default_rng([spec.seed, 1]))


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


def build_step(
    model: ModelCard,
    *,
    chunks: int,
    attention_tp: int,
    microbatched: bool = False,
    split_attention: bool = False,
    tiling: Tiling | None = None,
    exchange: ExchangeSpec | None = None,
) -> Step:
    """The works of a forward pass of `model`: its experts in `chunks` chunks, or all of it in as many microbatches.

    split_attention  projections are a work of their own; tiling: the chunks are tiles of fused kernels.
    """
    shape = _Shape(attention_tp, split_attention, exchange or ExchangeSpec())
    if microbatched:
        first, *others = (_pass(model, (part,), part, shape) for part in range(chunks))
        return replace(first, others=tuple(others))
    step = _pass(model, tuple(range(chunks)), -1, shape)
    if tiling is None:
        return step
    return replace(step, layers=tuple(layer if layer.gate is None else tiled(layer, tiling) for layer in step.layers))


def tiled(layer: Layer, tiling: Tiling) -> Layer:
    """The layer with its chunks as tiles: experts' work 0 are the own rows, then rows that arrive, then columns."""
    n, work = len(layer.chunks), layer.chunks[0].experts
    tiles = tuple(
        replace(
            chunk,
            experts=replace(work, chunk=1 + place),
            down=replace(work, chunk=1 + n + place) if tiling == "columns" else None,
        )
        for place, chunk in enumerate(layer.chunks)
    )
    return replace(layer, chunks=tiles, local=replace(work, chunk=0))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What of a schedule decides which works a layer has."""

    attention_tp: int
    split_attention: bool
    exchange: ExchangeSpec


def _pass(model: ModelCard, chunks: tuple[int, ...], part: int, shape: _Shape) -> Step:
    """A pass whose experts work on `chunks`, and all else on `part` of the tokens."""
    attention_tp, split_attention = shape.attention_tp, shape.split_attention
    moe_layers = set(model.moe_layers)

    gathers = dict.fromkeys(range(model.n_layers if attention_tp > 1 else 0), "gather")
    if shape.exchange.algorithm == "coherent":
        gathers = {0: "contexts"}

    def layer(number: int, run: int) -> Layer:
        """A layer, or a further run of its experts."""
        is_moe, first = number in moe_layers, run == 0

        def work(kind: str) -> Work:
            return Work(kind, number, part, run)

        return Layer(
            attention=work("core" if split_attention else "attention") if first else None,
            projections=work("projections") if split_attention and first else None,
            gather=work(gathers[number]) if number in gathers and first else None,
            scatter=work("scatter") if attention_tp > 1 and first else None,
            gate=work("gate") if is_moe else None,
            shared=work("shared") if is_moe and model.shared_intermediate_size else None,
            mlp=None if is_moe else work("mlp"),
            chunks=tuple(_chunk(number, chunk, run, shape.exchange) for chunk in chunks) if is_moe else (),
            before_dispatch=(work("descend"),) if is_moe and model.bottleneck_size else (),
            after_combine=(work("ascend"),) if is_moe and model.bottleneck_size else (),
        )

    runs = [(n, run) for n in range(model.n_layers) for run in range(model.iterations if n in moe_layers else 1)]
    return Step(layers=tuple(layer(*run) for run in runs), head=Work("head", -1, part))


STAGES: dict[str, tuple[str, ...]] = {"hierarchical": ("regroup", "collect"), "sliced": ("forward", "collect")}
"""Works of a chunk inside nodes, by algorithm of the exchange."""


def _chunk(layer: int, chunk: int, run: int, exchange: ExchangeSpec) -> Chunk:
    dispatch, experts, combine = (Work(kind, layer, chunk, run) for kind in ("dispatch", "experts", "combine"))
    stages = {kind: Work(kind, layer, chunk, run) for kind in STAGES.get(exchange.algorithm, ())}
    lanes = INSIDE_LANES if exchange.inside == "own" else EXCHANGE_LANES
    back = None if exchange.algorithm == "coherent" else combine
    return Chunk(dispatch, experts, back, **stages, lanes=lanes)


def _layout(cluster: Cluster, pool: Cluster | None, parallel: ParallelSpec) -> tuple[ExpertLayout, int]:
    attention, experts = parallel.attention, parallel.experts
    home = pool or cluster
    for name, degrees, machine in (
        ("attention", attention and (attention.dp, attention.tp), cluster),
        ("experts", experts and (experts.ep, experts.tp), home),
    ):
        if degrees and degrees[0] * degrees[1] != machine.n_devices:
            kinds = "dp x tp" if name == "attention" else "ep x tp"
            owner = "the cluster" if pool is None or name == "attention" else "cluster.experts"
            raise ScenarioError(
                f"parallel.{name}: {kinds} = {degrees[0]} x {degrees[1]} = {degrees[0] * degrees[1]}, "
                f"but {owner} has {machine.n_devices} devices ({machine.n_nodes} x {machine.devices_per_node})"
            )
    attention_tp = attention.tp if attention else 1
    if cluster.devices_per_node % attention_tp:
        raise ScenarioError(
            f"parallel.attention: tp {attention_tp} does not divide the {cluster.devices_per_node} devices of a node"
        )
    layout = ExpertLayout(
        n_devices=home.n_devices,
        devices_per_node=home.devices_per_node,
        tp=experts.tp if experts else 1,
        sources=0 if pool is None else cluster.n_devices,
    )
    return layout, attention_tp
