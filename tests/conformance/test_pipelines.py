"""Every pipeline: what its orders must hold, and that the executors and the textbook model agree on them."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from scenarios.errors import ScenarioError
from scenarios.schedule_specs import PipelineName
from sim.pipelines import BIDIRECTIONAL, PIPELINES
from sim.pipelines.pipeline import issue_orders, run_pipeline
from sim.pipelines.tasks import Order, Pass, PipelineShape, activations_in_flight, forward_only
from sim.pipelines.times import StageTimes
from tests.oracles.textbook import simulate

CHUNKS = {"interleaved": 2}
SHAPES = {name: [(2, 4), (2, 6), (4, 8)] for name in PIPELINES} | {"dualpipe": [(2, 4), (4, 8), (4, 10), (6, 14)]}
CASES = [(name, *shape) for name in PIPELINES for shape in SHAPES[name]]


def shape_of(name: str, n_stages: int, n_microbatches: int) -> PipelineShape:
    return PipelineShape(
        n_stages=n_stages,
        n_microbatches=n_microbatches,
        chunks=CHUNKS.get(name, 1),
        bidirectional=name in BIDIRECTIONAL,
    )


def orders_of(name: str, shape: PipelineShape) -> list[Order]:
    return [PIPELINES[name](shape, stage) for stage in range(shape.n_stages)]


def adversarial_times(shape: PipelineShape, seed: int, n_steps: int = 2) -> StageTimes:
    """Times of every pass of their own, many of them nothing and some very long."""
    rng = np.random.default_rng(seed)

    def times(n_microbatches: int) -> np.ndarray:
        size = (n_steps, shape.n_parts, n_microbatches)
        return rng.choice([0.0, 1.0, 10.0], size) * rng.random(size)

    many = shape.n_microbatches
    return StageTimes(
        forward_s=times(many),
        backward_input_s=times(many),
        backward_weight_s=times(many),
        overlapped_s=times(many),
        transfer_s=times(1),
    )


def test_names_are_those_of_scenarios() -> None:
    assert set(get_args(PipelineName)) == set(PIPELINES)


@pytest.mark.parametrize(("name", "n_stages", "n_microbatches"), CASES)
def test_each_stage_does_its_passes_once_and_in_order(name: str, n_stages: int, n_microbatches: int) -> None:
    shape = shape_of(name, n_stages, n_microbatches)
    for stage, order in enumerate(orders_of(name, shape)):
        own = {
            work
            for work in (Pass(*pair) for pair in product(range(shape.n_parts), range(n_microbatches)))
            if shape.stage_of(work) == stage
        }
        places = {
            kind: {work: place for place, task in enumerate(order) if (work := getattr(task, kind)) is not None}
            for kind in ("forward", "backward", "weights")
        }
        for kind, place_of in places.items():
            assert set(place_of) == own
            assert sum(getattr(task, kind) is not None for task in order) == len(own)
        for work in own:
            assert places["forward"][work] < places["backward"][work] <= places["weights"][work]


@pytest.mark.parametrize(("name", "n_stages", "n_microbatches"), CASES)
def test_executors_agree(name: str, n_stages: int, n_microbatches: int) -> None:
    shape = shape_of(name, n_stages, n_microbatches)
    orders = orders_of(name, shape)
    ops = issue_orders(shape, orders).program.ops
    times = adversarial_times(shape, seed=n_microbatches)
    vector, events = (run_pipeline(shape, orders, times, executor) for executor in ("vector", "event"))
    np.testing.assert_allclose(vector.finished.end_s, events.finished.end_s, rtol=1e-9)
    end_s, _ = simulate(ops, [duration[1] for duration in vector.durations], np.zeros(1), "port")
    np.testing.assert_allclose(vector.finished.end_s[:, 1], end_s, rtol=1e-9)


@pytest.mark.parametrize(("name", "n_stages", "n_microbatches"), CASES)
def test_no_stage_is_busy_twice_and_none_beyond_the_end(name: str, n_stages: int, n_microbatches: int) -> None:
    shape = shape_of(name, n_stages, n_microbatches)
    done = run_pipeline(shape, orders_of(name, shape), adversarial_times(shape, seed=7))
    begins_s = done.finished.end_s - np.array(done.durations)
    for stage in range(n_stages):
        own = [i for i, op in enumerate(done.op_list.ops) if op.lanes == (f"stage {stage}",)]
        assert (begins_s[own[1:]] >= done.finished.end_s[own[:-1]] - 1e-9).all()
    assert (done.bubble_s > -1e-9).all()


@pytest.mark.parametrize("name", PIPELINES)
def test_forward_passes_alone_make_a_pipeline(name: str) -> None:
    shape = shape_of(name, 4, 8)
    orders = [forward_only(order) for order in orders_of(name, shape)]
    ones = np.ones((1, 1, 1))
    times = StageTimes(
        forward_s=ones, backward_input_s=ones, backward_weight_s=ones, overlapped_s=ones, transfer_s=0 * ones
    )
    done = run_pipeline(shape, orders, times)
    # The first microbatch passes all parts but the last stage's; nothing waits once a stage has begun, if one-way.
    assert done.step_times_s[0] >= 3 + 8 * shape.chunks - (3 if name in BIDIRECTIONAL else 0)
    if name not in BIDIRECTIONAL:
        assert done.step_times_s[0] == 3 + 8 * shape.chunks


@pytest.mark.parametrize(("name", "shape", "words"), [
    ("interleaved", {"n_stages": 4, "n_microbatches": 6, "chunks": 2}, "6 microbatches are not divisible by 4 stages"),
    ("dualpipe", {"n_stages": 3, "n_microbatches": 8, "bidirectional": True}, "even number of stages, not 3"),
    ("dualpipe", {"n_stages": 4, "n_microbatches": 7, "bidirectional": True}, "even number from 8 on"),
    ("dualpipe", {"n_stages": 4, "n_microbatches": 6, "bidirectional": True}, "even number from 8 on"),
])  # fmt: skip
def test_orders_that_do_not_exist(name: str, shape: dict[str, int], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        PIPELINES[name](PipelineShape(**shape), 0)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "dualpipe"])
def test_activations_in_flight_are_as_published(name: str) -> None:
    """DeepSeek-V3 (arXiv 2412.19437), table 2: PP, and PP + 1 of DualPipe; GPipe holds all microbatches."""
    shape = shape_of(name, 8, 20)
    most = max(activations_in_flight(order) for order in orders_of(name, shape))
    assert most == {"gpipe": 20, "1f1b": 8, "zb1p": 8, "dualpipe": 9}[name]


def test_only_dualpipe_holds_two_parts() -> None:
    assert shape_of("dualpipe", 4, 8).parts_of(1) == (1, 2)
    assert shape_of("1f1b", 4, 8).parts_of(1) == (1,)
    assert shape_of("interleaved", 4, 8).parts_of(1) == (1, 5)
