"""Split lp-local on whole traces: as level as lp, and less traffic."""

from dataclasses import replace

import numpy as np
import pytest

from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import reduce_trace
from placement.token_split import even_quotas, levelled_slots
from tests.small import random_ids, trace_of

N_EXPERTS, N_SLOTS, LAYOUT = 8, 16, ExpertLayout(n_devices=4, devices_per_node=2)


def plan(split: str) -> Placement:
    slots = np.random.default_rng(0).permutation(np.arange(N_SLOTS) % N_EXPERTS)[None]
    return Placement.from_slots(slots, 4, n_experts=N_EXPERTS, name="twice", split=split)


@pytest.mark.parametrize("dedup", ["device", "node"])
def test_local_replicas_keep_the_loads_and_lower_the_traffic(dedup: str) -> None:
    trace = trace_of(random_ids((1, 3, 600), N_EXPERTS), N_EXPERTS)
    tokens = np.arange(600).reshape(3, 4, 50)
    level, local = (reduce_trace(trace, tokens, plan(split), LAYOUT, dedup=dedup) for split in ("lp", "lp-local"))
    np.testing.assert_array_equal(level.slot_tokens, local.slot_tokens)
    travelling = [sum(ports.sum() for ports in (r.ports.send_intra, r.ports.send_inter)) for r in (level, local)]
    assert travelling[1] < 0.95 * travelling[0]
    assert local.ports.send_inter.sum() < level.ports.send_inter.sum()


def test_the_token_that_likes_a_replica_gets_it() -> None:
    # expert 0 on ranks 0 and 1, four tokens, two for each: tokens 1 and 3 like rank 1, which comes second
    slots_of_expert, ranks = np.array([[0, 1]], np.int32), np.array([0, 1], np.int32)
    experts = part = np.zeros(4, np.int64)
    liking = np.array([[2, 0], [0, 2], [2, 0], [0, 2]], np.int8)
    found = [
        levelled_slots(experts, part, slots_of_expert, ranks, even_quotas, likes).tolist() for likes in (None, liking)
    ]
    assert found == [[0, 0, 1, 1], [0, 1, 0, 1]]


def test_a_token_stays_on_its_own_rank_where_a_replica_is_there() -> None:
    # every rank holds every expert: under lp-local nothing travels, as long as the ranks are level
    slots = np.tile(np.arange(2), 4)[None]
    everywhere = Placement.from_slots(slots, 4, n_experts=2, name="all", split="lp-local")
    trace = trace_of(np.tile([0, 1], 40)[None, None, :], 2)
    tokens = np.arange(80).reshape(1, 4, 20)
    reduction = reduce_trace(trace, tokens, everywhere, LAYOUT)
    assert reduction.pairs_total[0].tolist() == (20 * np.eye(4, dtype=int)).tolist()
    turns = reduce_trace(trace, tokens, replace(everywhere, split="even"), LAYOUT)
    assert np.trace(turns.pairs_total[0]) < 80
