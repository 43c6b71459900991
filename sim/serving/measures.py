"""What requests saw: metrics of a served load."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scenarios.serving_specs import SloSpec
from sim.serving.loop import Served

Times = NDArray[np.float64]
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


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
    busy_s = served.busy_s
    metrics = {
        "tokens_per_s": float(outputs.sum() / total_s),
        "requests_per_s": len(outputs) / total_s,
        "step_time_s": float(busy_s.mean()),
        "n_iterations": float(len(busy_s)),
        "busy_frac.engine": float(busy_s.sum() / total_s),
        "requests_decoding": float(np.average(served.decoding, weights=busy_s)),
        "requests_waiting": float(np.average(served.waiting, weights=busy_s)),
        "kv_frac": float(np.average(served.used_blocks, weights=busy_s) / (served.n_ranks * served.n_blocks)),
        "kv_frac.peak": float(served.used_blocks.max() / (served.n_ranks * served.n_blocks)),
        "n_preempted": float(served.n_preempted),
        "table_error": table_error,
    }
    if slo is not None:
        ok = met(served, slo)
        metrics["slo_frac"] = float(ok.mean())
        metrics["goodput_tokens_per_s"] = float(outputs[ok].sum() / total_s)
    for name, times_s in (("ttft_s", ttft_s(served)), ("tpot_s", tpot_s(served)), ("e2e_s", e2e_s(served))):
        if len(times_s):
            metrics |= {f"{name}.mean": float(times_s.mean())}
            metrics |= {f"{name}.{key}": float(np.quantile(times_s, share)) for key, share in SHARES.items()}
    return metrics
