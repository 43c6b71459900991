"""What sets the routing of one model apart from another's: load, locality, affinity, domains, caches, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from traces.cache_curves import lru_curve
from traces.locality import segment_routing
from traces.routing import RoutingTrace
from traces.stats import (
    PerLayer,
    adjacent_reuse,
    affinity_bits,
    domain_information_bits,
    expert_loads,
    load_imbalance,
    mean_k,
    normalised_mutual_information,
    transition_counts,
)

WINDOWS_TOKENS = (2, 4, 8, 16, 32, 64)
CACHE_SHARES = (0.1, 0.25, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Statistics of one trace; float64 arrays by layer, see `traces/stats.py`.

    domain_bits    information about the domain in an expert, or None without two labels; `shuffled_bits`: the same with
                   the labels of the sequences shuffled, which is what sampling alone gives.
    srp            segment routing best performance by window [token]; windows longer than all sequences are missing.
    lru_hit_frac   float64 [capacity]: hits of an LRU cache per layer, cold for each sequence, of 1, 2, ... experts.
    """

    name: str
    n_layers: int
    n_experts: int
    top_k: int
    n_tokens: int
    n_sequences: int
    imbalance: PerLayer
    reuse: PerLayer
    uniform_reuse: float
    affinity_bits: PerLayer
    affinity_frac: PerLayer
    domain_bits: PerLayer | None
    shuffled_bits: PerLayer | None
    srp: Mapping[int, float]
    lru_hit_frac: NDArray[np.float64]

    def row(self) -> dict[str, float | int | str]:
        """Means over layers, and hits at CACHE_SHARES of a layer's experts, by name."""
        facts: dict[str, float | int | str] = {
            "layers": self.n_layers,
            "experts": self.n_experts,
            "top_k": self.top_k,
            "tokens": self.n_tokens,
            "sequences": self.n_sequences,
            "load_imbalance": float(self.imbalance.mean()),
            "adjacent_reuse": float(self.reuse.mean()),
            "uniform_reuse": self.uniform_reuse,
            "affinity_bits": float(self.affinity_bits.mean()) if self.n_layers > 1 else float("nan"),
            "affinity_frac": float(self.affinity_frac.mean()) if self.n_layers > 1 else float("nan"),
        }
        if self.domain_bits is not None and self.shuffled_bits is not None:
            facts["domain_bits"] = float(self.domain_bits.mean())
            facts["domain_bits_shuffled"] = float(self.shuffled_bits.mean())
        facts |= {f"srp.m{window}": value for window, value in self.srp.items() if window in (4, 16, 64)}
        for share in CACHE_SHARES:
            capacity = max(1, round(share * self.n_experts))
            facts[f"hit_frac.lru.{share:.0%}"] = float(self.lru_hit_frac[capacity - 1])
        return facts


def profile(name: str, trace: RoutingTrace, rng: np.random.Generator) -> Profile:
    """The statistics of `trace`; `rng` shuffles its labels.

    Raises TraceError where no sequence has two tokens.
    """
    longest = int(np.diff(trace.offsets).max())
    labelled = len(set(trace.labels)) > 1
    transitions = [transition_counts(trace, layer) for layer in range(trace.n_layers - 1)]
    return Profile(
        name=name,
        n_layers=trace.n_layers,
        n_experts=trace.n_experts,
        top_k=trace.top_k,
        n_tokens=trace.n_tokens,
        n_sequences=trace.n_sequences,
        imbalance=load_imbalance(expert_loads(trace)),
        reuse=adjacent_reuse(trace),
        uniform_reuse=float(mean_k(trace).mean() / trace.n_experts),
        affinity_bits=affinity_bits(trace),
        affinity_frac=np.array([normalised_mutual_information(counts) for counts in transitions]),
        domain_bits=domain_information_bits(trace) if labelled else None,
        shuffled_bits=domain_information_bits(with_shuffled_labels(trace, rng)) if labelled else None,
        srp={window: segment_routing(trace, window).srp for window in WINDOWS_TOKENS if window <= longest},
        lru_hit_frac=lru_curve(trace, "per_layer_cold").hit_frac,
    )


def with_shuffled_labels(trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
    """The trace with its labels dealt anew among its sequences."""
    order = rng.permutation(trace.n_sequences)
    return replace(trace, labels=tuple(trace.labels[place] for place in order), check_ids=False)
