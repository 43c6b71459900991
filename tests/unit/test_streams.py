import os
import threading

import pytest

torch = pytest.importorskip("torch")

from scenarios.errors import ScenarioError  # noqa: E402
from traces.capture import streams  # noqa: E402
from traces.capture.streams import CpuStream, open_lanes, two_cores  # noqa: E402


@pytest.fixture
def lanes():
    with open_lanes("cpu") as opened:
        yield opened


def test_work_of_a_stream_runs_in_order_on_another_thread(lanes):
    done, threads = [], set()
    for number in range(50):
        lanes.copies.submit(lambda number=number: (done.append(number), threads.add(threading.get_ident())))
    lanes.synchronise()
    assert done == list(range(50))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_work_waits_for_events_of_another_stream():
    first, second = CpuStream(None), CpuStream(None)
    gate, seen = threading.Event(), []
    slow = first.submit(lambda: (gate.wait(5), seen.append("slow")))
    after = second.submit(lambda: seen.append("after"), [slow])
    gate.set()
    after.wait()
    assert seen == ["slow", "after"]
    first.close()
    second.close()


def test_errors_of_workers_reach_who_waits_and_what_comes_after(lanes):
    def fail():
        raise ValueError("copy failed")

    seen = []
    event = lanes.copies.submit(fail)
    dependent = lanes.host.submit(lambda: seen.append(1), [event])
    for one in (event, dependent):
        with pytest.raises(ValueError, match="copy failed"):
            one.wait()
    assert seen == []
    lanes.copies.submit(lambda: seen.append(2)).wait()  # the stream goes on
    assert seen == [2]


def test_marks_are_seconds_of_the_clock(lanes):
    marks = [lanes.mark(), lanes.mark(), lanes.mark()]
    times = lanes.seconds(marks)
    assert len(times) == 2 and all(0 <= one < 1 for one in times)
    assert sum(times) == pytest.approx(marks[-1] - marks[0])


def test_threads_are_pinned_and_the_caller_is_set_free_again():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    if len(before) < 2:
        pytest.skip("needs two cores")
    cores, seen = two_cores(), []
    with open_lanes("cpu", cores) as opened:
        opened.copies.submit(lambda: seen.append(os.sched_getaffinity(0))).wait()
        assert os.sched_getaffinity(0) == {cores[0]}
        assert torch.get_num_threads() == 1
    assert seen == [{cores[1]}]
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("device", "cores", "message"),
    [("tpu", None, "device 'tpu' is not known"), ("cpu", (0, 10**6), "are not among those of this process")],
)
def test_wrong_devices_and_cores_are_refused(device, cores, message):
    with pytest.raises(ScenarioError, match=message), open_lanes(device, cores):
        pass


class FakeCuda:
    """Stands in for torch.cuda: notes what is issued to which stream; an event's time is its number, in ms."""

    def __init__(self):
        self.current, self.issued, self.count = "main", [], 0
        self.Stream, self.Event = lambda: f"stream {next(self.names)}", self.make_event
        self.names = iter(range(9))

    def is_available(self):
        return True

    def current_stream(self):
        return FakeStream(self, self.current)

    def stream(self, name):
        return FakeEntered(self, name)

    def synchronize(self):
        self.issued.append(("synchronize",))

    def make_event(self, enable_timing=False):
        self.count += 1
        return FakeEvent(self, self.count, enable_timing)


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_event(self, event):
        self.cuda.issued.append((self.name, "waits", event.number))


class FakeEntered:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def __enter__(self):
        self.before, self.cuda.current = self.cuda.current, self.name

    def __exit__(self, *_):
        self.cuda.current = self.before


class FakeEvent:
    def __init__(self, cuda, number, timed):
        self.cuda, self.number, self.timed = cuda, number, timed

    def record(self, stream):
        self.cuda.issued.append((stream.name, "records", self.number))

    def synchronize(self):
        self.cuda.issued.append(("host", "waits", self.number))

    def elapsed_time(self, later):
        assert self.timed and later.timed
        return float(later.number - self.number)


def test_cuda_streams_wait_for_events_and_marks_are_milliseconds(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(streams.torch, "cuda", cuda)
    with open_lanes("cuda") as lanes:
        copied = lanes.copies.submit(lambda: cuda.issued.append((cuda.current, "copies")), [lanes.reached()])
        copied.wait()
        lanes.host.submit(lambda: cuda.issued.append(("thread", "computes")), [copied]).wait()
        marks = [lanes.mark(), lanes.mark()]
        lanes.synchronise()
        assert lanes.seconds(marks) == [pytest.approx(1e-3)]
    assert cuda.issued == [
        ("main", "records", 1),
        ("stream 0", "waits", 1),
        ("stream 0", "copies"),
        ("stream 0", "records", 2),
        ("main", "waits", 2),
        ("host", "waits", 2),
        ("thread", "computes"),
        ("main", "records", 3),
        ("main", "records", 4),
        ("synchronize",),
    ]
