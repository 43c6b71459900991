"""Checks of imported routing. Each is a pure function of arrays; all of these faults occurred in published dumps.

Arrays: ids integer [layer, k, token] with -1 for an unused place, offsets int64 [sequence + 1].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.recording import Finding, Identity, RawIds, Recording

WARMUP_RUN = 256  # identical rows in a row; real text has not shown more, profiling runs write thousands
MAX_LAG = 64
_SAMPLE_TOKENS, _SAMPLE_LAYERS, _WINDOW, _MIN_PAIRS = 8192, 8, 1024, 256


def run_checks(recording: Recording, n_experts: int, *, in_order: bool) -> tuple[Finding, ...]:
    """Findings of every check that changes nothing; with `in_order` interleaved rows are no error."""
    ids, offsets = recording.ids, recording.offsets
    width = ids.shape[1] if recording.top_k is None else recording.top_k
    layers = recording.layers or tuple(range(len(ids)))
    order = Finding(check="interleaving", count=0, message="not tested: the rows of a step have no order")
    if recording.identity != "steps":
        order = interleaving(ids, offsets)
    if in_order and order.fatal:
        order = replace(order, message=f"order given by the user, although {order.message}", fatal=False)
    return (
        fused_shared_experts(ids, n_experts, width),
        physical_ids(ids, n_experts),
        repeated_experts(ids),
        order,
        duplicated_layers(ids, layers),
        duplicate_sequences(ids, offsets),
        unsorted_ids(recording.weights),
        request_identity(recording.identity, len(offsets) - 1),
    )


def refuse(findings: Iterable[Finding]) -> None:
    """Raises TraceError with the message of the first fatal finding, if there is one."""
    for finding in findings:
        if finding.fatal:
            raise TraceError(f"{finding.check}: {finding.message}")


def warmup_mask(ids: RawIds, longest: int = WARMUP_RUN) -> NDArray[np.bool_]:
    """bool [token]: the token belongs to a run of more than `longest` tokens with identical ids (last axis: token)."""
    n_tokens = ids.shape[-1]
    same = np.ones(max(n_tokens - 1, 0), dtype=np.bool_)
    for rows in ids.reshape(-1, n_tokens):
        same &= rows[1:] == rows[:-1]
    starts = np.concatenate(([0], np.flatnonzero(~same) + 1))
    lengths = np.diff(np.append(starts, n_tokens))
    return np.repeat(lengths > longest, lengths)


def warmup_rows(mask: NDArray[np.bool_], *, keep: bool) -> Finding:
    """Rows of profiling or warm-up runs, and what is done with them."""
    count = int(mask.sum())
    if count == 0:
        message = f"no run of more than {WARMUP_RUN} identical rows"
    else:
        message = f"{count} of {len(mask)} rows stand in runs of more than {WARMUP_RUN} identical rows"
        message += " and were kept as asked" if keep else " and were left out as profiling rows"
    return Finding(check="warm-up rows", count=count, message=message, changed=count > 0 and not keep)


def adjacent_reuse(ids: RawIds, offsets: NDArray[np.int64], max_lag: int = MAX_LAG) -> NDArray[np.float64]:
    """Mean share of a token's experts that the token `lag` rows later selects too, float64 [lag - 1].

    Mean over layers and pairs inside a sequence, on at most 8192 tokens and 8 layers spread over the trace.
    """
    tokens, sequence = _sample(offsets)
    layers = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _SAMPLE_LAYERS)).astype(np.int64))
    rows = ids[np.ix_(layers, np.arange(ids.shape[1]), tokens)]
    later = np.where(rows < 0, -2, rows) if rows.dtype.kind == "i" else rows  # unused places match nothing
    reuse = np.zeros(max_lag)
    for lag in range(1, min(max_lag, len(tokens) - 1) + 1):
        pairs = sequence[lag:] == sequence[:-lag]
        if pairs.any():
            matches = sum(
                int((later[:, [k], lag:] == rows[:, :, :-lag])[..., pairs].sum()) for k in range(rows.shape[1])
            )
            reuse[lag - 1] = matches / (pairs.sum() * rows.shape[0] * rows.shape[1])
    return reuse


def _sample(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token numbers of windows spread over the sequences, and the sequence of each."""
    lengths = np.minimum(np.diff(offsets), _WINDOW if len(offsets) > 9 else _SAMPLE_TOKENS)
    wanted = max(1, min(len(lengths), int(_SAMPLE_TOKENS / lengths.mean())))
    chosen = np.unique(np.linspace(0, len(lengths) - 1, wanted).astype(np.int64))
    tokens = np.concatenate([np.arange(offsets[s], offsets[s] + lengths[s]) for s in chosen])
    return tokens, np.repeat(chosen, lengths[chosen])


def interleaving(ids: RawIds, offsets: NDArray[np.int64]) -> Finding:
    """Whether the rows of several sequences alternate, as Megatron flattens a micro-batch [token, sequence].

    Text reuses experts most at lag 1. Fatal where another lag beats it by a quarter and by six standard errors.
    """
    pairs = np.maximum(np.diff(offsets)[:, None] - np.arange(1, MAX_LAG + 1), 0).sum(axis=0)
    if pairs[0] < _MIN_PAIRS:
        message = f"not tested: {pairs[0]} pairs of tokens are fewer than {_MIN_PAIRS}"
        return Finding(check="interleaving", count=0, message=message)
    reuse = np.where(pairs < _MIN_PAIRS, 0, adjacent_reuse(ids, offsets))
    best = int(np.argmax(reuse))
    n_choices = ids.shape[1] * min(int(pairs[best]), _SAMPLE_TOKENS)
    noise = math.sqrt(reuse[best] * (1 - reuse[best]) / n_choices)
    if best == 0 or reuse[best] < 1.25 * reuse[0] or reuse[best] - reuse[0] < 6 * noise:
        message = f"none seen: mean reuse of experts is {reuse[0]:.3f} at lag 1 and at most {reuse[1:].max():.3f} later"
        return Finding(check="interleaving", count=0, message=message)
    message = (
        f"mean reuse of experts is {reuse[best]:.3f} at lag {best + 1} but {reuse[0]:.3f} at lag 1, so the rows of "
        f"{best + 1} sequences seem to alternate; give --deinterleave {best + 1}, or --deinterleave 1 if they do not"
    )
    return Finding(check="interleaving", count=best + 1, message=message, fatal=True)


def fused_shared_experts(ids: RawIds, n_experts: int, top_k: int) -> Finding:
    """Fatal where a shared expert is written as one more routed expert: k + 1 ids, or n_experts as last id."""
    count = int((ids[:, -1] == n_experts).sum()) if ids[:, :-1].size == 0 or (ids[:, :-1] < n_experts).all() else 0
    if ids.shape[1] == top_k + 1 or count == ids[:, -1].size:
        message = (
            f"every token has {ids.shape[1]} ids, the last a shared expert; record again with shared-expert fusion off"
        )
        return Finding(check="fused shared experts", count=ids[:, -1].size, message=message, fatal=True)
    return Finding(check="fused shared experts", count=0, message="none")


def physical_ids(ids: RawIds, n_experts: int) -> Finding:
    """Fatal where an id reaches the number of experts, as slot numbers of replicated experts do."""
    count = sum(int((rows >= n_experts).sum()) for rows in ids)
    if count == 0:
        return Finding(check="physical ids", count=0, message=f"none: every id is below {n_experts}")
    message = (
        f"{count} expert ids reach {n_experts} experts (largest: {int(ids.max())}); slot numbers need the engine's map "
        "(--physical-to-logical FILE), else correct --experts"
    )
    return Finding(check="physical ids", count=count, message=message, fatal=True)


def repeated_experts(ids: RawIds) -> Finding:
    """Fatal where a token names the same expert twice in one layer."""
    count = 0
    for rows in ids:
        twice = np.zeros(rows.shape[1], dtype=np.bool_)
        for k in range(1, len(rows)):
            twice |= ((rows[:k] == rows[k]) & (rows[k] >= 0)).any(axis=0)
        count += int(twice.sum())
    if count == 0:
        return Finding(check="repeated experts", count=0, message="no token names an expert twice")
    message = (
        f"{count} (token, layer) pairs name an expert twice: corrupt ids, or dummy layers mixed in; "
        "give --moe-layers or export again"
    )
    return Finding(check="repeated experts", count=count, message=message, fatal=True)


def dense_layer_mask(ids: RawIds) -> NDArray[np.bool_]:
    """bool [layer]: the layer holds no routing, but padding (-1) or one constant set with repeated ids (zeros)."""
    return np.array([_is_dense(rows) for rows in ids], dtype=np.bool_)


def _is_dense(rows: RawIds) -> bool:
    if (rows < 0).all():
        return True
    first = rows[:, 0]
    return len(np.unique(first)) < len(first) and bool((rows == rows[:, :1]).all())


def dense_layers(dropped: tuple[int, ...], n_layers: int) -> Finding:
    """Layers left out because they hold no experts."""
    message = "none"
    if dropped:
        message = f"{len(dropped)} of {n_layers} layers were left out as dense: {_ranges(dropped)}"
    return Finding(check="dense layers", count=len(dropped), message=message, changed=bool(dropped))


def padded_k(ids: RawIds) -> Finding:
    """Columns of the top-k that no token uses; the importer leaves them out."""
    count = int((ids < 0).all(axis=(0, 2)).sum()) if ids.dtype.kind == "i" else 0
    message = f"{count} of {ids.shape[1]} places per token are never used and were left out" if count else "none"
    return Finding(check="padded k", count=count, message=message, changed=count > 0)


def truncated_mask(ids: RawIds) -> NDArray[np.bool_]:
    """bool [token]: some layer of the token has no expert at all."""
    if ids.dtype.kind != "i":
        return np.zeros(ids.shape[2], dtype=np.bool_)
    return np.asarray((ids < 0).all(axis=1).any(axis=0))


def truncated_tokens(mask: NDArray[np.bool_]) -> Finding:
    """Tokens left out because a layer is missing."""
    count = int(mask.sum())
    message = f"{count} of {len(mask)} tokens lack layers and were left out" if count else "none"
    return Finding(check="truncated tokens", count=count, message=message, changed=count > 0)


def duplicated_layers(ids: RawIds, layers: tuple[int, ...]) -> Finding:
    """Layers whose routing is a copy of an earlier layer's; reported, not changed."""
    first: dict[bytes, int] = {}
    copies = [layer for layer, rows in zip(layers, ids, strict=True) if first.setdefault(_digest(rows), layer) != layer]
    message = "none"
    if copies:
        message = f"layers {_ranges(tuple(copies))} repeat earlier layers exactly; leave them out with --moe-layers"
    return Finding(check="duplicated layers", count=len(copies), message=message)


def duplicate_sequences(ids: RawIds, offsets: NDArray[np.int64]) -> Finding:
    """Sequences whose routing equals an earlier one's; reported, not changed."""
    n_sequences = len(offsets) - 1
    distinct = {_digest(ids[:, :, offsets[s] : offsets[s + 1]]) for s in range(n_sequences)}
    message = f"{len(distinct)} of {n_sequences} sequences are distinct"
    return Finding(check="duplicate sequences", count=n_sequences - len(distinct), message=message)


def _digest(rows: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16, key=str(rows.shape).encode()).digest()


def unsorted_ids(weights: NDArray[np.float16] | None) -> Finding:
    """(token, layer) pairs whose weights are not in descending order; then the trace is not weight-ordered."""
    if weights is None:
        return Finding(check="unsorted ids", count=0, message="not tested: no gate weights")
    count = sum(int((rows[1:] > rows[:-1]).any(axis=0).sum()) for rows in weights)
    message = f"{count} (token, layer) pairs are not in descending order of weight" if count else "none"
    return Finding(check="unsorted ids", count=count, message=message)


def request_identity(identity: Identity, n_sequences: int) -> Finding:
    """What a sequence of the trace stands for, and what may be measured on it."""
    message = {
        "requests": f"{n_sequences} sequences are requests",
        "steps": f"{n_sequences} sequences are engine steps: only unions and loads per step are valid",
        "stream": f"{n_sequences} sequences are whole files without request ids: reuse across their joints is not real",
    }[identity]
    return Finding(check="request identity", count=0 if identity == "requests" else n_sequences, message=message)


def idle_steps(counts: NDArray[np.int64]) -> Finding:
    """Steps of a circular buffer that were never written (all zero); the importer leaves them out."""
    count = int((counts == 0).all(axis=(1, 2)).sum())
    message = f"{count} of {len(counts)} steps are all zero and were left out" if count else "no step is all zero"
    return Finding(check="idle steps", count=count, message=message, changed=count > 0)


def _ranges(numbers: tuple[int, ...]) -> str:
    """Text such as "0-2, 5" for ascending numbers."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i + 1 == len(numbers) or numbers[i + 1] != n + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
