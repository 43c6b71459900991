"""Recording and compiling of stream programs, against lists written by hand."""

import numpy as np
import pytest

from scenarios.errors import DeadlockError
from sim.durations import Duration, ExchangeTime
from sim.events import execute_events
from sim.program import EXCHANGE_LANES, Chunk, Layer, Op, OpList, Program, Step, Work, compile_ops, compile_program

WORK = Work("any")


def compiled(*issued: tuple[str, int | tuple[int, ...] | None]) -> OpList:
    """Compiled list of ("compute" or "exchange", after) in this order."""
    program = Program()
    for lane, after in issued:
        issue = program.compute if lane == "compute" else program.exchange
        issue(WORK, after=after)
    return compile_ops(program.ops)


def test_operations_are_numbered_and_recorded_as_issued() -> None:
    program = Program()
    gate, head = Work("gate", 3), Work("head")
    assert program.compute(gate, after=None) == 0
    assert program.exchange(Work("dispatch", 3, 1), after=0) == 1
    assert program.compute(head, after=[0, 1]) == 2
    assert program.ops == [
        Op(gate, ("compute",), ()),
        Op(Work("dispatch", 3, 1), EXCHANGE_LANES, (0,)),
        Op(head, ("compute",), (0, 1)),
    ]
    assert [op.is_exchange for op in program.ops] == [False, True, False]


def test_a_policy_is_compiled_for_a_step() -> None:
    def backwards(program: Program, step: Step) -> None:
        for layer in reversed(step.layers):
            program.compute(layer.attention, after=None)

    step = Step(layers=(Layer(attention=Work("attention", 0)), Layer(attention=Work("attention", 1))), head=WORK)
    assert [op.work.layer for op in compile_program(backwards, step).ops] == [1, 0]


@pytest.mark.parametrize(("after", "missing"), [(0, 0), (1, 1), ((5,), 5), (-1, -1)])
def test_waiting_for_an_operation_not_yet_issued_is_a_deadlock(after: int | tuple[int, ...], missing: int) -> None:
    program = Program()
    with pytest.raises(DeadlockError, match=rf"operation 0 \(experts\) waits for operation {missing}, not yet issued"):
        program.compute(Work("experts"), after=after)


def test_the_first_missing_operation_of_several_is_named() -> None:
    program = Program()
    program.compute(WORK, after=None)
    with pytest.raises(DeadlockError, match=r"operation 1 \(combine\) waits for operation 2"):
        program.exchange(Work("combine"), after=[0, 2, 3])
    assert len(program.ops) == 1


def test_the_event_executor_says_which_operation_never_ends() -> None:
    """On one lane, the first operation waits for the second: a list that no Program would record."""
    ops = (Op(Work("gate"), ("compute",), (1,)), Op(Work("head"), ("compute",), ()))
    op_list = OpList(ops=ops, waits=((1,), ()), lane_waits=((), (("compute", 0),)))
    with pytest.raises(DeadlockError, match=r"operation 0 \(gate\) never ends on device 0: it waits for \[1\]"):
        execute_events(op_list, [np.ones(2), np.ones(2)])


def test_a_deadlock_across_lanes_is_noticed() -> None:
    """The exchange waits for the computation, which waits for the exchange."""
    ops = (Op(Work("dispatch"), EXCHANGE_LANES, (1,)), Op(Work("experts"), ("compute",), (0,)))
    op_list = OpList(ops=ops, waits=((1,), (0,)), lane_waits=((), ()))
    times: list[Duration] = [ExchangeTime(send_s=np.ones(1), receive_s=np.ones(1), group_size=1), np.ones(1)]
    with pytest.raises(DeadlockError, match=r"operation 0 \(dispatch\) never ends"):
        execute_events(op_list, times)


class TestCompile:
    def test_what_follows_from_another_wait_is_dropped(self) -> None:
        assert compiled(("compute", None), ("compute", 0), ("compute", (0, 1))).waits == ((), (0,), (1,))

    def test_of_a_diamond_both_arms_stay(self) -> None:
        """Exchange 1 and computation 2 both follow 0; 3 waits for both of them, 0 is implied."""
        op_list = compiled(("compute", None), ("exchange", 0), ("compute", 0), ("exchange", (0, 1, 2)))
        assert op_list.waits[3] == (1, 2)

    def test_a_wait_is_kept_once(self) -> None:
        assert compiled(("exchange", None), ("compute", (0, 0, 0))).waits[1] == (0,)

    def test_lanes_imply_waits(self) -> None:
        """1 ends after 0, both on the compute lane, so what waits for 1 need not wait for 0."""
        assert compiled(("compute", None), ("compute", None), ("exchange", (0, 1))).waits[2] == (1,)

    def test_an_exchange_ends_after_the_one_before_it(self) -> None:
        """The receive lane is free only at the end of exchange 0, so the end of 1 implies it."""
        assert compiled(("exchange", None), ("exchange", None), ("compute", (0, 1))).waits[2] == (1,)

    def test_the_compute_lane_awaits_its_predecessor_once(self) -> None:
        op_list = compiled(("compute", None), ("compute", 0), ("compute", None))
        assert op_list.lane_waits == ((), (), (("compute", 1),))

    def test_a_send_lane_follows_but_a_receive_lane_never_does(self) -> None:
        """Exchange 1 comes after the end of 0, so its send lane is free; its receive lane may open earlier than that
        on another device's account, so its predecessor is needed."""
        op_list = compiled(("exchange", None), ("exchange", 0), ("exchange", None))
        assert op_list.lane_waits == ((), (("receive", 0),), (("send", 1), ("receive", 1)))

    def test_lane_waits_through_other_lanes_are_dropped(self) -> None:
        """Computation 1 follows exchange 0, exchange 2 follows 1: the send lane is free by then."""
        assert compiled(("exchange", None), ("compute", 0), ("exchange", 1)).lane_waits[2] == (("receive", 0),)

    def test_an_empty_program_has_no_operations(self) -> None:
        assert compile_ops([]) == OpList(ops=(), waits=(), lane_waits=())


def test_works_are_values() -> None:
    parts = [Chunk(Work("dispatch", 0, c), Work("experts", 0, c), Work("combine", 0, c)) for c in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert len({*parts}) == 2
