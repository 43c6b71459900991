"""Metrics of offline generation: prefill and decode of all requests, and use of the lanes beside the device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scenarios.workload_specs import GenerateSpec
from sim.durations import Seconds
from sim.metrics import Execution, lane_busy_s
from sim.program import Lane

BESIDE: tuple[Lane, ...] = ("to-device", "to-host", "host")


def generation_metrics(
    requests: int, generate: GenerateSpec, prefill_s: float, passes_s: NDArray[np.float64]
) -> dict[str, float]:
    """Times and rates of so many requests; passes_s float64[pass] are all decode passes, the host's time included."""
    decode_s = float(passes_s.sum())
    return {
        "step_time_s": float(passes_s.mean()),
        "step_time_s.p50": float(np.quantile(passes_s, 0.5)),
        "step_time_s.p99": float(np.quantile(passes_s, 0.99)),
        "tokens_per_s": requests * generate.new_tokens / (prefill_s + decode_s),
        "tokens_per_s_per_device": requests * generate.new_tokens / (prefill_s + decode_s),
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "requests": float(requests),
    }


def stream_metrics(execution: Execution) -> dict[str, float]:
    """Own time of the device, its copy engines and the host over the mean time of a pass."""
    mean_s = float(execution.step_times_s.mean())
    return {
        "busy_frac.compute": lane_busy_s(execution, "compute") / mean_s,
        "busy_frac.to-device": lane_busy_s(execution, "to-device") / mean_s,
        "busy_frac.to-host": lane_busy_s(execution, "to-host") / mean_s,
        "busy_frac.host": lane_busy_s(execution, "host") / mean_s,
    }


def all_passes_s(sampled: NDArray[np.int64], times_s: Seconds, generate: GenerateSpec) -> Seconds:
    """Time of every decode pass, float64[pass]: straight lines between the sampled ones.

    Exact while times are linear in the context; they are convex where another lane comes to bind, so that the sum is
    too large there, by less than (T(c) - line) of the one stretch in which it happens.
    """
    return np.interp(np.arange(1, generate.new_tokens), sampled, times_s)
