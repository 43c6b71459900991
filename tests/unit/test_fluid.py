"""The fluid executor against closed forms of two operations, and against the max-plus law where nothing is slowed."""

import numpy as np
import pytest

from scenarios.errors import DeadlockError
from sim.fluid import execute_fluid
from sim.program import Op, OpList, Program, Work, compile_ops
from sim.vector import execute
from tests.oracles.random_steps import adversarial_s


def two(after=None):
    program = Program()
    first = program.compute(Work("a"), after=None)
    program.beside(Work("b"), "host", after=first if after == "a" else None)
    return compile_ops(program.ops)


def factors(of_a, of_b):
    return lambda work, others: (of_a if work.kind == "a" else of_b) if others else 1.0


@pytest.mark.parametrize(
    ("a_s", "b_s", "of_a", "of_b", "ends"),
    [
        (4.0, 1.0, 2.0, 1.0, [4.5, 1.0]),  # b ends at 1, when half a second of a is done: 1 + 3.5
        (4.0, 1.0, 1.0, 2.0, [4.0, 2.0]),
        (2.0, 2.0, 1.5, 1.5, [3.0, 3.0]),
        (3.0, 2.0, 2.0, 4.0, [6.0, 6.5]),  # a is done at 6, b has done 1.5 by then
        (0.0, 2.0, 9.0, 9.0, [0.0, 2.0]),
    ],
)
def test_two_operations_that_overlap(a_s, b_s, of_a, of_b, ends):
    """By hand: while both run, each has done its time over its factor; the longer one ends alone."""
    assert execute_fluid(two(), [a_s, b_s], factors(of_a, of_b)).tolist() == pytest.approx(ends)


def test_operations_that_wait_for_each_other_do_not_slow_each_other():
    assert execute_fluid(two("a"), [2.0, 3.0], factors(5.0, 5.0)).tolist() == [2.0, 5.0]


def random_lanes(seed):
    rng = np.random.default_rng(seed)
    program = Program()
    for index in range(int(rng.integers(2, 25))):
        after = [int(dep) for dep in rng.integers(0, index, rng.integers(0, 4))] if index else None
        program.beside(Work("op", index), str(rng.choice(["compute", "host", "to-device"])), after=after)
    return compile_ops(program.ops), adversarial_s(rng, (len(program.ops),), ["heavy tail", "ties", "mixed"][seed % 3])


def test_without_slowdown_it_is_the_max_plus_law():
    for seed in range(40):
        op_list, durations_s = random_lanes(seed)
        want = execute(op_list, [np.array([one]) for one in durations_s]).end_s[:, 0]
        np.testing.assert_allclose(execute_fluid(op_list, durations_s), want, rtol=1e-9, atol=1e-12)


def test_times_scale_and_a_common_factor_of_crowds_is_bounded():
    """Twice the durations are twice the ends, exactly; a factor f of neighbours makes a run at most f times as long."""
    for seed in range(20):
        op_list, durations_s = random_lanes(seed)

        def crowded(_work, others):
            return 1.0 + 0.25 * len(others)

        ends_s, plain_s = execute_fluid(op_list, durations_s, crowded), execute_fluid(op_list, durations_s)
        np.testing.assert_array_equal(execute_fluid(op_list, 2 * durations_s, crowded), 2 * ends_s)
        assert plain_s.max() <= ends_s.max() * (1 + 1e-12)
        assert ends_s.max() <= 1.5 * plain_s.max() * (1 + 1e-12)


def test_a_circle_is_told():
    circle = OpList((Op(Work("a"), ("compute",), (1,)), Op(Work("b"), ("host",), (0,))), ((), ()), ((), ()))
    with pytest.raises(DeadlockError, match=r"operation 0 \(a\) never begins"):
        execute_fluid(circle, [1.0, 1.0])
