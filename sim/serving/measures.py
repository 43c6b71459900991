"""What requests saw: metrics of a served load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from scenarios.serving_specs import SloSpec
from sim.serving.corrected import Corrected
from sim.serving.loop import Handed, Served
from sim.serving.rebalance import Rebalancing

Times = NDArray[np.float64]


def ttft_s(served: Served) -> Times:
    """Time to first token, float64[request]."""
    times: Times = served.first_token_s - served.requests.arrival_s
    return times


def tpot_s(served: Served) -> Times:
    """Time per output token after the first, float64[request of two tokens or more]."""
    several = served.requests.output_tokens > 1
    times: Times = (served.done_s - served.first_token_s)[several] / (served.requests.output_tokens[several] - 1)
    return times


def e2e_s(served: Served) -> Times:
    """From arrival to the last token, float64[request]."""
    times: Times = served.done_s - served.requests.arrival_s
    return times


def met(served: Served, slo: SloSpec) -> NDArray[np.bool_]:
    """Requests within the limits; one of a single token has no time per token."""
    ok = np.ones(len(served.requests), bool)
    if slo.ttft is not None:
        ok &= ttft_s(served) <= slo.ttft
    if slo.tpot is not None:
        several = served.requests.output_tokens > 1
        ok[several] &= tpot_s(served) <= slo.tpot
    return ok


def serving_metrics(served: Served, slo: SloSpec | None, table_error: float) -> dict[str, float]:
    """Latencies, rates, and what the engine did, from the first arrival to the last token."""
    total_s = float(served.done_s.max())
    outputs = served.requests.output_tokens
    busy_s, n_iterations, blocks = served.busy_s, served.n.sum(), served.n_ranks * served.n_blocks
    metrics = {
        "tokens_per_s": float(outputs.sum() / total_s),
        "requests_per_s": len(outputs) / total_s,
        "step_time_s": float(busy_s.sum() / n_iterations),
        "n_iterations": float(n_iterations),
        "busy_frac.engine": float(busy_s.sum() / total_s),
        "requests_decoding": float(np.average(served.decoding, weights=busy_s)),
        "requests_waiting": float(np.average(served.waiting, weights=busy_s)),
        "kv_frac": float(np.average(served.used_blocks, weights=busy_s) / blocks),
        "kv_frac.peak": float(served.peak_blocks.max() / blocks),
        "n_preempted": float(served.n_preempted),
        "table_error": table_error,
    }
    if slo is not None:
        ok = met(served, slo)
        metrics["slo_frac"] = float(ok.mean())
        metrics["goodput_tokens_per_s"] = float(outputs[ok].sum() / total_s)
    return (
        metrics | latency_metrics(served) | ({} if served.handed is None else handover_metrics(served.handed, total_s))
    )


def handover_metrics(handed: Handed, total_s: float) -> dict[str, float]:
    """What engines that prefill did in a load of so long, and how keys and values got away from them."""
    crossed = handed.late_s[np.isfinite(handed.late_s)]
    if not len(crossed):
        crossed = np.zeros(1)
    waited = handed.waited_s[np.isfinite(handed.waited_s)]
    return {
        "busy_frac.prefill": float(np.mean([log["busy_s"].sum() for log in handed.prefill_logs]) / total_s),
        "kv_transfer_s.mean": float(crossed.mean()),
        "kv_transfer_s.p99": float(np.quantile(crossed, 0.99)),
        "kv_wait_s.mean": float(waited.mean()) if len(waited) else 0.0,
        "bytes.kv_transfer": handed.moved_bytes / len(handed.late_s),
    }


def latency_metrics(served: Served) -> dict[str, float]:
    """Means and percentiles of what requests waited."""
    ttft, tpot, e2e = ttft_s(served), tpot_s(served), e2e_s(served)
    if not len(tpot):
        tpot = np.zeros(1)
    return {
        "ttft_s.mean": float(ttft.mean()),
        "ttft_s.p50": float(np.quantile(ttft, 0.5)),
        "ttft_s.p90": float(np.quantile(ttft, 0.9)),
        "ttft_s.p99": float(np.quantile(ttft, 0.99)),
        "tpot_s.mean": float(tpot.mean()),
        "tpot_s.p50": float(np.quantile(tpot, 0.5)),
        "tpot_s.p90": float(np.quantile(tpot, 0.9)),
        "tpot_s.p99": float(np.quantile(tpot, 0.99)),
        "e2e_s.mean": float(e2e.mean()),
        "e2e_s.p50": float(np.quantile(e2e, 0.5)),
        "e2e_s.p90": float(np.quantile(e2e, 0.9)),
        "e2e_s.p99": float(np.quantile(e2e, 0.99)),
    }


def with_samples(served: Served, corrected: Corrected, rebalancing: Rebalancing | None) -> Served:
    """A served load with what was seen of its experts on the way."""
    own = [sample for sample in corrected.all_samples() if sample.iteration < len(served.end_s)]
    return replace(
        served,
        whole_s=served.end_s[[sample.iteration for sample in own]],
        imbalance=np.array([sample.imbalance for sample in own]),
        changes=() if rebalancing is None else tuple((one.copying_s, one.done_s) for one in rebalancing.changes),
    )


def expert_metrics(served: Served, corrected: Corrected, rebalancing: Rebalancing | None) -> dict[str, float]:
    """What routing did to iterations simulated whole, and what changes of placement moved."""
    metrics = {
        "exact_frac": len(served.imbalance) / len(served.busy_s),
        "load_imbalance.served": float(served.imbalance.mean()),
        "routing_factor": float(np.mean([sample.factor for sample in corrected.all_samples()])),
    }
    if rebalancing is not None:
        changes = rebalancing.changes
        metrics["n_rebalanced"] = float(len(changes))
        metrics["rebalancing_frac"] = sum(end - begin for begin, end in served.changes) / float(served.done_s.max())
        metrics |= moved_metrics(one.moved_bytes for one in changes)
    return metrics


def moved_metrics(moved_bytes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Bytes of several changes, by where they went."""
    changes = list(moved_bytes)
    metrics: dict[str, float] = {}
    for link in sorted(set(chain.from_iterable(changes))):
        metrics[f"moved_bytes.{link}"] = sum(moved.get(link, 0.0) for moved in changes)
    return metrics
