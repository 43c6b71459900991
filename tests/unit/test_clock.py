"""Timing of callables: by the clock of the host, by events and by graphs of a device that is a fake here."""

import pytest

torch = pytest.importorskip("torch")

from traces.capture import clock as clocks  # noqa: E402
from traces.capture.clock import EventClock, GraphClock, HostClock, Limits, busy_s, measure  # noqa: E402


class FakeEvent:
    """Notes the time of a fake device when the device gets there, which it does on synchronisation."""

    def __init__(self, cuda):
        self.cuda, self.at_ms = cuda, None

    def record(self):
        self.cuda.queue.append(self)

    def elapsed_time(self, end):
        return end.at_ms - self.at_ms


class FakeGraph:
    """Holds the work that was issued while it was captured."""

    def __init__(self, cuda):
        self.cuda, self.held = cuda, []

    def replay(self):
        self.cuda.queue += self.held


class FakeCuda:
    """A device with a queue: work is a number of milliseconds, done in order when somebody waits for it."""

    def __init__(self):
        self.queue, self.now_ms, self.capturing = [], 0.0, None

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def CUDAGraph(self):
        return FakeGraph(self)

    def graph(self, graph):
        cuda = self

        class Capture:
            def __enter__(self):
                cuda.before, cuda.queue = cuda.queue, graph.held

            def __exit__(self, *_):
                cuda.queue = cuda.before

        return Capture()

    def synchronize(self):
        for item in self.queue:
            if isinstance(item, FakeEvent):
                item.at_ms = self.now_ms
            else:
                self.now_ms += item
        self.queue = []


def test_events_time_what_the_device_does_between_them():
    cuda = FakeCuda()
    clock = EventClock(cuda)
    assert clock.seconds(lambda turn: cuda.queue.append(1.0 + turn), 3, 2) == [0.004, 0.005]


def test_a_graph_is_timed_as_a_whole_and_divided_by_its_calls():
    cuda = FakeCuda()
    clock = GraphClock(calls=4, cuda=cuda)
    # turns 2 to 5 take 2, 3, 4 and 5 ms: 3.5 in the mean
    assert clock.seconds(lambda turn: cuda.queue.append(float(turn)), 2, 3) == [0.0035] * 3


def test_turns_go_on_through_warm_up_and_repeats():
    turns = []
    timing = measure(turns.append, HostClock(), Limits(least=5, most=5, warm_up=3))
    assert turns[:9] == list(range(9))
    assert timing.repeats == 5
    assert timing.p10_s <= timing.median_s <= timing.p90_s


class FixedClock:
    """Says that calls take the given times, over and over."""

    def __init__(self, *seconds):
        self.known, self.asked = seconds, 0

    def seconds(self, work, first, count):
        del work
        self.asked += count
        return [self.known[(first + turn) % len(self.known)] for turn in range(count)]


def test_the_budget_bounds_the_calls_between_least_and_most():
    limits = Limits(least=3, most=50, budget_s=1.0, warm_up=0)
    assert measure(print, FixedClock(0.1), limits).repeats == 10
    assert measure(print, FixedClock(10.0), limits).repeats == 3
    assert measure(print, FixedClock(1e-6), limits).repeats == 50


def test_median_and_quantiles_are_those_of_the_calls():
    timing = measure(print, FixedClock(*range(1, 12)), Limits(least=11, most=11, warm_up=0))
    assert (timing.p10_s, timing.median_s, timing.p90_s) == pytest.approx((2.0, 6.0, 10.0))


@pytest.mark.parametrize(("verdicts", "disturbed", "tries"), [([True, False], False, 2), ([True] * 3, True, 3)])
def test_a_disturbed_point_is_measured_again(verdicts, disturbed, tries, monkeypatch):
    given = iter(verdicts)

    class FakeWatch:
        def disturbed(self):
            return next(given)

    monkeypatch.setattr(clocks, "Watch", FakeWatch)
    clock = FixedClock(1.0)
    assert measure(print, clock, Limits(least=2, most=2, warm_up=0)).disturbed is disturbed
    assert clock.asked == 3 * tries  # one call to choose the number of repeats, two repeats


def test_busy_time_is_all_but_idle_and_waiting_for_disks(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 5000 400 1 2 3 9 9\ncpu0 1 2 3 4 5 6 7 8 9 9\n")
    assert busy_s(stat) == pytest.approx(1.56)  # (100 + 20 + 30 + 1 + 2 + 3) jiffies of 10 ms
    assert busy_s(tmp_path / "none") == 0.0
