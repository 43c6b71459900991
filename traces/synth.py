"""Made-up routing traces with chosen locality: knobs in, a RoutingTrace out; and knobs fitted to a real trace.

Every choice of an expert is made in one of three ways: kept from the token before, by the theme of the token, or fresh
by popularity. `synthesise` says how, `fit_report` how knobs follow from a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.gate_weights import drawn_weights
from traces.knobs import PROFILES, STRONGEST_SKEW, Knobs, even_lengths, knobs_from_spec, rescale, standard_scores
from traces.routing import Provenance, RoutingTrace, id_dtype
from traces.stats import PerLayer, adjacent_reuse, affinity_bits, expert_loads, load_cv, load_imbalance, sequence_reuse

__all__ = [
    "FittedKnobs",
    "Knobs",
    "MatchedStats",
    "even_lengths",
    "fit_knobs",
    "fit_report",
    "knobs_from_spec",
    "matched_stats",
    "rescale",
    "synthesise",
]

Slots = NDArray[np.int16]

FRESH, KEEP, FOLLOW = 0, 1, 2
VACANT = np.int16(-1)
CHUNK_TOKENS = 65536  # sequences generated together: bounds memory, whatever the length of the trace
BLOCK_KEYS = 1 << 18  # arrival times drawn at once: they stay in the cache
THEME_EXPERTS_PER_K = 2  # experts of a theme over k; 2 reaches the bits of gpt-oss-20b and FLAME-MoE-290M
N_TWINS = 3  # of a fit's round: the luck of one popularity and theme draw moves the statistics by some per cent
THEME_SKEW = 0.5  # deviation of log theme popularity over the mean skew


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """What all sequences share. Popularities are logarithms; `members` is filled up with the id n_experts.

    popularity float64[layer, expert], theme_popularity float64[theme], members int64[layer, theme, member].
    """

    popularity: NDArray[np.float64]
    theme_popularity: NDArray[np.float64]
    members: NDArray[np.int64]


def synthesise(knobs: Knobs, rng: np.random.Generator) -> RoutingTrace:
    """A synthetic trace; the same knobs and generator state give the same ids.

    Experts have log popularity of deviation `skew`, in random order in every layer, and each sequence adds its own of
    deviation `sequence_skew`. Themes partition the experts of each layer, popular ones spread over all themes; a token
    draws one theme for all layers, by half the mean skew and the sequence's taste. Each place of a token's top-k is
      kept     with chance `reuse`: the expert at this place of the token before (never across sequences),
      themed   else with chance `affinity`: by popularity among the experts of the theme,
      fresh    else: by popularity among all experts,
    always without replacement, by the k first of Exp(1) / popularity, the exponential form of Gumbel top-k (Efraimidis
    and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).
    Not modelled, so not to be read off a synthetic trace: locality at lags beyond the geometric decay of kept choices
    (SRP and cache hits at long windows), domains, the decay of affinity with distance in depth, how co-activation
    inside a layer differs from affinity, group-limited routing, differences between the k places; gate weights, which
    `gate_spread` adds, know nothing of the experts.
    """
    structure = _draw_structure(knobs, rng)
    lengths = np.array(knobs.sequence_lengths, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    dtype = id_dtype(knobs.n_experts, variable_k=bool(knobs.k_shares))
    ids = np.empty((knobs.n_layers, knobs.top_k, int(offsets[-1])), dtype)
    source = _describe(knobs, rng)
    for first, last in _chunks(offsets):
        tokens = slice(int(offsets[first]), int(offsets[last]))
        ids[:, :, tokens] = _choose(knobs, structure, lengths[first:last], rng).transpose(1, 0, 2)
    if knobs.k_shares:
        _pad(ids, knobs.k_shares, rng)
    spread = knobs.gate_spread
    return RoutingTrace(
        ids=ids,
        weights=None if spread is None else drawn_weights(ids, knobs.n_experts, spread, rng),
        n_experts=knobs.n_experts,
        offsets=offsets,
        positions=(np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)).astype(np.int32),
        moe_layers=knobs.moe_layers,
        phase=knobs.phase,
        provenance=Provenance(model=knobs.model, source=source, kind="synthetic", licence="none needed"),
        weight_ordered=True,
        variable_k=bool(knobs.k_shares),
        check_ids=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedStats:
    """The statistics that a fit compares: float64[layer], `affinity_bits` float64[layer - 1].

    One knob, skew, serves both `load_cv` and `load_imbalance`: a fit balances them.
    """

    load_cv: PerLayer
    load_imbalance: PerLayer
    sequence_reuse: PerLayer
    adjacent_reuse: PerLayer
    affinity_bits: PerLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedKnobs:
    """Knobs fitted to a trace, the statistics of that trace, and the mean of those that the fit's twins reached."""

    knobs: Knobs
    target: MatchedStats
    achieved: MatchedStats


def matched_stats(trace: RoutingTrace) -> MatchedStats:
    """The statistics of `trace` that a fit compares. Raises TraceError where every sequence has one token."""
    loads = expert_loads(trace)
    return MatchedStats(
        load_cv=load_cv(loads),
        load_imbalance=load_imbalance(loads),
        sequence_reuse=sequence_reuse(trace),
        adjacent_reuse=adjacent_reuse(trace),
        affinity_bits=affinity_bits(trace),
    )


def fit_knobs(trace: RoutingTrace) -> Knobs:
    """Knobs whose synthetic twin has the statistics of `trace`, layer by layer; see `fit_report`."""
    return fit_report(trace).knobs


def fit_report(trace: RoutingTrace, *, seed: int = 0, rounds: int = 10, max_tokens: int = 16384) -> FittedKnobs:
    """Knobs fitted to `trace`, with target and achieved statistics per layer. Deterministic.

    Method of simulated moments: each round makes three twins, always with the same random numbers, and moves every knob
    by its own statistic: skew by coefficient of variation and max/mean of loads, sequence_skew by the overlap of random
    tokens of a sequence, reuse by adjacent reuse, affinity by the mutual information of a layer with its neighbours.
    The shape of popularity is that of the loads. Returns the best round. Twins hold about `max_tokens` tokens, every
    n-th sequence. Means over layers of twins made with other seeds scatter: max/mean load by 3 % for gpt-oss-20b
    (703 sequences), 7 % for FLAME-MoE-290M (8 sequences; variation of loads 12 %), reuse and bits by 1-2 %.
    Not matched; gpt-oss-20b against its twin: reuse at lag 4 .364 and .324, SRP(4) .662 and .656, SRP(64) .507 and
    .492, bits three layers apart .44 and .50, six .38 and .50, bits of co-activation .62 and .67.
    Raises TraceError where every sequence has one token.
    """
    target = matched_stats(trace)
    lengths = np.diff(trace.offsets)
    knobs = Knobs(
        moe_layers=trace.moe_layers,
        n_experts=trace.n_experts,
        top_k=trace.top_k,
        sequence_lengths=tuple(lengths[:: -(-trace.n_tokens // max_tokens)].tolist()),
        skew=_clipped(np.sqrt(np.log1p(target.load_cv**2)), STRONGEST_SKEW),
        affinity=0.5 if trace.n_layers > 1 else 0.0,
        k_shares=_k_shares(trace),
        log_shape=_log_shape(trace),
        phase=trace.phase,
        model=trace.provenance.model,
    )
    best: FittedKnobs | None = None
    for _ in range(rounds):
        twins = [matched_stats(synthesise(knobs, np.random.default_rng([seed, twin]))) for twin in range(N_TWINS)]
        achieved = _mean(twins)
        if best is None or _distance(achieved, target) < _distance(best.achieved, target):
            best = FittedKnobs(knobs=knobs, target=target, achieved=achieved)
        knobs = _improved(knobs, achieved, target)
    if best is None:
        raise TraceError(f"a fit needs at least one round, got {rounds}")
    return replace(best, knobs=replace(best.knobs, sequence_lengths=tuple(lengths.tolist())))


def _mean(stats: list[MatchedStats]) -> MatchedStats:
    names = [entry.name for entry in fields(MatchedStats)]
    return MatchedStats(**{name: np.mean([getattr(each, name) for each in stats], axis=0) for name in names})


def _improved(knobs: Knobs, achieved: MatchedStats, target: MatchedStats) -> Knobs:
    """One round of the fit; steps are limited to a factor of 2.

    Load variation and max/mean - 1 grow with skew, overlap in excess of chance with the square of sequence_skew;
    R = r + (1 - r) R0 is solved for r. Bits of a pair of layers grow with about the square of both affinities; each
    layer moves by the mean of its pairs.
    """
    chance = knobs.top_k / knobs.n_experts
    variation = _ratio(target.load_cv, achieved.load_cv)
    wider = np.sqrt(variation * _ratio(target.load_imbalance - 1, achieved.load_imbalance - 1))
    excess = _ratio(target.sequence_reuse - chance, achieved.sequence_reuse - chance)
    reuse = knobs.per_layer("reuse")
    by_chance = (achieved.adjacent_reuse - reuse) / (1 - reuse)
    bits = np.log(_ratio(target.affinity_bits, achieved.affinity_bits))
    pairs = np.concatenate([bits[:1], bits, bits[-1:]])
    closer = np.exp(0.4 * (pairs[1:] + pairs[:-1]) / 2) if len(bits) else 1.0
    return replace(
        knobs,
        skew=_clipped(knobs.per_layer("skew") * wider, STRONGEST_SKEW),
        sequence_skew=_clipped(knobs.per_layer("sequence_skew") * np.sqrt(excess), STRONGEST_SKEW),
        reuse=_clipped((target.adjacent_reuse - by_chance) / (1 - by_chance), 0.99),
        affinity=_clipped(knobs.per_layer("affinity") * closer, 0.99),
    )


def _ratio(target: PerLayer, achieved: PerLayer) -> PerLayer:
    """target / achieved within 1/2..2; values at or below nothing count as next to nothing."""
    return np.clip(np.maximum(target, 1e-5) / np.maximum(achieved, 1e-5), 0.5, 2.0)


def _clipped(values: PerLayer, upper: float) -> tuple[float, ...]:
    return tuple(np.clip(values, 0.0, upper).tolist())


def _distance(achieved: MatchedStats, target: MatchedStats) -> float:
    """Sum over the statistics of the mean relative error."""
    pairs = [(getattr(achieved, entry.name), getattr(target, entry.name)) for entry in fields(MatchedStats)]
    return sum(float(np.mean(np.abs(a - t) / np.maximum(t, 1e-3))) for a, t in pairs if len(t))


def _log_shape(trace: RoutingTrace) -> tuple[float, ...]:
    """Mean over layers of the sorted, standardised log loads; an unused expert counts as half a selection."""
    logs = np.sort(np.log(np.maximum(expert_loads(trace), 0.5)), axis=1)
    spread = logs.std(axis=1, keepdims=True)
    standard = (logs - logs.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return tuple(standard.mean(axis=0).tolist())


def _k_shares(trace: RoutingTrace) -> tuple[float, ...]:
    """Shares of 1, 2, ... top_k experts used; a token without any counts as one. Empty where k is fixed."""
    if trace.padding_id is None:
        return ()
    used = np.count_nonzero(trace.ids != trace.padding_id, axis=1)
    counts = np.bincount(np.maximum(used, 1).ravel(), minlength=trace.top_k + 1)[1:]
    return tuple((counts / counts.sum()).tolist())


def _draw_structure(knobs: Knobs, rng: np.random.Generator) -> _Structure:
    """Themes of equal size, give or take one; experts of neighbouring rank are dealt to different themes."""
    n_layers, n_experts, k = knobs.n_layers, knobs.n_experts, knobs.top_k
    ranked = rng.permuted(np.tile(np.arange(n_experts), (n_layers, 1)), axis=1)
    popularity = np.empty((n_layers, n_experts))
    np.put_along_axis(
        popularity, ranked, standard_scores(n_experts, knobs.log_shape) * knobs.per_layer("skew")[:, None], axis=1
    )
    n_themes = max(n_experts // (THEME_EXPERTS_PER_K * k), 2 if n_experts >= 2 * k else 1)
    size = -(-n_experts // n_themes)
    seats = np.full((n_layers, size * n_themes), n_experts)
    seats[:, size * n_themes - n_experts :] = ranked
    members = rng.permuted(seats.reshape(n_layers, size, n_themes), axis=2).transpose(0, 2, 1)
    themes = THEME_SKEW * knobs.per_layer("skew").mean() * standard_scores(n_themes)
    return _Structure(popularity=popularity, theme_popularity=themes, members=members)


def _chunks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of whole sequences of about CHUNK_TOKENS tokens, at least one sequence each."""
    first, n_sequences = 0, len(offsets) - 1
    while first < n_sequences:
        last = int(np.searchsorted(offsets, offsets[first] + CHUNK_TOKENS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _choose(knobs: Knobs, structure: _Structure, lengths: NDArray[np.int64], rng: np.random.Generator) -> Slots:
    """Experts of a chunk of sequences: int16[k, layer, token]; one step a position, over all layers and sequences."""
    k, n_layers, n_tokens = knobs.top_k, knobs.n_layers, int(lengths.sum())
    fresh, themed = (drawn.reshape(k, -1) for drawn in _draw_candidates(knobs, structure, lengths, rng))
    way = _draw_ways(knobs, n_tokens, rng).reshape(k, -1)
    chosen = np.full((k, n_layers * n_tokens), VACANT)
    starts = np.cumsum(lengths) - lengths
    for position in range(int(lengths.max())):
        running = starts[lengths > position] + position
        token = (np.arange(n_layers)[:, None] * n_tokens + running).ravel()
        wanted = way[:, token]
        picked = np.full(wanted.shape, VACANT)
        if position > 0:
            np.copyto(picked, chosen[:, token - 1], where=wanted == KEEP)
        _fill(picked, wanted == FOLLOW, themed[:, token])
        _fill(picked, picked == VACANT, fresh[:, token])
        chosen[:, token] = picked
    return chosen.reshape(k, n_layers, n_tokens)


def _fill(picked: Slots, places: NDArray[np.bool_], candidates: Slots) -> None:
    """Put candidates that the token does not have yet, in order, into its `places`; all arrays are [k, token].

    Of k distinct candidates at least as many are unused as places are open, and taking them in order is drawing
    without replacement from what is left.
    """
    taken = (candidates[:, None] == picked[None]).any(axis=1)
    unused = np.take_along_axis(candidates, np.argsort(taken, axis=0, kind="stable"), axis=0)
    turn = np.maximum(np.cumsum(places, axis=0) - 1, 0)
    np.copyto(picked, np.take_along_axis(unused, turn, axis=0), where=places)


def _draw_ways(knobs: Knobs, n_tokens: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """How each choice wants to be made, FRESH, KEEP or FOLLOW: uint8[k, layer, token]."""
    reuse, affinity = knobs.per_layer("reuse"), knobs.per_layer("affinity")
    keep_below = reuse.astype(np.float32)[:, None]
    follow_below = (reuse + (1 - reuse) * affinity).astype(np.float32)[:, None]
    way = np.full((knobs.top_k, knobs.n_layers, n_tokens), FRESH, np.uint8)
    for place in way:
        chance = rng.random(place.shape, dtype=np.float32)
        place[chance < follow_below] = FOLLOW
        place[chance < keep_below] = KEEP
    return way


def _draw_candidates(
    knobs: Knobs, structure: _Structure, lengths: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int16]:
    """k distinct experts of each token, most likely first: int16[2, k, layer, token], among all and in its theme."""
    n_tokens, n_experts, k = int(lengths.sum()), knobs.n_experts, knobs.top_k
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    theme = _draw_themes(knobs, structure, lengths, rng)
    drawn = np.empty((2, k, knobs.n_layers, n_tokens), np.int16)
    rows = max(1, BLOCK_KEYS // n_experts)
    for layer, sequence_skew in enumerate(knobs.per_layer("sequence_skew")):
        own = sequence_skew * rng.standard_normal((len(lengths), n_experts))
        slowness = np.full((len(lengths), n_experts + 1), np.inf, np.float32)
        slowness[:, :n_experts] = np.exp(-(structure.popularity[layer] + own))
        for start in range(0, n_tokens, rows):
            block = slice(start, min(start + rows, n_tokens))
            runners = sequence[block]
            drawn[0, :, layer, block] = _first(slowness[runners, :n_experts], k, rng)
            members = structure.members[layer, theme[block]]
            places = _first(slowness[runners[:, None], members], k, rng)
            drawn[1, :, layer, block] = np.take_along_axis(members, places.T, axis=1).T
    return drawn


def _draw_themes(
    knobs: Knobs, structure: _Structure, lengths: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Theme of each token, by popularity and the taste of its sequence: int64[token]."""
    own = rng.standard_normal((len(lengths), len(structure.theme_popularity)))
    taste = structure.theme_popularity + knobs.per_layer("sequence_skew").mean() * own
    slowness = np.exp(-taste).astype(np.float32)
    drawn: NDArray[np.int64] = _first(np.repeat(slowness, lengths, axis=0), 1, rng)[0]
    return drawn


def _first(slowness: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The k runners of each token that arrive first, at Exp(1) * slowness, in order: int64[k, token]."""
    arrival = rng.standard_exponential(slowness.shape, dtype=np.float32)
    np.maximum(arrival, np.finfo(np.float32).tiny, out=arrival)  # a drawn 0 would bring the infinitely slow first
    arrival *= slowness
    first = np.argpartition(arrival, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(arrival, first, axis=1), axis=1)
    return np.asarray(np.take_along_axis(first, order, axis=1).T)


def _pad(ids: NDArray[Any], k_shares: tuple[float, ...], rng: np.random.Generator) -> None:
    """Cut each token's experts to a drawn number; the leading ones stay."""
    share = np.array(k_shares)
    used = 1 + rng.choice(len(share), size=(ids.shape[0], ids.shape[2]), p=share / share.sum())
    for place in range(1, ids.shape[1]):
        np.copyto(ids[:, place], np.iinfo(ids.dtype).max, where=used <= place)


def _describe(knobs: Knobs, rng: np.random.Generator) -> str:
    seed = getattr(rng.bit_generator.seed_seq, "entropy", None)
    means = ", ".join(f"{name} {knobs.per_layer(name).mean():.3g}" for name in PROFILES)
    return f"synthesised: {means} (means over layers), seed {'not known' if seed is None else seed}"
