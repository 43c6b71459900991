"""From a scenario to results: axes, ranking, caches, errors, and what a row holds."""

from pathlib import Path

import numpy as np
import pytest

from hwmodels.cluster import build_cluster
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec
from scenarios.specs import ScenarioSpec
from sim import session as sessions
from sim.constants import constants_of
from sim.result import Comparison, RunResult
from sim.run import compare, run
from sim.session import Session, placement_digest
from tests.small import even_placement, random_placement, tiny_model

GOLDEN = Path(__file__).parents[1] / "golden"
SCENARIO = {
    "name": "small",
    "model": "tiny-moe.yaml",
    "cluster": {"node": "h200-sxm-8", "devices_per_node": 4},
    "workload": {"synthetic": {"tokens": 1024, "sequence_tokens": 32}, "tokens_per_device": 12, "steps": 5},
}
CHUNKS = {"overlap": "chunked", "chunks": 3, "name": "chunks"}


def compared(**axes: list[dict]) -> Comparison:
    return compare(spec_of(compare=axes), GOLDEN, "test")


def spec_of(**sections: object) -> ScenarioSpec:
    return ScenarioSpec.model_validate(SCENARIO | sections)


def rows(comparison: Comparison) -> dict[str, RunResult]:
    return {result.name: result for table in comparison.tables for result in table.results}


def test_every_combination_is_a_row_ranked_by_throughput() -> None:
    result = compared(
        placement=[{"solver": "contiguous"}, {"solver": "random"}],
        schedule=[{"overlap": "none", "name": "in sequence"}, CHUNKS],
        workload=[{"tokens_per_device": 12}, {"tokens_per_device": 6}],
    )
    names = {f"{solver}, {schedule}" for solver in ("contiguous", "random") for schedule in ("in sequence", "chunks")}
    assert [table.title for table in result.tables] == ["decode, 12 tokens per device", "decode, 6 tokens per device"]
    for table in result.tables:
        assert {row.name for row in table.results} == names
        rates = [row.metrics["tokens_per_s"] for row in table.results]
        assert rates == sorted(rates, reverse=True)
        assert table.first == "contiguous, in sequence"


def test_gains_are_over_the_first_plan_of_the_scenario() -> None:
    table = compared(placement=[{"solver": "random"}, {"solver": "greedy"}]).tables[0]
    gains = {row.name: table.gain(row) for row in table.results}
    rates = {row.name: row.metrics["tokens_per_s"] for row in table.results}
    assert gains == {"random": 0.0, "greedy": pytest.approx(rates["greedy"] / rates["random"] - 1)}


def test_larger_clusters_are_ranked_by_tokens_not_by_step_time() -> None:
    table = compared(cluster=[{"nodes": 1}, {"nodes": 2}]).tables[0]
    assert [row.metrics["tokens_per_s"] for row in table.results] == sorted(
        (row.metrics["tokens_per_s"] for row in table.results), reverse=True
    )
    steps_s = [row.metrics["step_time_s"] for row in table.results]
    assert steps_s[0] > steps_s[1]  # more devices, longer steps


def test_rows_are_named_by_what_differs() -> None:
    placements = [{"solver": "eplb", "redundant": 4, "split": "least-loaded"}, {"solver": "random", "name": "dice"}]
    assert {*rows(compared(placement=placements))} == {"eplb+4 least-loaded", "dice"}
    assert {*rows(compared(schedule=[{"overlap": "none"}, {"overlap": "chunked"}]))} == {"sequential", "chunked x2"}


def test_run_simulates_the_scenario_itself() -> None:
    spec = spec_of(placement={"solver": "greedy"}, compare={"placement": [{"solver": "random"}]})
    (row,) = rows(run(spec, GOLDEN, "test")).values()
    assert (row.name, row.plan["placement"]["solver"]) == ("greedy", "greedy")
    assert row.metrics == rows(compared(placement=[{"solver": "greedy"}]))["greedy"].metrics


def test_a_row_holds_means_over_steps() -> None:
    plain, chunked = rows(compared(schedule=[{"overlap": "none", "name": "plain"}, CHUNKS])).values()
    for row in (plain, chunked):
        assert row.step_times_s.shape == (5,)
        assert row.device_tokens.shape == row.device_experts.shape == (3, 4)
        np.testing.assert_allclose(row.device_tokens.sum(axis=1), 4 * 12 * 4)
        assert row.traffic_bytes.shape == (4, 4)
        assert row.traffic_bytes.trace() == 0
        assert row.traffic_bytes.sum() == pytest.approx(row.metrics["bytes.nvlink"])
        ends_s = max(op.end_s.max() for op in row.log)
        assert ends_s == row.step_times_s[row.logged_step] == np.median(row.step_times_s)
    np.testing.assert_allclose(plain.device_tokens, chunked.device_tokens)
    np.testing.assert_array_equal(plain.device_experts, chunked.device_experts)  # distinct in a step, not in a chunk


def test_schedules_that_can_share_a_reduction_do() -> None:
    spec = spec_of()
    session = Session(spec, GOLDEN)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    assert session.setting(spec.cluster, spec.parallel, spec.workload) is setting
    placement = sessions.solve_placement(setting, spec.placement)
    plain = session.reduction(setting, placement, spec.schedule)
    assert session.reduction(setting, placement, spec.schedule.model_copy(update={"step_overhead": 1.0})) is plain
    chunked = spec.schedule.model_copy(update={"overlap": "chunked", "chunks": 2})
    assert session.reduction(setting, placement, chunked).n_chunks == 2
    assert len(session.shared.reductions) == 2
    for exchange in (ExchangeSpec(dedup="none"), ExchangeSpec(law="fifo")):
        other = session.reduction(setting, placement, spec.schedule.model_copy(update={"exchange": exchange}))
        assert other is not plain
    assert len(session.shared.reductions) == 4


def test_digests_tell_what_a_placement_does() -> None:
    model = tiny_model()
    assert placement_digest(even_placement(model, 4)) == placement_digest(even_placement(model, 4, name="other"))
    others = [
        even_placement(model, 4),
        even_placement(model, 2),
        even_placement(model, 4, split="least-loaded"),
        random_placement(2, 8, 4, 8),
    ]
    assert len({placement_digest(placement) for placement in others}) == 4


def test_random_plans_follow_the_seed_of_the_scenario_and_their_own() -> None:
    setting = Session(spec_of(), GOLDEN).setting(spec_of().cluster, spec_of().parallel, spec_of().workload)
    digests = [
        placement_digest(sessions.solve_placement(setting, PlacementSpec(solver="random", seed=own), seed))
        for seed, own in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_progress_ends_at_one() -> None:
    seen: list[tuple[str, float]] = []
    spec = spec_of(compare={"placement": [{"solver": "contiguous"}, {"solver": "random"}]})
    compare(spec, GOLDEN, "test", lambda name, share: seen.append((name, share)))
    assert seen == [("contiguous", 0.5), ("random", 1.0)]


def test_every_number_of_a_result_has_an_origin() -> None:
    spec = spec_of()
    setting = Session(spec, GOLDEN).setting(spec.cluster, spec.parallel, spec.workload)
    constants = constants_of(setting)
    names = {constant.name for constant in constants}
    assert {"tiny-moe shape", "h200-sxm memory_bytes", "nvlink-4 latency_s", "h200-vllm moe bf16"} <= names
    assert not any("ndr-ib" in name for name in names)  # one node uses no network
    assert all(constant.source and constant.kind for constant in constants)


def test_a_comparison_needs_axes_and_different_names() -> None:
    with pytest.raises(ScenarioError, match="small: no `compare:` section; add its axes, or use `moesim run`"):
        compare(spec_of(), GOLDEN, "test")
    with pytest.raises(ScenarioError, match="several plans are called random; give them a `name:`"):
        compared(placement=[{"solver": "random"}, {"solver": "random", "hierarchical": True}])


def test_a_plan_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryInfeasible, match="short by"):
        run(spec_of(memory={"requests_per_device": 2**22, "context_tokens": 2**16}), GOLDEN, "test")


def test_ways_of_training_are_an_axis() -> None:
    workload = {**SCENARIO["workload"], "phase": "train"}
    raw = {**SCENARIO, "workload": workload, "training": {"zero": 1}}
    ways = {"keeps all, ZeRO-1": {"zero": 1}, "full recompute, ZeRO-1": {"zero": 1, "recompute": "full"}}
    axes = {"training": [{}, {"recompute": "full"}]}
    table = compare(ScenarioSpec.model_validate({**raw, "compare": axes}), GOLDEN, "test").tables[0]
    assert {result.name for result in table.results} == set(ways)
    for result in table.results:
        alone = run(ScenarioSpec.model_validate({**raw, "training": ways[result.name]}), GOLDEN, "test")
        assert alone.tables[0].results[0].metrics == result.metrics


def test_plans_that_do_not_fit_are_left_out_and_say_why() -> None:
    fits = compared(placement=[{"solver": "contiguous"}, {"solver": "eplb", "redundant": 4}])
    short = max(one.metrics["memory_bytes.peak"] for one in fits.tables[0].results) - 1
    spec = with_memory(short)
    table = compare(spec, GOLDEN, "test").tables[0]
    assert [one.name for one in table.results] == ["contiguous"]
    (left_out,) = table.left_out
    assert left_out.name == "eplb+4"
    assert "short by" in left_out.reason
    assert left_out.sentence() in table.notes
    alone = spec.model_copy(update={"placement": spec.compare.placement[1], "compare": None})
    with pytest.raises(MemoryInfeasible, match="short by"):
        run(alone, GOLDEN, "test")
    with pytest.raises(MemoryInfeasible, match="none of 2 plans fits"):
        compare(with_memory(1.0), GOLDEN, "test")


def with_memory(usable_bytes: float) -> ScenarioSpec:
    """Two placements in so much memory of each device."""
    capacity = build_cluster(spec_of().cluster, GOLDEN).device.card.memory_bytes.value
    axes = {"placement": [{"solver": "contiguous"}, {"solver": "eplb", "redundant": 4}]}
    return spec_of(memory={"reserve": 1 - usable_bytes / capacity}, compare=axes)


@pytest.mark.parametrize(("kernels", "warned"), [("h200-vllm", True), ("h200-sglang", False), ("h200-trtllm", False)])
def test_products_that_start_slowly_are_told_of(kernels: str, warned: bool) -> None:
    cluster = SCENARIO["cluster"] | {"kernels": kernels}
    spec = spec_of(cluster=cluster, model={"card": "tiny-moe.yaml", "weight_dtype": "fp8_block"})
    notes = " ".join(run(spec, GOLDEN, "test").tables[0].notes)
    assert ("Dense products in fp8_block take 77 µs at least, as the engine of h200-vllm" in notes) == warned
