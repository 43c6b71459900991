"""Cores of the CPU as devices: the thread that is measured has one for itself, helpers have the others."""

from __future__ import annotations

import os

import torch

PRIORITY = 10  # of real-time scheduling; any value keeps ordinary programs from the core


def claim_core(number: int) -> str:
    """Pin the calling thread to one core, in torch one thread wide; returns how it is scheduled, for provenance.

    With real-time priority where the system allows it (root on Linux), so that other programs do not take the core.
    """
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return "1 thread, not pinned"
    os.sched_setaffinity(0, {number})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return f"1 thread, pinned to core {number}"
    return f"1 thread, pinned to core {number} with real-time priority"


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
