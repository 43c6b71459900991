"""The log of a step computed by hand.

Two devices, times in seconds, law port:
  0 attention  2 3        ends 2 3
  1 dispatch   begins 2 3, sends 1 1: sent at 3 4; receives 4 2 from 2 (the first sender) on: ends at 2 + 4 = 6 and 4
  2 dispatch   also after 0, so its send lane is free at 3 4; sends 1 1, receives 1 1: ends at 7, 5
  3 experts    after 1: begins 6 4, takes 1 1, ends 7 5
"""

import numpy as np
import pytest

from sim.durations import Duration, ExchangeTime
from sim.log import begins_s, busy_s, covered_s, step_log
from sim.program import OpList, Program, Work, compile_ops
from sim.vector import Finished, execute

BEGINS_S = [[0.0, 0.0], [2.0, 3.0], [3.0, 4.0], [6.0, 4.0]]
BUSY_S = [[2.0, 3.0], [4.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
ENDS_S = [[2.0, 3.0], [6.0, 4.0], [7.0, 5.0], [7.0, 5.0]]


def exchange(send_s: list[float], receive_s: list[float], n_steps: int) -> ExchangeTime:
    return ExchangeTime(
        send_s=np.array([send_s] * n_steps), receive_s=np.array([receive_s] * n_steps), group_size=len(send_s)
    )


@pytest.fixture(name="step")
def hand_step() -> tuple[OpList, list[Duration], Finished]:
    """The step of the module's docstring, twice; the second time attention takes 10 s longer everywhere."""
    program = Program()
    attended = program.compute(Work("attention", 0), after=None)
    dispatched = program.exchange(Work("dispatch", 0, 0), after=attended)
    program.exchange(Work("dispatch", 0, 1), after=attended)
    program.compute(Work("experts", 0, 0), after=dispatched)
    op_list = compile_ops(program.ops)
    attention_s = np.array([[2.0, 3.0], [12.0, 13.0]])
    durations: list[Duration] = [
        attention_s,
        exchange([1, 1], [4, 2], 2),
        exchange([1, 1], [1, 1], 2),
        np.ones((2, 2)),
    ]
    return op_list, durations, execute(op_list, durations)


def test_begins(step: tuple[OpList, list[Duration], Finished]) -> None:
    assert [begin[0].tolist() for begin in begins_s(*step)] == BEGINS_S


def test_log_of_the_first_step(step: tuple[OpList, list[Duration], Finished]) -> None:
    log = step_log(*step, 0)
    assert [times.work.kind for times in log] == ["attention", "dispatch", "dispatch", "experts"]
    assert [times.work.chunk for times in log] == [-1, 0, 1, 0]
    assert [times.lane for times in log] == ["compute", "exchange", "exchange", "compute"]
    assert [times.begin_s.tolist() for times in log] == BEGINS_S
    assert [times.busy_s.tolist() for times in log] == BUSY_S
    assert [times.end_s.tolist() for times in log] == ENDS_S


def test_log_of_another_step(step: tuple[OpList, list[Duration], Finished]) -> None:
    log = step_log(*step, 1)
    assert log[0].begin_s.tolist() == [0, 0]
    assert log[3].begin_s.tolist() == [16, 14]
    assert log[0].busy_s.tolist() == [12, 13]
    for times, end_s in zip(log, ENDS_S, strict=True):
        assert times.end_s.tolist() == [end + 10 for end in end_s]


def test_an_exchange_that_waits_for_nothing_begins_at_once() -> None:
    program = Program()
    program.exchange(Work("gather"), after=None)
    op_list, durations = compile_ops(program.ops), [exchange([1, 2], [0, 0], 1)]
    assert begins_s(op_list, durations, execute(op_list, durations))[0].tolist() == [[0, 0]]


def test_an_exchange_keeps_a_device_busy_for_the_longer_of_its_ports() -> None:
    assert busy_s(exchange([1, 5], [3, 2], 1)).tolist() == [[3, 5]]
    assert busy_s(np.array([1.0, 2.0])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("intervals", "covered"),
    [
        ([(0, 2)], 2),
        ([(0, 2), (1, 3), (5, 6)], 4),
        ([(0, 10), (2, 3), (4, 5)], 10),
        ([(0, 10), (2, 3), (9, 12)], 12),
        ([(0, 1), (1, 2), (2, 2)], 2),
        ([(3, 3), (3, 4)], 1),
    ],
    ids=["one", "overlap and gap", "nested", "nested and beyond", "touching", "empty"],
)
def test_covered_time(intervals: list[tuple[float, float]], covered: float) -> None:
    begins = [np.array([float(begin)]) for begin, _ in intervals]
    ends = [np.array([float(end)]) for _, end in intervals]
    assert covered_s(begins, ends).tolist() == [covered]


def test_time_is_covered_on_each_device_of_each_step() -> None:
    """[step, device]: the two intervals overlap on one, touch, lie apart, and coincide."""
    begins = [np.array([[0.0, 0], [0, 1]]), np.array([[1.0, 2], [5, 1]])]
    ends = [np.array([[2.0, 2], [1, 4]]), np.array([[3.0, 3], [6, 4]])]
    assert covered_s(begins, ends).tolist() == [[3, 3], [2, 3]]
