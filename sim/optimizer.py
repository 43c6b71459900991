"""The update of weights: which parameters a device keeps states of, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodels.gemm import stream_s
from hwmodels.links import port_s
from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE
from sim.durations import Duration
from sim.gradient_sums import Buckets, Floats, gathered_s, on_ports
from sim.program import Work
from sim.setting import Setting
from sim.training import BACKWARD, DENSE_SUM, EXPERT_SUM
from sim.training_pricing import gradient_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters on each device, float64[device]: of routed experts, and all others; norms left out."""

    experts: Floats
    others: Floats


def held_parameters(setting: Setting, placement: Placement) -> Parameters:
    """Parameters that each device computes with."""
    model, layout = setting.model, setting.layout
    slots = placement.slots_per_rank().sum(axis=0)
    routed = len(model.moe_layers) * model.n_experts * model.expert_parameters
    split = model.n_layers * model.attention.parameters(model.hidden_size)
    split += model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    whole = model.total_parameters - routed - split
    return Parameters(
        experts=np.repeat(slots * (model.expert_parameters / layout.tp), layout.tp),
        others=np.full(layout.n_devices, whole + split / setting.attention_tp),
    )


def divided_parameters(held: Parameters, buckets: Buckets) -> Parameters:
    """Parameters of which each device keeps states, where a group divides those that all of its members hold."""
    elsewhere = {"experts": np.zeros_like(held.experts), "others": np.zeros_like(held.others)}
    for (kind, _), bucket in buckets.items():
        for share in bucket:
            name = "experts" if kind == EXPERT_SUM else "others"
            elsewhere[name] += share.parameters * (1 - 1 / share.group.members)
    return Parameters(experts=held.experts - elsewhere["experts"], others=held.others - elsewhere["others"])


def parameters_on_host(setting: Setting, kept: Parameters) -> Floats:
    """Parameters whose states the host keeps and updates, float64[device]."""
    by_offload = {"none": 0.0 * kept.experts, "experts": kept.experts, "all": kept.experts + kept.others}
    return by_offload[setting.training.optimizer.offload]


def optimizer_prices(setting: Setting, placement: Placement, buckets: Buckets) -> dict[Work, Duration]:
    """Durations of the update, of the all-gather after it, and of weights that are gathered for a layer."""
    held = held_parameters(setting, placement)
    kept = divided_parameters(held, buckets) if setting.training.zero else held
    shape = (setting.batches.n_steps, setting.layout.n_devices)
    prices: dict[Work, Duration] = {
        Work("update"): np.broadcast_to(_update_s(setting, kept), shape),
        Work("refresh"): on_ports(setting, gathered_s(setting, list(buckets.values()))),
    }
    for layer in range(setting.model.n_layers):
        own = [buckets[kind, layer] for kind in (DENSE_SUM, EXPERT_SUM) if (kind, layer) in buckets]
        weights = on_ports(setting, gathered_s(setting, own))
        prices |= {Work("weights", layer): weights, Work("weights" + BACKWARD, layer): weights}
    return prices


def _update_s(setting: Setting, kept: Parameters) -> Floats:
    """Time of the update, float64[device] [s]: states read and written, gradients read, weights written.

    What the host updates travels there as gradients and back as weights; its memory is shared by a node's devices.
    """
    spec, offload = setting.training.optimizer, setting.training.optimizer.offload
    states = 2 * spec.bytes_per_parameter
    gradient, weight = BYTES_PER_VALUE[gradient_dtype(setting)], BYTES_PER_VALUE[setting.model.weight_dtype]
    on_host = parameters_on_host(setting, kept)
    on_device = kept.experts + kept.others - on_host
    device_s = stream_s(on_device * (states + gradient + weight), setting.cluster.device)
    if offload == "none":
        return device_s
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        raise ScenarioError(
            f"training.optimizer: offload needs a host, and {cluster.name} has none; use another node card"
        )
    share = cluster.host.dram_bytes_per_s.value / cluster.devices_per_node
    ways_s = port_s(on_host * gradient, cluster.host_link) + port_s(on_host * weight, cluster.host_link)
    return np.asarray(device_s + ways_s + on_host * (states + gradient + weight) / share)
