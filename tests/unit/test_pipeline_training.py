"""Training steps in pipelines: passes of parts, gradients put off, memory in flight, the end of a step."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwmodels.attention import projection_products
from hwmodels.gemm import gemm_s, product_s
from hwmodels.gradients import expert_weight_gradients_s
from hwmodels.moe import expert_shape
from placement.moe_time import tokens_by_rank
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec, ScenarioSpec
from scenarios.training_specs import TrainingSpec
from sim.gradient_sums import Group, buckets_of
from sim.memory import device_memory, stage_memory
from sim.metrics import ends_of_parts
from sim.pipelines.orders import gpipe, interleaved, one_forward_one_backward
from sim.pipelines.parts import Part, cut_model
from sim.pipelines.tasks import PipelineShape
from sim.priced_steps import execute_schedule
from sim.session import reduced
from sim.setting import Setting
from sim.training import DENSE_SUM, EXPERT_SUM, HEAD_SUM
from sim.weight_gradients import weights_s
from tests.oracles.pipeline_brute import Job, makespan_s
from tests.small import even_placement, random_trace, tiny_cluster, tiny_model, tiny_setting
from tests.unit.test_pipeline_run import parts_of, result_of, scenario
from tests.unit.test_ranks import layout

TRAIN = {"phase": "train", "steps": 1}
HAND = [
    (("F", 0), ("F", 1), ("B", 0), ("F", 2), ("B", 1), ("F", 3), ("B", 2), ("B", 3)),
    (("F", 0), ("B", 0), ("F", 1), ("B", 1), ("F", 2), ("B", 2), ("F", 3), ("B", 3)),
]
"""1F1B of four microbatches on two stages, written by hand."""


def train_scenario(pp: int = 2, **sections: Any) -> ScenarioSpec:
    workload = TRAIN | {"microbatches": 4} | sections.pop("workload", {})
    return scenario(pp, workload=workload, **sections)


def times_of(part: Part, schedule: ScheduleSpec, *, updates: bool) -> tuple[float, float]:
    """(end of the forward pass, end of all) of a batch of the part by itself."""
    setting = replace(part.setting, updates=updates)
    execution = execute_schedule(setting, part.placement, reduced(setting, part.placement, schedule), schedule)
    return float(ends_of_parts(execution)[0][0]), float(execution.step_times_s[0])


def test_a_training_pipeline_is_made_of_passes_and_the_end_of_a_step() -> None:
    """1F1B on two stages against plain recursion over an order written by hand; each stage then sums and updates."""
    spec = train_scenario(cluster={"devices_per_node": 8, "nodes": 1}, schedule={"gradients": {"order": "after"}})
    result = result_of(spec)
    parts = parts_of(spec, 2)
    passes = [times_of(part, spec.schedule, updates=False) for part in parts]
    closing_s = [
        times_of(part, spec.schedule, updates=True)[1] - both_s for part, (_, both_s) in zip(parts, passes, strict=True)
    ]
    intra = parts[0].setting.cluster.intra
    apart_s = intra.latency_s.value + 32 * parts[0].setting.model.hidden_size * 2 / intra.effective_bytes_per_s

    def took_s(stage: int, job: Job) -> float:
        forward_s, both_s = passes[stage]
        return forward_s if job[0] == "F" else both_s - forward_s

    ends_s = [makespan_s(HAND, took_s, apart_s, stage=stage) for stage in (0, 1)]
    expected_s = max(end_s + own_s for end_s, own_s in zip(ends_s, closing_s, strict=True))
    assert result.metrics["step_time_s"] == pytest.approx(expected_s)
    assert result.breakdown_s["update"] == pytest.approx(np.mean(closing_s))
    assert sum(result.breakdown_s.values()) == pytest.approx(expected_s)


def test_microbatches_without_stages_accumulate_gradients() -> None:
    spec = train_scenario(1, workload={"microbatches": 3})
    (part,) = parts_of(spec, 1)
    both_s, last_s = times_of(part, spec.schedule, updates=False)[1], times_of(part, spec.schedule, updates=True)[1]
    assert last_s > both_s
    assert result_of(spec).metrics["step_time_s"] == pytest.approx(2 * both_s + last_s)


def test_mfu_is_that_of_all_parts_over_the_whole_step() -> None:
    """The same model without a pipeline does the same FLOP: MFU times step time times devices, for as many tokens."""
    piped = result_of(train_scenario(2, workload={"microbatches": 4, "context_tokens": 16}))
    whole = result_of(train_scenario(1, workload={"microbatches": None, "context_tokens": 16}))
    per_token = [one.metrics["mfu"] / one.metrics["tokens_per_s_per_device"] for one in (piped, whole)]
    assert per_token[0] == pytest.approx(per_token[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpipe", "interleaved", "zb1p", "dualpipe"])
def test_every_pipeline_trains(name: str) -> None:
    step_s = {
        executor: result_of(train_scenario(schedule={"pipeline": name, "executor": executor})).metrics["step_time_s"]
        for executor in ("vector", "event")
    }
    assert step_s["vector"] == pytest.approx(step_s["event"], rel=1e-9)


def test_gradients_of_weights_by_hand() -> None:
    """Of every product one of its transposed sizes, and of the experts of the busiest rank in each layer."""
    model = tiny_model(shared_intermediate_size=48)
    setting = replace(tiny_setting(model, tiny_cluster(), random_trace(model), **TRAIN, tokens_per_device=32))
    placement, device = even_placement(model, 4), setting.cluster.device
    reduction = reduced(setting, placement, ScheduleSpec())
    sizes = [(n, k) for n, k, _ in projection_products(model.attention, 64, 1)] + [(8, 64), (96, 64), (64, 48)]
    own_s = sum(float(product_s(k, n, 32, "bf16", device, device.kernels.gemm("bf16"))) for n, k in sizes)
    head_s = float(gemm_s(64, 256, 32, "bf16", device))
    counts = tokens_by_rank(placement, reduction.slot_tokens)
    experts_s = expert_weight_gradients_s(counts, expert_shape(model), device, "bf16").max(axis=-1).sum()
    assert weights_s(setting, placement, reduction)[0] == pytest.approx(2 * own_s + head_s + experts_s)


def test_a_stage_keeps_activations_of_what_is_in_flight() -> None:
    """1F1B on two stages: two microbatches on the first, one on the last; GPipe all four. Interleaved: by part."""
    setting = _setting()
    shape = PipelineShape(n_stages=2, n_microbatches=4)
    parts = cut_model(setting, even_placement(setting.model, 4), shape, ())
    memory = [device_memory(part.setting, part.placement, MemorySpec()) for part in parts]
    for order_of, in_flight in ((one_forward_one_backward, (2, 1)), (gpipe, (4, 4))):
        for stage, n in enumerate(in_flight):
            held = stage_memory({stage: memory[stage]}, order_of(shape, stage)).training
            own = memory[stage].training
            assert held is not None and own is not None
            np.testing.assert_allclose(held.activation_bytes, n * own.activation_bytes)
            np.testing.assert_allclose(held.optimizer_bytes, own.optimizer_bytes)
    chunked = PipelineShape(n_stages=1, n_microbatches=4, chunks=2)
    held = stage_memory(dict(enumerate(memory)), interleaved(chunked, 0)).training
    whole = device_memory(setting, even_placement(setting.model, 4), MemorySpec()).training
    assert held is not None and whole is not None
    assert held.activation_bytes.max() >= whole.activation_bytes.max()
    np.testing.assert_allclose(held.optimizer_bytes, whole.optimizer_bytes)
    np.testing.assert_allclose(held.gradient_bytes, whole.gradient_bytes)


def test_gradients_are_summed_in_the_groups_of_the_layout() -> None:
    """16 devices of 2 nodes, two stages: attention dp 4 tp 2, experts ep 4 edp 2; all within a node of 8."""
    ranks = layout(2, {"dp": 4, "tp": 2, "pp": 2}, {"ep": 4, "edp": 2, "pp": 2})
    setting = replace(_setting(), ranks=ranks, attention_tp=2)
    buckets = buckets_of(setting, even_placement(setting.model, 4))
    assert [share.group for share in buckets[DENSE_SUM, 0]] == [Group(4, 4), Group(8, 8)]
    assert [share.group for share in buckets[EXPERT_SUM, 0]] == [Group(2, 2)]
    middle = buckets_of(replace(setting, is_first=False, is_last=False), even_placement(setting.model, 4))
    assert not {(DENSE_SUM, -1), (HEAD_SUM, -1)} & middle.keys()
    apart = replace(setting, ranks=layout(4, {"dp": 16, "tp": 2}, {"ep": 4, "edp": 8}))
    assert buckets_of(apart, even_placement(setting.model, 4))[EXPERT_SUM, 0][0].group == Group(8, 2)


def test_dualpipe_pairs_passes_itself() -> None:
    with pytest.raises(ScenarioError, match="overlap none, not chunked"):
        result_of(train_scenario(schedule={"pipeline": "dualpipe", "overlap": "chunked"}))


def _setting() -> Setting:
    model = tiny_model(n_layers=4)
    setting = tiny_setting(model, tiny_cluster(1, 4), random_trace(model), **TRAIN, tokens_per_device=32)
    return replace(setting, training=TrainingSpec())
