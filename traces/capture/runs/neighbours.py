"""Times of copies and of parts of a pass beside work of the side stream, and of the hand-over to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch

from traces.capture.decoder import Decoder, KvCache
from traces.capture.experts import expert
from traces.capture.runs.bench import Bench
from traces.capture.runs.models import draw_tokens
from traces.capture.runs.parts import Attended, Part, Profile
from traces.capture.runs.passes import Inputs, run_pass, whole_layers
from traces.capture.runs.slots import SlotCache
from traces.capture.streams import CpuLanes

WATCHED_S = 1.0
BURSTS = 200
BESIDE_SIZES = (
    *tuple(Attended(variant="equal", requests=requests, tokens=1, longest=140) for requests in (1, 3, 6, 24)),
    Attended(variant="prompt", requests=1, tokens=64, longest=64),
)
SIDE_TOKENS = 2  # of an expert that the side computes: few, as of those that miss
Task = Callable[[], None]


class Side:
    """What the side stream may be busy with: copies of experts, experts, or whole passes of a few requests."""

    def __init__(self, bench: Bench, model: Decoder) -> None:
        self.bench, self.model = bench, model
        self.caches = [SlotCache(block, model.config.n_experts // 2, bench.lanes.device) for block in model.layers]
        self.places = cycle([(number, e) for e in range(model.config.n_experts) for number in range(len(self.caches))])
        self.rows = torch.randn(SIDE_TOKENS, model.config.hidden_size)
        self.kv = KvCache.empty(model.config, 4, model.embedding.weight)
        self.text = draw_tokens(model.config, 4, 1, seed=21)
        self.whole = whole_layers(model, "loop")

    def copy(self) -> None:
        """One expert into a slot."""
        number, e = next(self.places)
        self.caches[number]._copy(e, e % self.caches[number].n_slots)

    def compute(self) -> None:
        """One expert for a few tokens."""
        number, e = next(self.places)
        expert(self.rows, self.caches[number].host, e)

    def run(self) -> None:
        """A decode step of four requests."""
        self.kv.lengths.fill_(100)
        run_pass(self.model, self.kv, Inputs(tokens=self.text), self.whole, self.bench.lanes)

    @property
    def tasks(self) -> dict[str, Task]:
        """By the name under which the table knows them."""
        return {"copy": self.copy, "expert": self.compute, "pass": self.run}


@contextmanager
def busy(bench: Bench, task: Task) -> Iterator[list[float]]:
    """The side stream works on one task after another; times of all that ended inside the block [s]."""
    stop, taken = threading.Event(), list[float]()

    def again() -> None:
        begin = time.perf_counter()
        task()
        taken.append(time.perf_counter() - begin)
        if not stop.is_set():
            bench.lanes.copies.submit(again)

    bench.lanes.copies.submit(again)
    try:
        yield taken
    finally:
        stop.set()
        bench.lanes.synchronise()


def beside(bench: Bench, model: Decoder, name: str) -> Iterator[Part]:
    """Parts of passes beside each task of the side, those tasks alone and beside each kind of the parts.

    Rows of BESIDE_SIZES with nothing beside them are those that slowdowns are measured against.
    """
    side = Side(bench, model)
    for what in ("", *side.tasks):
        profile = Profile(bench, model)
        if what:
            with busy(bench, side.tasks[what]):
                _watch(profile)
        else:
            _watch(profile)
        yield from profile.parts(name, beside=what or "nothing")
    here = dict(side.tasks) | {"": lambda: time.sleep(0.01)}
    for task in ("copy", "expert"):
        for what in ("", "expert", "pass"):
            other = Side(bench, model)
            with busy(bench, side.tasks[task]) as taken:
                work = other.tasks[what] if what else here[""]
                end = time.perf_counter() + WATCHED_S
                while time.perf_counter() < end:
                    work()
            yield Part(model=name, part=f"side {task}", beside=what or "nothing", samples_s=taken[2:])


def _watch(profile: Profile) -> None:
    for size in BESIDE_SIZES:
        profile.watch(size, rounds=12)


def hand_over(bench: Bench, model: Decoder, name: str) -> Iterator[Part]:
    """Time from giving the idle side stream nothing to do until the compute lane knows that it is done; and of one
    and of four copies of experts that are given and awaited in the same way ("burst", by `tokens`)."""
    side = Side(bench, model)
    for copies in (0, 1, 4):
        taken = []
        for _ in range(BURSTS):
            time.sleep(2e-4)  # the side's thread has gone to sleep, as between layers
            begin = time.perf_counter()
            ends = [bench.lanes.copies.submit(side.copy if copies else lambda: None) for _ in range(max(copies, 1))]
            for end in ends:
                end.wait()
            if not isinstance(bench.lanes, CpuLanes):
                bench.lanes.synchronise()
            taken.append(time.perf_counter() - begin)
        yield Part(model=name, part="burst" if copies else "hand-over", tokens=copies, samples_s=taken)
