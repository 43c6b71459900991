"""Metrics of offloaded experts: what their slots did, and what copies and the host cost in time."""

from __future__ import annotations

import numpy as np

from scenarios.offload_specs import OffloadSpec
from sim.durations import Seconds
from sim.metrics import Execution, lane_busy_s
from sim.offload.offloaded import Offloaded
from sim.offload.prices import summed
from traces.caches import CONTRACTS


def offload_metrics(offloaded: Offloaded, execution: Execution, free_step_times_s: Seconds) -> dict[str, float]:
    """Shares of uses and copies over all steps, layers and ranks, and use of the lanes beside the device.

    free_step_times_s  float64[step]: the same steps with copies that take no time.
    """
    served, used, low = offloaded.served, int(offloaded.wanted.used.sum()), offloaded.low
    hits = int((served.resident | served.coming).sum())
    ahead = int(served.fetched_ahead.sum())
    step_s = execution.step_times_s
    unsent = _unsent_s(execution) * offloaded.slots.shape[-1] / float(np.mean(offloaded.tiers.copy_s))
    copied = (int(served.loaded.sum()) + ahead) / len(step_s) - unsent
    copies = (served.loaded, served.fetched_ahead)
    copied_bytes = float(sum(summed(mask, offloaded.tiers.expert_bytes).sum() for mask in copies))
    unsent_bytes = unsent * float(np.mean(offloaded.tiers.expert_bytes))
    lower: dict[str, float] = {}
    low_copied = 0.0
    if low is not None:
        hits += int(low.resident.sum())
        low_copied = int(low.loaded.sum()) / len(step_s)
        lower = {
            "low_precision_frac": int((low.resident | low.loaded).sum()) / used,
            "skipped_frac": int(low.skipped.sum()) / used,
        }
    metrics = {
        "slots_frac": float(offloaded.slots.sum() / offloaded.wanted.placed.sum()),
        "cache_hit_frac": hits / used,
        "hosted_frac": int(served.hosted.sum()) / used,
        "experts_copied": copied + low_copied,
        "copied_bytes": copied_bytes / len(step_s) - unsent_bytes + low_copied * offloaded.tiers.low_bytes,
        **lower,
        "exposed_copy_s": float((step_s - free_step_times_s).mean()),
        "busy_frac.to-device": _copying_s(execution) / step_s.mean(),
        "busy_frac.host": lane_busy_s(execution, "host") / step_s.mean(),
        **_drive_metrics(offloaded, execution),
    }
    if offloaded.spec.prefetch is not None:
        metrics["timely_hit_frac"] = _timely(offloaded, execution) / used
        metrics["prefetch_used_frac"] = int(served.coming.sum()) / max(ahead, 1)
    return metrics


def _drive_metrics(offloaded: Offloaded, execution: Execution) -> dict[str, float]:
    """What the host's memory had of what was asked of it, and reads from the drive below it; none without one."""
    if offloaded.on_drive is None:
        return {}
    served, read = offloaded.served, int(offloaded.on_drive.sum())
    asked = int((served.loaded | served.hosted | served.fetched_ahead).sum())
    step_s = execution.step_times_s
    return {
        "host_hit_frac": 1 - read / max(asked, 1),
        "ssd_bytes": read / len(step_s) * float(np.mean(offloaded.tiers.expert_bytes)),
        "busy_frac.from-ssd": lane_busy_s(execution, "from-ssd") / float(step_s.mean()),
    }


def offload_notes(spec: OffloadSpec | None) -> tuple[str, ...]:
    """What a reader must know of how slots were replayed: the contract, in words."""
    if spec is None:
        return ()
    return (f"Slots are replayed {spec.replay}: {CONTRACTS[spec.replay.replace('-', '_')]}.",)


def _copying_s(execution: Execution) -> float:
    """Time of the copy engine, mean over steps and devices [s]."""
    asked_s = lane_busy_s(execution, "to-device") + lane_busy_s(execution, "to-device-later")
    return asked_s - _unsent_s(execution)


def _unsent_s(execution: Execution) -> float:
    """Time of what was given up of copies ahead, mean over steps and devices [s]."""
    return float(sum(unsent_s.mean() for unsent_s in execution.finished.unsent_s.values()))


def _timely(offloaded: Offloaded, execution: Execution) -> int:
    """Hits that waited for no copy: resident ones, and those copied by the time that their tokens were there."""
    coming, end_s = offloaded.served.coming.sum(axis=-1), execution.finished.end_s
    tp = end_s.shape[-1] // coming.shape[-1]
    timely, row = int(offloaded.served.resident.sum()), 0
    for op in execution.op_list.ops:
        if op.work.kind == "coming":
            here_s, copied_s = (end_s[dep][:, ::tp] for dep in op.after)
            timely += int(coming[:, row][copied_s <= here_s].sum())
            row += 1
    return timely
