"""Bit widths and memory tiers of experts, against trying everything on routing small enough for it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hwmodels.library import find_host
from placement.budget_checks import check_bits, check_tiers
from placement.plan import EMPTY, Placement
from scenarios.budget_specs import BitsSpec, TiersSpec
from scenarios.errors import PlacementError
from scenarios.specs import MemorySpec
from sim.expert_budgets import choose_bits, choose_tiers
from sim.setting import Setting, sequence_parts
from tests.devices import link
from tests.small import random_ids, tiny_cluster, tiny_model, tiny_setting, trace_of

ERRORS = (0.9, 0.4)
WIDTHS = [{"bits": 1, "bytes": 0.1, "error": ERRORS[0]}, {"bits": 2, "bytes": 0.2, "error": ERRORS[1]}]
MIB = 2**20


def setting(n_experts: int = 4, *, weighted: bool = True) -> Setting:
    """Two layers on two devices with a host; one token a device."""
    host = {"host": find_host("xeon-8480c-2s"), "host_link": link("10 GB/s", "20 us")}
    weights = np.random.default_rng(0).dirichlet([1, 1], (2, 96)).transpose(0, 2, 1).astype(np.float16)
    gates = {"weights": weights} if weighted else {}
    trace = trace_of(random_ids((2, 2, 96), n_experts, seed=4), n_experts, [8] * 12, **gates)
    model = tiny_model(n_experts=n_experts)
    return tiny_setting(model, tiny_cluster(1, 2, **host), trace, tokens_per_device=1, steps=20)


def importance_of(where: Setting, sequences: np.ndarray) -> list[float]:
    """Sum of gate weights over tokens of the sequences, by (layer, expert), in loops."""
    trace = where.trace
    tokens = [t for s in sequences.tolist() for t in range(int(trace.offsets[s]), int(trace.offsets[s + 1]))]
    sums = [0.0] * (2 * trace.n_experts)
    for layer, place, token in product(range(2), range(2), tokens):
        weight = 0.5 if trace.weights is None else float(trace.weights[layer, place, token])
        sums[layer * trace.n_experts + int(trace.ids[layer, place, token])] += weight / len(tokens)
    return sums


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mean_bits", [1.0, 1.3, 1.75, 2.0])
def test_widths_have_the_least_loss_of_all(mean_bits: float, weighted: bool) -> None:
    where = setting(weighted=weighted)
    answer, factor = choose_bits(where, BitsSpec.model_validate({"mean_bits": mean_bits, "widths": WIDTHS}), 0)
    parts = sequence_parts(where.trace, where.workload, 0)
    fitted, held_out = importance_of(where, parts.fit), importance_of(where, parts.judged)

    def least(importance: list[float]) -> float:
        return min(
            sum(i * ERRORS[o] for i, o in zip(importance, options, strict=True))
            for options in product(range(2), repeat=8)
            if sum(options) + 8 <= mean_bits * 8
        )

    assert answer.loss == pytest.approx(least(fitted), rel=1e-6)
    assert answer.bound == pytest.approx(answer.loss)
    assert answer.held_out_best == pytest.approx(least(held_out), rel=1e-6)
    chosen = [ERRORS[int(bits) - 1] for bits in answer.bits.ravel()]
    assert answer.held_out == pytest.approx(sum(i * e for i, e in zip(held_out, chosen, strict=True)), rel=1e-6)
    assert answer.even_loss == pytest.approx(ERRORS[mean_bits == 2] * sum(fitted), rel=1e-6)
    assert answer.expert_bytes == pytest.approx(where.model.expert_bytes * factor.sum())
    assert factor.tolist() == np.where(answer.bits == 1, 0.1, 0.2).tolist()


def test_experts_in_device_memory_are_those_that_steps_want_most() -> None:
    """Every residency of every rank is tried; replicas take turns, and an empty slot takes nothing."""
    where = setting()
    slots = [[0, 1, 2, 3, 0, 1], [3, 2, EMPTY, 1, 0, EMPTY]]
    plan = Placement.from_slots(slots, 2, n_experts=4, name="plan")
    factor = np.array([[1.0, 0.5, 1.0, 0.25], [1.0, 1.0, 0.5, 1.0]])
    room = 2.25 * where.model.expert_bytes
    spec = TiersSpec.model_validate({"device": f"{room / MIB} MiB", "host": "1 GiB"})
    answer = choose_tiers(where, plan, spec, MemorySpec(), factor)

    wanted = np.zeros((2, 6))
    for step in where.batches.tokens:
        seen = set()
        for turn, token in enumerate(step.ravel().tolist()):
            for layer, place in product(range(2), range(2)):
                copies = [s for s, e in enumerate(slots[layer]) if e == where.trace.ids[layer, place, token]]
                seen.add((layer, copies[turn % len(copies)]))
        for cell in seen:
            wanted[cell] += 1 / len(where.batches.tokens)
    size = np.array([[factor[layer, e] if e != EMPTY else 0.0 for e in slots[layer]] for layer in range(2)])
    copy_s = 20e-6 + size * where.model.expert_bytes / where.cluster.host_link.effective_bytes_per_s  # type: ignore[union-attr]
    total_s = 0.0
    for rank in range(2):
        cells = [(layer, s) for layer in range(2) for s in range(3 * rank, 3 * rank + 3) if slots[layer][s] != EMPTY]
        total_s += min(
            sum(wanted[cell] * copy_s[cell] for cell, here in zip(cells, held, strict=True) if not here)
            for held in product((True, False), repeat=len(cells))
            if sum(size[cell] for cell, here in zip(cells, held, strict=True) if here) <= 2.25
        )
    assert answer.copy_s == pytest.approx(total_s / 2)
    assert answer.bound_s == pytest.approx(total_s / 2)
    assert answer.worst_copy_s >= answer.copy_s
    assert answer.hit_frac == pytest.approx((wanted * answer.resident).sum() / wanted.sum())
    assert answer.n_copies == 10


def test_checks_find_what_breaks_a_budget() -> None:
    check_bits([[0, 1], [1, 0]], [1.0, 3.0], 2.0, (0, 1))
    with pytest.raises(PlacementError, match=r"take 2\.5 bits on average, more than 2"):
        check_bits([[1, 1], [1, 0]], [1.0, 3.0], 2.0, ())
    with pytest.raises(PlacementError, match="no expert of layer 1 takes 3 bits"):
        check_bits([[0, 1], [0, 0]], [1.0, 3.0], 2.0, (1,))
    check_tiers([0, 1, 0], [2.0, 9.0, 1.0], [3.0, 9.0])
    with pytest.raises(PlacementError, match="tier 0 holds 3 bytes of 2"):
        check_tiers([0, 1, 0], [2.0, 9.0, 1.0], [2.0, 9.0])
