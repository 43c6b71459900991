"""Which experts a prefetch asks for, learned from the fitted part where it learns.

A guess is float64[step, layer, rank, place]: of those asked for the higher comes first, others have -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scenarios.offload_specs import UNGUIDED, GuessName, PrefetchSpec
from sim.offload.wanted import Mask, Scores, Wanted
from sim.setting import Setting
from traces.routing import RoutingTrace

Guess = Callable[[Wanted, Setting, PrefetchSpec], Scores]


def oracle(wanted: Wanted, _setting: Setting, spec: PrefetchSpec) -> Scores:
    """The experts that will be used, those with most tokens first: exact where a router runs ahead (Read-ME)."""
    return _widest(wanted.tokens.astype(np.float64), wanted.used, spec.width)


def last(wanted: Wanted, _setting: Setting, spec: PrefetchSpec) -> Scores:
    """The experts of the step before, those with most tokens first."""
    tokens = np.zeros_like(wanted.tokens)
    tokens[1:] = wanted.tokens[:-1]
    return _widest(tokens.astype(np.float64), tokens > 0, spec.width)


def popular(wanted: Wanted, _setting: Setting, spec: PrefetchSpec) -> Scores:
    """The most used of the fitted part, in every step."""
    return _widest(np.broadcast_to(wanted.popular, wanted.tokens.shape), _anyone(wanted), spec.width)


def learned(wanted: Wanted, setting: Setting, spec: PrefetchSpec) -> Scores:
    """Those that followed the experts of the layer `lead` before most often in the fitted part.

    score(e') = sum over the experts e of that layer of tokens(e) P(e' | e); P from the tokens of the fitted sequences.
    """
    tokens = _by_expert(wanted, setting.model.n_experts)
    scores = np.zeros(wanted.tokens.shape)
    for layer in range(spec.lead, len(wanted.expert)):
        chances = follow_chances(setting.trace, setting.fit_tokens, layer - spec.lead, layer)
        of_expert = tokens[:, layer - spec.lead] @ chances
        scores[:, layer] = of_expert[:, np.maximum(wanted.expert[layer], 0)]
    return _widest(scores, _anyone(wanted), spec.width)


def activation(wanted: Wanted, setting: Setting, spec: PrefetchSpec) -> Scores:
    """Those that the fitted sequence most like the request so far uses most (MoE-Infinity, arXiv 2401.14361).

    Matrices of uses by layer and expert are compared by their cosine; where several requests share a step, what each is
    expected to use is added up. A request without a past is expected to use what all sequences do.
    """
    trace, n_steps = setting.trace, setting.batches.n_steps
    known = _uses_of(trace, _known_sequences(setting))
    expected = np.empty((n_steps, trace.n_layers, trace.n_experts))
    sequence = np.searchsorted(trace.offsets, np.arange(trace.n_tokens), side="right") - 1
    for step, tokens in enumerate(setting.batches.tokens.reshape(n_steps, -1)):
        past = _uses_of(trace, [np.arange(trace.offsets[sequence[token]], token) for token in tokens.tolist()])
        likeness = _flat(past) @ _flat(known).T
        found = np.where(likeness.max(axis=1) > 0, likeness.argmax(axis=1), -1)
        everyone = known.sum(axis=0, keepdims=True)
        expected[step] = np.concatenate([known, everyone])[found].sum(axis=0)
    layer = np.arange(len(wanted.expert))[:, None, None]
    return _widest(expected[:, layer, np.maximum(wanted.expert, 0)], _anyone(wanted), spec.width)


MOST_KNOWN = 120  # matrices that MoE-Infinity keeps


def _known_sequences(setting: Setting) -> list[NDArray[np.int64]]:
    """Tokens of the fitted sequences, of the first `MOST_KNOWN`."""
    starts = np.flatnonzero(np.isin(setting.fit_tokens, setting.trace.offsets[:-1]))
    return np.split(setting.fit_tokens, starts[1:])[:MOST_KNOWN]


def _uses_of(trace: RoutingTrace, tokens: list[NDArray[np.int64]]) -> Scores:
    """Uses by layer and expert of each list of tokens, float64[list, layer, expert]."""
    size = trace.n_experts + 1
    row = np.arange(trace.n_layers)[:, None, None] * size
    uses = np.zeros((len(tokens), trace.n_layers, trace.n_experts))
    for place, own in enumerate(tokens):
        cells = row + np.minimum(trace.ids[:, :, own].astype(np.int64), trace.n_experts)
        uses[place] = np.bincount(cells.ravel(), minlength=trace.n_layers * size).reshape(trace.n_layers, size)[:, :-1]
    return uses


def _flat(uses: Scores) -> Scores:
    """Rows of length 1, or of length 0 where nothing was used."""
    rows = uses.reshape(len(uses), -1)
    unit: Scores = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def noisy(wanted: Wanted, setting: Setting, spec: PrefetchSpec) -> Scores:
    """Every used expert with chance `recall`, and wrong ones by their popularity until there are `width`.

    For predictors of which only the recall is published. Wrong ones are drawn without replacement by Gumbel's trick.
    """
    rng = np.random.default_rng([setting.batches.n_steps, wanted.tokens.shape[1], 3])
    named = wanted.used & (rng.random(wanted.tokens.shape) < (spec.recall or 0.0))
    weight = np.log(wanted.popular + 1.0) + rng.gumbel(size=wanted.tokens.shape)
    wrong = _anyone(wanted) & ~wanted.used
    chosen = _widest(np.where(named, weight + 1e6, weight), named | wrong, spec.width) > -np.inf
    return np.where(chosen, weight, -np.inf)  # in an order that does not tell which are right


GUESSES: dict[GuessName, Guess] = {
    "oracle": oracle,
    "last": last,
    "popular": popular,
    "learned": learned,
    "activation": activation,
    "noisy": noisy,
}


def guessed(wanted: Wanted, setting: Setting, spec: PrefetchSpec) -> Mask:
    """What the prefetch asks for, bool[step, layer, rank, place]."""
    return ordered_guess(wanted, setting, spec) > -np.inf


def ordered_guess(wanted: Wanted, setting: Setting, spec: PrefetchSpec) -> Scores:
    """The guess of the prefetch; nothing of the first `lead` layers where the gate of an earlier one is needed."""
    asked = GUESSES[spec.by](wanted, setting, spec).copy()
    if spec.by not in UNGUIDED:
        asked[:, : spec.lead] = -np.inf
    return asked


def follow_chances(trace: RoutingTrace, tokens: NDArray[np.int64], layer: int, later: int) -> Scores:
    """P(e' | e), float64[expert, expert]: how many of the tokens with expert e in `layer` have e' in the later one."""
    size = trace.n_experts + 1
    here, there = (np.minimum(trace.ids[row][:, tokens].astype(np.int64), trace.n_experts) for row in (layer, later))
    pairs = here[:, None, :] * size + there[None, :, :]
    counts = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)[:-1, :-1].astype(np.float64)
    uses = np.bincount(here.ravel(), minlength=size)[:-1].astype(np.float64)
    return counts / np.maximum(uses, 1.0)[:, None]


def _by_expert(wanted: Wanted, n_experts: int) -> Scores:
    """Tokens of every logical expert on all ranks, float64[step, layer, expert]."""
    n_steps, n_layers = wanted.tokens.shape[:2]
    tokens = np.zeros((n_steps, n_layers, n_experts))
    flat = wanted.tokens.reshape(n_steps, n_layers, -1)
    for layer, experts in enumerate(wanted.expert.reshape(n_layers, -1)):
        for place in np.flatnonzero(experts >= 0):
            tokens[:, layer, experts[place]] += flat[:, layer, place]
    return tokens


def _anyone(wanted: Wanted) -> Mask:
    return np.broadcast_to(wanted.placed, wanted.tokens.shape)


def _widest(scores: Scores, candidates: Mask, width: int | None) -> Scores:
    """The `width` candidates of highest score on every rank, or all; among equals the lower place. Others: -inf."""
    asked: Scores = np.where(candidates, scores, -np.inf)
    if width is not None:
        order = np.argsort(-asked, axis=-1, kind="stable")
        np.put_along_axis(asked, order[..., width:], -np.inf, axis=-1)
    return asked
