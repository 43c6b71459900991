"""Layers that are run several times (Chain-of-Experts): each run with its part of the choices, on the same experts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.catalog import find_model
from scenarios.errors import ScenarioError, TraceError
from scenarios.models import ModelCard
from scenarios.routing_specs import RoutingSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.durations import ExchangeTime
from sim.memory import device_memory
from sim.priced_steps import execute_schedule
from sim.session import reduced
from sim.setting import Setting, check_plain
from sim.steps import chosen, dropped, routed_model
from tests.small import even_placement, random_ids, random_trace, tiny_cluster, tiny_model, tiny_setting, trace_of
from traces.routes import iterated, joined

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"overlap": "chunked", "chunks": 2},
    {"overlap": "two-batch"},
    {"overlap": "two-batch-decode"},
    {"exchange": {"law": "fifo"}},
    {"exchange": {"dedup": "none"}, "payload": {"rate": 0.5}},
    {"overlap": "tiles", "sms": 2},
    {"overlap": "two-batch-prefill"},
]


def settings_of(iterations: int, **fields: Any) -> tuple[Setting, Setting]:
    """The same trace of four choices at once, and in so many runs."""
    model = tiny_model(top_k=4, **fields)
    setting = tiny_setting(model, tiny_cluster(1, 4), random_trace(model))
    return setting, replace(setting, model=routed_model(model, RoutingSpec(iterations=iterations)))


def test_runs_take_every_nth_choice_and_lose_none() -> None:
    trace = trace_of(random_ids((2, 6, 20), 16, unused_frac=0.2), 16)
    rows = iterated(trace, 3)
    assert rows.ids.shape == (6, 2, 20)
    for layer in range(2):
        for run in range(3):
            assert (rows.ids[3 * layer + run] == trace.ids[layer, run::3]).all()
    assert (joined(rows, 3).ids == trace.ids).all()
    assert joined(rows, 3).moe_layers == trace.moe_layers
    with pytest.raises(TraceError, match="6 choices of a token do not divide into 4"):
        chosen(trace, RoutingSpec(iterations=4))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_run_is_a_layer_without_attention(schedule: dict[str, Any]) -> None:
    """Against a model with as many MoE layers as runs, whose attention between runs is taken out of the time."""
    spec = ScheduleSpec.model_validate(schedule)
    _, twice = settings_of(2, shared_intermediate_size=16)
    placement = even_placement(twice.model, 4)
    reduction = reduced(twice, placement, spec)
    assert len(reduction.slot_tokens) == 4
    vector = execute_schedule(twice, placement, reduction, spec)
    event = execute_schedule(twice, placement, reduction, spec.model_copy(update={"executor": "event"}))
    assert vector.step_times_s == pytest.approx(event.step_times_s, rel=1e-9)
    unrolled = tiny_model(n_layers=4, top_k=2, shared_intermediate_size=16)
    rows = replace(iterated(twice.batches.trace, 2), moe_layers=(0, 1, 2, 3))
    longer = replace(twice, model=unrolled, trace=rows, batches=replace(twice.batches, trace=rows))
    other = reduced(longer, placement.for_rows(4), spec)
    assert (reduction.slot_tokens == other.slot_tokens).all()
    whole = execute_schedule(longer, placement.for_rows(4), other, spec)
    kinds = [op.work.kind for op in vector.op_list.ops]
    assert kinds.count("gate") == [op.work.kind for op in whole.op_list.ops].count("gate")
    assert kinds.count("experts") == [op.work.kind for op in whole.op_list.ops].count("experts")
    if spec.overlap == "none" and spec.exchange.law == "port":
        attention = whole.durations[[op.work.kind for op in whole.op_list.ops].index("attention")]
        assert not isinstance(attention, ExchangeTime)
        assert (vector.step_times_s <= whole.step_times_s - 2 * attention.min(axis=-1) + 1e-12).all()
        assert (vector.step_times_s >= whole.step_times_s - 2 * attention.max(axis=-1) - 1e-12).all()


def test_experts_lie_in_memory_once() -> None:
    once, twice = settings_of(2)
    placement = even_placement(once.model, 4)
    assert (
        device_memory(once, placement, MemorySpec()).used_bytes
        == device_memory(twice, placement, MemorySpec()).used_bytes
    ).all()


def test_every_run_has_a_capacity_of_its_own() -> None:
    _, twice = settings_of(2)
    spec = RoutingSpec(iterations=2, capacity_factor=1.0)
    rows = iterated(dropped(twice.batches, spec).trace, 2)
    ids = rows.ids.reshape(4, 2, -1, 4)  # run, choice, step x device, token
    loads = np.stack([(ids == expert).sum(axis=(1, 3)) for expert in range(8)])
    assert loads.max() == 1  # ceil(1.0 x 2 x 4 / 8)
    assert loads.sum() == sum(
        min(int((group == expert).sum()), 1)
        for run in iterated(twice.batches.trace, 2).ids[:, :, twice.batches.tokens].reshape(4, 2, -1, 4)
        for group in run.swapaxes(0, 1)
        for expert in range(8)
    )


def test_where_experts_move_or_bounds_are_asked_runs_are_refused() -> None:
    _, twice = settings_of(2)
    schedule = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}, "move": {"kind": "pull"}})
    with pytest.raises(ScenarioError, match="leave move out"):
        reduced(twice, even_placement(twice.model, 4), schedule)
    with pytest.raises(ScenarioError, match="one run of a layer, and there are 2"):
        check_plain(twice, "moesim bound")


def test_a_card_may_say_how_often_its_layers_are_run() -> None:
    card = find_model({"card": "olmoe-1b-7b", "top_k": 4, "iterations": 2}, Path())
    assert (card.choices, card.active_parameters) == (8, find_model("olmoe-1b-7b", Path()).active_parameters)
    with pytest.raises(ScenarioError, match="times iterations"):
        find_model({"card": "mixtral-8x7b", "iterations": 5}, Path())
    assert isinstance(card, ModelCard)
