"""Request traces: when requests arrive and how long they are, read from public formats or made up."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.reading import text_lines
from scenarios.serving_specs import RequestsSpec

MAX_REQUESTS = 1_000_000  # a row more is refused rather than held
MAX_TEXT_BYTES = 1 << 30
MAX_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """Requests in order of arrival.

    arrival_s      float64[request], from 0, not decreasing.
    input_tokens, output_tokens  int64[request], 1 or more.

    Raises TraceError, naming the first request that is wrong.
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    source: str

    def __post_init__(self) -> None:
        if not len(self.arrival_s) == len(self.input_tokens) == len(self.output_tokens) > 0:
            raise TraceError(f"{self.source}: there is no request")
        wrong = ~np.isfinite(self.arrival_s) | (self.arrival_s < 0)
        wrong[1:] |= np.diff(self.arrival_s) < 0
        if wrong.any():
            at = int(np.argmax(wrong))
            raise TraceError(
                f"{self.source}: request {at} arrives at {self.arrival_s[at]} s: before 0, before its predecessor, or "
                "never; sort the requests by arrival"
            )
        for name in ("input_tokens", "output_tokens"):
            lengths = getattr(self, name)
            if (lengths < 1).any():
                at = int(np.argmax(lengths < 1))
                raise TraceError(f"{self.source}: request {at} has {lengths[at]} {name}; drop it, or give 1 or more")
        for array in (self.arrival_s, self.input_tokens, self.output_tokens):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.arrival_s)


Row = tuple[float, int, int]
Reader = Callable[[Mapping[str, str]], Row]


def _whole(value: str | float) -> int:
    """A whole number, as text of CSV or number of JSON. Raises ValueError for anything else."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _plain(row: Mapping[str, str]) -> Row:
    return float(row["arrival_s"]), _whole(row["input_tokens"]), _whole(row["output_tokens"])


def _llmservingsim(row: Mapping[str, str]) -> Row:
    return float(row["arrival_s"]), _whole(row["input_toks"]), _whole(row["output_toks"])


def _azure(row: Mapping[str, str]) -> Row:
    # Seven digits of a second, of which datetime reads six.
    text, _, fraction = row["TIMESTAMP"].partition(".")
    arrival_s = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() + int(fraction or 0) / 10 ** len(fraction)
    return arrival_s, _whole(row["ContextTokens"]), _whole(row["GeneratedTokens"])


def _mooncake(row: Mapping[str, str]) -> Row:
    return float(row["timestamp"]) / 1e3, _whole(row["input_length"]), _whole(row["output_length"])


def _burstgpt(row: Mapping[str, str]) -> Row:
    return float(row["Timestamp"]), _whole(row["Request tokens"]), _whole(row["Response tokens"])


FORMATS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "moesim": (("arrival_s", "input_tokens", "output_tokens"), _plain),
    "llmservingsim": (("arrival_s", "input_toks", "output_toks"), _llmservingsim),
    "azure": (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    "mooncake": (("timestamp", "input_length", "output_length"), _mooncake),
    "burstgpt": (("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
}
"""Formats by name: the columns (or keys of a JSON line) that tell them, and how a row is read."""


def read_requests(path: Path, first: int | None = None) -> RequestTrace:
    """Requests of a CSV or JSONL file, gzipped or not, of one of `FORMATS`, or its `first` ones; they begin at 0.

    Requests of no output (BurstGPT's failures) are left out. Raises TraceError with the line of what is wrong.
    """
    answered: list[Row] = []
    keys, reader = None, None
    try:
        for number, row in _rows(path):
            if reader is None or row.keys() != keys:
                keys, reader = row.keys(), _reader(path, row)
            found = _checked(path, number, row, reader)
            answered += [found] if found[2] else []
            if len(answered) == first:
                break
            if len(answered) > MAX_REQUESTS:
                raise TraceError(
                    f"{path}: more than {MAX_REQUESTS:,} requests; take the `first: N` of them, or split it"
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read as CSV or JSON lines ({error})") from None
    if not answered:
        raise TraceError(f"{path}: there is no request")
    arrivals, inputs, outputs = zip(*answered, strict=True)
    return RequestTrace(
        arrival_s=np.array(arrivals, np.float64) - arrivals[0],
        input_tokens=np.array(inputs, np.int64),
        output_tokens=np.array(outputs, np.int64),
        source=path.name,
    )


def _checked(path: Path, number: int, row: Mapping[str, str], reader: Reader) -> Row:
    """A row as its reader finds it. Raises TraceError with its line where it is no request."""
    try:
        found = reader(row)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        shown = str(dict(row))[:200]
        raise TraceError(f"{path}:{number}: not a request of its format ({str(error)[:200]}): {shown}") from None
    if found[0] < 0:
        raise TraceError(f"{path}:{number}: arrives at {found[0]:g} s; times begin at 0, so shift them")
    if not 0 <= min(found[1:]) <= max(found[1:]) <= MAX_TOKENS:
        raise TraceError(f"{path}:{number}: has {found[1]} and {found[2]} tokens; give 1 to {MAX_TOKENS:,}")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line, row) of a file whose first character tells JSON lines from CSV."""
    lines = text_lines(path, MAX_TEXT_BYTES)
    head = next(lines, "")
    if not head.startswith("{"):
        yield from ((number, row) for number, row in enumerate(csv.DictReader(chain([head], lines)), start=2))
        return
    for number, line in enumerate(chain([head], lines), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}:{number}: not a line of JSON ({error})") from None
        if not isinstance(row, dict):
            raise TraceError(f"{path}:{number}: a request must be an object, not {type(row).__name__}")
        yield number, row


def _reader(path: Path, row: Mapping[str, str]) -> Reader:
    for columns, reader in FORMATS.values():
        if set(columns) <= set(row):
            return reader
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (columns, _) in FORMATS.items())
    raise TraceError(f"{path}: has {', '.join(map(str, row))[:200]}, the columns of no format known ({known})")


def made_up(spec: RequestsSpec, rng: np.random.Generator) -> RequestTrace:
    """Requests at `spec.requests_per_s`: times between them exponential, gamma or equal; lengths log-normal, 1 or more.

    Raises TraceError where the spec names a file.
    """
    if spec.requests_per_s is None:
        raise TraceError("requests of a file are read, not made up")
    mean_s = 1 / spec.requests_per_s
    if spec.arrivals == "even":
        gaps_s = np.full(spec.n, mean_s)
    elif spec.arrivals == "poisson":
        gaps_s = rng.exponential(mean_s, spec.n)
    else:
        shape = spec.arrival_cv**-2
        gaps_s = rng.gamma(shape, mean_s / shape, spec.n)
    arrival_s = np.cumsum(gaps_s)
    return RequestTrace(
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=_lengths(spec.input_tokens, spec.length_cv, spec.n, rng),
        output_tokens=_lengths(spec.output_tokens, spec.length_cv, spec.n, rng),
        source=f"{spec.arrivals} at {spec.requests_per_s:g}/s",
    )


def _lengths(mean: int, cv: float, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Log-normal lengths of this mean and deviation over mean, rounded."""
    variance = np.log1p(cv**2)
    lengths = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), n)
    return np.maximum(np.rint(lengths), 1).astype(np.int64)


def requests_of(spec: RequestsSpec, base: Path, seed: int) -> RequestTrace:
    """The requests of a scenario; a file is relative to `base`."""
    if spec.file is None:
        return made_up(spec, np.random.default_rng([seed, 4]))
    read = read_requests(base / spec.file, spec.first)
    return replace(read, arrival_s=read.arrival_s / spec.speed)
