"""Predictions of the shipped runs: they see no time, scale with the device, and reach what is stated."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from scenarios.errors import CalibrationError, TraceError
from sim.card_times import card_times
from sim.part_times import PartTimes, read_parts
from sim.recorded_runs import kinds_in, read_hand_over_s, read_kind
from sim.run_prediction import predicted_run_s, predicted_service
from sim.run_validation import MEASURED, check_cache, judge_folder, ranking, run_folders
from sim.run_validation import Predicted as One

FOLDER = MEASURED / "zen4-core"


@dataclass(frozen=True)
class Slower:
    """A device that takes `factor` times as long for everything."""

    times: PartTimes
    factor: float

    def line_s(self, part, size):
        return self.factor * self.times.line_s(part, size)

    def attention_s(self, variant, requests, longest):
        return self.factor * self.times.attention_s(variant, requests, longest)

    def fixed_s(self, part):
        return self.factor * self.times.fixed_s(part)

    def host_expert_s(self, tokens):
        return self.factor * self.times.host_expert_s(tokens)

    def slowdown(self, part, neighbour):
        return self.times.slowdown(part, neighbour)


def first(kind):
    return read_kind(FOLDER, kind).runs[0]


@pytest.mark.parametrize("kind", ["steps", "offload", "hybrid", "overlap"])
def test_twice_as_slow_a_device_takes_twice_as_long_exactly(kind):
    run = first(kind)
    times = read_parts(FOLDER)[run.seen.settings["model"]]
    whole_s = predicted_run_s(run.seen, times, one_side=True)
    assert predicted_run_s(run.seen, Slower(times, 2.0), one_side=True) == 2 * whole_s


@pytest.mark.slow
def test_a_served_load_scales_with_device_and_arrivals():
    run = first("serving")
    times = read_parts(FOLDER)[run.seen.settings["model"]]
    later = run.seen.arrays | {"arrival_s": 2 * run.seen.arrays["arrival_s"]}
    slow = predicted_service(replace(run.seen, arrays=later), Slower(times, 2.0))
    np.testing.assert_allclose(slow.done_s, 2 * predicted_service(run.seen, times).done_s, rtol=1e-12)


def test_the_card_prices_what_its_parts_add_up_to():
    """One step of one request by hand: all parts on one lane."""
    run = next(run for run in read_kind(FOLDER, "steps").runs if " decode 1x48 own loop" in run.seen.name)
    times = card_times("zen4-core-1", run.seen.shape.card, FOLDER / "sharing.csv", read_hand_over_s(FOLDER))
    layer_s = sum(times.line_s(part, 1) for part in ("gate", "sort", "combine", "add")) + 4 * times.line_s("expert", 1)
    ends_s = times.line_s("embed", 1) + times.line_s("head", 1)
    want_s = sum(ends_s + 4 * (layer_s + times.attention_s("equal", 1, 49 + step)) for step in range(4))
    assert predicted_run_s(run.seen, times, one_side=True) == pytest.approx(want_s, rel=1e-9)


def test_hits_that_differ_are_told():
    run = first("offload")
    hits = run.measured["hits"].copy()
    hits[3, 1] += 1
    with pytest.raises(TraceError, match=f"pass 3, layer 1: {hits[3, 1] - 1} hits simulated, {hits[3, 1]} recorded"):
        check_cache(replace(run, measured=run.measured | {"hits": hits}))


def test_rankings_count_pairs_that_differ_by_more_than_their_repeats():
    run = first("offload")

    def one(predicted_s, *repeats_s):
        return One(run=run, predicted_s=predicted_s, low_s=0, high_s=9, repeats_s=np.array(repeats_s))

    assert ranking([one(1.0, 1.0, 1.1), one(2.0, 2.0, 2.1)]) == (1, 1)
    assert ranking([one(2.0, 1.0, 1.1), one(1.0, 2.0, 2.1)]) == (0, 1)
    assert ranking([one(2.0, 1.0, 1.1), one(1.0, 1.05, 1.15)]) is None


def test_folders_without_runs_or_parts_are_told(tmp_path):
    assert FOLDER in run_folders(tmp_path)
    with pytest.raises(TraceError, match="not a record of runs"):
        read_kind(tmp_path, "steps")
    with pytest.raises(CalibrationError, match="not a table of parts"):
        read_parts(tmp_path)


@pytest.mark.slow
def test_errors_are_within_what_is_stated():
    rows = judge_folder(FOLDER, lambda _what, _share: None)
    missed = [(row.score.table, row.score.name) for row in rows if not row.verdict.ok]
    assert missed == []
    assert len(kinds_in(FOLDER)) == 5
    by_parts = {row.score.name: row for row in rows if "parts" in row.score.table}
    assert by_parts["steps decode fp32"].verdict.reached and by_parts["offload fp32"].verdict.reached
