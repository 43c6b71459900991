"""Requests as tokens of a routing trace: where in it each of them begins, as the mix of domains changes over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.serving_specs import MixSpec
from traces.requests import RequestTrace
from traces.routing import RoutingTrace
from traces.split import label_sequences

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRoutes:
    """The token of the trace that every position of a request is.

    A request reads on from the beginning of a sequence, into the next ones of its domain where it is longer.

    stream  int64[token]: indices into the trace, domain by domain.
    first, n_tokens, start  int64[request]: where the tokens of its domain begin in the stream, how many they are, and
                            at which of them it starts.
    """

    stream: Index
    first: Index
    n_tokens: Index
    start: Index

    def tokens(self, requests: Index, positions: Index) -> Index:
        """Indices into the trace of positions of requests, int64[...]."""
        place = (self.start[requests] + positions) % self.n_tokens[requests]
        found: Index = self.stream[self.first[requests] + place]
        return found


def request_routes(
    trace: RoutingTrace, sequences: Index, requests: RequestTrace, mix: Sequence[MixSpec], rng: np.random.Generator
) -> RequestRoutes:
    """Routes of all requests from some sequences of the trace, by the mix of domains at their arrival.

    A request begins at a random sequence among those of its domain that are as long as it is, else among all of them.
    Raises TraceError where no sequence has the label of a domain.
    """
    groups = _groups(trace, sequences, mix)
    lengths = trace.offsets[1:] - trace.offsets[:-1]
    streams = [np.concatenate([np.arange(trace.offsets[s], trace.offsets[s + 1]) for s in group]) for group in groups]
    sizes = np.array([len(stream) for stream in streams])
    domain = _domains(requests.arrival_s, mix, rng)
    start, wanted = np.empty(len(requests), np.int64), requests.input_tokens + requests.output_tokens
    for number, group in enumerate(groups):
        own = np.flatnonzero(domain == number)
        begins = np.cumsum(lengths[group]) - lengths[group]
        longest = np.argsort(-lengths[group], kind="stable")
        n_fit = np.searchsorted(-lengths[group][longest], -wanted[own], side="right")
        drawn = (rng.random(len(own)) * np.where(n_fit > 0, n_fit, len(group))).astype(np.int64)
        start[own] = begins[longest[drawn]]
    return RequestRoutes(
        stream=np.concatenate(streams),
        first=(np.cumsum(sizes) - sizes)[domain],
        n_tokens=sizes[domain],
        start=start,
    )


def _groups(trace: RoutingTrace, sequences: Index, mix: Sequence[MixSpec]) -> list[Index]:
    """The sequences of every domain, in the order of `_names`; all in one where no mix is given."""
    groups = [np.intersect1d(sequences, label_sequences(trace, name)) for name in _names(mix)] or [sequences]
    for name, group in zip(_names(mix), groups, strict=False):
        if not len(group):
            raise TraceError(f"plans are fitted on all sequences of domain '{name}'; lower split.fit")
    return groups


def _names(mix: Sequence[MixSpec]) -> list[str]:
    return sorted({name for one in mix for name in one.domains})


def _domains(arrival_s: NDArray[np.float64], mix: Sequence[MixSpec], rng: np.random.Generator) -> Index:
    """Domain of every request, drawn by the shares at its arrival, int64[request]."""
    if not mix:
        return np.zeros(len(arrival_s), np.int64)
    shares = np.array([[one.domains.get(name, 0.0) for name in _names(mix)] for one in mix])
    shares /= shares.sum(axis=1, keepdims=True)
    times_s = [one.at for one in mix]
    below = np.cumsum([np.interp(arrival_s, times_s, column) for column in shares.T], axis=0)
    drawn = rng.random(len(arrival_s)) * below[-1]
    domain: Index = np.minimum((below <= drawn).sum(axis=0), len(below) - 1)
    return domain
