"""Request traces: when requests arrive and how long they are, read from public formats or made up."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.reading import text_lines
from scenarios.seeds import Use, generator
from scenarios.serving_specs import RateSpec, RequestsSpec
from traces.prefix_cache import BLOCK_TOKENS, PrefixCache
from traces.servegen import drawn_requests

Column = Sequence[int]
MAX_REQUESTS = 1_000_000  # a row more is refused rather than held
MAX_TEXT_BYTES = 1 << 30
MAX_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """Requests in order of arrival.

    arrival_s      float64[request], from 0, not decreasing.
    input_tokens, output_tokens  int64[request], 1 or more.
    cached_tokens  int64[request]: of the prompt, whose keys and values are there already; None: nothing.

    Raises TraceError, naming the first request that is wrong.
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    source: str
    cached_tokens: NDArray[np.int64] | None = None

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
        self._check_cached()
        for column in (self.arrival_s, self.input_tokens, self.output_tokens):
            column.setflags(write=False)

    def _check_cached(self) -> None:
        if self.cached_tokens is None:
            return
        wrong = (self.cached_tokens < 0) | (self.cached_tokens > self.input_tokens)
        if wrong.any():
            at = int(np.argmax(wrong))
            told = f"{self.cached_tokens[at]} cached_tokens of {self.input_tokens[at]} input_tokens"
            raise TraceError(f"{self.source}: request {at} has {told}; give 0 up to all of them")
        self.cached_tokens.setflags(write=False)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def only(self, which: NDArray[np.bool_] | slice) -> RequestTrace:
        """Some of the requests."""
        return replace(
            self,
            arrival_s=self.arrival_s[which],
            input_tokens=self.input_tokens[which],
            output_tokens=self.output_tokens[which],
            cached_tokens=None if self.cached_tokens is None else self.cached_tokens[which],
        )

    def columns(self) -> tuple[Column, Column, Column | None]:
        """Input, output and cached tokens, for loops over requests: 8 bytes each, a Python integer when asked for."""
        inputs, outputs = (array("q", column.tobytes()) for column in (self.input_tokens, self.output_tokens))
        return inputs, outputs, None if self.cached_tokens is None else array("q", self.cached_tokens.tobytes())


Row = tuple[float, int, int]
"""Arrival [s], input and output tokens."""
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


def read_requests(path: Path, first: int | None = None, prefixes: PrefixCache | None = None) -> RequestTrace:
    """Requests of a CSV or JSONL file, gzipped or not, of one of `FORMATS`, or its `first` ones; they begin at 0.

    prefixes  what of their prompts is cached is counted by the hash_ids of the file; else by cached_tokens, if there.
    Requests of no output (BurstGPT's failures) are left out. Raises TraceError with the line of what is wrong.
    """
    answered: list[tuple[Row, int]] = []
    keys, reader = None, None
    try:
        for number, row in _rows(path):
            if reader is None or row.keys() != keys:
                keys, reader = row.keys(), _reader(path, row)
            found, cached = _checked(path, number, row, reader, prefixes)
            if found[2]:
                _check_order(path, number, found, answered)
                answered.append((found, cached))
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
    rows, in_cache = zip(*answered, strict=True)
    arrivals, inputs, outputs = zip(*rows, strict=True)
    return RequestTrace(
        arrival_s=np.array(arrivals, np.float64) - arrivals[0],
        input_tokens=np.array(inputs, np.int64),
        output_tokens=np.array(outputs, np.int64),
        source=path.name,
        cached_tokens=np.array(in_cache, np.int64) if any(in_cache) else None,
    )


def _checked(
    path: Path, number: int, row: Mapping[str, Any], reader: Reader, prefixes: PrefixCache | None
) -> tuple[Row, int]:
    """A row as its reader finds it, and tokens of its prompt that a cache holds.

    Raises TraceError with its line where it is no request.
    """
    try:
        found = reader(row)
        cached = _cached(row, found[1], prefixes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        shown = str(dict(row))[:200]
        raise TraceError(f"{path}:{number}: not a request of its format ({str(error)[:200]}): {shown}") from None
    if found[0] < 0:
        raise TraceError(f"{path}:{number}: arrives at {found[0]:g} s; times begin at 0, so shift them")
    least = 1 if found[2] else 0
    if not (least <= found[1] <= MAX_TOKENS and 0 <= found[2] <= MAX_TOKENS):
        raise TraceError(f"{path}:{number}: has {found[1]} and {found[2]} tokens; give 1 to {MAX_TOKENS:,}")
    return found, cached


def _check_order(path: Path, number: int, found: Row, earlier: Sequence[tuple[Row, int]]) -> None:
    """Raise TraceError where a request arrives before the one above it."""
    if earlier and found[0] < earlier[-1][0][0]:
        raise TraceError(
            f"{path}:{number}: arrives {earlier[-1][0][0] - found[0]:g} s before the request above it; sort the "
            "requests by arrival"
        )


def _cached(row: Mapping[str, Any], input_tokens: int, prefixes: PrefixCache | None) -> int:
    """Tokens of a prompt that a cache holds."""
    if prefixes is None:
        return _whole(row.get("cached_tokens") or "0")
    blocks = row["hash_ids"]
    if not isinstance(blocks, list):
        raise TypeError("hash_ids are a list")
    return min(prefixes.visit(blocks) * BLOCK_TOKENS, input_tokens)


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
    """Requests at the rates of `spec`: times between them exponential, gamma or equal; lengths log-normal, 1 or more.

    Where rates change, these are times on a clock that runs as fast as requests come, which makes "poisson" the
    inhomogeneous Poisson process of those rates. Raises TraceError where the spec names a file.
    """
    rates = spec.all_rates
    if not rates:
        raise TraceError("requests of a file are read, not made up")
    if spec.arrivals == "even":
        gaps = np.ones(spec.n)
    elif spec.arrivals == "poisson":
        gaps = rng.exponential(1.0, spec.n)
    else:
        shape = spec.arrival_cv**-2
        gaps = rng.gamma(shape, 1 / shape, spec.n)
    arrival_s = _times_at(np.cumsum(gaps), rates)
    shown = ", ".join(f"{rate.requests_per_s:g}/s" for rate in rates)
    return RequestTrace(
        arrival_s=arrival_s if spec.rates else arrival_s - arrival_s[0],
        input_tokens=_lengths(spec.input_tokens, spec.length_cv, spec.n, rng),
        output_tokens=_lengths(spec.output_tokens, spec.length_cv, spec.n, rng),
        source=f"{spec.arrivals} at {shown}",
    )


def _times_at(counts: NDArray[np.float64], rates: Sequence[RateSpec]) -> NDArray[np.float64]:
    """When so many requests have come, float64[...] [s]: the inverse of the integral of the rates."""
    times_s, begin_s, before = np.zeros(len(counts)), 0.0, 0.0
    for rate in rates:
        here = counts > before
        if rate.requests_per_s:
            times_s[here] = begin_s + (counts[here] - before) / rate.requests_per_s
        if rate.until is not None:
            before += rate.requests_per_s * (rate.until - begin_s)
            begin_s = rate.until
    return times_s


def _lengths(mean: int, cv: float, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Log-normal lengths of this mean and deviation over mean, rounded."""
    variance = np.log1p(cv**2)
    lengths = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), n)
    return np.maximum(np.rint(lengths), 1).astype(np.int64)


def requests_of(spec: RequestsSpec, base: Path, seed: int) -> RequestTrace:
    """The requests of a scenario; a file, or folder of ServeGen's clients, is relative to `base`."""
    rng = generator(seed, Use.REQUESTS)
    if spec.file is None:
        return made_up(spec, rng)
    read = _of_file(base / spec.file, spec, rng)
    return replace(read, arrival_s=read.arrival_s / spec.speed)


def _of_file(path: Path, spec: RequestsSpec, rng: np.random.Generator) -> RequestTrace:
    if not path.is_dir():
        n_blocks = int(spec.prefix_cache) // BLOCK_TOKENS if isinstance(spec.prefix_cache, int) else None
        return read_requests(path, spec.first, None if spec.prefix_cache is None else PrefixCache(n_blocks))
    arrival_s, inputs, outputs = drawn_requests(path, spec.first or MAX_REQUESTS, rng)
    if not len(arrival_s):
        raise TraceError(f"{path}: its clients send no request")
    return RequestTrace(
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=inputs,
        output_tokens=outputs,
        source=f"ServeGen {path.name}",
    )
