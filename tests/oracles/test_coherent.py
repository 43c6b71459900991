"""Tokens that stay with their experts: followed one by one, and the volumes and identities of ExFlow."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.reduction import reduce_trace
from scenarios.catalog import find_model
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.coherent import check_coherent, context_bytes, context_tokens
from sim.durations import ExchangeTime
from sim.forward import build_step
from sim.memory import check_memory, device_memory, with_all_contexts
from sim.metrics import traffic_metrics
from sim.policies import POLICIES
from sim.priced_steps import execute_schedule
from sim.pricing import price
from sim.program import compile_program
from sim.session import reduced
from sim.setting import Setting
from tests.small import even_placement, random_placement, random_trace, tiny_cluster, tiny_model, tiny_setting

COHERENT = {"exchange": {"algorithm": "coherent"}}


def setting_of(n_nodes: int = 2, per_node: int = 2, n_layers: int = 3, **load: Any) -> Setting:
    model = tiny_model(n_layers=n_layers, top_k=1, **load.pop("model", {}))
    return tiny_setting(model, tiny_cluster(n_nodes, per_node), random_trace(model), **load)


def schedule_of(**fields: Any) -> ScheduleSpec:
    return ScheduleSpec.model_validate(COHERENT | fields)


@pytest.mark.parametrize("replicas", [0, 4])
def test_tokens_start_a_layer_where_they_ended_the_one_before(replicas: int) -> None:
    setting = setting_of()
    placement = random_placement(3, 8, 4, 8 + replicas, seed=1)
    tokens, n_ranks = setting.batches.tokens, 4
    got = reduce_trace(setting.trace, tokens, placement, setting.layout, algorithm="coherent")
    assert got.located is not None
    pairs = np.zeros((3, n_ranks, n_ranks), int)
    located = np.zeros((4, len(tokens), n_ranks), int)
    slots = np.zeros((3, len(tokens), placement.n_slots), int)
    for step, devices in enumerate(tokens):
        for device, held in enumerate(devices):
            for place, token in enumerate(held):
                here = device
                for layer in range(3):
                    located[layer, step, here] += 1
                    copies = np.flatnonzero(placement.expert_of_slot[layer] == setting.trace.ids[layer, 0, token])
                    slot = copies[(device * len(held) + place) % len(copies)]
                    slots[layer, step, slot] += 1
                    there = placement.rank_of_slot[layer, slot]
                    pairs[layer, here, there] += 1
                    here = there
                located[3, step, here] += 1
    assert (got.slot_tokens == slots).all()
    assert (got.pairs_total == pairs).all()
    assert (got.located == located).all()


def test_a_dropped_token_stays_where_it_is() -> None:
    setting = setting_of(n_layers=2)
    ids = np.array(setting.trace.ids)
    ids[1] = np.iinfo(ids.dtype).max
    trace = replace(setting.trace, ids=ids, variable_k=True)
    got = reduce_trace(
        trace, setting.batches.tokens, even_placement(setting.model, 4), setting.layout, algorithm="coherent"
    )
    assert got.located is not None
    assert (got.located[1] == got.located[2]).all()
    assert got.slot_tokens[1].sum() == 0


def test_with_one_layer_half_as_much_travels_beside_the_contexts() -> None:
    """Volumes of the paper: 2 G N L p at home, G N (L p + G) where each GPU gets the contexts of all others."""
    setting = setting_of(n_nodes=1, per_node=4, n_layers=1)
    placement = even_placement(setting.model, 4)
    direct, coherent = ScheduleSpec(), schedule_of()
    moved = [
        traffic_metrics(setting, reduced(setting, placement, one), one, context_bytes(setting, one))["bytes.nvlink"]
        for one in (direct, coherent)
    ]
    contexts = 4 * 4 * 3 * 128  # devices x tokens x other devices x bytes
    assert moved[1] == pytest.approx(moved[0] / 2 + contexts)


def test_contexts_reach_every_device_once() -> None:
    setting = setting_of(n_nodes=2, per_node=4, tokens_per_device=10)
    inside, between = context_tokens(setting, 10)
    assert inside + between == 10 * 7
    assert between == 10


def test_attention_takes_as_long_as_the_tokens_that_are_there() -> None:
    setting = setting_of(tokens_per_device=512, context_tokens=100, steps=2)
    placement, schedule = even_placement(setting.model, 4), schedule_of()
    reduction = reduced(setting, placement, schedule)
    prices = price(setting, placement, reduction, schedule.exchange)
    assert reduction.located is not None
    even = price(setting, placement, reduced(setting, placement, ScheduleSpec()), ScheduleSpec().exchange)
    first = prices.per_chunk["attention"][0][0]
    assert not isinstance(first, ExchangeTime)
    assert first == pytest.approx(even.per_layer["attention"][0])
    for row in range(1, 4):
        times_s, held = prices.per_chunk["attention"][row][0], reduction.located[row]
        assert not isinstance(times_s, ExchangeTime)
        for step in range(2):
            order = np.argsort(held[step], kind="stable")
            assert (np.diff(times_s[step][order]) >= 0).all()


@pytest.mark.parametrize("overlap", ["none", "chunked", "two-batch", "two-batch-prefill", "two-batch-decode"])
def test_nothing_comes_back_under_any_schedule(overlap: str) -> None:
    setting, schedule = setting_of(), schedule_of(overlap=overlap)
    placement = even_placement(setting.model, 4)
    reduction = reduced(setting, placement, schedule)
    vector = execute_schedule(setting, placement, reduction, schedule)
    event = execute_schedule(setting, placement, reduction, schedule.model_copy(update={"executor": "event"}))
    assert vector.step_times_s == pytest.approx(event.step_times_s, rel=1e-9)
    kinds = {op.work.kind for op in vector.op_list.ops}
    assert {"contexts", "dispatch"} <= kinds
    assert "combine" not in kinds


def test_contexts_are_gathered_before_the_first_layer() -> None:
    step = build_step(tiny_model(top_k=1), chunks=1, attention_tp=1, exchange=schedule_of().exchange)
    ops = compile_program(POLICIES["none"], step).ops
    assert [op.work.kind for op in ops][:3] == ["contexts", "attention", "gate"]


def test_every_device_holds_the_cache_of_all() -> None:
    setting = setting_of()
    placement = even_placement(setting.model, 4)
    memory = device_memory(setting, placement, MemorySpec())
    everywhere = with_all_contexts(memory, 4)
    assert everywhere.kv_bytes == 4 * memory.kv_bytes
    full = replace(everywhere, usable_bytes=float(memory.used_bytes.max()))
    with pytest.raises(MemoryInfeasible):
        check_memory(full, setting, placement)


def test_models_and_layouts_that_need_a_way_back_are_refused() -> None:
    setting = setting_of()
    for model, text in (
        (tiny_model(), "top_k 1"),
        (tiny_model(top_k=1, shared_intermediate_size=8), "shared experts"),
        (find_model("deepseek-v2-lite", Path()), "top_k 1"),
    ):
        with pytest.raises(ScenarioError, match=text):
            check_coherent(replace(setting, model=model), schedule_of())
    with pytest.raises(ScenarioError, match="set both to 1"):
        check_coherent(replace(setting, attention_tp=2), schedule_of())
