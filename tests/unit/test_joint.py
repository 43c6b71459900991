"""The joint solver's state: what it updates swap by swap is what the reduction and the laws give for the whole plan."""

from dataclasses import replace

import numpy as np
import pytest

from placement.annealing import Cooling, anneal
from placement.exchange_time import Machine
from placement.joint_state import MEAN_WEIGHT, WORD, JointState
from placement.layout import ExpertLayout
from placement.moe_time import moe_times
from placement.plan import Placement
from placement.sample import TokenSample
from scenarios.schedule_specs import ExchangeSpec
from tests.small import random_ids, tiny_cluster, tiny_model, trace_of

N_LAYERS, N_EXPERTS, TOP_K = 3, 16, 3


def machine(*, dedup: str = "device", nodes: int = 2, tp: int = 1) -> Machine:
    return Machine(
        model=tiny_model(n_layers=N_LAYERS, n_experts=N_EXPERTS, top_k=TOP_K),
        cluster=tiny_cluster(nodes, 4),
        layout=ExpertLayout(n_devices=4 * nodes, devices_per_node=4, tp=tp),
        exchange=ExchangeSpec(dedup=dedup),
    )


def sample_for(n_devices: int, n_tokens: int = 5) -> TokenSample:
    ids = random_ids((N_LAYERS, TOP_K, 200), N_EXPERTS)
    tokens = np.random.default_rng(1).integers(0, 200, (4, n_devices, n_tokens))
    return TokenSample(trace=trace_of(ids, N_EXPERTS), tokens=tokens)


def plan_for(n_ranks: int, n_slots: int, seed: int = 0) -> Placement:
    rng = np.random.default_rng(seed)
    slots = np.stack([rng.permutation(np.arange(n_slots) % N_EXPERTS) for _ in range(N_LAYERS)])
    return Placement.from_slots(slots, n_ranks, n_experts=N_EXPERTS, name="start")


def exact_s(state: JointState, plan: Placement, sample: TokenSample) -> np.ndarray:
    """Mean time of each layer, by the whole reduction of the plan."""
    return moe_times(state.machine, plan, sample).total_s.mean(axis=1)


def state_s(state: JointState) -> np.ndarray:
    """The same of the state, the small weight of means taken away again."""
    weighted = state._cost(state.ports, state.expert_s)
    times = [*state._both_s("dispatch", state.ports), *state._both_s("combine", state.ports.reversed())]
    times.append(np.repeat(state.expert_s, state.machine.layout.tp, axis=-1))
    return np.asarray(weighted - MEAN_WEIGHT * sum(t.mean(axis=(-1, -2)) for t in times))


@pytest.mark.parametrize("dedup", ["none", "device", "node"])
@pytest.mark.parametrize(("nodes", "tp"), [(1, 1), (2, 1), (2, 2)])
def test_the_state_costs_what_the_plan_costs_before_and_after_swaps(dedup: str, nodes: int, tp: int) -> None:
    # without replicas nothing depends on turns, so that the two ways must agree to rounding
    where = machine(dedup=dedup, nodes=nodes, tp=tp)
    n_ranks, sample = where.layout.n_ranks, sample_for(where.layout.n_devices)
    plan = plan_for(n_ranks, N_EXPERTS)
    state = JointState(where, plan, sample, None)
    np.testing.assert_allclose(state_s(state), exact_s(state, plan, sample), rtol=1e-12)
    anneal(state, n_ranks, Cooling(n_rounds=20, n_candidates=3, hot=1.0, cold=0.5), [[layer] for layer in range(3)])
    moved = Placement.from_slots(state.slots, n_ranks, n_experts=N_EXPERTS, name="moved")
    assert (moved.expert_of_slot != plan.expert_of_slot).any()
    np.testing.assert_allclose(state_s(state), exact_s(state, moved, sample), rtol=1e-12)
    np.testing.assert_allclose(state.costs, state._cost(state.ports, state.expert_s), rtol=1e-12)


@pytest.mark.parametrize("dedup", ["none", "device", "node"])
def test_swaps_with_replicas_leave_the_state_that_a_new_one_would_have(dedup: str) -> None:
    where, n_slots = machine(dedup=dedup), 24
    sample = sample_for(8)
    state = JointState(where, plan_for(8, n_slots), sample, None)
    anneal(state, 8, Cooling(n_rounds=20, n_candidates=3, hot=1.0, cold=0.5), [[layer] for layer in range(3)])
    before = (state.rank_masks.copy(), state.visits.copy(), state.expert_s.copy(), state.costs.copy())
    state._reset()
    for kept, anew in zip(before, (state.rank_masks, state.visits, state.expert_s, state.costs), strict=True):
        np.testing.assert_allclose(kept, anew, rtol=1e-12)
    plan = Placement.from_slots(state.slots, 8, n_experts=N_EXPERTS, name="end")
    # copies of an expert may have changed places, and with them turns: close, not equal
    np.testing.assert_allclose(state_s(state), exact_s(state, plan, sample), rtol=0.05)


def test_many_tokens_are_sampled_for_traffic_and_counted_for_experts() -> None:
    where, n_tokens = machine(), 3 * WORD
    ids = np.tile(np.array([[0], [1], [2]]), (N_LAYERS, 1, 1)) * np.ones((1, 1, 500), int)
    sample = TokenSample(trace=trace_of(ids, N_EXPERTS), tokens=np.arange(8 * n_tokens).reshape(1, 8, -1) % 500)
    plan = plan_for(8, 24)
    plan = replace(plan, expert_of_slot=np.tile(np.arange(24) % N_EXPERTS, (N_LAYERS, 1)))
    state = JointState(where, plan, sample, None)
    # tokens all alike: the scaled sample is exact, but for experts 0, 1 and 2, whose copies take turns
    assert state.tokens.sum() == N_LAYERS * TOP_K * 8 * n_tokens
    np.testing.assert_allclose(state_s(state), exact_s(state, plan, sample), rtol=0.02)


def test_fast_ranks_take_less_time() -> None:
    where, sample = machine(), sample_for(8)
    usual, fast = (JointState(where, plan_for(8, 24), sample, speeds) for speeds in (None, np.full(8, 2.0)))
    np.testing.assert_allclose(fast.expert_s, usual.expert_s / 2)


def test_joint_and_its_objective_know_the_same_speeds() -> None:
    where, sample, plan = machine(), sample_for(8), plan_for(8, 24)
    speeds = np.linspace(1, 4, 8)
    state = JointState(where, plan, sample, speeds)
    exact = moe_times(where, plan, sample, speeds)
    np.testing.assert_allclose(state.expert_s.max(axis=-1), exact.experts_s)
