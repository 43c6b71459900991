"""Steps of a serving engine composed from a trace: which tokens each device processes together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Composition of the steps.

    trace       the routes that the steps replay.
    tokens      int64 [step, device, token]: indices into the trace.
    contexts    int64 [step, device, token]: tokens that each of them attends to, itself included.
    passes      how often the steps go through the tokens they are taken from.
    discipline  the rule, in words, for the result's record.
    ragged      devices may hold fewer tokens than there are places: -1 in `tokens`, and 0 in `contexts`.
    """

    trace: RoutingTrace
    tokens: NDArray[np.int64]
    contexts: NDArray[np.int64]
    passes: float
    discipline: str
    ragged: bool = False

    def held(self, places: slice = slice(None)) -> NDArray[np.int64]:
        """Tokens that every device holds at some of its places, int64[step, device]."""
        tokens = self.tokens[..., places]
        if not self.ragged:
            return np.full(tokens.shape[:2], tokens.shape[2])
        counts: NDArray[np.int64] = np.count_nonzero(tokens >= 0, axis=-1)
        return counts

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return int(self.tokens.shape[0])

    def at(self, steps: NDArray[np.int64]) -> Batches:
        """The chosen steps."""
        return replace(self, tokens=self.tokens[steps], contexts=self.contexts[steps])


def compose_batches(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    *,
    phase: Literal["decode", "prefill", "train"],
    shape: tuple[int, int, int],
    context_tokens: int | None,
    rng: np.random.Generator,
) -> Batches:
    """Batches of `shape` (steps, devices, tokens per device) from the given sequences, in random order, end to end.

    decode: every place of a device's batch is one request that advances one token a step and is followed by the next
    sequence when it ends (continuous batching). Places start evenly spread over the stream, so their phases are random.
    prefill: every device processes consecutive tokens of a stream of its own.
    train: the same, each step from the first token of a sequence on: packed sequences, of which the last may be cut.
    Raises TraceError where no sequence is given.
    """
    if len(sequences) == 0:
        raise TraceError("this part of the split holds no sequence; raise its share or take a longer trace")
    n_steps, n_devices, n_tokens = shape
    order = rng.permutation(sequences)
    stream = _stream(trace, order)
    places = n_devices * (n_tokens if phase == "decode" else 1)
    starts = ((np.arange(places) + rng.random()) * (len(stream) / places)).astype(np.int64)
    starts = rng.permutation(starts).reshape(n_devices, -1)
    if phase == "decode":
        index = starts[None] + np.arange(n_steps)[:, None, None]
    else:
        first = starts[None] + np.arange(n_steps)[:, None, None] * n_tokens
        if phase == "train":
            begins = np.cumsum([0, *(trace.offsets[order + 1] - trace.offsets[order])])
            first = begins[np.searchsorted(begins, first % len(stream), side="right") - 1]
        index = first + np.arange(n_tokens)
    tokens = stream[index % len(stream)]
    contexts = trace.positions[tokens].astype(np.int64) + 1
    if context_tokens is not None:
        contexts = np.full_like(contexts, context_tokens)
    rule = {
        "decode": "one token a request",
        "prefill": "consecutive tokens of each device's stream",
        "train": "packed sequences",
    }[phase]
    return Batches(
        trace=trace,
        tokens=tokens,
        contexts=contexts,
        passes=n_steps * n_devices * n_tokens / len(stream),
        discipline=f"{phase}: {rule}, sequences in random order, first come first served",
    )


def with_prompts(
    batches: Batches,
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    *,
    n_tokens: int,
    n_sharing: int,
    rng: np.random.Generator,
) -> Batches:
    """Mixed steps: the last `n_tokens` of a device's tokens are its part of a prompt, the same in every step.

    n_sharing  neighbouring devices that hold one prompt together, so that it has n_sharing x n_tokens tokens. Their
    routes are those of consecutive tokens of the sequences, at a random place; contexts are those within the prompt.
    """
    if not n_tokens:
        return batches
    stream = _stream(trace, rng.permutation(sequences))
    n_steps, n_devices, _ = batches.tokens.shape
    part = np.arange(n_devices) % n_sharing
    position = part[:, None] * n_tokens + np.arange(n_tokens)
    starts = np.repeat(rng.integers(len(stream), size=(n_steps, -(-n_devices // n_sharing))), n_sharing, axis=1)
    tokens, contexts = batches.tokens.copy(), batches.contexts.copy()
    tokens[..., -n_tokens:] = stream[(starts[:, :n_devices, None] + position) % len(stream)]
    contexts[..., -n_tokens:] = position + 1
    rule = f"{batches.discipline}; prompts of {n_sharing * n_tokens} tokens join every step"
    return replace(batches, tokens=tokens, contexts=contexts, discipline=rule)


def _stream(trace: RoutingTrace, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the tokens of the sequences `order`, one after the other."""
    lengths = trace.offsets[order + 1] - trace.offsets[order]
    ends = np.cumsum(lengths)
    shift: NDArray[np.int64] = np.repeat(trace.offsets[order] - (ends - lengths), lengths)
    stream: NDArray[np.int64] = np.arange(len(shift)) + shift
    return stream
