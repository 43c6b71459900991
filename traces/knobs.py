"""Knobs of a synthetic trace: a checked value, its rescaling to other model sizes, and its origin in a scenario."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.host_memory import check_host_memory
from scenarios.models import ModelCard
from scenarios.workload_specs import SynthesisSpec
from traces.routing import Phase, id_dtype

Knob = float | tuple[float, ...]

PROFILES = ("skew", "sequence_skew", "reuse", "affinity")
STRONGEST_SKEW = 5.0  # weights of both skews together then span about e^50, which float32 still holds
MOST_EXPERTS = 32766  # ids are int16 while they are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What `traces.synth.synthesise` needs. A `Knob` is one number, or a tuple with one number per MoE layer.

    skew            standard deviation over experts of log popularity, 0..5.
    sequence_skew   the same for a further log popularity that every sequence draws anew, 0..5.
    reuse           chance that a choice is kept from the token before, 0..1.
    affinity        chance that a choice that is not kept comes from the token's theme, 0..1. A theme is a set of about
                    2 k experts in each layer; a token keeps it through all layers, so that choices follow those of the
                    layer before.
    k_shares        share of (token, layer) pairs that use 1, 2, ... top_k experts; empty: all use top_k.
    gate_spread     deviation of the router's logits, of which gate weights are the softmax over those chosen; None: no
                    weights.
    log_shape       ascending quantiles, at (i + 1/2) / n, of log popularity in units of `skew`; empty: normal.
    Raises TraceError where a knob is out of range or has the wrong number of layers.
    """

    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    sequence_lengths: tuple[int, ...]
    skew: Knob = 0.5
    sequence_skew: Knob = 0.5
    reuse: Knob = 0.2
    affinity: Knob = 0.3
    k_shares: tuple[float, ...] = ()
    log_shape: tuple[float, ...] = ()
    gate_spread: float | None = None
    phase: Phase = "decode"
    model: str = "made up"

    def __post_init__(self) -> None:
        if not self.moe_layers or not self.sequence_lengths or min(self.sequence_lengths) < 1:
            raise TraceError("a synthetic trace needs at least one MoE layer, and sequences of at least one token")
        if not 1 <= self.top_k <= self.n_experts <= MOST_EXPERTS:
            raise TraceError(f"top-{self.top_k} of {self.n_experts} experts is impossible, or above {MOST_EXPERTS}")
        for name in PROFILES:
            _check_profile(name, np.atleast_1d(getattr(self, name)), len(self.moe_layers))
        if self.k_shares and self.gate_spread is not None:
            raise TraceError("gate weights are drawn for a fixed k only; leave gate_spread out, or k_shares")
        if self.k_shares and (len(self.k_shares) != self.top_k or min(self.k_shares) < 0):
            raise TraceError(f"k_shares {self.k_shares} must be {self.top_k} shares, none below 0")
        if self.k_shares and abs(sum(self.k_shares) - 1) > 1e-6:
            raise TraceError(f"k_shares {self.k_shares} add up to {sum(self.k_shares)}, not 1")

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return len(self.moe_layers)

    def per_layer(self, name: str) -> NDArray[np.float64]:
        """The knob `name` (one of PROFILES) of every MoE layer: float64[layer]."""
        return np.array(np.broadcast_to(getattr(self, name), self.n_layers), np.float64)


def standard_scores(n: int, log_shape: tuple[float, ...] = ()) -> NDArray[np.float64]:
    """`n` ascending scores of mean 0 and deviation 1 (0 where n = 1): normal, or of the shape of `Knobs.log_shape`.

    Quantiles at (i + 1/2) / n instead of draws, so that the spread of 32 experts does not depend on luck.
    """
    grid = (np.arange(n) + 0.5) / n
    known = (np.arange(len(log_shape)) + 0.5) / max(1, len(log_shape))
    scores = np.interp(grid, known, np.array(log_shape)) if log_shape else _normal_quantiles(grid)
    spread = scores.std()
    return np.asarray((scores - scores.mean()) / (spread if spread > 0 else 1.0))


def _normal_quantiles(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([NormalDist().inv_cdf(share) for share in shares])  # scipy's takes longer to import than to run


def _check_profile(name: str, values: NDArray[np.float64], n_layers: int) -> None:
    upper = STRONGEST_SKEW if name.endswith("skew") else 1.0
    if len(values) not in (1, n_layers):
        raise TraceError(f"{name} has {len(values)} values for {n_layers} MoE layers; give one, or one per layer")
    if not ((values >= 0) & (values <= upper)).all():
        raise TraceError(f"{name} {values.tolist()} must lie within 0..{upper}")


def even_lengths(n_tokens: int, sequence_tokens: int) -> tuple[int, ...]:
    """Lengths of sequences of `sequence_tokens` tokens that hold `n_tokens` together; the last may be shorter."""
    whole, rest = divmod(n_tokens, sequence_tokens)
    return (sequence_tokens,) * whole + ((rest,) if rest else ())


def rescale(knobs: Knobs, n_experts: int, top_k: int, n_layers: int) -> Knobs:
    """Knobs for a model of another size, for studying large models from statistics of smaller ones.

    Kept: the deviation and shape of log popularity (over all sequences and of each), the chance `reuse` of keeping a
    choice, which is the reuse in excess of what popularity explains, (R - R0) / (1 - R0), and the chance `affinity` of
    a choice by theme. Profiles over layers are interpolated over relative depth. Measured reuse, max/mean load and
    bits of mutual information do change, as chance itself changes with k / n_experts. That real models of different
    sizes share these knobs is an assumption. MoE layers are numbered 0..n_layers - 1.
    Raises TraceError where k varies and top_k differs.
    """
    if knobs.k_shares and top_k != knobs.top_k:
        raise TraceError(f"k_shares are given for top-{knobs.top_k} and cannot be rescaled to top-{top_k}; drop them")
    old, new = np.linspace(0, 1, knobs.n_layers), np.linspace(0, 1, n_layers)

    def stretched(name: str) -> Knob:
        profile = np.interp(new, old, knobs.per_layer(name))
        return tuple(profile.tolist()) if isinstance(getattr(knobs, name), tuple) else float(profile[0])

    return replace(
        knobs,
        moe_layers=tuple(range(n_layers)),
        n_experts=n_experts,
        top_k=top_k,
        skew=stretched("skew"),
        sequence_skew=stretched("sequence_skew"),
        reuse=stretched("reuse"),
        affinity=stretched("affinity"),
    )


def knobs_from_spec(spec: SynthesisSpec, model: ModelCard, fitted: Knobs | None) -> Knobs:
    """Knobs of a scenario's `synthetic` section for `model`.

    Tokens and sequence length come from the spec; the statistics from `fitted`, rescaled to the model, where it is
    given, else from the spec. Raises TraceError where the spec names a trace to fit and `fitted` is None, and
    MoesimError where the trace cannot fit into the memory of this machine.
    """
    _check_size(spec, model)
    lengths = even_lengths(spec.tokens, spec.sequence_tokens)
    if fitted is not None:
        scaled = rescale(fitted, model.n_experts, model.choices, len(model.moe_layers))
        scaled = replace(scaled, gate_spread=spec.gate_spread, model=model.name)
        return replace(scaled, moe_layers=model.moe_layers, sequence_lengths=lengths)
    if spec.fit is not None:
        raise TraceError(f"synthetic trace: fit names {spec.fit}, but no knobs were fitted to it; use fit_knobs first")
    return Knobs(
        moe_layers=model.moe_layers,
        n_experts=model.n_experts,
        top_k=model.choices,
        sequence_lengths=lengths,
        skew=spec.skew,
        sequence_skew=spec.sequence_skew,
        reuse=spec.reuse,
        affinity=spec.affinity,
        gate_spread=spec.gate_spread,
        model=model.name,
    )


def _check_size(spec: SynthesisSpec, model: ModelCard) -> None:
    ids = spec.tokens * len(model.moe_layers) * model.choices * id_dtype(model.n_experts).itemsize
    lengths = spec.tokens / spec.sequence_tokens * 100  # bytes: the lengths as Python numbers and what is made of them
    check_host_memory(
        ids + lengths,
        f"synthetic trace: {spec.tokens:,} tokens in sequences of {spec.sequence_tokens:,} take",
        "lower tokens",
    )
