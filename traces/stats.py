"""Statistics of a routing trace: load, locality along a sequence, affinity between layers. Pure functions.

A token's experts of one layer are a set; `n_e` is the number of tokens whose set holds expert e. Where k varies, unused
places of the top-k count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import RoutingTrace

Counts = NDArray[np.int64]
PerLayer = NDArray[np.float64]


def expert_loads(trace: RoutingTrace) -> Counts:
    """Selections of every expert: int64[layer, expert]."""
    return np.stack([_histogram(rows, trace.n_experts) for rows in trace.ids])


def gate_shares(trace: RoutingTrace) -> PerLayer:
    """Sum of every expert's gate weights over the number of tokens: float64[layer, expert].

    Share of tokens that choose the expert times its mean weight among them; where the trace has no gate weights, all
    count as 1 / top-k.
    """
    if trace.weights is None:
        return expert_loads(trace) / (trace.n_tokens * trace.top_k)
    shares = np.empty((trace.n_layers, trace.n_experts))
    for layer, (rows, weights) in enumerate(zip(trace.ids, trace.weights, strict=True)):
        summed = np.bincount(rows.ravel(), weights=weights.ravel().astype(np.float64), minlength=trace.n_experts)
        shares[layer] = summed[: trace.n_experts] / trace.n_tokens
    return shares


def load_imbalance(loads: Counts) -> PerLayer:
    """Largest over mean expert load of each layer, 1 = balanced: float64[layer]."""
    return np.asarray(loads.max(axis=1) / loads.mean(axis=1))


def load_cv(loads: Counts) -> PerLayer:
    """Coefficient of variation (population standard deviation over mean) of the expert loads: float64[layer]."""
    return np.asarray(loads.std(axis=1) / loads.mean(axis=1))


def entropy_bits(counts: Counts) -> PerLayer:
    """Entropy of the last axis, -sum p log2 p with p = counts / sum [bit]: float64[...]."""
    share = counts / counts.sum(axis=-1, keepdims=True)
    return np.asarray(-(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=-1))


def mean_k(trace: RoutingTrace) -> PerLayer:
    """Mean number of experts of a token: float64[layer]; `top_k` where k is fixed."""
    if trace.padding_id is None:
        return np.full(trace.n_layers, float(trace.top_k))
    return np.array([np.count_nonzero(rows != trace.padding_id) / trace.n_tokens for rows in trace.ids])


def adjacent_reuse(trace: RoutingTrace, lag: int = 1) -> PerLayer:
    """Share of a token's experts that the token `lag` places later, in the same sequence, selects too: float64[layer].

    sum_t |S_t n S_t+lag| / sum_t |S_t|, which for fixed k is the mean of |S_t n S_t+lag| / k. Pairs never cross
    sequences. Raises TraceError where no sequence is longer than `lag`.
    """
    lengths = np.diff(trace.offsets)
    if lag < 1 or lag >= lengths.max():
        raise TraceError(f"reuse at lag {lag} needs a longer sequence; the longest has {lengths.max()} tokens")
    sequence = np.repeat(np.arange(trace.n_sequences), lengths)
    inside = sequence[lag:] == sequence[:-lag]
    return np.array([_shared(rows[:, :-lag], rows[:, lag:], inside, trace.padding_id) for rows in trace.ids])


def popularity_reuse(loads: Counts, k: PerLayer | float) -> PerLayer:
    """Reuse that expert popularity alone explains, sum_e q_e^2 / k: float64[layer].

    `k` experts a token, q_e = share of tokens that select e; equal popularity gives the uniform k / n_experts.
    """
    selected = loads * np.asarray(k)[..., None] / loads.sum(axis=1, keepdims=True)
    return np.asarray((selected**2).sum(axis=1) / k)


def sequence_reuse(trace: RoutingTrace) -> PerLayer:
    """Share of experts that two different random tokens of one sequence have in common: float64[layer].

    Mean over sequences, weighted by their n tokens, of sum_e n_e (n_e - 1) / (n (n - 1) k): what popularity inside
    the sequence explains, and the limit of `adjacent_reuse` at long lags.
    Raises TraceError where every sequence has a single token.
    """
    lengths = np.diff(trace.offsets)
    long = lengths > 1
    if not long.any():
        raise TraceError("reuse inside a sequence needs two tokens; every sequence of the trace has one")
    sequence = np.repeat(np.arange(trace.n_sequences), lengths).astype(np.int64)
    width = trace.n_experts + 1
    result = np.empty(trace.n_layers)
    for layer in range(trace.n_layers):
        index = sequence * width + _with_pad_last(trace, layer)
        counts = np.bincount(index.ravel(), minlength=trace.n_sequences * width).reshape(-1, width)[:, :-1]
        pairs = (counts * (counts - 1)).sum(axis=1)[long] / (lengths[long] - 1)
        result[layer] = pairs.sum() / lengths[long].sum()
    return result / mean_k(trace)


def transition_counts(trace: RoutingTrace, layer: int, *, top1: bool = False) -> Counts:
    """How often a token selects expert i in MoE layer `layer` and j in the next one: int64[expert i, expert j].

    All k x k pairs, or with `top1` only the pair of leading experts.
    Raises TraceError for the last layer, or with `top1` where ids are not ordered by weight.
    """
    if not 0 <= layer < trace.n_layers - 1:
        raise TraceError(f"layer {layer} has no successor; the trace has layers 0..{trace.n_layers - 1}")
    if top1 and not trace.weight_ordered:
        raise TraceError("top-1 transitions need ids ordered by gate weight; this trace does not say that they are")
    k = 1 if top1 else trace.top_k
    return _pairs(_with_pad_last(trace, layer)[:k], _with_pad_last(trace, layer + 1)[:k], trace.n_experts)


def coactivation(trace: RoutingTrace, layer: int) -> Counts:
    """Tokens that select both experts i and j in MoE layer `layer`: int64[expert, expert], diagonal: loads."""
    rows = _with_pad_last(trace, layer)
    return _pairs(rows, rows, trace.n_experts)


def mutual_information_bits(counts: Counts) -> float:
    """Mutual information of the row and column of a drawn pair: sum p_ij log2(p_ij / (p_i p_j)) [bit].

    H(rows) + H(columns) - H(pairs), at least 0. Not corrected for sampling: n independent pairs of unrelated experts
    give about (E - 1)^2 / (2 n ln 2) bits (Miller 1955), so compare only traces of similar size.
    """
    rows, columns = entropy_bits(counts.sum(axis=1)), entropy_bits(counts.sum(axis=0))
    return max(0.0, float(rows + columns - entropy_bits(counts.ravel())))


def normalised_mutual_information(counts: Counts) -> float:
    """Mutual information over the smaller of both marginal entropies: 0 = independent, 1 = one expert fixes the other.

    With k > 1 and all pairs counted, 1 is out of reach: the k x k pairs of a token mix. 0 where a marginal is constant.
    """
    limit = min(float(entropy_bits(counts.sum(axis=1))), float(entropy_bits(counts.sum(axis=0))))
    return mutual_information_bits(counts) / limit if limit > 0 else 0.0


def affinity_bits(trace: RoutingTrace, *, top1: bool = False) -> PerLayer:
    """Mutual information between the experts of each MoE layer and the next [bit]: float64[layer - 1].

    See `transition_counts` for the pairs and `mutual_information_bits` for the formula.
    """
    layers = range(trace.n_layers - 1)
    return np.array([mutual_information_bits(transition_counts(trace, layer, top1=top1)) for layer in layers])


def domain_information_bits(trace: RoutingTrace) -> PerLayer:
    """Mutual information between the label of a sequence and each expert its tokens select [bit]: float64[layer].

    0 where every domain uses every expert alike; at most the entropy of the labels. See `mutual_information_bits`.
    Raises TraceError where sequences have no labels.
    """
    if not trace.labels:
        raise TraceError("the trace has no labels; information about domains needs one per sequence")
    _, domain = np.unique(np.array(trace.labels), return_inverse=True)
    of_token = np.repeat(domain, np.diff(trace.offsets)) * (trace.n_experts + 1)
    cells = (int(domain.max()) + 1, trace.n_experts + 1)
    counts = (
        np.bincount((_with_pad_last(trace, layer) + of_token).ravel(), minlength=cells[0] * cells[1]).reshape(cells)
        for layer in range(trace.n_layers)
    )
    return np.array([mutual_information_bits(table[:, :-1]) for table in counts])


def distinct_experts(trace: RoutingTrace, batch_tokens: int, rng: np.random.Generator | None = None) -> Counts:
    """Number of distinct experts that each batch touches: int64[batch, layer].

    Batches of consecutive tokens, as in a prefill chunk, or with `rng` of tokens drawn without replacement from the
    whole trace, as in a decode step of unrelated requests. Tokens that do not fill a batch are left out.
    Oracle for independent uniform routing: E (1 - (1 - k/E)^batch_tokens).
    Raises TraceError where the trace is shorter than a batch.
    """
    n_batches = trace.n_tokens // batch_tokens if batch_tokens > 0 else 0
    if n_batches == 0:
        raise TraceError(f"a batch of {batch_tokens} tokens cannot be cut from a trace of {trace.n_tokens}")
    tokens = np.arange(trace.n_tokens) if rng is None else rng.permutation(trace.n_tokens)
    tokens = tokens[: n_batches * batch_tokens]
    batch = np.arange(len(tokens)) // batch_tokens
    result = np.empty((n_batches, trace.n_layers), np.int64)
    for layer in range(trace.n_layers):
        touched = np.zeros((n_batches, trace.n_experts + 1), bool)
        touched[batch, _with_pad_last(trace, layer)[:, tokens]] = True
        result[:, layer] = touched[:, :-1].sum(axis=1)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStats:
    """Statistics of a trace; arrays are float64[layer], `affinity_*` float64[layer - 1] (empty for one layer).

    `adjacent_reuse`, `lag8_reuse` and `sequence_reuse` are None where no sequence is long enough.
    """

    n_layers: int
    n_experts: int
    top_k: int
    n_tokens: int
    n_sequences: int
    shortest_sequence_tokens: int
    longest_sequence_tokens: int
    mean_k: PerLayer
    load_imbalance: PerLayer
    load_cv: PerLayer
    load_entropy_bits: PerLayer
    unused_experts: PerLayer
    uniform_reuse: PerLayer
    popularity_reuse: PerLayer
    sequence_reuse: PerLayer | None
    adjacent_reuse: PerLayer | None
    lag8_reuse: PerLayer | None
    affinity_bits: PerLayer
    affinity_frac: PerLayer

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


def summarise(trace: RoutingTrace) -> TraceStats:
    """All statistics that `moesim trace stats` shows; a few seconds for a million tokens."""
    lengths = np.diff(trace.offsets)
    loads, k = expert_loads(trace), mean_k(trace)
    transitions = [transition_counts(trace, layer) for layer in range(trace.n_layers - 1)]
    longest = int(lengths.max())
    return TraceStats(
        n_layers=trace.n_layers,
        n_experts=trace.n_experts,
        top_k=trace.top_k,
        n_tokens=trace.n_tokens,
        n_sequences=trace.n_sequences,
        shortest_sequence_tokens=int(lengths.min()),
        longest_sequence_tokens=longest,
        mean_k=k,
        load_imbalance=load_imbalance(loads),
        load_cv=load_cv(loads),
        load_entropy_bits=entropy_bits(loads),
        unused_experts=(loads == 0).sum(axis=1).astype(np.float64),
        uniform_reuse=k / trace.n_experts,
        popularity_reuse=popularity_reuse(loads, k),
        sequence_reuse=sequence_reuse(trace) if longest > 1 else None,
        adjacent_reuse=adjacent_reuse(trace) if longest > 1 else None,
        lag8_reuse=adjacent_reuse(trace, 8) if longest > 8 else None,
        affinity_bits=np.array([mutual_information_bits(counts) for counts in transitions]),
        affinity_frac=np.array([normalised_mutual_information(counts) for counts in transitions]),
    )


def _histogram(rows: NDArray[np.unsignedinteger], n_experts: int) -> Counts:
    """Counts of ids below `n_experts`; the padding id lies above."""
    return np.bincount(rows.ravel(), minlength=n_experts)[:n_experts].astype(np.int64, copy=False)


def _with_pad_last(trace: RoutingTrace, layer: int) -> NDArray[np.int32]:
    """ids of one layer as int32[k, token], with the padding id replaced by `n_experts`."""
    rows: NDArray[np.int32] = trace.ids[layer].astype(np.int32)
    if trace.padding_id is not None:
        rows[rows == trace.padding_id] = trace.n_experts
    return rows


def _pairs(left: NDArray[np.int32], right: NDArray[np.int32], n_experts: int) -> Counts:
    """Counts of all pairs (left id, right id) of the same token; ids equal to `n_experts` are left out."""
    width = n_experts + 1
    counts = np.zeros(width * width, np.int64)
    for row in left * np.int32(width):
        for column in right:
            counts += np.bincount(row + column, minlength=width * width)
    return counts.reshape(width, width)[:n_experts, :n_experts].copy()


def _shared(
    earlier: NDArray[np.unsignedinteger],
    later: NDArray[np.unsignedinteger],
    inside: NDArray[np.bool_],
    padding_id: int | None,
) -> float:
    """sum |S n S'| / sum |S| over the pairs of tokens that are `inside` a sequence; ids are [k, pair]."""
    hits = n_earlier = 0
    for row in earlier:
        used = inside if padding_id is None else inside & (row != padding_id)
        n_earlier += int(np.count_nonzero(used))
        for other in later:
            hits += int(np.count_nonzero((row == other) & used))
    return hits / n_earlier if n_earlier else 0.0
