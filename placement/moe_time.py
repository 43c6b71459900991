"""Time of MoE layers under a plan: dispatch, experts and combine by the laws that the simulator prices with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.moe import ExpertShape, expert_shape, grouped_gemm_moe_s
from hwmodels.short_axes import reduced
from placement.exchange_time import SIDES, Machine, Seconds, Side, port_times_s
from placement.plan import Placement
from placement.reduction import Reduction, reduce_trace
from placement.sample import TokenSample
from placement.traffic import PortTokens

Tokens = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Time of every MoE layer of every step, float64[layer, step] each [s].

    dispatch_s, combine_s  of the last device, had all started together; experts_s: of the slowest rank.
    total_s                from the start of the dispatch until the last device has its results; less than the sum of
                           the parts where different devices are the last.
    """

    dispatch_s: Seconds
    experts_s: Seconds
    combine_s: Seconds
    total_s: Seconds

    @property
    def step_s(self) -> Seconds:
        """Time of all MoE layers of each step, float64[step] [s]."""
        times: Seconds = self.total_s.sum(axis=0)
        return times


def moe_times(machine: Machine, placement: Placement, sample: TokenSample, speeds: Seconds | None = None) -> LayerTimes:
    """Times of the sample's steps under a plan; nothing overlaps, and devices start a layer together.

    speeds  float64[rank]: of each rank's experts over the machine's device; None: 1.

    Raises PlacementError where plan, sample and machine do not belong together.
    """
    reduction = reduce_trace(
        sample.trace, sample.tokens, placement, machine.layout, dedup=machine.exchange.dedup, keep_pairs=False
    )
    return layer_times(machine, placement, reduction, sample.tokens.shape[2], speeds)


def layer_times(
    machine: Machine,
    placement: Placement,
    reduction: Reduction,
    tokens_per_device: int,
    speeds: Seconds | None = None,
) -> LayerTimes:
    """Times of the steps of a reduction in one chunk; `speeds` as in `moe_times`."""
    held = np.full((1, 1), tokens_per_device)
    rank_s = expert_times_s(machine, placement, reduction)
    experts_s = np.repeat(rank_s if speeds is None else rank_s / speeds, machine.layout.tp, axis=-1)
    dispatch = both_ports_s(machine, "dispatch", held, reduction.ports)
    combine = both_ports_s(machine, "combine", held, reduction.ports.reversed())
    return together(dispatch, experts_s, combine)


def idle_times_s(machine: Machine, placement: Placement, tokens_per_device: int) -> float:
    """Time of all MoE layers where no expert gets a token and no copy travels: launches and latencies alone [s]."""
    none, held = np.zeros((1, 1)), np.full((1, 1), tokens_per_device)
    empty_s = [port_times_s(machine, side, held, (none, none)).max() for side in SIDES]
    slots = np.zeros((placement.n_layers, 1, placement.n_ranks, int(placement.slots_per_rank().max())), np.int64)
    experts_s = grouped_gemm_moe_s(
        slots,
        expert_shape(machine.model, machine.layout.tp),
        machine.cluster.device,
        n_slots=placement.slots_per_rank()[:, None, :],
    )
    return float(sum(empty_s) * placement.n_layers + experts_s.max(axis=-1).sum())


def both_ports_s(machine: Machine, side: Side, held: Tokens, ports: PortTokens) -> tuple[Seconds, Seconds]:
    """Time of the send ports and of the receive ports."""
    send_s = port_times_s(machine, side, held, (ports.send_intra, ports.send_inter))
    return send_s, port_times_s(machine, side, held, (ports.receive_intra, ports.receive_inter))


def together(dispatch: tuple[Seconds, Seconds], experts_s: Seconds, combine: tuple[Seconds, Seconds]) -> LayerTimes:
    """The law `port` of `sim.laws` for one layer that all devices begin at once; arrays are float64[..., device].

    An exchange ends on a device at max(first start + receive, last start + send), so that
    arrived = max(receive, max send); worked = arrived + experts; end = max(min worked + receive, max(worked + send)).
    """
    last_s = [reduced(np.maximum, times_s) for times_s in (*dispatch, experts_s, *combine)]
    return LayerTimes(
        dispatch_s=np.maximum(last_s[0], last_s[1]),
        experts_s=last_s[2],
        combine_s=np.maximum(last_s[3], last_s[4]),
        total_s=together_s(dispatch, experts_s, combine),
    )


def together_s(dispatch: tuple[Seconds, Seconds], experts_s: Seconds, combine: tuple[Seconds, Seconds]) -> Seconds:
    """`total_s` of `together` alone, float64[...] [s]."""
    (send_s, receive_s), (back_send_s, back_receive_s) = dispatch, combine
    worked_s = np.maximum(receive_s, reduced(np.maximum, send_s)[..., None]) + experts_s
    last_sent_s = reduced(np.maximum, worked_s + back_send_s)
    total_s: Seconds = np.maximum(reduced(np.minimum, worked_s) + reduced(np.maximum, back_receive_s), last_sent_s)
    return total_s


def expert_times_s(
    machine: Machine,
    placement: Placement,
    reduction: Reduction,
    shape: ExpertShape | None = None,
    *,
    only: NDArray[np.bool_] | None = None,
) -> Seconds:
    """Time of the experts of every rank, float64[layer, part, rank] [s].

    shape  of the experts; default: the model's, or those of the machine's widths, each in a call of its own.
    only   bool[layer, part, rank, place]: some of the experts, in a call of their own; none at all take no time. Sums
           of partial results count by their share of the experts with tokens.
    """
    placement = placement.for_rows(len(reduction.slot_tokens))
    tokens, n_slots = tokens_by_rank(placement, reduction.slot_tokens), placement.slots_per_rank()
    own = shape or expert_shape(machine.model, machine.layout.tp)
    if machine.widths is None or shape is not None:
        times_s = _call_s(machine, reduction, own, tokens, only, n_slots)
        return times_s if only is None else np.where((only & (tokens > 0)).any(axis=-1), times_s, 0.0)
    total_s: Seconds = np.zeros(tokens.shape[:-1])
    for width, mask in machine.widths.used():
        places = at_places(placement, mask)[:, None]
        chosen = np.broadcast_to(places, tokens.shape) if only is None else only & places
        held = places.sum(axis=-1)
        multiplied, factor = width.multiplied(own)
        called = held > 0 if only is None else (chosen & (tokens > 0)).any(axis=-1)
        total_s += np.where(
            called, factor * _call_s(machine, reduction, multiplied, tokens, chosen, np.maximum(held[:, 0], 1)), 0.0
        )
    return total_s


def _call_s(
    machine: Machine,
    reduction: Reduction,
    shape: ExpertShape,
    tokens: Tokens,
    only: NDArray[np.bool_] | None,
    n_slots: Tokens,
) -> Seconds:
    """Time of one call of every rank for `tokens` [layer, part, rank, place]; n_slots int[layer, rank] it serves."""
    summed, share = reduction.summed_tokens, 1.0
    # Without deduplication every choice travels and is called as a token.
    arrived = None if machine.exchange.dedup == "none" else summed
    if only is not None:
        n_used = np.count_nonzero(tokens, axis=-1)
        tokens = np.where(only, tokens, 0)
        share = np.count_nonzero(tokens, axis=-1) / np.maximum(n_used, 1)
    return grouped_gemm_moe_s(tokens, shape, machine.cluster.device, summed * share, arrived, n_slots[:, None, :])


def at_places(placement: Placement, of_expert: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of bool[layer, expert] those at the places of every rank, bool[layer, rank, place]; empty places are false."""
    expert = np.maximum(placement.expert_of_slot.astype(np.intp), 0)
    held = placement.filled & np.take_along_axis(of_expert, expert, axis=1)
    return tokens_by_rank(placement, held.astype(np.int64)[:, None])[:, 0] > 0


def worked_tokens(placement: Placement, reduction: Reduction) -> Tokens:
    """Tokens that the ranks work on, int64[layer, part, rank, place]: those that came, and those that stayed at home.

    Of a step in chunks, tokens at home belong to the first.
    """
    came = tokens_by_rank(placement.for_rows(len(reduction.slot_tokens)), reduction.slot_tokens)
    if reduction.moves is None:
        return came
    local = reduction.moves.local_tokens
    at_home = np.zeros((*came.shape[:3], local.shape[-1]), local.dtype)
    at_home[:, :: reduction.n_chunks] = local
    return np.concatenate([came, at_home], axis=-1)


def tokens_by_expert(placement: Placement, slot_tokens: Tokens) -> Tokens:
    """int64[layer, part, expert] from int64[layer, part, slot]: replicas of an expert together."""
    experts = np.arange(placement.n_experts)
    layers = zip(placement.expert_of_slot, slot_tokens, strict=True)
    return np.stack([tokens @ (slots[:, None] == experts) for slots, tokens in layers])


def tokens_by_rank(placement: Placement, slot_tokens: Tokens) -> Tokens:
    """int64[layer, part, rank, place] from int64[layer, part, slot]; places beyond a rank's slots hold no token."""
    counts = placement.places_per_rank()
    width, n_ranks = int(counts.max()), placement.n_ranks
    if (counts == width).all():
        return slot_tokens.reshape(*slot_tokens.shape[:-1], n_ranks, width)
    first = np.cumsum(counts, axis=1) - counts
    place = np.arange(placement.n_slots) - np.take_along_axis(first, placement.rank_of_slot, axis=1)
    grouped = np.zeros((*slot_tokens.shape[:-1], n_ranks * width), np.int64)
    cells = placement.rank_of_slot * width + place
    np.put_along_axis(grouped, np.broadcast_to(cells[:, None, :], slot_tokens.shape), slot_tokens, axis=-1)
    return grouped.reshape(*slot_tokens.shape[:-1], n_ranks, width)
