"""Locality of routing: how well a fixed set of experts serves a segment of tokens (SRP), and the cache it allows (SCH).

Definitions: "Not All Models Suit Expert Offloading", arXiv 2505.16056, from its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.cache_curves import CacheCurve, SequenceAccesses, check_capacities, pool_hits, sequence_accesses
from traces.caches import Ints
from traces.routing import RoutingTrace

_BLOCK_CELLS = 1 << 22  # expert-token cells worked on at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRouting:
    """Segment routing best performance at one window length.

    srp            best F1 of predicting, per window, layer and expert, "active on all tokens of the window".
    rho_hat        size of the predicted group relative to the experts a token activates.
    tau            least number of activations in the window from which an expert is predicted.
    window_tokens  tokens of a window, the m of SRP(m).
    windows        windows of the trace; stride 1, none crosses a sequence.
    """

    srp: float
    rho_hat: float
    tau: int
    window_tokens: int
    windows: int


def segment_routing(trace: RoutingTrace, window_tokens: int) -> SegmentRouting:
    """SRP(m) of the trace, with one threshold for all layers and experts.

    With H[c] = (window, layer, expert) triples of c activations: matches = sum_{c >= tau} c H[c],
    predictions = m sum_{c >= tau} H[c], activations = sum c H[c];
    SRP = max over tau of 2 matches / (predictions + activations), rho_hat = predictions / activations there.
    Raises TraceError where no sequence is as long as the window.
    """
    histograms, windows = _activation_histograms(trace, window_tokens)
    return _best(histograms.sum(axis=0), window_tokens, windows)


def segment_routing_per_layer(trace: RoutingTrace, window_tokens: int) -> tuple[SegmentRouting, ...]:
    """SRP(m) of each layer with a threshold of its own: another metric than `segment_routing`, not its parts."""
    histograms, windows = _activation_histograms(trace, window_tokens)
    return tuple(_best(histogram, window_tokens, windows) for histogram in histograms)


def _best(histogram: Ints, window_tokens: int, windows: int) -> SegmentRouting:
    counts = np.arange(window_tokens + 1)
    activations = int((counts * histogram).sum())
    matches = np.cumsum((counts * histogram)[::-1])[::-1]
    predictions = np.cumsum(histogram[::-1])[::-1] * window_tokens
    f1 = 2 * matches[1:] / (predictions[1:] + activations)
    tau = 1 + int(np.argmax(f1))
    return SegmentRouting(
        srp=float(f1[tau - 1]),
        rho_hat=float(predictions[tau] / activations),
        tau=tau,
        window_tokens=window_tokens,
        windows=windows,
    )


def _activation_histograms(trace: RoutingTrace, window_tokens: int) -> tuple[Ints, int]:
    """H[layer, c] over windows and experts, int64 [layer, window_tokens + 1], and the number of windows."""
    lengths = np.diff(trace.offsets)
    if not 1 <= window_tokens <= lengths.max():
        raise TraceError(
            f"no window of {window_tokens} tokens fits: the longest sequence has {lengths.max()} tokens; "
            f"choose a window of 1 to {lengths.max()}"
        )
    last_token = np.repeat(trace.offsets[1:], lengths)
    inside = np.arange(trace.n_tokens) + window_tokens <= last_token
    histograms = np.zeros((trace.n_layers, window_tokens + 1), np.int64)
    for layer in range(trace.n_layers):
        for counts in _window_counts(trace, layer, window_tokens, inside):
            histograms[layer] += np.bincount(counts.ravel(), minlength=window_tokens + 1)
    return histograms, int(inside.sum())


def _window_counts(
    trace: RoutingTrace, layer: int, window_tokens: int, inside: NDArray[np.bool_]
) -> Iterator[NDArray[np.int32]]:
    """Activations per expert of each window that lies in one sequence, int32 [expert, window], block by block."""
    block = max(1024, _BLOCK_CELLS // trace.n_experts)
    for start in range(0, trace.n_tokens, block):
        starts = np.flatnonzero(inside[start : start + block])
        if len(starts) == 0:
            continue
        ids = trace.ids[layer, :, start : start + block + window_tokens - 1]
        token = np.broadcast_to(np.arange(1, ids.shape[1] + 1), ids.shape)
        used = ids < trace.n_experts
        sums = np.zeros((trace.n_experts, ids.shape[1] + 1), np.int32)
        sums[ids[used], token[used]] = 1
        np.cumsum(sums, axis=1, out=sums)
        yield sums[:, starts + window_tokens] - sums[:, starts]


def segment_cache(
    trace: RoutingTrace, window_tokens: int, capacities: Sequence[int], every_nth_sequence: int = 1
) -> CacheCurve:
    """SCH(m): hits of a whole-model pool that keeps the experts most active in the m tokens from the current one on.

    Ties go to the more recent; otherwise the convention "model_pool" (see `traces.cache_curves.CONVENTIONS`). Not
    Belady's optimum: m bounds the look-ahead. Published values use every 16th sequence; `pool_capacity` turns a
    published rho into a capacity. Raises TraceError for windows, strides and capacities below 1.
    """
    if window_tokens < 1 or every_nth_sequence < 1:
        raise TraceError(f"window {window_tokens} and sequence stride {every_nth_sequence} must be at least 1")
    check_capacities(capacities, trace.n_layers * trace.n_experts)
    hits, n_accesses = np.zeros(len(capacities), np.int64), 0
    for sequence in range(0, trace.n_sequences, every_nth_sequence):
        accesses = sequence_accesses(trace, sequence)
        priority = _coming_activations(accesses, window_tokens) * len(accesses.pool_ids)
        priority += np.arange(len(priority))
        hits += [pool_hits(accesses, priority, capacity, window_tokens) for capacity in capacities]
        n_accesses += len(priority)
    return CacheCurve(
        policy=f"segment-{window_tokens}",
        convention="model_pool",
        capacities=np.array(capacities, np.int64),
        hits=hits,
        accesses=n_accesses,
    )


def _coming_activations(accesses: SequenceAccesses, window_tokens: int) -> Ints:
    """Per access of token t: activations of the same expert in tokens t+1 to t+m-1, int64 [access]."""
    n_tokens = len(accesses.offsets) - 1
    moment = accesses.pool_ids * (n_tokens + window_tokens) + accesses.token
    ordered = np.sort(moment)
    until = np.searchsorted(ordered, moment + window_tokens - 1, side="right")
    return until - np.searchsorted(ordered, moment, side="right")
