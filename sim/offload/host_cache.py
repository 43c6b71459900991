"""Experts on a drive below the host's memory, which caches them: whom the drive is asked for.

A host's memory is one cache of the experts of all layers and of the node's devices. What a step needs of a layer there,
to be copied or to be computed by the host, is one event; what is read stays until its rule gives its place away.
"""

from __future__ import annotations

import numpy as np

from hwmodels.cards import SsdCard
from hwmodels.library import find_ssd
from placement.plan import Placement
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.offload_specs import OffloadSpec
from sim.offload.replay import Replayed, Requests, replay
from sim.offload.rules import RULES, keeper_of, tie_break
from sim.offload.wanted import Mask, Wanted, out_of_pool, pooled
from sim.setting import Setting

GIB = 2**30


def drive_of(setting: Setting, spec: OffloadSpec) -> SsdCard | None:
    """The drive of each host, None where experts live in its memory. Raises HardwareError for an unknown card."""
    return None if spec.ssd is None else find_ssd(spec.ssd, setting.cluster.cards)


def check_tiers(setting: Setting, placement: Placement, spec: OffloadSpec) -> None:
    """Raise MemoryInfeasible where a tier below the devices is too small, ScenarioError where it has no size."""
    host = setting.cluster.host
    if host is None:
        return
    stated = None if host.dram_bytes is None else host.dram_bytes.value
    room = spec.host_memory or stated
    sizes = np.take_along_axis(setting.expert_bytes, np.maximum(placement.expert_of_slot.astype(np.intp), 0), axis=1)
    needed = float(sizes.sum()) / setting.cluster.n_nodes
    drive = drive_of(setting, spec)
    if stated is not None and room is not None and room > stated:
        raise MemoryInfeasible(
            f"memory.offload.host_memory: {room / GIB:.1f} GiB of {host.name}, which has {stated / GIB:.1f} GiB; short "
            f"by {(room - stated) / GIB:.1f} GiB. Levers: less host_memory with an ssd below it, another host"
        )
    if drive is not None and room is None:
        raise ScenarioError(
            f"memory.offload: {host.name} states no memory, which an ssd needs to read into; give host_memory: 64 GiB"
        )
    name, capacity = (host.name, room) if drive is None else (drive.name, drive.capacity_bytes.value)
    lever = "another host, an ssd below its memory" if drive is None else "a larger ssd"
    if capacity is not None and needed > capacity:
        raise MemoryInfeasible(
            f"{placement.name}: experts of {needed / GIB:.1f} GiB live in each {name}, which has {capacity / GIB:.1f} "
            f"GiB for them; short by {(needed - capacity) / GIB:.1f} GiB. Levers: more nodes, a smaller weight dtype, "
            f"{lever}"
        )
    if drive is not None:
        _check_cache(setting, spec)


def _check_cache(setting: Setting, spec: OffloadSpec) -> None:
    held, least = host_slots(setting, spec), setting.model.top_k
    if held < least:
        raise ScenarioError(
            f"memory.offload.host_memory: room for {held} experts of {setting.model.expert_bytes / GIB:.2f} GiB cannot "
            f"hold the {least} of one token; give {least * setting.model.expert_bytes / GIB:.1f} GiB or more"
        )


def host_slots(setting: Setting, spec: OffloadSpec) -> int:
    """Experts that the memory of a host has room for."""
    host = setting.cluster.host
    stated = 0.0 if host is None or host.dram_bytes is None else host.dram_bytes.value
    return int((spec.host_memory or stated) // setting.model.expert_bytes)


def read_from_drive(setting: Setting, wanted: Wanted, served: Replayed, spec: OffloadSpec) -> Mask:
    """Uses and copies ahead whose expert is not in the host's memory, bool[step, layer, rank, place].

    Raises ScenarioError where several nodes share an expert rank.
    """
    n_nodes = setting.cluster.n_nodes
    n_steps, n_layers, n_ranks, n_places = wanted.tokens.shape
    if n_ranks % n_nodes:
        raise ScenarioError(
            f"memory.offload.ssd: {n_nodes} nodes share {n_ranks} expert ranks; give each node whole ones"
        )
    needed = served.loaded | served.hosted | served.fetched_ahead
    by_node = (n_layers, n_nodes, n_ranks // n_nodes * n_places)
    seen = pooled(
        Wanted(
            tokens=needed.reshape(n_steps, *by_node).astype(np.int64),
            placed=wanted.placed.reshape(by_node),
            popular=wanted.popular.reshape(by_node),
            expert=wanted.expert.reshape(by_node),
        )
    )
    rule = spec.model_copy(update={"evict": spec.host_evict})
    rows = (n_steps * n_layers, n_nodes, n_layers * by_node[-1])
    slots, ties = np.full(n_nodes, host_slots(setting, spec)), tie_break(seen, rule).reshape(rows[1:])
    requests = Requests(
        used=seen.used.reshape(rows),
        ahead=None,
        keeper=keeper_of(seen, rule, slots, ties),
        ties=ties,
        slots=slots,
        placed=seen.placed.reshape(rows[1:]),
        admits=RULES[spec.host_evict].admits,
    )
    missed = replay(requests).loaded[:, None]
    found: Mask = out_of_pool(missed, (n_steps, *by_node)).reshape(wanted.tokens.shape)
    return found
