"""What a trace is and what its routing is like, as plain values by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from traces.cache_curves import cache_curve, lru_curve, pool_capacity
from traces.locality import segment_cache, segment_routing
from traces.routing import RoutingTrace
from traces.stats import summarise

Facts = dict[str, Any]


def facts(trace: RoutingTrace) -> Facts:
    """Shape, provenance and what the import found."""
    origin = trace.provenance
    return {
        "model": origin.model,
        "kind": origin.kind,
        "source": origin.source,
        "licence": origin.licence,
        "phase": trace.phase,
        "tokens": trace.n_tokens,
        "sequences": trace.n_sequences,
        "moe_layers": list(trace.moe_layers),
        "experts": trace.n_experts,
        "top_k": trace.top_k,
        "variable_k": trace.variable_k,
        "weight_ordered": trace.weight_ordered,
        "gate_weights": trace.weights is not None,
        "labels": sorted(set(trace.labels)),
        "checks": list(origin.notes),
    }


def statistics(trace: RoutingTrace, *, locality: bool = False) -> Facts:
    """The statistics of `traces.stats.TraceStats`, those by layer as lists; with `locality` also SRP, SCH and hits."""
    summary = summarise(trace)
    found = {entry.name: plain(getattr(summary, entry.name)) for entry in fields(summary)}
    return found | (_locality(trace) if locality else {})


def _locality(trace: RoutingTrace) -> Facts:
    """SRP, SCH and cache curves under the published convention (one pool, no cold misses)."""
    capacities = [pool_capacity(trace, rho) for rho in (1, 2, 3)]
    lru = lru_curve(trace, "model_pool")
    curves = {policy: cache_curve(trace, policy, "model_pool", capacities) for policy in ("lfu", "belady")}
    sch = segment_cache(trace, 16, capacities)
    routing = {window: segment_routing(trace, window) for window in (4, 16, 64)}
    return {
        **{f"srp.m{window}": result.srp for window, result in routing.items()},
        **{f"srp_rho_hat.m{window}": result.rho_hat for window, result in routing.items()},
        "cache convention": "model_pool: one pool of rho * k * layers experts, first touches are not misses",
        "hit_frac.lru.rho1-3": [float(lru.at(capacity)) for capacity in capacities],
        **{f"hit_frac.{name}.rho1-3": [float(v) for v in curve.hit_frac] for name, curve in curves.items()},
        "hit_frac.sch16.rho1-3": [float(v) for v in sch.hit_frac],
    }


def plain(value: Any) -> Any:
    """Arrays as rounded lists, for people and JSON; all else as it is."""
    return [round(float(entry), 4) for entry in value] if hasattr(value, "shape") and value.ndim else value
