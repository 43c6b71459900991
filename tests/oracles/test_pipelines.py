"""Pipelines against closed forms of the papers and against every order that a small pipeline can have."""

import numpy as np
import pytest

from scenarios.errors import DeadlockError
from sim.pipelines import BIDIRECTIONAL, PIPELINES
from sim.pipelines.pipeline import Pipelined, run_pipeline
from sim.pipelines.tasks import PipelineShape, backward, forward
from sim.pipelines.times import StageTimes
from tests.oracles.pipeline_brute import best_s

SHAPES = [(2, 4), (4, 8), (4, 20), (8, 16), (8, 20)]
EVEN = {"forward": 1.0, "input": 1.0, "weight": 1.0}
UNEVEN = {"forward": 2.0, "input": 2.5, "weight": 1.0}


def even_times(passes: dict[str, float], overlapped_s: float = 0.0, transfer_s: float = 0.0) -> StageTimes:
    def all_alike(value: float) -> np.ndarray:
        return np.full((1, 1, 1), value)

    return StageTimes(
        forward_s=all_alike(passes["forward"]),
        backward_input_s=all_alike(passes["input"]),
        backward_weight_s=all_alike(passes["weight"]),
        overlapped_s=all_alike(overlapped_s),
        transfer_s=all_alike(transfer_s),
    )


def piped(name: str, times: StageTimes, n_stages: int, n_microbatches: int, chunks: int = 1) -> Pipelined:
    shape = PipelineShape(
        n_stages=n_stages, n_microbatches=n_microbatches, chunks=chunks, bidirectional=name in BIDIRECTIONAL
    )
    return run_pipeline(shape, [PIPELINES[name](shape, stage) for stage in range(n_stages)], times)


@pytest.mark.parametrize("passes", [EVEN, UNEVEN])
@pytest.mark.parametrize(("p", "m"), SHAPES)
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p"])
def test_bubbles_of_one_direction(name: str, p: int, m: int, passes: dict[str, float]) -> None:
    """DeepSeek-V3, table 2: 1F1B (PP - 1)(F + B), ZB1P (PP - 1)(F + B - 2 W), B the whole backward pass."""
    f, b, w = passes["forward"], passes["input"] + passes["weight"], passes["weight"]
    bubble_s = (p - 1) * (f + b - (2 * w if name == "zb1p" else 0))
    np.testing.assert_allclose(piped(name, even_times(passes), p, m).bubble_s, bubble_s)


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 16, 3), (8, 16, 4)])
def test_bubble_of_interleaved_1f1b(p: int, m: int, v: int) -> None:
    """Narayanan et al. (arXiv 2104.04473), section 2.2.2: (p - 1)(F + B) / v, F and B of all chunks of a stage."""
    done = piped("interleaved", even_times({"forward": 1.0 / v, "input": 1.5 / v, "weight": 0.5 / v}), p, m, v)
    np.testing.assert_allclose(done.bubble_s, (p - 1) * 3.0 / v)


@pytest.mark.parametrize("overlapped", [3.0, 2.5, 2.0])
@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_bubble_of_dualpipe(p: int, m: int, overlapped: float) -> None:
    """DeepSeek-V3, table 2: (PP / 2 - 1)(F&B + B - 3 W).

    It is the bubble of the middle stages where passes and gradients take as long, and of all stages where an overlapped
    pair takes as long as its parts: stages that overlap fewer pairs are busier while the others wait.
    """
    bubble_s = piped("dualpipe", even_times(EVEN, overlapped), p, m).bubble_s[0]
    expected = (p / 2 - 1) * (overlapped + 2.0 - 3.0)
    np.testing.assert_allclose(bubble_s[p // 2 - 1 : p // 2 + 1], expected)
    assert (bubble_s <= expected + 1e-9).all()
    if overlapped == 3.0:
        np.testing.assert_allclose(bubble_s, expected)


@pytest.mark.parametrize("passes", [EVEN, UNEVEN, {"forward": 1.0, "input": 1.5, "weight": 1.2}])
@pytest.mark.parametrize("m", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_no_order_of_two_stages_is_shorter(m: int, passes: dict[str, float]) -> None:
    """Over all orders that keep activations of two microbatches at most, as 1F1B and ZB1P do."""
    f, i, w = passes.values()
    times = even_times(passes)
    assert piped("1f1b", times, 2, m).step_times_s[0] == pytest.approx(best_s("FB", (2, m, 2), {"F": f, "B": i + w}))
    best = best_s("FBW", (2, m, 2), {"F": f, "B": i, "W": w})
    assert piped("zb1p", times, 2, m).step_times_s[0] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [EVEN, UNEVEN])
def test_no_order_of_three_stages_is_shorter(passes: dict[str, float]) -> None:
    f, i, w = passes.values()
    best = best_s("FBW", (3, 3, 3), {"F": f, "B": i, "W": w})
    assert piped("zb1p", even_times(passes), 3, 3).step_times_s[0] == pytest.approx(best)


def test_transfers_lengthen_the_way_there_and_back() -> None:
    """One microbatch: every stage in turn, a transfer between each two, both ways."""
    done = piped("1f1b", even_times(EVEN, transfer_s=0.25), 4, 1)
    assert done.step_times_s[0] == pytest.approx(4 * 3.0 + 2 * 3 * 0.25)


def test_a_slow_stage_sets_the_pace() -> None:
    """GPipe with one stage of twice the time: m passes of it, and one pass each of the others before and after."""
    one, p, m = np.ones((1, 4, 1)), 4, 12
    one[0, 2] = 2.0
    none = np.zeros((1, 1, 1))
    times = StageTimes(forward_s=one, backward_input_s=one, backward_weight_s=none, overlapped_s=none, transfer_s=none)
    assert piped("gpipe", times, p, m).step_times_s[0] == pytest.approx(2 * (m * 2.0 + 3))


def test_stages_that_wait_for_each_other() -> None:
    shape = PipelineShape(n_stages=2, n_microbatches=1)
    with pytest.raises(DeadlockError, match="stage 0 of the pipeline waits for ever"):
        run_pipeline(shape, [(backward(0, 0), forward(0, 0)), (forward(1, 0), backward(1, 0))], even_times(EVEN))
