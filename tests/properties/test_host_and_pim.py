"""What must hold of shares, host cores, PIM units and launches for any numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import host, launch, pim
from hwmodels.cards import PimUnits
from hwmodels.library import find_device
from hwmodels.moe import ExpertShape
from hwmodels.sharing import fair_shares
from tests.hosts import MATRIX, half_speed_host, round_host

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
PIM_NAMES = ("logic-pim", "bankgroup-pim", "bank-pim")

demands = st.lists(st.floats(0, 1e12), min_size=1, max_size=8)
capacities = st.floats(0, 2e12)
tokens = st.integers(0, 10_000)
slot_tokens = st.lists(st.one_of(st.just(0), st.integers(1, 20), tokens), min_size=1, max_size=12)
times = st.floats(0, 1e3)
shapes = st.builds(
    ExpertShape,
    hidden_size=st.integers(1, 10_000),
    intermediate_size=st.integers(1, 10_000),
    gated=st.booleans(),
    weight_dtype=st.sampled_from(("bf16", "fp16", "int8", "int4", "fp8_block")),
)
hosts = st.builds(
    round_host,
    n_threads=st.integers(1, 100),
    local_frac=st.floats(0, 1),
    matrix=st.sampled_from((None, MATRIX)),
    vector_tokens=st.integers(0, 16),
)
vector_hosts = st.builds(round_host, n_threads=st.integers(1, 100), matrix=st.none())


def half_speed_units(units: PimUnits) -> PimUnits:
    slow = {name: getattr(units, name) for name in ("memory_bytes_per_s", "peak_flop_per_s")}
    return units.model_copy(
        update={name: number.model_copy(update={"value": number.value / 2}) for name, number in slow.items()}
    )


@FIXED
@given(demands, capacities)
def test_shares_exceed_no_demand_and_use_all_there_is(wanted, capacity):
    shares = fair_shares(wanted, capacity)
    assert (shares <= wanted).all()
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(min(capacity, sum(wanted)), rel=1e-9, abs=1e-300)


@FIXED
@given(demands, capacities)
def test_who_gets_less_than_asked_gets_the_most(wanted, capacity):
    # Max-min fairness: an unsatisfied user's share can only grow by taking from one that has no more.
    shares = fair_shares(wanted, capacity)
    assert (shares[shares < np.array(wanted)] == shares.max()).all()


@FIXED
@given(demands, st.floats(0, 1e12), st.integers(2, 4), capacities)
def test_equal_demands_get_equal_shares(others, demand, n_equal, capacity):
    shares = fair_shares([demand] * n_equal + others, capacity)
    assert len(set(shares[:n_equal].tolist())) == 1


@FIXED
@given(demands, capacities, st.randoms(use_true_random=False))
def test_shares_follow_their_users(wanted, capacity, random):
    order = list(range(len(wanted)))
    random.shuffle(order)
    assert fair_shares(np.array(wanted)[order], capacity).tolist() == fair_shares(wanted, capacity)[order].tolist()


@FIXED
@given(demands, st.floats(0, 1e12), capacities)
def test_another_user_never_helps(wanted, newcomer, capacity):
    assert (fair_shares([*wanted, newcomer], capacity)[:-1] <= fair_shares(wanted, capacity) * (1 + 1e-12)).all()


@FIXED
@given(slot_tokens, shapes, hosts)
def test_halving_all_speeds_doubles_times_on_the_host(counts, shape, machine):
    slow = half_speed_host(machine)
    assert host.experts_s(counts, shape, slow) == 2 * host.experts_s(counts, shape, machine)
    assert (host.gemm_s(counts, (300, 700), "bf16", slow) == 2 * host.gemm_s(counts, (300, 700), "bf16", machine)).all()
    assert host.attention_s(1e6, 1e8, slow) == 2 * host.attention_s(1e6, 1e8, machine)


@FIXED
@given(st.lists(tokens, min_size=2, max_size=6), shapes, vector_hosts)
def test_more_tokens_are_never_faster_on_one_kernel(counts, shape, machine):
    assert (np.diff(host.expert_s(sorted(counts), shape, machine)) >= 0).all()


@FIXED
@given(slot_tokens, shapes, st.integers(1, 99), st.sampled_from((None, MATRIX)))
def test_more_threads_are_never_slower(counts, shape, n_threads, matrix):
    fewer, more = (round_host(n_threads=n, matrix=matrix) for n in (n_threads, n_threads + 1))
    assert host.experts_s(counts, shape, more) <= host.experts_s(counts, shape, fewer) * (1 + 1e-12)


@FIXED
@given(slot_tokens, shapes, hosts, st.floats(0.01, 1))
def test_a_smaller_share_of_the_dram_is_never_faster(counts, shape, machine, frac):
    share = frac * machine.dram_bytes_per_s
    assert host.experts_s(counts, shape, machine, share) >= host.experts_s(counts, shape, machine)


@FIXED
@given(slot_tokens, shapes, hosts)
def test_experts_never_beat_the_dram_and_are_the_sum_of_their_parts(counts, shape, machine):
    parts_s = [float(host.expert_s(count, shape, machine)) for count in counts]
    called_s = machine.constants.call_s if any(counts) else 0.0
    total_s = float(host.experts_s(counts, shape, machine))
    assert total_s == pytest.approx(called_s + sum(parts_s))
    assert total_s >= np.count_nonzero(counts) * shape.weight_bytes / machine.dram_bytes_per_s * (1 - 1e-12)


@FIXED
@given(slot_tokens, shapes, st.sampled_from(PIM_NAMES))
def test_halving_all_speeds_doubles_times_on_pim(counts, shape, name):
    units = pim.pim_units(find_device(name))
    slow = half_speed_units(units)
    assert pim.pim_experts_s(counts, shape, slow) == 2 * pim.pim_experts_s(counts, shape, units)


@FIXED
@given(slot_tokens, shapes, st.sampled_from(PIM_NAMES), st.data())
def test_more_tokens_are_never_faster_on_pim(counts, shape, name, data):
    units, slot = pim.pim_units(find_device(name)), data.draw(st.integers(0, len(counts) - 1))
    more = list(counts)
    more[slot] += data.draw(st.integers(1, 300))
    assert pim.pim_experts_s(more, shape, units) >= pim.pim_experts_s(counts, shape, units)


@FIXED
@given(times, times, st.sampled_from(PIM_NAMES))
def test_exclusive_units_never_overlap_and_others_never_wait(device_s, units_s, name):
    units = pim.pim_units(find_device(name))
    together_s = float(pim.together_s(device_s, units_s, units))
    assert max(device_s, units_s) <= together_s <= device_s + units_s
    assert together_s == (device_s + units_s if units.exclusive.value else max(device_s, units_s))


@FIXED
@given(st.floats(0, 1e15), st.floats(1, 1e12), st.sampled_from(PIM_NAMES))
def test_dispatch_takes_the_faster_side(flop, moved_bytes, name):
    units, card = pim.pim_units(find_device(name)), find_device(name)
    peak, bandwidth = card.peak_flop_per_s["fp16"].value, card.memory_bytes_per_s.value
    device_s = max(flop / peak, moved_bytes / bandwidth)
    assert pim.prefers_pim(flop, moved_bytes, units, peak, bandwidth) == (
        pim.pim_s(flop, moved_bytes, units) < device_s
    )


@FIXED
@given(times, st.integers(0, 10_000), st.floats(1e-7, 1e-3))
def test_eager_steps_are_bound_by_host_and_device(device_s, n_kernels, eager_kernel_s):
    constants = launch.LaunchConstants.model_validate(
        {"source": "test", "kind": "assumed", "kernel_s": "2 us", "small_memory_frac": 1.0}
        | {"eager_kernel_s": f"{eager_kernel_s} s", "graph_s": "8 us"}
    )
    eager_s = float(launch.eager_s(device_s, n_kernels, constants))
    assert eager_s == max(device_s, float(launch.host_floor_s(n_kernels, constants)))


@FIXED
@given(st.lists(st.integers(0, 131), min_size=2, max_size=5))
def test_more_sms_taken_are_never_faster(taken):
    slowdowns = launch.compute_slowdown(sorted(taken), 132)
    assert (np.diff(slowdowns) >= 0).all()
    assert (slowdowns >= 1).all()
