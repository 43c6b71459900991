"""Judging plans: ratios by hand, intervals that hold what they should, the flag, and the lower bound on time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwmodels.cluster import build_cluster
from hwmodels.fluid import fluid_moe_s
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from placement.exchange_time import Machine
from placement.judgement import N_GROUPS, PartJudgement, grouped_part, is_overfit, judge
from placement.layout import ExpertLayout
from placement.moe_time import idle_times_s, moe_times
from placement.objectives import OBJECTIVES
from placement.plan import Placement
from placement.problem import PlacementProblem, with_sample
from placement.sample import TokenSample, coactivation, transitions
from placement.time_bound import moe_time_bound_s
from scenarios.catalog import find_model
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import PlacementError
from scenarios.schedule_specs import ExchangeSpec
from tests.small import random_ids, tiny_cluster, tiny_model, trace_of

MODEL = tiny_model(n_layers=2, n_experts=8, top_k=2)


def machine() -> Machine:
    layout = ExpertLayout(n_devices=4, devices_per_node=4)
    return Machine(model=MODEL, cluster=tiny_cluster(1, 4), layout=layout, exchange=ExchangeSpec())


def plans() -> tuple[Placement, Placement]:
    """Eight experts on four ranks without replicas, and with one spare slot a rank."""
    bare = Placement.from_slots(np.tile(np.arange(8), (2, 1)), 4, n_experts=8, name="bare")
    spare = Placement.from_slots(np.tile(np.arange(12) % 8, (2, 1)), 4, n_experts=8, name="spare")
    return bare, spare


def parts(n_sequences: int = 24) -> list:  # type: ignore[type-arg]
    ids = random_ids((2, 2, 16 * n_sequences), 8)
    trace = trace_of(ids, 8, [16] * n_sequences)
    halves = np.arange(n_sequences).reshape(2, -1)
    return [
        grouped_part(name, trace, half, phase="decode", shape=(16, 4, 3), seed=0)
        for name, half in zip(("fit", "held-out"), halves, strict=True)
    ]


def test_a_plan_takes_as_long_as_itself() -> None:
    bare, _ = plans()
    judgement = judge(machine(), bare, bare, parts())
    assert [(part.over_eplb, part.low, part.high) for part in judgement.parts] == [(1, 1, 1)] * 2
    assert not judgement.overfit


def test_ratios_are_of_summed_step_times_and_lie_in_their_interval() -> None:
    bare, spare = plans()
    own_parts = parts()
    judgement = judge(machine(), bare, spare, own_parts)
    for part, judged in zip(own_parts, judgement.parts, strict=True):
        seconds = [
            sum(moe_times(machine(), plan, group).total_s.sum() for group in part.groups) for plan in (bare, spare)
        ]
        assert judged.over_eplb == pytest.approx(seconds[0] / seconds[1])
        assert judged.step_s == pytest.approx(seconds[0] / 16)
        assert judged.low < judged.over_eplb < judged.high
        assert judged.fixed_frac == pytest.approx(idle_times_s(machine(), spare, 3) * 16 / seconds[1])


def test_groups_share_no_request_and_cover_the_steps() -> None:
    fit, _ = parts()
    assert len(fit.groups) == N_GROUPS
    assert sum(group.n_steps for group in fit.groups) == 16
    requests = [set((group.tokens // 16).ravel().tolist()) for group in fit.groups]
    assert all(not a & b for i, a in enumerate(requests) for b in requests[:i])


@pytest.mark.parametrize(
    ("fitted", "high", "held_out", "flag"),
    [
        (0.9, 0.91, 0.96, True),
        (0.9, 0.91, 0.94, False),
        (0.9, 0.91, 1.0, True),
        (0.9, 1.01, 1.0, False),
        (1.0, 1.01, 1.1, False),
        (1.1, 1.11, 0.9, False),
        (0.99, 0.995, 0.99, False),
    ],
)
def test_overfit_is_a_gain_beyond_noise_and_more_than_twice_that_on_other_requests(
    fitted: float, high: float, held_out: float, flag: bool
) -> None:
    part = PartJudgement(name="fit", step_s=1e-3, over_eplb=fitted, low=0.8, high=high, fixed_frac=0.5)
    assert is_overfit(part, held_out) == flag


def test_one_part_is_no_judgement() -> None:
    bare, spare = plans()
    with pytest.raises(PlacementError, match="needs the fitted part and a held-out one, got 1"):
        judge(machine(), bare, spare, parts()[:1])


def test_idle_layers_take_launches_and_latencies() -> None:
    bare, spare = plans()
    law = [
        float(grouped_gemm_moe_s(np.zeros(slots, int), expert_shape(MODEL), machine().cluster.device))
        for slots in (2, 3)
    ]
    latency_s = machine().cluster.intra.latency_s.value
    expected = [2 * (2 * latency_s + seconds) for seconds in law]
    assert [idle_times_s(machine(), plan, 3) for plan in (bare, spare)] == pytest.approx(expected)


def sample_problem(cluster: str | None, redundant: int, tokens: int = 24) -> PlacementProblem:
    """Eight devices; the tiny machine, or a node of `cluster` with gpt-oss-20b's two first layers' worth of routing."""
    if cluster is None:
        where = machine()
    else:
        built = build_cluster(ClusterSpec(node=cluster))
        layout = ExpertLayout(n_devices=8, devices_per_node=8)
        where = Machine(model=find_model("gpt-oss-20b", Path()), cluster=built, layout=layout, exchange=ExchangeSpec())
    n_experts, n = where.model.n_experts, where.layout.n_devices
    ids = random_ids((2, where.model.top_k, 6 * n * tokens), n_experts)
    trace = trace_of(ids, n_experts)
    sample = TokenSample(trace=trace, tokens=np.arange(6 * n * tokens).reshape(6, n, tokens))
    problem = PlacementProblem(
        loads=np.ones((2, n_experts)), n_ranks=n, ranks_per_node=n, redundant=redundant, machine=where
    )
    return with_sample(problem, sample)


@pytest.mark.parametrize("cluster", [None, pytest.param("h200-sxm-8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("tokens", [1, 24])
def test_no_plan_takes_less_than_the_bound(cluster: str | None, spare: int, tokens: int) -> None:
    n = 4 if cluster is None else 8
    problem = sample_problem(cluster, spare * n, tokens)
    bound = moe_time_bound_s(problem).sum()
    rng = np.random.default_rng(0)
    seconds = []
    for _ in range(5):
        slots = np.stack([rng.permutation(np.arange(problem.n_slots) % problem.n_experts) for _ in range(2)])
        plan = Placement.from_slots(slots, n, n_experts=problem.n_experts, name="any")
        seconds.append(OBJECTIVES["time"].value(plan, problem))
    assert 0.3 * min(seconds) < bound < min(seconds)


def test_the_fluid_law_lies_below_the_tiles_and_is_convex() -> None:
    device = build_cluster(ClusterSpec(node="h200-sxm-8")).device
    shape = expert_shape(find_model("gpt-oss-20b", Path()))
    rng = np.random.default_rng(0)
    counts = rng.geometric(0.02, (200, 5)) * (rng.random((200, 5)) < 0.7)
    real = grouped_gemm_moe_s(counts, shape, device)
    routed, active = counts.sum(axis=1), (counts > 0).sum(axis=1)
    fluid = fluid_moe_s(routed, active, 5, shape, device)
    assert (fluid <= real).all()
    mixed = fluid_moe_s((routed[:100] + routed[100:]) / 2, (active[:100] + active[100:]) / 2, 5, shape, device)
    assert (mixed <= (fluid[:100] + fluid[100:]) / 2 * (1 + 1e-12)).all()


def test_hops_by_hand() -> None:
    # experts 0 and 1 on rank 0; one token stays on rank 0, two go over, and expert 1 of layer 1 has a copy on each rank
    moves = np.array([[[1.0, 0, 2, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    problem = PlacementProblem(loads=np.ones((2, 4)), n_ranks=2, ranks_per_node=2, transitions=moves)
    bare = Placement.from_slots([[0, 1, 2, 3]] * 2, 2, n_experts=4, name="bare")
    assert OBJECTIVES["hops"].value(bare, problem) == 2
    twice = Placement.from_slots([[0, 1, 0, 2, 3, 1], [0, 1, 2, 1, 2, 3]], 2, n_experts=4, name="twice")
    # layer 0: expert 0 twice on rank 0, 1 on both; layer 1: 0 on rank 0, 1 on both, 2 on both. Token 0 -> 0 stays, of
    # 0 -> 2 half stay, of 1 -> 1 half meet: 7 - (1 + 1 + 2) = 3
    assert OBJECTIVES["hops"].value(twice, replace(problem, redundant=2)) == pytest.approx(3)


def test_pairs_of_experts_are_counted_as_loops_count_them() -> None:
    ids = random_ids((3, 2, 30), 5, unused_frac=0.3)
    sample = TokenSample(trace=trace_of(ids, 5), tokens=np.arange(30).reshape(2, 3, 5))
    expected, together = np.zeros((2, 5, 5)), np.zeros((3, 5, 5))
    for token in range(30):
        for layer in range(3):
            here = [e for e in ids[layer, :, token] if e >= 0]
            for a in here:
                for b in here:
                    together[layer, a, b] += 1
                if layer < 2:
                    for b in (e for e in ids[layer + 1, :, token] if e >= 0):
                        expected[layer, a, b] += 1
    np.testing.assert_array_equal(transitions(sample), expected)
    np.testing.assert_array_equal(coactivation(sample), together)
