"""Attention over sequences that several devices share: keys and values travel round a ring beside the computation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.links import port_s
from scenarios.models import BYTES_PER_VALUE, GroupedQueryAttention
from sim.durations import Seconds
from sim.setting import Setting


def ring_attention_s(setting: Setting, core_s: Seconds, tokens: ArrayLike) -> Seconds:
    """Time of the core of attention on one of `cp` devices: float64[...] [s].

    core_s  the core of its own tokens over their whole contexts.
    tokens  int[...]: those of the device's tensor-parallel group.

    T = core / cp + (cp - 1) max(core / cp, hop): while a device works on one part of the keys and values, the next part
    comes from its neighbour (Ring Attention, Liu et al., arXiv 2310.01889; the default of Megatron-Core). Sequences are
    cut so that all devices of the ring have as much to do. The slowest hop decides: between nodes where the ring leaves
    one. T = core where cp is 1.
    """
    if setting.ranks is None or setting.ranks.attention.cp == 1:
        return core_s
    cp, tp, attention = setting.ranks.attention.cp, setting.attention_tp, setting.model.attention
    held = (
        -(-attention.n_kv_heads // tp) / attention.n_kv_heads if isinstance(attention, GroupedQueryAttention) else 1.0
    )
    token_bytes = attention.kv_values_per_token() * held * BYTES_PER_VALUE[setting.model.activation_dtype]
    n_nodes, _ = setting.ranks.nodes_of("cp")
    link = setting.cluster.inter if n_nodes > 1 and setting.cluster.inter is not None else setting.cluster.intra
    hop_s = link.ring_step_latency_s + port_s(np.asarray(tokens) * token_bytes, link)
    part_s = core_s / cp
    ring_s: Seconds = part_s + (cp - 1) * np.maximum(part_s, hop_s)
    return ring_s
