"""Durations of dispatch and combine by kernels that were measured: their fitted laws at the ports of every device."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from hwmodels.collectives import collective_band, collective_s
from hwmodels.expert_exchange import DEFAULT_SMS, ExchangeCard, Shipment, exchange_s
from hwmodels.launch import compute_slowdown
from hwmodels.library import links_with
from placement.reduction import Reduction, chunk_of_tokens
from placement.traffic import PortTokens
from scenarios.errors import HardwareError, ScenarioError
from scenarios.models import BYTES_PER_ACTIVATION, DType
from scenarios.specs import ExchangeSpec
from sim.durations import Duration, ExchangeTime, Seconds
from sim.setting import Setting

Tokens = NDArray[np.integer]
Side = Literal["dispatch", "combine"]


def kernel_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> dict[str, list[list[Duration]]]:
    """ "dispatch" and "combine" -> [MoE layer][chunk] -> ExchangeTime over [step, device], by the kernel of `spec`.

    A device's send port is busy for as long as its law says of the copies that it sends, the receive port of those that
    it receives; with uniform routing both are the measured time. Raises HardwareError where the kernel was not measured
    on the cluster's links.
    """
    there, back = reduction.ports, reduction.ports.reversed()
    return {
        "dispatch": _prices(setting, reduction, spec, "dispatch", there),
        "combine": _prices(setting, reduction, spec, "combine", back),
    }


def by_chunk(values: NDArray[np.float64], n_chunks: int) -> NDArray[np.float64]:
    """[layer, step x chunk, ...] as contiguous [layer, chunk, step, ...]."""
    steps = values.reshape(values.shape[0], -1, n_chunks, *values.shape[2:])
    return np.ascontiguousarray(steps.swapaxes(1, 2))


def token_bytes(setting: Setting, dtype: DType | None) -> float:
    """Bytes of one token's hidden state on the wire."""
    return setting.model.hidden_size * BYTES_PER_ACTIVATION[dtype or setting.model.activation_dtype]


def slowdown_beside_exchange(setting: Setting, n_chunks: int, spec: ExchangeSpec) -> float:
    """How many times longer work takes beside tokens on their way: SMs that normal kernels hold (assumed).

    Raises ScenarioError where the kernels would hold every SM.
    """
    if spec.kernel != "deepep-normal":
        return 1.0
    sms, n_sms = spec.sms or DEFAULT_SMS, setting.cluster.device.n_sms
    if sms >= n_sms:
        name = setting.cluster.device.card.name
        raise ScenarioError(f"schedule.exchange: sms {sms} leaves none of the {n_sms} SMs of {name}; give fewer")
    return float(compute_slowdown(sms, n_sms)) if n_chunks > 1 else 1.0


def exchange_band(setting: Setting, spec: ExchangeSpec, side: Side) -> tuple[float, float]:
    """Ends of the 80 % band of measured over predicted time of one side of the exchange."""
    cluster = setting.cluster
    link = cluster.intra if cluster.n_nodes == 1 or cluster.inter is None else cluster.inter
    if spec.kernel == "alpha-beta":
        return link.band.low, link.band.high
    if spec.kernel == "nccl":
        if cluster.collectives is None:
            raise _unmeasured("nccl", link)
        return collective_band("all-to-all", cluster.n_devices, cluster.collectives)
    card = _card(cluster, spec.kernel, link)
    return (card.dispatch if side == "dispatch" else card.combine).low_high


def _prices(
    setting: Setting, reduction: Reduction, spec: ExchangeSpec, side: Side, ports: PortTokens
) -> list[list[Duration]]:
    n_chunks = reduction.n_chunks
    held = _tokens_of_parts(setting, n_chunks, ports.send_intra.shape[1])
    send_s = _side_s(setting, spec, side, held, (ports.send_intra, ports.send_inter))
    receive_s = _side_s(setting, spec, side, held, (ports.receive_intra, ports.receive_inter))
    sending, receiving = by_chunk(send_s, n_chunks), by_chunk(receive_s, n_chunks)
    size = setting.cluster.n_devices
    return [
        [
            ExchangeTime(send_s=sending[layer, chunk], receive_s=receiving[layer, chunk], group_size=size)
            for chunk in range(n_chunks)
        ]
        for layer in range(len(sending))
    ]


def _tokens_of_parts(setting: Setting, n_chunks: int, n_parts: int) -> Tokens:
    """Tokens that a device holds in every part, int64[part, 1]; the chunks of a step differ by one at most."""
    n_tokens = setting.workload.tokens_per_device
    counts = np.bincount(chunk_of_tokens(n_tokens, n_chunks), minlength=n_chunks)
    return np.tile(counts, n_parts // n_chunks)[:, None]


def _side_s(setting: Setting, spec: ExchangeSpec, side: Side, held: Tokens, copies: tuple[Tokens, Tokens]) -> Seconds:
    """Time of one kind of port, float64[layer, part, device]; copies are those inside nodes and those between them.

    Between nodes the law of the network counts, and that of the copies inside nodes where it takes longer.
    """
    cluster, (inside, between) = setting.cluster, copies
    dtype = (spec.dispatch_dtype if side == "dispatch" else spec.combine_dtype) or setting.model.activation_dtype
    if spec.kernel == "nccl":
        return _nccl_s(cluster, inside * token_bytes(setting, dtype))
    load = Shipment(
        tokens=held,
        copies=inside,
        copy_bytes=token_bytes(setting, dtype),
        n_experts=setting.model.n_experts,
        top_k=setting.model.top_k,
        n_devices=cluster.n_devices,
        n_nodes=cluster.n_nodes,
        sms=spec.sms or DEFAULT_SMS,
    )
    low_precision = BYTES_PER_ACTIVATION[dtype] < 2
    if cluster.n_nodes == 1 or cluster.inter is None:
        return _kernel_s(load, _card(cluster, spec.kernel, cluster.intra), cluster.intra, side, low_precision)
    network = _card(cluster, spec.kernel, cluster.inter)
    times_s = _kernel_s(replace(load, copies=between), network, cluster.inter, side, low_precision)
    local = _find(cluster, spec.kernel, cluster.intra)
    if local is None:
        return times_s
    return np.maximum(times_s, _kernel_s(load, local, cluster.intra, side, low_precision))


def _kernel_s(load: Shipment, card: ExchangeCard, link: LinkCard, side: Side, low_precision: bool) -> Seconds:
    """Time of one side of an exchange; a dispatch begins with the exchange of counts, where the kernel has one."""
    bytes_per_s = link.bytes_per_s.value
    if side == "combine":
        special = card.combine_low_precision if low_precision else None
        return exchange_s(load, special or card.combine, bytes_per_s)
    times_s = exchange_s(load, card.dispatch, bytes_per_s)
    if card.prepare is None:
        return times_s
    return times_s + exchange_s(replace(load, copies=0.0), card.prepare, bytes_per_s)


def _nccl_s(cluster: Cluster, sent_bytes: NDArray[np.floating]) -> Seconds:
    """Time of the all-to-all of equal parts in which every device sends (or receives) as much as this one."""
    if cluster.collectives is None:
        raise _unmeasured("nccl", cluster.intra)
    if cluster.n_nodes > 1:
        raise HardwareError("kernel nccl was measured inside a node only; use kernel alpha-beta between nodes")
    n = cluster.n_devices
    total_bytes = sent_bytes * (n / max(n - 1, 1))
    return collective_s("all-to-all", total_bytes, n, cluster.collectives, cluster.intra.bytes_per_s.value)


def _card(cluster: Cluster, kernel: str, link: LinkCard) -> ExchangeCard:
    card = _find(cluster, kernel, link)
    if card is None:
        raise _unmeasured(kernel, link)
    return card


def _find(cluster: Cluster, kernel: str, link: LinkCard) -> ExchangeCard | None:
    return next((card for card in cluster.exchanges if (card.kernel, card.link) == (kernel, link.name)), None)


def _unmeasured(kernel: str, link: LinkCard) -> HardwareError:
    have = ", ".join(links_with(kernel)) or "no link"
    return HardwareError(
        f"schedule.exchange: kernel {kernel} was not measured on link {link.name}, only on {have}; "
        "use kernel alpha-beta"
    )
