"""Context-coherent experts (ExFlow, arXiv 2401.08383): tokens stay with their expert, and contexts are everywhere."""

from __future__ import annotations

import numpy as np

from hwmodels.links import port_s
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from sim.durations import Duration, ExchangeTime
from sim.kernel_pricing import machine_of
from sim.setting import Setting


def check_coherent(setting: Setting, schedule: ScheduleSpec) -> None:
    """Raise ScenarioError where tokens cannot stay with their experts."""
    model, tps = setting.model, (setting.attention_tp, setting.layout.tp)
    if schedule.exchange.algorithm != "coherent":
        return
    if model.top_k > 1:
        raise ScenarioError(
            f"schedule.exchange: algorithm coherent leaves a token with its expert, and in {model.name} it has "
            f"{model.top_k}; take a top-1 model, or workload.routing.top_k 1"
        )
    if model.shared_intermediate_size or model.bottleneck_size:
        raise ScenarioError(
            f"schedule.exchange: algorithm coherent brings nothing back, and shared experts or projections of "
            f"{model.name} add to what comes back; use algorithm direct"
        )
    if max(tps) > 1:
        raise ScenarioError(
            f"schedule.exchange: algorithm coherent has whole attention and experts on every device, not tp {tps[0]} "
            f"and {tps[1]}; set both to 1"
        )


def context_tokens(setting: Setting, tokens_per_device: int) -> tuple[int, int]:
    """Tokens that a device receives inside its node and between nodes as contexts go everywhere, once to each node."""
    cluster = setting.cluster
    others = cluster.devices_per_node - 1
    return others * cluster.n_nodes * tokens_per_device, (cluster.n_nodes - 1) * tokens_per_device


def context_prices(setting: Setting, exchange: ExchangeSpec, n_parts: int) -> tuple[Duration, ...]:
    """Time of the all-gather of the last step's tokens that begins a step, one for each microbatch.

    Steps are those of a ring inside nodes and of one between them, as for `algorithm: all-gather`.
    """
    cluster, machine = setting.cluster, machine_of(setting, exchange)
    fixed_s = (cluster.devices_per_node - 1) * cluster.intra.ring_step_latency_s
    if cluster.inter is not None:
        fixed_s += (cluster.n_nodes - 1) * cluster.inter.ring_step_latency_s
    shape, found = (setting.batches.n_steps, cluster.n_devices), []
    for part in np.array_split(np.arange(setting.workload.tokens_per_device), n_parts):
        near, far = (tokens * machine.copy_bytes("dispatch") for tokens in context_tokens(setting, len(part)))
        far_s = 0.0 if cluster.inter is None else float(port_s(far, cluster.inter))
        time_s = np.full(shape, fixed_s + max(float(port_s(near, cluster.intra)), far_s))
        found.append(ExchangeTime(send_s=time_s, receive_s=time_s, group_size=cluster.n_devices))
    return tuple(found)


def context_bytes(setting: Setting, schedule: ScheduleSpec) -> tuple[float, float]:
    """Bytes of contexts sent in a step inside nodes and between them; none where tokens go home."""
    if schedule.exchange.algorithm != "coherent":
        return 0.0, 0.0
    size = machine_of(setting, schedule.exchange).copy_bytes("dispatch") * setting.cluster.n_devices
    near, far = context_tokens(setting, setting.workload.tokens_per_device)
    return near * size, far * size
