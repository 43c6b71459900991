"""Pipelines of stages: orders of their work, one module a kind; a new one is listed here under its YAML name."""

from __future__ import annotations

from sim.pipelines.dualpipe import dualpipe
from sim.pipelines.orders import gpipe, interleaved, one_forward_one_backward, zero_bubble_one
from sim.pipelines.tasks import OrderOf

PIPELINES: dict[str, OrderOf] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "interleaved": interleaved,
    "zb1p": zero_bubble_one,
    "dualpipe": dualpipe,
}

BIDIRECTIONAL = frozenset({"dualpipe"})
"""Pipelines that microbatches enter from both ends, so that a stage holds two parts of the model."""
