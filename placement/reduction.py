"""The reduction plane: trace x placement -> integer tokens per expert slot, pair of devices and port.

Everything that does not depend on time lives here, so that any number of schedules and devices can be priced from one
reading of the trace. Laid out by layer, because the trace is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from placement.counting import Counts, Routes, Rows, TokenCounts, Tokens, count_layer, visited_ranks
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.token_split import even_quotas, even_table, greedy_quotas, levelled_slots
from placement.traffic import (
    PortTokens,
    between_pools,
    direct_ports,
    forwarded_ports,
    pool_ports,
    regrouped_ports,
    to_one_of_group,
)
from scenarios.errors import PlacementError
from scenarios.schedule_specs import AlgorithmName, DedupName
from traces.routing import RoutingTrace
from traces.storage import release_pages

GROUP_CELLS = 1 << 22  # pairs of the layers that are counted together: 16 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Experts that move: see `placement.moves`.

    fetched       bool[layer, step, device, slot]: copies that a device gets for the layer.
    local_tokens  int32[layer, step, device, slot]: tokens that stay at home for experts held there.
    pulled        bool[layer]: no token travels.
    broadcast     copies go to all devices at once, or each device pulls its own.
    """

    fetched: NDArray[np.bool_]
    local_tokens: Counts
    pulled: NDArray[np.bool_]
    broadcast: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """Tokens by layer and part; a part is one chunk of one step, steps first.

    slot_tokens  int32[layer, part, slot]: routed tokens of every expert replica.
    summed_tokens int32[layer, part, rank]: tokens whose partial results the rank sums before it sends one back; none
                 where every expert's result travels on its own.
    ports        int64[layer, part, device] each: dispatch at the ports, after the deduplication asked for.
    back         the same of the combine.
    held         int[layer, part, device]: tokens at a device after the dispatch, to be gathered inside its group; no
                 entry for devices under other algorithms than `sliced`.
    located      int[layer + 1, part, device]: tokens at a device before each layer's dispatch, and after the last one,
                 where they stay with their experts; else None.
    Where experts have devices of their own, devices are those of tokens and then those of experts, and one device of a
    rank takes a token for its group.
    pairs        int32[layer, part, source, destination], or None where it was not kept.
    pairs_total  int32[layer, source, destination]: the same over all parts, always there.
    node_pairs_total  int32[layer, source, node]: tokens of a source that have an expert on that node; no entry for
                 nodes where tokens are not forwarded.
    """

    slot_tokens: Counts
    summed_tokens: Counts
    ports: PortTokens
    back: PortTokens
    held: NDArray[np.integer]
    pairs: Counts | None
    pairs_total: Counts
    node_pairs_total: Counts
    n_chunks: int
    moves: Moves | None = None
    located: NDArray[np.integer] | None = None

    @property
    def forwards(self) -> bool:
        """Whether tokens cross to a node once and are forwarded inside it."""
        return bool(self.node_pairs_total.size)


def reduce_trace(
    trace: RoutingTrace,
    tokens: NDArray[np.int64],
    placement: Placement,
    layout: ExpertLayout,
    *,
    chunks: int = 1,
    dedup: DedupName = "device",
    algorithm: AlgorithmName = "direct",
    keep_pairs: bool = False,
) -> Reduction:
    """Reduction of the steps `tokens` int64[step, device, token] (indices into the trace; -1: no token there).

    dedup: a token travels once per routed expert ("none"), once per destination device, or once per destination node,
    where it is forwarded; under algorithm `all-gather` all go everywhere, and under `coherent` they start each layer
    where their expert of the one before is.
    Raises PlacementError where placement, trace and layout do not belong together.
    """
    check_steps(trace, placement, layout, tokens)
    ordered = in_order(tokens, chunks)
    tables = Tables.of(placement, layout, np.iinfo(trace.ids.dtype).max + 1)
    forwards = dedup == "node" and layout.n_nodes > 1
    shape = (tokens.shape[0] * chunks, layout.n_sources)
    groups: list[Group] = []
    here, located = ordered, []
    for layers in _layer_groups(trace.n_layers, shape[0] * shape[1] * layout.n_ranks):
        counts = _zeros(len(layers), shape, placement.n_slots, layout, forwards=forwards)
        for row, layer in enumerate(layers):
            routes, found = routes_of(trace.ids[layer], here, tables, layer, dedup=dedup != "none")
            count_layer(routes, found, counts.of(row))
            if algorithm == "coherent":
                located.append(_held(here, shape))
                here = with_their_experts(here, routes, found)
            release_pages(trace.ids)
        if algorithm == "all-gather":
            _everywhere(counts, ordered)
        groups.append(grouped(counts, layout, (dedup, algorithm), keep_pairs=keep_pairs))
    reduction = reduction_from(groups, chunks, keep_pairs=keep_pairs)
    return reduction if not located else replace(reduction, located=np.stack([*located, _held(here, shape)]))


def reduction_from(groups: Sequence[Group], chunks: int, *, keep_pairs: bool) -> Reduction:
    """The reduction of all layers, from those of groups of layers."""
    return Reduction(
        slot_tokens=np.concatenate([group.slots for group in groups]),
        summed_tokens=np.concatenate([group.summed for group in groups]),
        ports=_joined([group.ports for group in groups]),
        back=_joined([group.back for group in groups]),
        held=np.concatenate([group.held for group in groups]),
        pairs=np.concatenate([group.pairs for group in groups]) if keep_pairs else None,
        pairs_total=np.concatenate([group.pairs_total for group in groups]),
        node_pairs_total=np.concatenate([group.node_pairs_total for group in groups]),
        n_chunks=chunks,
    )


def _layer_groups(n_layers: int, cells: int) -> list[range]:
    """Layers counted together: few enough that their pairs, `cells` a layer, stay small."""
    size = max(1, GROUP_CELLS // cells)
    return [range(first, min(first + size, n_layers)) for first in range(0, n_layers, size)]


def _zeros(n_layers: int, shape: tuple[int, int], n_slots: int, layout: ExpertLayout, *, forwards: bool) -> TokenCounts:
    return TokenCounts(
        slots=np.zeros((n_layers, shape[0], n_slots), np.int32),
        pairs=np.zeros((n_layers, *shape, layout.n_ranks), np.int32),
        node_pairs=np.zeros((n_layers, *shape, layout.n_nodes if forwards else 0), np.int32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What is kept of a group of layers."""

    slots: Counts
    summed: Counts
    ports: PortTokens
    back: PortTokens
    held: NDArray[np.integer]
    pairs: Counts
    pairs_total: Counts
    node_pairs_total: Counts


def grouped(
    counts: TokenCounts, layout: ExpertLayout, way: tuple[DedupName, AlgorithmName], *, keep_pairs: bool
) -> Group:
    """What is kept of the counts of a group of layers, whose tokens travel that way."""
    dedup, algorithm = way
    sliced = algorithm == "sliced" or layout.sources > 0
    pairs = to_one_of_group(counts.pairs, layout.tp) if sliced else np.repeat(counts.pairs, layout.tp, axis=-1)
    if layout.sources:
        pairs = between_pools(pairs)
        ports = pool_ports(pairs)
        back = ports.reversed()
    else:
        ports, back = _ports(pairs, counts.node_pairs, layout, algorithm)
    arrived = counts.pairs.sum(axis=-2, dtype=np.int32)
    return Group(
        slots=counts.slots,
        summed=np.zeros_like(arrived) if dedup == "none" else arrived,
        ports=ports,
        back=back,
        held=pairs.sum(axis=-2) if sliced and not layout.sources else pairs[..., 0, :0],
        pairs=pairs if keep_pairs else pairs[:0],
        pairs_total=pairs.sum(axis=1, dtype=np.int32),
        node_pairs_total=counts.node_pairs.sum(axis=1, dtype=np.int32),
    )


def _ports(
    pairs: Counts, node_pairs: Counts, layout: ExpertLayout, algorithm: AlgorithmName
) -> tuple[PortTokens, PortTokens]:
    """Ports of the dispatch and of the combine, which goes back the same way but under `hierarchical`.

    There it runs the same collective again, first inside the nodes of the experts, then between nodes.
    """
    if algorithm == "hierarchical":
        to_nodes = pairs.reshape(*pairs.shape[:-1], layout.n_nodes, layout.devices_per_node).sum(axis=-1)
        return regrouped_ports(pairs, layout), forwarded_ports(pairs, to_nodes, layout).reversed()
    forwards = node_pairs.shape[-1] > 0
    ports = forwarded_ports(pairs, node_pairs, layout) if forwards else direct_ports(pairs, layout)
    return ports, ports.reversed()


def _held(tokens: Tokens, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Tokens at every source, int64[part, source]."""
    sender = tokens.part * np.int64(shape[1]) + tokens.source
    return np.bincount(sender, minlength=shape[0] * shape[1]).reshape(shape)


def with_their_experts(tokens: Tokens, routes: Routes, found: Tokens) -> Tokens:
    """The tokens at the ranks of their only experts; one without an expert stays where it is."""
    ranks = visited_ranks(routes, found)[0].astype(tokens.source.dtype)
    return replace(tokens, source=np.where(ranks < routes.rank_of_slot[-1], ranks, tokens.source))


def _everywhere(counts: TokenCounts, tokens: Tokens) -> None:
    """Let every token of every source visit all ranks and nodes, once each."""
    n_parts, n_sources = counts.pairs.shape[1:3]
    held = _held(tokens, (n_parts, n_sources))[..., None]
    counts.pairs[...], counts.node_pairs[...] = held, held


def check_steps(trace: RoutingTrace, placement: Placement, layout: ExpertLayout, tokens: NDArray[np.int64]) -> None:
    """Raise PlacementError where placement, trace, layout and steps do not belong together."""
    if (placement.n_layers, placement.n_experts) != (trace.n_layers, trace.n_experts):
        raise PlacementError(
            f"placement {placement.name} is for {placement.n_layers} layers of {placement.n_experts} experts, "
            f"the trace has {trace.n_layers} of {trace.n_experts}"
        )
    if placement.n_ranks != layout.n_ranks:
        raise PlacementError(f"placement {placement.name} has {placement.n_ranks} ranks, the layout {layout.n_ranks}")
    if tokens.ndim != 3 or tokens.shape[1] != layout.n_sources or 0 in tokens.shape:
        raise PlacementError(f"steps have shape {tokens.shape}, expected [step, {layout.n_sources} devices, token]")


def chunk_of_tokens(n_tokens: int, n_chunks: int) -> NDArray[np.int32]:
    """Chunk of each of a device's tokens, int32[token]: equal runs, whose lengths differ by one at most."""
    place = np.arange(n_tokens, dtype=np.int32)
    return place * np.int32(n_chunks) // np.int32(n_tokens)


def in_order(tokens: NDArray[np.int64], chunks: int) -> Tokens:
    """The tokens by part, and within a part as they lie in the trace, so that its pages are read in order.

    A negative index stands for no token.
    """
    n_tokens = tokens.shape[2]
    step, device, place = (axis.ravel() for axis in np.indices(tokens.shape, dtype=np.int32))
    part = step * np.int32(chunks) + chunk_of_tokens(n_tokens, chunks)[place]
    index = tokens.ravel()
    order = np.lexsort((index, part))
    order = order[index[order] >= 0]
    turn = device * np.int32(n_tokens) + place
    return Tokens(index=index[order], part=part[order], source=device[order], turn=turn[order])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Look-up tables of a placement on a layout; see `placement.counting.Routes`."""

    placement: Placement
    slots_of_expert: NDArray[np.int32]
    slot_of_id: tuple[NDArray[np.uint16], ...]
    rank_of_slot: NDArray[np.uint16]
    node_of_slot: NDArray[np.uint16]
    devices_per_rank: int
    devices_per_node: int

    @classmethod
    def of(cls, placement: Placement, layout: ExpertLayout, n_ids: int) -> Tables:
        """The tables for ids below `n_ids`."""
        unused = ((0, 0), (0, 1))
        ranks, slots_of_expert = placement.rank_of_slot, placement.slots_of_expert()
        return cls(
            placement=placement,
            slots_of_expert=slots_of_expert,
            slot_of_id=tuple(even_table(slots, n_ids, placement.n_slots) for slots in slots_of_expert),
            rank_of_slot=np.pad(ranks, unused, constant_values=layout.n_ranks).astype(np.uint16),
            node_of_slot=np.pad(ranks // layout.ranks_per_node, unused, constant_values=layout.n_nodes).astype(
                np.uint16
            ),
            devices_per_rank=layout.tp,
            devices_per_node=layout.devices_per_node,
        )


def routes_of(ids: Rows, tokens: Tokens, tables: Tables, layer: int, *, dedup: bool) -> tuple[Routes, Tokens]:
    """Routes of one layer, with the tokens as they find their ids there."""
    n_slots = tables.placement.n_slots
    slots_of_expert = tables.slots_of_expert[layer]
    if tables.placement.split != "even" and slots_of_expert.shape[1] > 1:
        ids = _levelled(ids[:, tokens.index], tokens, tables, layer)
        tokens = replace(tokens, index=np.arange(ids.shape[1]))
        slot_of_id = np.arange(n_slots + 1, dtype=np.uint16)[:, None]
    else:
        slot_of_id = tables.slot_of_id[layer]
    routes = Routes(
        ids=ids,
        slot_of_id=slot_of_id,
        rank_of_slot=tables.rank_of_slot[layer],
        node_of_slot=tables.node_of_slot[layer],
        dedup=dedup,
    )
    return routes, tokens


def _levelled(ids: Rows, tokens: Tokens, tables: Tables, layer: int) -> NDArray[np.uint16]:
    """Slots uint16[k, token] where replicas are levelled; unused places hold `n_slots`."""
    split, slots_of_expert = tables.placement.split, tables.slots_of_expert[layer]
    used = ids < tables.placement.n_experts
    part = np.broadcast_to(tokens.part, ids.shape)[used].astype(np.int64)
    slots = np.full(ids.shape, tables.placement.n_slots, np.uint16)
    quotas_of = greedy_quotas if split == "least-loaded" else even_quotas
    liking = _liking(ids, tokens, tables, layer)[used] if split == "lp-local" else None
    ranks = tables.placement.rank_of_slot[layer]
    experts = ids[used].astype(np.int64)
    slots[used] = levelled_slots(experts, part, slots_of_expert, ranks, quotas_of, liking)
    return slots


def _liking(ids: Rows, tokens: Tokens, tables: Tables, layer: int) -> NDArray[np.int8]:
    """How much a token likes each replica of its experts, int8[k, token, copy].

    3 where no copy has to travel for it: on the token's own rank, or on one that it visits for an expert without
    replicas; 1 where it need not cross to the node; 0 elsewhere, and less for copies that do not exist.
    """
    slots_of_expert, n_slots = tables.slots_of_expert[layer], tables.placement.n_slots
    n_tokens = ids.shape[1]
    slot_of_id = np.full((np.iinfo(ids.dtype).max + 1, slots_of_expert.shape[1]), -1)
    slot_of_id[: len(slots_of_expert)] = slots_of_expert
    copies = slot_of_id[ids]
    alone = np.where(copies[..., 1] < 0, copies[..., 0], -1)
    token = np.arange(n_tokens)
    liking = np.where(copies < 0, -9, 0).astype(np.int8)
    own_rank = tokens.source // tables.devices_per_rank
    for places, own, worth in (
        (tables.rank_of_slot[layer], own_rank, 2),
        (tables.node_of_slot[layer], tokens.source // tables.devices_per_node, 1),
    ):
        visited = np.zeros((n_tokens, int(places[n_slots]) + 1), np.bool_)
        visited[token, own] = True
        for row in alone:
            visited[token, places[row]] = True
        visited[:, -1] = False
        liking += worth * visited[token[:, None], places[copies]].astype(np.int8)
    return liking


def _joined(ports: Sequence[PortTokens]) -> PortTokens:
    return PortTokens(
        **{f.name: np.concatenate([getattr(group, f.name) for group in ports]) for f in fields(PortTokens)}
    )
