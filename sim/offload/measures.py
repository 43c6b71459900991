"""Metrics of offloaded experts that depend on time."""

from __future__ import annotations

import numpy as np

from sim.metrics import Execution
from sim.offload.offloaded import Offloaded
from sim.program import Lane

LANES: tuple[Lane, ...] = ("to-device", "host")


def offload_times(offloaded: Offloaded, execution: Execution) -> dict[str, float]:
    """Use of the copy engine and of the host, and the share of hits that waited for no copy.

    A hit is timely where it was resident, or its copy ahead had ended when its layer's tokens were there.
    """
    ops, finished = execution.op_list.ops, execution.finished
    total_s = execution.step_times_s.mean()
    metrics = {}
    for lane in LANES:
        own = [np.asarray(d) for op, d in zip(ops, execution.durations, strict=True) if op.lanes == (lane,)]
        metrics[f"busy_frac.{lane}"] = float(sum(d.mean() for d in own) / total_s)
    coming = offloaded.served.coming.sum(axis=-1)
    if offloaded.spec.prefetch is None:
        return metrics
    timely = int(offloaded.served.resident.sum())
    tp = execution.finished.end_s.shape[-1] // coming.shape[-1]
    row = 0
    for op in ops:
        if op.work.kind == "coming":
            here_s, copied_s = (finished.end_s[dep][:, ::tp] for dep in op.after)
            timely += int(coming[:, row][copied_s <= here_s].sum())
            row += 1
    hits = int((offloaded.served.resident | offloaded.served.coming).sum())
    return metrics | {"timely_hit_frac": timely / max(hits, 1)}
