"""Tokens at the ports of every device, from the tokens that each pair of devices exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.layout import ExpertLayout

Tokens = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortTokens:
    """Tokens of a dispatch at the ports of each device, int64[..., device]; a combine is the same, reversed.

    intra: between devices of one node; inter: between nodes, through each device's own network port.
    """

    send_intra: Tokens
    receive_intra: Tokens
    send_inter: Tokens
    receive_inter: Tokens

    def reversed(self) -> PortTokens:
        """The way back: what was sent is received."""
        return PortTokens(
            send_intra=self.receive_intra,
            receive_intra=self.send_intra,
            send_inter=self.receive_inter,
            receive_inter=self.send_inter,
        )


def direct_ports(pairs: Tokens, layout: ExpertLayout) -> PortTokens:
    """Ports where every token travels straight from source to destination; pairs int64[..., source, destination]."""
    blocks = _blocks(pairs, layout)
    inside = np.einsum("...aiaj->...aij", blocks)
    own = np.einsum("...aii->...ai", inside)
    sent_inside, received_inside = inside.sum(axis=-1), inside.sum(axis=-2)
    return PortTokens(
        send_intra=_flat(sent_inside - own),
        receive_intra=_flat(received_inside - own),
        send_inter=pairs.sum(axis=-1) - _flat(sent_inside),
        receive_inter=pairs.sum(axis=-2) - _flat(received_inside),
    )


def forwarded_ports(pairs: Tokens, node_pairs: Tokens, layout: ExpertLayout) -> PortTokens:
    """Ports where a token crosses to a node once, to the device with the source's local number, which forwards it.

    This is the two-stage path of DeepEP's normal kernels; node_pairs int64[..., source, node] counts the crossings.
    """
    blocks = _blocks(pairs, layout)
    hops = blocks.sum(axis=-4)
    own = np.einsum("...ibi->...bi", hops)
    crossings = node_pairs.reshape(*node_pairs.shape[:-2], layout.n_nodes, layout.devices_per_node, layout.n_nodes)
    at_home = np.einsum("...aia->...ai", crossings)
    return PortTokens(
        send_intra=_flat(np.einsum("...ibj->...bi", hops) - own),
        receive_intra=_flat(np.einsum("...ibj->...bj", hops) - own),
        send_inter=_flat(crossings.sum(axis=-1) - at_home),
        receive_inter=_flat(crossings.sum(axis=-3).swapaxes(-1, -2) - at_home),
    )


def regrouped_ports(pairs: Tokens, layout: ExpertLayout) -> PortTokens:
    """Ports where tokens go to the device of their own node with the destination's local number, then to that.

    This is the two-dimensional hierarchical all-to-all of Tutel (arXiv 2206.03382, section 3.4): nobody deduplicates.
    """
    blocks = _blocks(pairs, layout)
    regrouped = blocks.sum(axis=-2)
    own = np.einsum("...aii->...ai", regrouped)
    crossings = blocks.sum(axis=-3)
    at_home = np.einsum("...aaj->...aj", crossings)
    return PortTokens(
        send_intra=_flat(regrouped.sum(axis=-1) - own),
        receive_intra=_flat(regrouped.sum(axis=-2) - own),
        send_inter=_flat(crossings.sum(axis=-2) - at_home),
        receive_inter=_flat(crossings.sum(axis=-3) - at_home),
    )


def between_pools(pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """Pairs int32[..., device, device] of all devices, those of tokens first, from int32[..., source, destination]."""
    n_sources, n_destinations = pairs.shape[-2:]
    around = [(0, 0)] * (pairs.ndim - 2)
    return np.pad(pairs, [*around, (0, n_destinations), (n_sources, 0)])


def pool_ports(pairs: Tokens) -> PortTokens:
    """Ports where every token crosses the network between two pools; pairs int[..., device, device]."""
    sent, received = pairs.sum(axis=-1), pairs.sum(axis=-2)
    none = np.zeros_like(sent)
    return PortTokens(send_intra=none, receive_intra=none, send_inter=sent, receive_inter=received)


def to_one_of_group(pairs: NDArray[np.int32], tp: int) -> NDArray[np.int32]:
    """Tokens from device to device where one of the `tp` devices of a rank takes them: int32[..., source, destination].

    It is the one with the source's number within its own group; pairs int32[..., source, rank].
    """
    n_sources, n_ranks = pairs.shape[-2:]
    taker = np.arange(n_sources)[:, None] % tp == np.arange(tp)
    spread: NDArray[np.int32] = (pairs[..., None] * taker[:, None, :]).reshape(*pairs.shape[:-1], n_ranks * tp)
    return spread


def _blocks(pairs: Tokens, layout: ExpertLayout) -> Tokens:
    """Pairs as [..., source node, source local, destination node, destination local]."""
    node = (layout.n_nodes, layout.devices_per_node)
    return pairs.reshape(*pairs.shape[:-2], *node, *node)


def _flat(tokens: Tokens) -> Tokens:
    """[..., node, local] as [..., device]."""
    return tokens.reshape(*tokens.shape[:-2], -1)
