"""Time of dispatch and combine kernels at one device, fitted to tables: DeepEP, and MoE all-to-all over NVL72.

All laws are written in what a device sends (or receives): its tokens, the copies that leave it for other devices, and
the bytes of a copy. With uniform routing they are the laws that the tables were fitted with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwmodels.blends import norm2, norm4, slow_start_s
from hwmodels.fitted import Fitted
from scenarios.schedule_specs import FittedKernelName
from scenarios.sources import Spec

Times = NDArray[np.float64]
Amount = float | NDArray[Any]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
DEFAULT_SMS = 20  # what DeepEP's normal kernels take unless told otherwise (deep_ep/buffer.py, Buffer.num_sms)
GROUPS = 132  # DeepEP's low-latency kernels give an expert one SM of a Hopper GPU, or fewer where experts outnumber SMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """What one device exchanges with the others of its group.

    tokens   float64[...]: tokens that it holds.
    copies   float64[...]: copies of tokens between it and other devices, in the direction that is timed.
    sms      streaming multiprocessors that the kernel may take; only normal kernels ask.
    All fields broadcast against each other.
    """

    tokens: Amount
    copies: Amount
    copy_bytes: Amount
    n_experts: Amount
    top_k: Amount
    n_devices: Amount
    n_nodes: Amount = 1
    sms: Amount = DEFAULT_SMS


class LowLatencyLaw(Fitted):
    """Constants of `low_latency_s`; a term that a table does not show is zero."""

    law: Literal["low-latency"]
    latency_s: Positive
    expert_latency_s: NonNegative = Field(default=0.0, description="per expert of the layer")
    choice_latency_s: NonNegative = Field(default=0.0, description="per expert that a token visits")
    byte_latency_s: NonNegative = Field(default=0.0, description="per byte of a copy")
    doubling_latency_s: NonNegative = Field(default=0.0, description="per doubling of the nodes beyond two")
    start_s: NonNegative = Field(description="fixed time that hides behind the copies")
    copy_s: NonNegative = Field(default=0.0, description="per copy")
    token_byte_s: NonNegative = Field(default=0.0, description="per byte of a token, however many copies")
    sm_byte_s: NonNegative = Field(default=0.0, description="per byte of a token and SM that prepares it")
    bandwidth_frac: Positive = Field(description="share of the link's bytes_per_s")


class NormalLaw(Fitted):
    """Constants of `normal_s`; a term that a table does not show is zero."""

    law: Literal["normal"]
    latency_s: Positive
    byte_latency_s: NonNegative = Field(default=0.0, description="per byte of a copy")
    start_s: NonNegative = Field(description="fixed time that hides behind the copies")
    token_sm_s: NonNegative = Field(default=0.0, description="per token, one SM")
    copy_sm_s: NonNegative = Field(default=0.0, description="per copy, one SM")
    sm_bytes_per_s: Positive = Field(description="copies' bytes that one SM moves")
    bandwidth_frac: Positive = Field(description="share of the link's bytes_per_s")
    token_sm_byte_s: NonNegative = Field(default=0.0, description="per byte of a token, one SM")
    token_byte_s: NonNegative = Field(default=0.0, description="per byte of a token, all SMs together")
    warm_up_s: NonNegative = 0.0
    warm_up_gain: NonNegative = 0.0


class RackLaw(Fitted):
    """Constants of `rack_s`; a term that a table does not show is zero."""

    law: Literal["rack"]
    latency_s: Positive = Field(description="of two devices")
    doubling_latency_s: NonNegative = Field(default=0.0, description="per doubling of the devices")
    start_s: NonNegative = Field(description="fixed time that hides behind the copies")
    token_s: NonNegative = Field(default=0.0, description="per token, beside its copies")
    token_byte_s: NonNegative = Field(default=0.0, description="per byte of a token, beside its copies")
    wire_token_s: NonNegative = Field(default=0.0, description="per token, in turn with its copies")
    bandwidth_frac: Positive = Field(
        default=1.0, description="share of the link's bytes_per_s; a prepare copies nothing"
    )


ExchangeLaw = Annotated[LowLatencyLaw | NormalLaw | RackLaw, Field(discriminator="law")]


class ExchangeCard(Spec):
    """Dispatch and combine of one kernel over one kind of link: the network where they span nodes."""

    name: str
    link: str = Field(description="link card that the kernel was measured on")
    kernel: FittedKernelName
    dispatch: ExchangeLaw
    combine: ExchangeLaw
    prepare: RackLaw | None = Field(default=None, description="exchange of counts before the dispatch")
    combine_low_precision: RackLaw | None = Field(default=None, description="combine in less than 16 bits a value")
    note: str | None = None


def low_latency_s(load: Shipment, law: LowLatencyLaw, link_bytes_per_s: float) -> Times:
    """Time of DeepEP's low-latency kernels, send and receive together: float64[...] [s].

    T = latency + |start_s, max(copies (copy_s + bytes / BW) + H token_byte_s, H sm_byte_s / SMs)|_2, H = tokens bytes,
    latency = latency_s + expert_latency_s E + choice_latency_s k + byte_latency_s bytes
              + doubling_latency_s log2(nodes / 2),
    SMs = E / ceil(E / 132): experts share the SMs of a Hopper GPU evenly.
    """
    tokens, copies = load.tokens, load.copies
    size, n_experts = load.copy_bytes, load.n_experts
    latency_s = (
        law.latency_s
        + law.expert_latency_s * n_experts
        + law.choice_latency_s * load.top_k
        + law.byte_latency_s * size
        + law.doubling_latency_s * np.log2(np.maximum(load.n_nodes, 2) / 2)
    )
    sms = n_experts / -(-n_experts // GROUPS)
    moved_s = copies * (law.copy_s + size / (law.bandwidth_frac * link_bytes_per_s)) + tokens * size * law.token_byte_s
    return latency_s + norm2(law.start_s, np.maximum(moved_s, tokens * size * (law.sm_byte_s / sms)))


def normal_s(load: Shipment, law: NormalLaw, link_bytes_per_s: float) -> Times:
    """Time of DeepEP's normal kernels on `sms` SMs: float64[...] [s].

    T = latency_s + byte_latency_s bytes + |start_s, slow start of t|_2
    t = (tokens token_sm_s + copies copy_sm_s) / sms
        + |B / (sm_bytes_per_s sms), B / BW, H token_sm_byte_s / sms, H token_byte_s|_4
    B = copies bytes, H = tokens bytes; a combine reads and writes a token once beside its copies.
    """
    tokens, copies = load.tokens, load.copies
    size, sms = load.copy_bytes, load.sms
    moved, held = copies * size, tokens * size
    work_s = (tokens * law.token_sm_s + copies * law.copy_sm_s) / sms + norm4(
        moved / (law.sm_bytes_per_s * sms),
        moved / (law.bandwidth_frac * link_bytes_per_s),
        held * (law.token_sm_byte_s / sms),
        held * law.token_byte_s,
    )
    busy_s = slow_start_s(work_s, law.warm_up_s, law.warm_up_gain)
    return law.latency_s + law.byte_latency_s * size + norm2(law.start_s, busy_s)


def rack_s(load: Shipment, law: RackLaw, link_bytes_per_s: float) -> Times:
    """Time of TensorRT-LLM's MoE all-to-all among the GPUs of an NVL72: float64[...] [s].

    T = latency_s + doubling_latency_s (log2 n - 1) + |start_s, |own, wire|_4|_2
    own = tokens (token_s + token_byte_s bytes), wire = tokens wire_token_s + copies bytes / BW.
    """
    tokens, copies = load.tokens, load.copies
    own_s = tokens * (law.token_s + law.token_byte_s * load.copy_bytes)
    wire_s = tokens * law.wire_token_s + copies * load.copy_bytes / (law.bandwidth_frac * link_bytes_per_s)
    latency_s = law.latency_s + law.doubling_latency_s * (np.log2(np.maximum(load.n_devices, 2)) - 1)
    return latency_s + norm2(law.start_s, norm4(own_s, wire_s))


def exchange_s(load: Shipment, law: LowLatencyLaw | NormalLaw | RackLaw, link_bytes_per_s: float) -> Times:
    """Time that a device needs for its side of the exchange: float64[...] [s]."""
    formula: Callable[..., Times] = _FORMULAS[law.law]
    return formula(load, law, link_bytes_per_s)


_FORMULAS: dict[str, Callable[..., Times]] = {"low-latency": low_latency_s, "normal": normal_s, "rack": rack_s}
