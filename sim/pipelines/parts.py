"""A model cut for a pipeline: each part as a setting and a placement of its own, which the engine simulates in full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import GroupedQueryAttention, ModelCard
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import WorkloadSpec
from sim.pipelines import BIDIRECTIONAL
from sim.pipelines.tasks import PipelineShape
from sim.setting import Setting
from traces.routing import RoutingTrace

FORWARD_ONLY = ("gpipe", "1f1b", "interleaved")
"""Orders that mean something without a backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive layers of the model with their experts."""

    setting: Setting
    placement: Placement


def shape_of(n_stages: int, workload: WorkloadSpec, schedule: ScheduleSpec) -> PipelineShape:
    """The pipeline of a scenario.

    Raises ScenarioError where it has no microbatches or fewer than stages, in decode, whose next token waits for the
    last stage, and where the order needs a backward pass that there is not.
    """
    name = schedule.pipeline or "1f1b"
    if workload.phase == "prefill" and name not in FORWARD_ONLY:
        raise ScenarioError(
            f"schedule.pipeline: {name} orders backward passes, and phase prefill has none; choose "
            f"{', '.join(FORWARD_ONLY)}"
        )
    if workload.phase == "decode":
        raise ScenarioError(
            f"parallel: pipelines ({n_stages} stages, workload.microbatches) in decode, where the next token of a "
            "request waits for the last stage, are not modelled; use phase prefill or train, or leave them out"
        )
    microbatches = workload.microbatches
    if microbatches is None or microbatches < n_stages:
        given = "none are given" if microbatches is None else f"{microbatches} leave stages idle all the time"
        raise ScenarioError(
            f"workload.microbatches: a pipeline of {n_stages} stages needs as many at least, and {given}; give "
            f"{n_stages} or more"
        )
    return PipelineShape(
        n_stages=n_stages,
        n_microbatches=microbatches,
        chunks=schedule.stage_chunks if name == "interleaved" else 1,
        bidirectional=name in BIDIRECTIONAL,
    )


def cut_model(setting: Setting, placement: Placement, shape: PipelineShape, layers: tuple[int, ...]) -> list[Part]:
    """The model in the parts of a pipeline, of so many layers each, or as many in all where none are given.

    A microbatch of a part has no sums of gradients and no update; where two stages hold each part, both sum theirs.

    Raises ScenarioError where layers are left over, or a part has none with experts.
    """
    model, n_parts = setting.model, shape.n_parts
    training = setting.training.model_copy(update={"replicas": setting.training.replicas * (1 + shape.bidirectional)})
    setting = replace(setting, updates=False, training=training)
    counts = layers or _even_layers(model, n_parts)
    if len(counts) != n_parts or sum(counts) != model.n_layers:
        raise ScenarioError(
            f"parallel.stage_layers: {len(counts)} parts with {sum(counts)} layers, but the pipeline has {n_parts} "
            f"parts and {model.name} {model.n_layers} layers"
        )
    ends = list(accumulate(counts, initial=0))
    return [_part(setting, placement, range(first, end)) for first, end in pairwise(ends)]


def _even_layers(model: ModelCard, n_parts: int) -> tuple[int, ...]:
    fewest, more = divmod(model.n_layers, n_parts)
    if more:
        uneven = [fewest + 1] * more + [fewest] * (n_parts - more)
        remedy = f"say how many each has, such as parallel.stage_layers: {uneven}" if fewest else "lower pp"
        raise ScenarioError(
            f"parallel: {model.n_layers} layers of {model.name} do not divide into {n_parts} parts of pipeline stages; "
            f"{remedy}"
        )
    return (fewest,) * n_parts


def _part(setting: Setting, placement: Placement, layers: range) -> Part:
    model = setting.model
    rows = np.array([row for row, layer in enumerate(model.moe_layers) if layer in layers])
    if not len(rows):
        raise ScenarioError(
            f"parallel: layers {layers[0]} to {layers[-1]} of {model.name} make a part of the pipeline without "
            "experts, which is not modelled; give it a layer with experts by parallel.stage_layers"
        )
    attention = model.attention
    every = attention.windowed_every if isinstance(attention, GroupedQueryAttention) and attention.window_tokens else 1
    if layers[0] % every:
        raise ScenarioError(
            f"parallel: a part of the pipeline begins at layer {layers[0]} of {model.name}, which has a window of "
            f"attention in one of {every} layers; begin parts at multiples of {every} by parallel.stage_layers"
        )
    own = model.model_copy(
        update={
            "n_layers": len(layers),
            "moe_layer_list": tuple(layer - layers[0] for layer in model.moe_layers if layer in layers),
        }
    )
    part = replace(
        setting,
        model=own,
        trace=_trace_part(setting.trace, rows),
        batches=replace(setting.batches, trace=_trace_part(setting.batches.trace, rows)),
        fit_loads=setting.fit_loads[rows],
        widths=None if setting.widths is None else replace(setting.widths, index=setting.widths.index[rows]),
        is_first=layers[0] == 0,
        is_last=layers[-1] == model.n_layers - 1,
    )
    experts = replace(
        placement, expert_of_slot=placement.expert_of_slot[rows], rank_of_slot=placement.rank_of_slot[rows]
    )
    return Part(setting=part, placement=experts)


def _trace_part(trace: RoutingTrace, rows: np.ndarray) -> RoutingTrace:
    return replace(
        trace,
        ids=trace.ids[rows[0] : rows[-1] + 1],
        weights=None if trace.weights is None else trace.weights[rows[0] : rows[-1] + 1],
        moe_layers=tuple(trace.moe_layers[row] for row in rows),
        check_ids=False,
    )
