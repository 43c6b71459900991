"""What must hold for every executed step, whatever its operations, durations and law."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.durations import Duration, ExchangeTime, Seconds
from sim.laws import LAWS
from sim.log import begins_s
from sim.policies import POLICIES
from sim.program import DeviceLane, Lane, OpList
from sim.vector import Finished, execute
from tests.oracles.random_steps import Case, dag_case, of_step, policy_case, varied

SINGLE_LANES: tuple[Lane, ...] = ("compute", "to-device", "host")
ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-12


@st.composite
def cases(draw: st.DrawFn, laws: tuple[str, ...] = tuple(LAWS)) -> Case:
    law, policy = draw(st.sampled_from(laws)), draw(st.sampled_from([None, *POLICIES]))
    seed, max_devices = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6))
    if policy is None:
        return dag_case(law, seed, max_devices=max_devices, max_ops=draw(st.integers(1, 14)))
    return policy_case(policy, law, seed, max_devices=max_devices)


def stacked(finished: Finished) -> Seconds:
    """Ends, then send ends: float64[2, operation, device]."""
    return np.array([finished.end_s, finished.send_end_s])


def own_send_s(duration: Duration) -> Seconds:
    """Time that the device's own share of an operation takes before others can hold it up."""
    if not isinstance(duration, ExchangeTime):
        return duration
    if duration.message_s is None:
        return duration.send_s
    return np.asarray(duration.latency_s + duration.message_s.sum(axis=2).max(axis=0))


def own_receive_s(duration: ExchangeTime) -> Seconds:
    if duration.message_s is None:
        return duration.receive_s
    return np.asarray(duration.message_s.sum(axis=1).max(axis=0))


def on_lane(op_list: OpList, lane: Lane) -> list[int]:
    return [index for index, op in enumerate(op_list.ops) if lane in op.lanes]


@given(cases())
@settings(max_examples=40)
def test_no_lane_is_busy_twice_and_nothing_begins_too_early(case: Case) -> None:
    case = replace(case, start_s=np.zeros_like(case.start_s))
    finished = case.vector()
    begins = begins_s(case.op_list, case.durations, finished)
    slack_s = ROUNDING * stacked(finished).max()
    for index, op in enumerate(case.op_list.ops):
        for dep in op.after:
            assert (begins[index] >= finished.end_s[dep] - slack_s).all()
        assert (finished.send_end_s[index] >= begins[index] + own_send_s(case.durations[index]) - slack_s).all()
    for lane in SINGLE_LANES:
        for before, index in pairwise(on_lane(case.op_list, lane)):
            assert (begins[index] >= finished.end_s[before] - slack_s).all()
    for before, index in pairwise(on_lane(case.op_list, "send")):
        assert (begins[index] >= finished.send_end_s[before] - slack_s).all()
    for before, index in pairwise(on_lane(case.op_list, "receive")):
        duration = case.durations[index]
        assert isinstance(duration, ExchangeTime)
        assert (finished.end_s[index] - own_receive_s(duration) >= finished.end_s[before] - slack_s).all()


@given(cases())
@settings(max_examples=40)
def test_the_makespan_is_at_least_the_busiest_lane_and_the_critical_path(case: Case) -> None:
    last_s = np.max(case.vector().end_s, axis=0)
    for device, last in enumerate(last_s - case.start_s):
        graph = nx.DiGraph()
        lanes_s = dict.fromkeys(get_args(DeviceLane), 0.0)
        for index, (op, duration) in enumerate(zip(case.op_list.ops, case.durations, strict=True)):
            own_s = float(own_send_s(duration)[device])
            graph.add_edge(index, "end", weight=own_s)
            graph.add_edges_from((dep, index, {"weight": own_send_s(case.durations[dep])[device]}) for dep in op.after)
            lanes_s[op.lanes[0]] += own_s
            lanes_s["receive"] += float(own_receive_s(duration)[device]) if isinstance(duration, ExchangeTime) else 0.0
        path_s = nx.dag_longest_path_length(graph)
        assert last >= max(path_s, *lanes_s.values()) - ROUNDING * (last + case.start_s[device])


@given(cases(), st.integers(-8, 8))
@settings(max_examples=25)
def test_halving_all_speeds_doubles_all_times_bit_by_bit(case: Case, power: int) -> None:
    factor = 2.0**power
    durations = [varied(duration, lambda array: array * factor) for duration in case.durations]
    durations = [replace(d, latency_s=d.latency_s * factor) if isinstance(d, ExchangeTime) else d for d in durations]
    scaled = replace(case, durations=durations, start_s=case.start_s * factor)
    assert (stacked(scaled.vector()) == stacked(case.vector()) * factor).all()
    assert (stacked(scaled.events()) == stacked(case.events()) * factor).all()


@given(cases(), st.floats(0, 100))
@settings(max_examples=40)
def test_a_later_start_shifts_all_times(case: Case, shift_s: float) -> None:
    shifted = stacked(replace(case, start_s=case.start_s + shift_s).vector())
    np.testing.assert_allclose(shifted, stacked(case.vector()) + shift_s, rtol=ROUNDING, atol=0)


@given(cases(laws=("port", "fifo")), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_more_time_for_one_operation_makes_nothing_earlier(case: Case, seed: int) -> None:
    """Not so for law maxmin: test_closed_forms has a counterexample."""
    rng = np.random.default_rng(seed)
    index = int(rng.integers(len(case.durations)))

    def longer(array: Seconds) -> Seconds:
        return np.asarray(array + rng.exponential(1.0, array.shape) * (rng.random(array.shape) < rng.random()))

    durations = [varied(d, longer) if i == index else d for i, d in enumerate(case.durations)]
    before, after = stacked(case.vector()), stacked(replace(case, durations=durations).vector())
    assert (after >= before * (1 - ROUNDING)).all()


@given(cases(laws=("port", "maxmin")), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_relabelling_the_devices_relabels_the_times(case: Case, seed: int) -> None:
    """Groups stay together; under law fifo the order of the ring matters."""
    rng, n_devices = np.random.default_rng(seed), len(case.start_s)
    size = min([d.group_size for d in case.durations if isinstance(d, ExchangeTime)] or [n_devices])
    groups = rng.permutation(np.arange(n_devices).reshape(-1, size))
    order = rng.permuted(groups, axis=1).ravel()

    def relabel(array: Seconds) -> Seconds:
        return array[:, order][:, :, order] if array.ndim == 3 else array[order]

    durations = [varied(duration, relabel) for duration in case.durations]
    relabelled = stacked(replace(case, durations=durations, start_s=case.start_s[order]).vector())
    np.testing.assert_allclose(relabelled, stacked(case.vector())[..., order], rtol=ROUNDING, atol=0)


@given(cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_batch_of_steps_is_executed_as_one_step_after_the_other(case: Case, seed: int) -> None:
    """Each step with the durations of the case times 0, 1 or 2.5 at random, drawn anew for every array."""
    rng, n_steps = np.random.default_rng(seed), 3
    batch = [varied(d, lambda array: array * rng.choice([0, 1, 2.5], (n_steps, *array.shape))) for d in case.durations]
    start_s = np.broadcast_to(case.start_s, (n_steps, len(case.start_s)))
    together = stacked(execute(case.op_list, batch, start_s, law=LAWS[case.law]))
    for step in range(n_steps):
        alone = replace(case, durations=[of_step(duration, step) for duration in batch])
        np.testing.assert_allclose(together[:, :, step], stacked(alone.vector()), rtol=ROUNDING, atol=0)


@given(cases())
@settings(max_examples=50)
def test_dropping_redundant_waits_changes_no_time(case: Case) -> None:
    ops = case.op_list.ops
    last: dict[Lane, int] = {}
    lane_waits: list[tuple[tuple[Lane, int], ...]] = []
    for index, op in enumerate(ops):
        lane_waits.append(tuple((lane, last[lane]) for lane in op.lanes if lane in last))
        last.update(dict.fromkeys(op.lanes, index))
    everything = OpList(ops=ops, waits=tuple(op.after for op in ops), lane_waits=tuple(lane_waits))
    assert (stacked(replace(case, op_list=everything).vector()) == stacked(case.vector())).all()


def digest() -> str:
    """Digest of the times of a few steps under every law and policy, by both executors."""
    seen = hashlib.sha256()
    for law in LAWS:
        for seed in range(3):
            for case in (*(policy_case(policy, law, seed) for policy in POLICIES), dag_case(law, seed)):
                seen.update(stacked(case.vector()).tobytes() + stacked(case.events()).tobytes())
    return seen.hexdigest()


@pytest.mark.slow
def test_times_are_the_same_in_every_process() -> None:
    program = "from tests.properties.test_execution import digest; print(digest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "4711")
    }
    assert found == {digest()}
