"""Scenarios with pipeline stages: parts simulated in full, composed, and what cannot be."""

from typing import Any

import numpy as np
import pytest

from hwmodels.links import transfer_s
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.specs import ScenarioSpec
from sim.memory import device_memory
from sim.pipelines.parts import Part, cut_model
from sim.pipelines.tasks import PipelineShape
from sim.pipelines.times import PassTimes, stage_times
from sim.priced_steps import execute_schedule
from sim.result import RunResult
from sim.run import run
from sim.session import Plan, Session, reduced
from tests.small import even_placement, gqa, random_trace, tiny_cluster, tiny_model, tiny_setting
from tests.unit.test_run import GOLDEN

STAGES, MICROBATCHES = 2, 6
LARGE = {
    "cluster": {"devices_per_node": 8, "nodes": 1},
    "workload": {"tokens_per_device": 1024, "steps": 1},
}
"""Passes that take much longer than transfers."""


def scenario(pp: int = STAGES, **sections: Any) -> ScenarioSpec:
    """Four layers on two nodes of four devices."""
    usual: dict[str, Any] = {
        "name": "piped",
        "model": {"card": "tiny-moe.yaml", "n_layers": 4, "first_moe_layer": 0, "attention": gqa()},
        "cluster": {"node": "h200-sxm-8", "devices_per_node": 4, "nodes": 2},
        "workload": {
            "synthetic": {"tokens": 2048, "sequence_tokens": 32},
            "phase": "prefill",
            "tokens_per_device": 32,
            "steps": 4,
            "microbatches": MICROBATCHES,
        },
        "schedule": {},
        "memory": {},
        "parallel": {"attention": {"dp": 8 // pp, "pp": pp}, "experts": {"ep": 8 // pp, "pp": pp}},
    }
    changed = {name: usual[name] | value if isinstance(value, dict) else value for name, value in sections.items()}
    return ScenarioSpec.model_validate(usual | changed)


def result_of(spec: ScenarioSpec) -> RunResult:
    return run(spec, GOLDEN, "test").tables[0].results[0]


def parts_of(spec: ScenarioSpec, n_parts: int) -> list[Part]:
    shape = PipelineShape(n_stages=n_parts, n_microbatches=MICROBATCHES)
    session = Session(spec, GOLDEN)
    plan = Plan.of(spec)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    return session.parts(setting, session.plan_of(setting, plan).placement, shape, ())


def flow_shop_s(forward_s: np.ndarray, apart_s: float) -> float:
    """Makespan of float64[stage, microbatch] through stages in order, by the textbook recursion of a flow shop."""
    end_s = np.zeros_like(forward_s)
    for stage, microbatch in np.ndindex(forward_s.shape):
        before = end_s[stage, microbatch - 1] if microbatch else 0.0
        arrived = end_s[stage - 1, microbatch] + apart_s if stage else 0.0
        end_s[stage, microbatch] = max(before, arrived) + forward_s[stage, microbatch]
    return float(end_s.max())


def test_a_pipeline_is_the_flow_shop_of_its_parts() -> None:
    """Each part is what the scenario of a model with its layers alone gives: here both have a head in turn."""
    spec = scenario()
    result = result_of(spec)
    parts = parts_of(spec, STAGES)
    setting = parts[0].setting
    alone = [
        execute_schedule(p.setting, p.placement, reduced(p.setting, p.placement, spec.schedule), spec.schedule)
        for p in parts
    ]
    passes_s = np.array([np.resize(execution.step_times_s, MICROBATCHES) for execution in alone])
    assert setting.cluster.inter is not None
    apart_s = float(transfer_s(32 * setting.model.hidden_size * 2, setting.cluster.inter))
    expected_s = flow_shop_s(passes_s, apart_s)
    assert result.metrics["step_time_s"] == pytest.approx(expected_s)
    assert result.metrics["tokens_per_s"] == pytest.approx(MICROBATCHES * 4 * 32 / expected_s)
    assert result.metrics["tokens_per_s_per_device"] == pytest.approx(MICROBATCHES * 4 * 32 / expected_s / 8)
    busy_s = passes_s.sum(axis=1).mean()
    assert result.metrics["bubble_frac"] == pytest.approx(1 - busy_s / expected_s)
    assert sum(result.breakdown_s.values()) == pytest.approx(expected_s)


def test_parts_hold_the_model_once() -> None:
    """Routes and slots are those of the model without a pipeline; memory is divided, embedding first, head last."""
    model = tiny_model(n_layers=4, first_moe_layer=1, dense_intermediate_size=32)
    setting = tiny_setting(model, tiny_cluster(1, 4), random_trace(model), phase="prefill")
    placement = even_placement(model, 4)
    parts = cut_model(setting, placement, PipelineShape(n_stages=2, n_microbatches=2), ())
    assert [part.setting.model.moe_layers for part in parts] == [(1,), (0, 1)]
    assert [part.setting.trace.moe_layers for part in parts] == [(1,), (2, 3)]
    ids = np.concatenate([part.setting.trace.ids for part in parts])
    np.testing.assert_array_equal(ids, setting.trace.ids)
    slots = np.concatenate([part.placement.expert_of_slot for part in parts])
    np.testing.assert_array_equal(slots, placement.expert_of_slot)
    memory = scenario().memory
    whole, *own = (
        device_memory(part.setting, part.placement, memory)
        for part in (Part(setting=setting, placement=placement), *parts)
    )
    np.testing.assert_allclose(whole.expert_bytes, own[0].expert_bytes + own[1].expert_bytes)
    assert whole.other_weight_bytes == sum(part.other_weight_bytes for part in own)
    assert whole.kv_bytes == sum(part.kv_bytes for part in own)


def test_only_the_last_part_has_a_head() -> None:
    first, last = (
        execute_schedule(
            p.setting, p.placement, reduced(p.setting, p.placement, scenario().schedule), scenario().schedule
        )
        for p in parts_of(scenario(), STAGES)
    )
    assert np.max(first.durations[-1]) == 0.0
    assert np.min(last.durations[-1]) > 0.0


@pytest.mark.parametrize("executor", ["vector", "event"])
def test_interleaving_shortens_the_bubble(executor: str) -> None:
    plain, chunks = (
        result_of(scenario(schedule={"pipeline": name, "stage_chunks": 2, "executor": executor}, **LARGE))
        for name in ("1f1b", "interleaved")
    )
    assert chunks.metrics["bubble_frac"] < plain.metrics["bubble_frac"]
    assert chunks.metrics["memory_bytes.peak"] == pytest.approx(plain.metrics["memory_bytes.peak"], rel=0.05)


def test_a_search_finds_the_best_pipeline() -> None:
    searched = result_of(scenario(schedule={"search": [{"pipeline": ["gpipe", "interleaved"]}]}, **LARGE))
    assert searched.plan["search"]["chosen"] == "sequential (interleaved)"


def test_layers_by_part() -> None:
    even, uneven = (result_of(scenario(parallel={"stage_layers": layers})) for layers in ((2, 2), (3, 1)))
    assert uneven.metrics["step_time_s"] > even.metrics["step_time_s"]


def test_microbatches_follow_each_other_in_turn() -> None:
    """Three batches, six steps of two microbatches drawn from eight batches: four steps."""
    batches = np.arange(8.0)
    passes = PassTimes(forward_s=batches, backward_input_s=2 * batches, backward_weight_s=batches, overlapped_s=batches)
    times = stage_times([passes, passes], 2, [0.5])
    assert times.forward_s.shape == (4, 2, 2)
    np.testing.assert_array_equal(times.forward_s[:, 1], [[0, 1], [2, 3], [4, 5], [6, 7]])
    few = stage_times([passes], 12, [])
    np.testing.assert_array_equal(few.forward_s[0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3])


@pytest.mark.parametrize(("sections", "words"), [
    ({"workload": {"microbatches": 1}}, "pipeline of 2 stages needs as many at least, and 1 leave stages idle"),
    ({"workload": {"microbatches": None}}, "and none are given; give 2 or more"),
    ({"memory": {"offload": {"slots": 4}}}, "memory.offload: .* pipelines"),
    ({"workload": {"phase": "decode"}}, "pipelines .2 stages, .* in decode"),
    ({"schedule": {"pipeline": "zb1p"}}, "zb1p orders backward passes, and phase prefill has none"),
    ({"schedule": {"pipeline": "interleaved"}, "workload": {"microbatches": 7}}, "7 microbatches .* divisible by 2"),
    ({"schedule": {"pipeline": "interleaved", "stage_chunks": 4}}, "4 layers of .* do not divide into 8 parts"),
    ({"parallel": {"stage_layers": (1, 1)}}, "2 parts with 2 layers, but the pipeline has 2 parts and .* 4 layers"),
    ({"parallel": {"stage_layers": (1, 3)}, "model": {"attention": gqa(window_tokens=8, windowed_every=2)}},
     "begins at layer 1 of .*, which has a window"),
    ({"model": {"first_moe_layer": 2}}, "layers 0 to 1 of .* make a part of the pipeline without experts"),
])  # fmt: skip
def test_pipelines_that_cannot_be(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        result_of(scenario(**sections))


def test_layers_that_do_not_divide() -> None:
    with pytest.raises(ScenarioError, match=r"5 layers of .* do not divide .*stage_layers: \[3, 2\]"):
        result_of(scenario(model={"n_layers": 5}))


def test_a_stage_that_does_not_fit() -> None:
    with pytest.raises(MemoryInfeasible, match="short by"):
        result_of(scenario(memory={"requests_per_device": 10_000_000, "context_tokens": 4096}))
