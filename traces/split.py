"""Parts of a routing trace: sequences to fit plans on and others to judge them on, and domains."""

from __future__ import annotations

import difflib
import hashlib
from typing import cast

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import Ids, RoutingTrace


def split_sequences(
    trace: RoutingTrace, fit: float, evaluate: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the sequences to fit on and of those to judge on, disjoint and drawn at random.

    `fit` and `evaluate` are shares of the sequences. Sequences with identical ids land in the same part (or in none),
    so that nothing leaks from one to the other; a part may therefore miss its share by half a group of repeats.
    Raises TraceError where the shares are no shares, or a part with a share above 0 would stay empty.
    """
    if not (0 <= fit <= 1 and 0 <= evaluate <= 1 and fit + evaluate <= 1 + 1e-9):
        raise TraceError(f"shares fit {fit} and evaluate {evaluate} must lie in 0..1 and add up to at most 1")
    groups = _groups_of_repeats(trace)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.array([len(groups[group]) for group in order])
    middles = np.cumsum(sizes) - sizes / 2
    edges = np.array([0.0, fit, fit + evaluate]) * trace.n_sequences + 1e-9
    parts = []
    for share, low, high, name in ((fit, edges[0], edges[1], "fit"), (evaluate, edges[1], edges[2], "evaluate")):
        chosen = [groups[group] for group in order[(middles > low) & (middles <= high)]]
        if share > 0 and not chosen:
            raise TraceError(
                f"the share {name}: {share} of {trace.n_sequences} sequences ({len(groups)} different ones) is empty; "
                f"raise the share, or take a trace with more sequences"
            )
        parts.append(np.sort(np.concatenate([*chosen, np.empty(0, np.int64)]).astype(np.int64)))
    return parts[0], parts[1]


def select_sequences(trace: RoutingTrace, sequences: NDArray[np.int64]) -> RoutingTrace:
    """A copy of `trace` that holds only `sequences`, in the order given; positions in the request are kept.

    Raises TraceError where no sequence is chosen or an index is out of range.
    """
    chosen = np.asarray(sequences, np.int64)
    if chosen.ndim != 1 or len(chosen) == 0:
        raise TraceError(f"choose at least one of the {trace.n_sequences} sequences, got shape {chosen.shape}")
    if chosen.min() < 0 or chosen.max() >= trace.n_sequences:
        raise TraceError(
            f"sequences {chosen.min()}..{chosen.max()} asked for, the trace has 0..{trace.n_sequences - 1}"
        )
    lengths = np.diff(trace.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.repeat(trace.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return RoutingTrace(
        ids=cast(Ids, np.take(trace.ids, tokens, axis=2)),
        n_experts=trace.n_experts,
        offsets=offsets,
        positions=trace.positions[tokens],
        moe_layers=trace.moe_layers,
        phase=trace.phase,
        provenance=trace.provenance,
        weights=None if trace.weights is None else np.take(trace.weights, tokens, axis=2),
        labels=tuple(trace.labels[s] for s in chosen) if trace.labels else (),
        weight_ordered=trace.weight_ordered,
        variable_k=trace.variable_k,
        check_ids=False,
    )


def select_label(trace: RoutingTrace, label: str) -> RoutingTrace:
    """A copy of `trace` that holds only the sequences of the domain `label`.

    Raises TraceError where no sequence has the label; the message names those that exist.
    """
    return select_sequences(trace, label_sequences(trace, label))


def label_sequences(trace: RoutingTrace, label: str) -> NDArray[np.int64]:
    """Indices of the sequences of the domain `label`; raises as `select_label` does."""
    chosen = np.flatnonzero([name == label for name in trace.labels])
    if len(chosen):
        return chosen
    known = sorted(set(trace.labels))
    if not known:
        raise TraceError(f"no sequence has the label '{label}': the trace carries no labels")
    close = difflib.get_close_matches(label, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    raise TraceError(f"no sequence has the label '{label}'{hint}; labels: {', '.join(known)}")


def _groups_of_repeats(trace: RoutingTrace) -> list[NDArray[np.int64]]:
    """Sequence indices, those with identical ids together, in order of first appearance."""
    groups: dict[bytes, list[int]] = {}
    for sequence in range(trace.n_sequences):
        rows = trace.ids[:, :, trace.offsets[sequence] : trace.offsets[sequence + 1]]
        digest = hashlib.blake2b(rows.tobytes(), digest_size=16).digest()
        groups.setdefault(digest, []).append(sequence)
    return [np.array(members, np.int64) for members in groups.values()]
