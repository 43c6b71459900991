"""What prices of exchanges share: machine, chunks, error bands, and the SMs that fitted kernels hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.collectives import collective_band
from hwmodels.expert_exchange import DEFAULT_SMS
from hwmodels.launch import compute_slowdown
from placement import exchange_time
from placement.exchange_time import Machine, Side, measured_card, unmeasured
from placement.reduction import chunk_of_tokens
from scenarios.errors import ScenarioError
from scenarios.models import DType
from scenarios.schedule_specs import ExchangeSpec
from sim.setting import Setting


def machine_of(setting: Setting, spec: ExchangeSpec) -> Machine:
    """The setting's machine with the exchange of a schedule."""
    return Machine(model=setting.model, cluster=setting.expert_cluster, layout=setting.layout, exchange=spec)


def tokens_of_parts(setting: Setting, n_chunks: int, n_parts: int) -> NDArray[np.integer]:
    """Tokens that a device holds in every part, int64[part, 1 or device]; the chunks of a step differ by one at most.

    Where steps are ragged devices hold different numbers.
    """
    batches, n_tokens = setting.batches, setting.workload.tokens_per_device
    chunk = chunk_of_tokens(n_tokens, n_chunks)
    if batches.ragged:
        there = (batches.tokens >= 0) @ (chunk[:, None] == np.arange(n_chunks)).astype(np.int64)
        return np.reshape(there.swapaxes(1, 2), (n_parts, -1))
    counts = np.bincount(chunk, minlength=n_chunks)
    return np.tile(counts, n_parts // n_chunks)[:, None]


def by_chunk(values: NDArray[np.float64], n_chunks: int) -> NDArray[np.float64]:
    """[layer, step x chunk, ...] as contiguous [layer, chunk, step, ...]."""
    steps = values.reshape(values.shape[0], -1, n_chunks, *values.shape[2:])
    return np.ascontiguousarray(steps.swapaxes(1, 2))


def token_bytes(setting: Setting, dtype: DType | None) -> float:
    """Bytes of one token's hidden state on the wire."""
    return exchange_time.token_bytes(setting.model, dtype)


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
    inside = setting.pool is None and cluster.n_nodes == 1
    link = cluster.intra if inside or cluster.inter is None else cluster.inter
    if spec.kernel == "alpha-beta":
        return link.band.low, link.band.high
    if spec.kernel == "nccl":
        if cluster.collectives is None:
            raise unmeasured("nccl", link)
        return collective_band("all-to-all", cluster.n_devices, cluster.collectives)
    card = measured_card(cluster, spec.kernel, link)
    return (card.dispatch if side == "dispatch" else card.combine).low_high
