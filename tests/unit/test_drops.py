"""Drops at full experts: token by token against a queue written out, and where drops fall in a request."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from scenarios.routing_specs import DropOrder
from tests.small import random_ids, trace_of
from traces.batches import Batches
from traces.drops import Capacity, capped_sequences, capped_steps, kept_choices, route_shares
from traces.gate_weights import drawn_weights
from traces.routing import RoutingTrace

E, K = 6, 2
ORDERS = get_args(DropOrder)


def batches_of(trace: RoutingTrace, steps: int = 2, devices: int = 3, tokens: int = 8) -> Batches:
    rng = np.random.default_rng(5)
    index = rng.integers(0, trace.n_tokens, (steps, devices, tokens))
    return Batches(trace=trace, tokens=index, contexts=index, passes=1.0, discipline="random")


def weighted_trace(unused_frac: float = 0.0) -> RoutingTrace:
    trace = trace_of(random_ids((2, K, 96), E, 2, unused_frac), E, [16] * 6, weight_ordered=True)
    return replace(trace, weights=drawn_weights(trace.ids, E, 1.0, np.random.default_rng(0)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ["position", "weight"])
def test_choices_stay_as_in_a_queue_written_out(order: DropOrder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = random_ids((1, K, 40), E, seed, unused_frac=0.2)[0]
    experts[experts < 0] = 255
    weights = rng.random(experts.shape).astype(np.float32)
    group, room = rng.integers(0, 3, 40), rng.integers(0, 5, (3, E))
    got = kept_choices(experts, group, room, order, weights=weights, rng=rng)
    left, want = room.copy(), np.zeros(experts.shape, bool)
    places = [(k, token) for k in range(K) for token in range(40)]
    if order == "weight":
        places.sort(key=lambda place: -weights[place])
    for k, token in places:
        expert = experts[k, token]
        if expert < E and left[group[token], expert] > 0:
            left[group[token], expert] -= 1
            want[k, token] = True
    assert (got == want).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by_device", [True, False])
def test_no_expert_is_over_capacity_and_none_drops_with_room(order: DropOrder, by_device: bool) -> None:
    before = batches_of(weighted_trace(unused_frac=0.2))
    after = capped_steps(
        before, by_device=by_device, rule=Capacity(factor=1.0, order=order), rng=np.random.default_rng(0)
    )
    capacity = 3 if by_device else 8  # ceil(1.0 x 2 x 8 / 6), and of 24 tokens

    def loads(batches: Batches) -> np.ndarray:  # type: ignore[type-arg]
        ids = batches.trace.ids[:, :, batches.tokens]
        counts = np.stack([(ids == expert).sum(axis=(1, 4)) for expert in range(E)], axis=-1)
        return counts if by_device else counts.sum(axis=2)

    assert (loads(after) == np.minimum(loads(before), capacity)).all()


def test_with_enough_room_nothing_changes() -> None:
    before = batches_of(weighted_trace(unused_frac=0.2))
    after = capped_steps(before, by_device=True, rule=Capacity(factor=E, order="position"), rng=np.random.default_rng())
    assert (after.trace.ids[:, :, after.tokens] == before.trace.ids[:, :, before.tokens]).all()
    assert route_shares(before, after).dropped_frac == 0


def test_capacity_is_that_of_the_paper() -> None:
    """OpenMoE's layer: k 2, factor 1.25 of 2048 tokens over 32 experts, at least 4 (arXiv 2402.01739)."""
    assert Capacity(factor=1.25, order="position").of(2048, 2, 32) == 160
    assert Capacity(factor=1.25, order="position", least=4).of(8, 2, 32) == 4
    assert Capacity(factor=1.1, order="position").of(10, 1, 11) == 1  # a product that rounds above a whole number


def test_a_request_drops_towards_its_end() -> None:
    trace = trace_of(random_ids((1, 1, 4 * 2048), 8, 0), 8, [2048] * 4)
    capped = capped_sequences(trace, Capacity(factor=1.0, order="position"), np.random.default_rng(0))
    tokens = np.arange(trace.n_tokens).reshape(1, 4, 2048)
    before = Batches(trace=trace, tokens=tokens, contexts=tokens, passes=1.0, discipline="all")
    after = Batches(trace=capped, tokens=tokens, contexts=tokens, passes=1.0, discipline="all")
    shares = route_shares(before, after)
    lost = np.count_nonzero(capped.ids == capped.padding_id)
    assert shares.dropped_frac == pytest.approx(lost / trace.ids.size)
    assert shares.octiles.mean() == pytest.approx(shares.dropped_frac)
    assert shares.octiles[0] == 0 < 0.2 < shares.octiles[-1]
    assert (np.diff(shares.octiles) > -0.05).all()
    assert shares.experts_per_token == pytest.approx(1 - shares.dropped_frac)


def test_random_drops_fall_anywhere_and_follow_the_seed() -> None:
    trace = trace_of(random_ids((1, 2, 8192), 8, 0), 8)
    rule = Capacity(factor=1.0, order="random")
    same, again, other = (capped_sequences(trace, rule, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (same.ids == again.ids).all()
    assert (same.ids != other.ids).any()
    lost = (same.ids == same.padding_id).reshape(2, 8, -1).mean(axis=(0, 2))
    assert lost == pytest.approx(lost.mean(), rel=0.2)
