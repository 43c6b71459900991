"""What all plans of a comparison share: model, machine, layout and the steps to replay, made from a scenario."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
from scenarios.training_specs import TrainingSpec
from scenarios.workload_specs import WorkloadSpec
from sim.program import EXCHANGE_LANES, INSIDE_LANES, Chunk, Layer, Step, Tiling, Work
from sim.size import check_workload
from traces.batches import Batches, compose_batches
from traces.routing import RoutingTrace
from traces.split import label_sequences, select_sequences, split_sequences
from traces.stats import expert_loads
from traces.storage import load_trace
from traces.synth import fit_knobs, knobs_from_spec, synthesise

FIT_TOKENS = 1 << 15  # enough to know which of 256 experts follow which: 128 tokens an expert at the least top-k
FIT_STEPS = 64  # `joint` anneals on half of them on eight devices, and `auto` compares plans on the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model on one machine under one workload.

    fit_loads    int64[layer, expert]: routed tokens of the sequences that plans are fitted on.
    fit_batches  `FIT_STEPS` steps of the same sequences, for solvers that look at steps or tokens.
    fit_tokens   int64[token]: those sequences' tokens, indices into the trace; at most `FIT_TOKENS`.
    batches      the steps that plans are judged on, of other sequences.
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
    fit_batches: Batches | None = None
    fit_tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    training: TrainingSpec = field(default_factory=TrainingSpec)

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
    training: TrainingSpec | None = None,
) -> Setting:
    """The setting of these specs; a file of kernel constants is relative to `base`.

    Raises ScenarioError or TraceError where they contradict each other.
    """
    machine = build_cluster(cluster, base)
    layout, attention_tp = _layout(machine, parallel)
    check_workload(workload, model, layout.n_devices)
    check_trace(trace, model)
    parts = sequence_parts(trace, workload, seed)
    batches = compose_batches(
        trace,
        parts.judged,
        phase=workload.phase,
        shape=(workload.steps, layout.n_devices, workload.tokens_per_device),
        context_tokens=workload.context_tokens,
        rng=np.random.default_rng([seed, 1]),
    )
    return Setting(
        model=model,
        cluster=machine,
        layout=layout,
        attention_tp=attention_tp,
        workload=workload,
        trace=trace,
        fit_loads=expert_loads(select_sequences(trace, parts.fit)),
        fit_sequences=len(parts.fit) if workload.split.fit > 0 else 0,
        fit_batches=_spread_batches(trace, parts.fit, layout.n_devices, workload, np.random.default_rng([seed, 2])),
        fit_tokens=_tokens_of(trace, parts.fit)[:FIT_TOKENS],
        batches=batches,
        judged_sequences=len(parts.judged),
        training=training or TrainingSpec(),
    )


def _tokens_of(trace: RoutingTrace, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the tokens of some sequences."""
    spans = [np.arange(trace.offsets[s], trace.offsets[s + 1]) for s in sequences.tolist()]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)


def _spread_batches(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    n_devices: int,
    workload: WorkloadSpec,
    rng: np.random.Generator,
) -> Batches:
    """`FIT_STEPS` steps, evenly spread over one pass through the sequences.

    Steps in a row hold the same requests, and a plan fitted on them would know few.
    """
    n_tokens = int((trace.offsets[sequences + 1] - trace.offsets[sequences]).sum())
    n_steps = max(FIT_STEPS, n_tokens // (n_devices * workload.tokens_per_device))
    batches = compose_batches(
        trace,
        sequences,
        phase=workload.phase,
        shape=(n_steps, n_devices, workload.tokens_per_device),
        context_tokens=workload.context_tokens,
        rng=rng,
    )
    return batches.at(np.linspace(0, n_steps - 1, FIT_STEPS).astype(np.int64))


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
    return synthesise(knobs_from_spec(spec, model, fitted), np.random.default_rng(spec.seed))


def check_trace(trace: RoutingTrace, model: ModelCard) -> None:
    """Raise TraceError where `trace` cannot come from `model`."""
    pairs = {
        "experts": (trace.n_experts, model.n_experts),
        "MoE layers": (trace.n_layers, len(model.moe_layers)),
        "routed experts per token": (trace.top_k, model.top_k),
    }
    wrong = [f"{got} {name} where {model.name} has {want}" for name, (got, want) in pairs.items() if got != want]
    if trace.variable_k and trace.top_k >= model.top_k:
        wrong = [text for text in wrong if "per token" not in text]
    if wrong:
        raise TraceError(
            f"the trace ({trace.provenance.model}) has {', and '.join(wrong)}; choose the trace's own model"
        )


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

    def layer(number: int) -> Layer:
        is_moe = number in moe_layers
        return Layer(
            attention=Work("core" if split_attention else "attention", number, part),
            projections=Work("projections", number, part) if split_attention else None,
            gather=Work("gather", number, part) if attention_tp > 1 else None,
            scatter=Work("scatter", number, part) if attention_tp > 1 else None,
            gate=Work("gate", number, part) if is_moe else None,
            shared=Work("shared", number, part) if is_moe and model.shared_intermediate_size else None,
            mlp=None if is_moe else Work("mlp", number, part),
            chunks=tuple(_chunk(number, chunk, shape.exchange) for chunk in chunks) if is_moe else (),
            before_dispatch=(Work("descend", number, part),) if is_moe and model.bottleneck_size else (),
            after_combine=(Work("ascend", number, part),) if is_moe and model.bottleneck_size else (),
        )

    return Step(layers=tuple(layer(number) for number in range(model.n_layers)), head=Work("head", -1, part))


STAGES: dict[str, tuple[str, ...]] = {"hierarchical": ("regroup", "collect"), "sliced": ("forward", "collect")}
"""Works of a chunk inside nodes, by algorithm of the exchange."""


def _chunk(layer: int, chunk: int, exchange: ExchangeSpec) -> Chunk:
    dispatch, experts, combine = (Work(kind, layer, chunk) for kind in ("dispatch", "experts", "combine"))
    stages = {kind: Work(kind, layer, chunk) for kind in STAGES.get(exchange.algorithm, ())}
    lanes = INSIDE_LANES if exchange.inside == "own" else EXCHANGE_LANES
    return Chunk(dispatch, experts, combine, **stages, lanes=lanes)


def _layout(cluster: Cluster, parallel: ParallelSpec) -> tuple[ExpertLayout, int]:
    n_devices = cluster.n_devices
    attention, experts = parallel.attention, parallel.experts
    for name, degrees in (
        ("attention", attention and (attention.dp, attention.tp)),
        ("experts", experts and (experts.ep, experts.tp)),
    ):
        if degrees and degrees[0] * degrees[1] != n_devices:
            kinds = "dp x tp" if name == "attention" else "ep x tp"
            raise ScenarioError(
                f"parallel.{name}: {kinds} = {degrees[0]} x {degrees[1]} = {degrees[0] * degrees[1]}, "
                f"but the cluster has {n_devices} devices ({cluster.n_nodes} x {cluster.devices_per_node})"
            )
    attention_tp = attention.tp if attention else 1
    if cluster.devices_per_node % attention_tp:
        raise ScenarioError(
            f"parallel.attention: tp {attention_tp} does not divide the {cluster.devices_per_node} devices of a node"
        )
    layout = ExpertLayout(
        n_devices=n_devices, devices_per_node=cluster.devices_per_node, tp=experts.tp if experts else 1
    )
    return layout, attention_tp
