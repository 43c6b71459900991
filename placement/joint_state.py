"""The plan that `joint` anneals: seconds of sampled steps, updated exactly from the two ranks that a swap changes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.short_axes import reduced
from placement.annealing import Index
from placement.exchange_time import Machine, Side, port_times_s
from placement.moe_time import together_s
from placement.plan import FloatArray, Placement
from placement.saa import lone_copies
from placement.sample import TokenSample
from placement.traffic import PortTokens, direct_ports, forwarded_ports

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]
WORD = 64  # sampled tokens of one device in a step: bits of a word
MEAN_WEIGHT = 0.3  # of mean times beside maxima: they vary less between batches, and so generalise better


class JointState:
    """Slots of all layers with the tokens that visit them.

    masks   uint64[layer, rank, place, step, source]: bit = token of a source visits the slot.
    tokens  int64[layer, rank, place, step]: routed tokens of the slot.
    visits  int64[layer, rank, step, source]: tokens of a source that visit the rank, once each (or once per expert).
    mirrored  the combine takes as long as the dispatch, with sending and receiving exchanged.
    Replicas keep the tokens that take turns on them, as under even split. Traffic is that of up to `WORD` tokens of a
    device, evenly spread over its step and scaled; experts are priced with all tokens.
    """

    def __init__(self, machine: Machine, placement: Placement, sample: TokenSample, speeds: FloatArray | None) -> None:
        self.machine, self.speeds = machine, speeds
        self.n_ranks, self.n_tokens = placement.n_ranks, sample.tokens.shape[2]
        self.scale = self.n_tokens / min(self.n_tokens, WORD)
        self.slots = placement.expert_of_slot.astype(np.int64)
        self.layers = np.arange(placement.n_layers)
        self.room = placement.n_slots // placement.n_ranks
        drawn = [_masks(sample, placement, layer) for layer in range(placement.n_layers)]
        masks, tokens = np.stack([pair[0] for pair in drawn]), np.stack([pair[1] for pair in drawn])
        self.masks: Words = masks.reshape(len(masks), self.n_ranks, self.room, *masks.shape[2:])
        self.slot_visits: Counts = _ones(self.masks)
        self.tokens: Counts = tokens.reshape(len(tokens), self.n_ranks, self.room, -1)
        self.dedup = machine.exchange.dedup != "none"
        self.shape = expert_shape(machine.model, machine.layout.tp)
        self.home = _home_masks(machine)
        same_bytes = machine.copy_bytes("dispatch") == machine.copy_bytes("combine")
        self.mirrored = same_bytes and machine.exchange.kernel in ("alpha-beta", "nccl")
        self._reset()

    def _reset(self) -> None:
        self.rank_masks: Words = np.bitwise_or.reduce(self.masks, axis=2)
        self.visits = _ones(self.rank_masks) if self.dedup else self.slot_visits.sum(axis=2)
        self.expert_s = np.moveaxis(self._expert_s(self.tokens, self.visits), 1, 2)
        self.ports = self._ports(self.visits, self.rank_masks)
        self.costs = self._cost(self.ports, self.expert_s)

    def cost(self) -> FloatArray:
        """Mean time of every layer [s], float64[layer], means over devices a little beside the slowest."""
        return self.costs.copy()

    def busiest(self) -> Index:
        """The rank whose experts take longest, int64[layer]."""
        slowest: Index = self.expert_s.mean(axis=1).argmax(axis=-1)
        return slowest

    def allowed(self, first: Index, second: Index) -> NDArray[np.bool_]:
        """No swap of copies of one expert, and none that puts two copies on one rank."""
        return lone_copies(self.slots, self.room, first, second)

    def swapped(self, first: Index, second: Index) -> tuple[FloatArray, dict[str, Any]]:
        """Cost of every candidate, and the arrays of its two ranks."""
        layer, candidate = self.layers[:, None], np.arange(first.shape[1])[None, :]
        ranks = np.stack([first // self.room, second // self.room], axis=-1)
        places = np.stack([first % self.room, second % self.room], axis=-1)
        pair = layer[..., None], ranks
        there = (layer[..., None], candidate[..., None], np.arange(2), places)
        masks, tokens = self.masks[pair], self.tokens[pair]
        masks[there] = self.masks[layer[..., None], ranks[..., ::-1], places[..., ::-1]]
        tokens[there] = self.tokens[layer[..., None], ranks[..., ::-1], places[..., ::-1]]
        rank_masks = np.bitwise_or.reduce(masks, axis=3)
        if self.dedup:
            visits = _ones(rank_masks)
        else:
            slot_visits = self.slot_visits[pair]
            slot_visits[there] = self.slot_visits[layer[..., None], ranks[..., ::-1], places[..., ::-1]]
            visits = slot_visits.sum(axis=3)
        expert_s = np.repeat(self.expert_s[:, None], first.shape[1], axis=1)
        expert_s[layer[..., None], candidate[..., None], :, ranks] = self._expert_s(tokens, visits, ranks)
        if self.machine.forwards or self.machine.layout.tp > 1:
            ports = self._all_ports(ranks, visits, rank_masks)
        else:
            ports = self._moved_ports(ranks, visits)
        costs = self._cost(ports, expert_s)
        made = {"rank_masks": rank_masks, "visits": visits, "expert_s": expert_s, "ports": ports, "costs": costs}
        return costs, made

    def take(self, layers: Index, candidate: Index, first: Index, second: Index, made: dict[str, Any]) -> None:
        """Exchange the slots and take over what was computed for them."""
        for table in (self.masks, self.tokens, self.slot_visits):
            flat = table.reshape(table.shape[0], -1, *table.shape[3:])
            flat[layers, first], flat[layers, second] = flat[layers, second], flat[layers, first]
        self.slots[layers, first], self.slots[layers, second] = self.slots[layers, second], self.slots[layers, first]
        for side, slot in enumerate((first, second)):
            self.rank_masks[layers, slot // self.room] = made["rank_masks"][layers, candidate, side]
            self.visits[layers, slot // self.room] = made["visits"][layers, candidate, side]
        for field in fields(PortTokens):
            getattr(self.ports, field.name)[layers] = getattr(made["ports"], field.name)[layers, candidate]
        self.expert_s[layers] = made["expert_s"][layers, candidate]
        self.costs[layers] = made["costs"][layers, candidate]

    def _expert_s(self, tokens: Counts, visits: Counts, ranks: Index | None = None) -> FloatArray:
        """Time of the experts of ranks, float64[..., rank, step], from tokens [..., rank, place, step]."""
        arrived = reduced(np.add, visits) * self.scale
        by_place = np.moveaxis(tokens, -2, -1)
        own, called = (arrived, arrived) if self.dedup else (np.zeros_like(arrived), None)
        times_s = grouped_gemm_moe_s(by_place, self.shape, self.machine.cluster.device, own, called)
        if self.speeds is None:
            return times_s
        speeds = self.speeds if ranks is None else self.speeds[ranks]
        return times_s / speeds[..., None]

    def _ports(self, visits: Counts, rank_masks: Words) -> PortTokens:
        """Tokens at the ports, int64[..., step, device], from visits [..., rank, step, source]."""
        layout = self.machine.layout
        pairs = np.moveaxis(visits, -3, -1)
        if not self.machine.forwards:
            return direct_ports(np.repeat(pairs, layout.tp, axis=-1), layout)
        by_node = rank_masks.reshape(*rank_masks.shape[:-3], layout.n_nodes, -1, *rank_masks.shape[-2:])
        node_visits = _ones(np.bitwise_or.reduce(by_node, axis=-3))
        return forwarded_ports(np.repeat(pairs, layout.tp, axis=-1), np.moveaxis(node_visits, -3, -1), layout)

    def _all_ports(self, ranks: Index, visits: Counts, rank_masks: Words) -> PortTokens:
        """Ports of each candidate from all ranks, those of its two replaced; where `_moved_ports` does not apply."""
        layer, candidate = self.layers[:, None, None], np.arange(ranks.shape[1])[None, :, None]
        all_visits = np.repeat(self.visits[:, None], ranks.shape[1], axis=1)
        all_masks = np.repeat(self.rank_masks[:, None], ranks.shape[1], axis=1)
        all_visits[layer, candidate, ranks], all_masks[layer, candidate, ranks] = visits, rank_masks
        return self._ports(all_visits, all_masks)

    def _moved_ports(self, ranks: Index, visits: Counts) -> PortTokens:
        """`direct_ports` of each candidate, from the visits [layer, candidate, 2, step, source] of its two ranks."""
        layer, candidate = self.layers[:, None, None], np.arange(ranks.shape[1])[None, :, None]
        moved = visits - self.visits[layer, ranks]
        ports: dict[str, Counts] = {}
        for kind, home in zip(("intra", "inter"), self.home, strict=True):
            sent, received = getattr(self.ports, f"send_{kind}"), getattr(self.ports, f"receive_{kind}")
            if not home.any():
                same = [np.broadcast_to(t[:, None], (*ranks.shape[:2], *t.shape[1:])) for t in (sent, received)]
                ports |= {f"send_{kind}": same[0], f"receive_{kind}": same[1]}
                continue
            counted = home.T[ranks][:, :, :, None, :]
            arrived = np.repeat(received[:, None], ranks.shape[1], axis=1)
            arrived[layer, candidate, :, ranks] = reduced(np.add, visits * counted)
            ports |= {
                f"send_{kind}": sent[:, None] + (moved * counted).sum(axis=2),
                f"receive_{kind}": arrived,
            }
        return PortTokens(**ports)

    def _cost(self, ports: PortTokens, expert_s: FloatArray) -> FloatArray:
        """Mean over steps of the time of a layer, float64[...], from [..., step, device]."""
        device_s = np.repeat(expert_s, self.machine.layout.tp, axis=-1)
        dispatch = self._both_s("dispatch", ports)
        there_s = [times_s.mean(axis=(-1, -2)) for times_s in dispatch]
        combine, back_s = dispatch[::-1], there_s[::-1]
        if not self.mirrored:
            combine = self._both_s("combine", ports.reversed())
            back_s = [times_s.mean(axis=(-1, -2)) for times_s in combine]
        slowest_s = together_s(dispatch, device_s, combine).mean(axis=-1)
        mean_s = sum([*there_s, device_s.mean(axis=(-1, -2)), *back_s])
        costs: FloatArray = slowest_s + MEAN_WEIGHT * mean_s
        return costs

    def _both_s(self, side: Side, ports: PortTokens) -> tuple[FloatArray, FloatArray]:
        held, scale = np.full((1, 1), self.n_tokens), self.scale
        send = (ports.send_intra * scale, ports.send_inter * scale)
        receive = (ports.receive_intra * scale, ports.receive_inter * scale)
        return port_times_s(self.machine, side, held, send), port_times_s(self.machine, side, held, receive)


def _masks(sample: TokenSample, placement: Placement, layer: int) -> tuple[Words, Counts]:
    """Of one layer: which sampled tokens go to each slot, uint64[slot, step, source], and how many of all tokens do.

    Tokens are int64[slot, step]. Replicas take turns.
    """
    ids = sample.ids(layer)
    n_steps, n_devices, k, n_tokens = ids.shape
    slots_of_expert = placement.slots_of_expert()[layer]
    copies = np.append((slots_of_expert >= 0).sum(axis=1), 1)
    table = np.vstack([slots_of_expert, np.full((1, slots_of_expert.shape[1]), placement.n_slots)])
    turn = np.arange(n_devices)[:, None, None] * n_tokens + np.arange(n_tokens)
    slots = table[ids, turn % copies[ids]]
    cells = slots.reshape(n_steps, -1) + (placement.n_slots + 1) * np.arange(n_steps)[:, None]
    tokens = np.bincount(cells.ravel(), minlength=n_steps * (placement.n_slots + 1)).reshape(n_steps, -1)
    chosen = np.unique(np.linspace(0, n_tokens - 1, min(n_tokens, WORD)).round().astype(np.int64))
    bits = np.zeros((placement.n_slots + 1, n_steps, n_devices, WORD), np.bool_)
    step, device, _, token = np.ogrid[:n_steps, :n_devices, :k, : len(chosen)]
    bits[slots[..., chosen], step, device, token] = True
    words = np.packbits(bits[:-1], axis=-1).view(np.uint64)[..., 0]
    return words, np.ascontiguousarray(tokens[:, :-1].T)


def _ones(masks: Words) -> Counts:
    """Bits set in each word, int64[...]."""
    return np.bitwise_count(masks).astype(np.int64)


def _home_masks(machine: Machine) -> Counts:
    """int64[2, source, device]: 1 where a copy goes to another device of the node, and where to another node."""
    node = np.arange(machine.layout.n_devices) // machine.layout.devices_per_node
    same = node[:, None] == node[None, :]
    return np.stack([same & ~np.eye(len(node), dtype=bool), ~same]).astype(np.int64)
