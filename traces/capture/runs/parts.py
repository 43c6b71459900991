"""Times of the parts of a pass, taken inside passes of other sizes than those that are judged.

The table is what the simulator may know of a device: kernels and what lies between them (sorting by expert, weighted
sums, Python between operations), alone and beside work of the side stream.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenarios.files import write_text
from traces.capture.decoder import Decoder
from traces.capture.experts import Routing, combine, expert, sort_by_expert
from traces.capture.runs.bench import Bench
from traces.capture.runs.models import draw_tokens
from traces.capture.runs.passes import Inputs, PassLog, run_pass
from traces.capture.runs.quiet import quietly

BATCHES = (1, 2, 3, 6, 10, 24, 64)
LONGEST = (32, 140, 370, 570)
SERVED_BATCH = 10  # batches whose slots are scattered are not larger than this
PROMPTS = (16, 40, 64, 128, 240, 480)
PROMPT_TOKENS = 520  # no more in one pass, whatever the number of prompts
ROUNDS = 6
FIELDS = ("model", "part", "requests", "tokens", "longest", "beside", "median_s", "p10_s", "p90_s", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One row of the table: a part, its size, and what ran beside it ("" where it was alone).

    part      embed, gate, sort, expert, combine, shared, add: by `tokens`, all of the pass or of the expert;
              head: by `requests`; attention in its variants (`Attended`); copy, hand-over.
    requests, tokens, longest  requests of the pass, new tokens of each (of attention) and longest context.
    """

    model: str
    part: str
    requests: int = 0
    tokens: int = 0
    longest: int = 0
    beside: str = ""
    samples_s: Sequence[float] = ()

    def row(self) -> dict[str, Any]:
        """The row by column, times by quantile."""
        low, median, high = np.quantile(self.samples_s, (0.1, 0.5, 0.9))
        texts = {name: f"{value:.4g}" for name, value in (("median_s", median), ("p10_s", low), ("p90_s", high))}
        sizes = {name: getattr(self, name) for name in FIELDS[:6]}
        return sizes | texts | {"samples": len(self.samples_s)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """A pass to profile.

    variant  "equal": contexts of one length; "ragged": down to a third of the longest; "gathered": ragged, in every
             other slot of a cache; "prompt": no past; "prompt gathered": the same in a slot of several.
    """

    variant: str
    requests: int
    tokens: int
    longest: int

    @property
    def contexts(self) -> list[int]:
        """Cached tokens of each request before the pass, the longest last."""
        last = self.longest - self.tokens
        first = last // 3 if self.variant in ("ragged", "gathered") else last
        return [first + (last - first) * place // max(self.requests - 1, 1) for place in range(self.requests)][::-1]

    @property
    def spread(self) -> int:
        """Slots of the cache for each request."""
        return 2 if "gathered" in self.variant else 1


def attended() -> Iterator[Attended]:
    """The passes of the profile."""
    for requests in reversed(BATCHES):
        for longest in LONGEST:
            for variant in ("equal", "ragged", "gathered"):
                if (variant != "ragged" or requests > 1) and (variant != "gathered" or requests <= SERVED_BATCH):
                    yield Attended(variant=variant, requests=requests, tokens=1, longest=longest)
    for requests in (1, 3, 6, 12):
        for tokens in PROMPTS:
            if requests * tokens <= PROMPT_TOKENS:
                yield Attended(variant="prompt", requests=requests, tokens=tokens, longest=tokens)
    for tokens in PROMPTS:
        yield Attended(variant="prompt gathered", requests=1, tokens=tokens, longest=tokens)


@dataclass(slots=True)
class Profile:
    """Passes with marks around their parts; `taken` by (part, requests, tokens, longest)."""

    bench: Bench
    model: Decoder
    taken: dict[tuple[str, int, int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    _marks: list[tuple[str, int, Any, Any]] = field(default_factory=list)

    def watch(self, size: Attended, rounds: int = ROUNDS) -> None:
        """Run a pass of this size once to warm up, then `rounds` times."""
        cache = self.bench.cache(self.model, size.contexts * size.spread, size.tokens)
        slots = torch.arange(size.requests) * size.spread
        starts = cache.lengths.clone()
        starts[slots] = torch.tensor(size.contexts)

        def run(number: int) -> tuple[PassLog, list[tuple[str, int, Any, Any]]]:
            cache.lengths.copy_(starts)
            text = draw_tokens(self.model.config, size.requests, size.tokens, seed=100 + number)
            self._marks = []
            _, log = run_pass(self.model, cache, Inputs(tokens=text, slots=slots), self.mix, self.bench.lanes)
            return log, self._marks

        run(0)
        for log, marks in quietly(lambda: [run(number) for number in range(1, rounds + 1)])[0]:
            self._note(size, log, marks)

    def mix(self, number: int, x: Tensor, normed: Tensor, routing: Routing, log: PassLog) -> Tensor:
        """As the loop back end, with marks between its parts."""
        del log
        block, mark = self.model.layers[number], self.bench.lanes.mark
        begin = mark()
        routed = sort_by_expert(normed, routing, self.model.config.n_experts)
        counts = routed.counts.tolist()
        rows = routed.rows.split(counts)
        at = mark()
        self._marks.append(("sort", len(normed), begin, at))
        results = []
        for e, count in enumerate(counts):
            if count:
                results.append(expert(rows[e], block.experts, e))
                self._marks.append(("expert", count, at, at := mark()))
        result = combine(torch.cat(results), routed, normed)
        self._marks.append(("combine", len(normed), at, at := mark()))
        shared = block.share(normed)
        if shared is not None:
            self._marks.append(("shared", len(normed), at, at := mark()))
        mixed = x + (result if shared is None else result + shared).view_as(x)
        self._marks.append(("add", len(normed), at, mark()))
        return mixed

    def _note(self, size: Attended, log: PassLog, marks: list[tuple[str, int, Any, Any]]) -> None:
        self.bench.lanes.synchronise()
        for part, tokens, begin, end in marks:
            self.taken[part, 0, tokens, 0] += self.bench.lanes.seconds((begin, end))
        between = self.bench.lanes.seconds(log.marks)
        tokens = size.requests * size.tokens
        self.taken["embed", 0, tokens, 0].append(between[0])
        self.taken["head", size.requests, 0, 0].append(between[-1])
        attention, gate, _ = np.asarray(between[1:-1]).reshape(-1, 3).T
        self.taken[size.variant, size.requests, size.tokens, size.longest] += attention.tolist()
        self.taken["gate", 0, tokens, 0] += gate.tolist()

    def parts(self, name: str, beside: str = "") -> list[Part]:
        """All that was taken."""
        return [
            Part(model=name, part=part, requests=requests, tokens=tokens, longest=longest, beside=beside, samples_s=one)
            for (part, requests, tokens, longest), one in sorted(self.taken.items())
        ]


def write_parts(parts: Sequence[Part], path: Path) -> None:
    """The table as CSV; rows of other models that the file holds already stay."""
    models = {part.model for part in parts}
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["model"] not in models]
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, *(part.row() for part in parts)])
    write_text(text.getvalue(), path)
