"""Time of collectives of a library such as NCCL: the fastest of a few protocols, each a latency and a bandwidth."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from hwmodels.fitted import Band, Fitted
from scenarios.errors import HardwareError
from scenarios.sources import Spec

Times = NDArray[np.float64]
CollectiveOp = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]
OPS: tuple[CollectiveOp, ...] = get_args(CollectiveOp)
UNMEASURED_SIZE = Band(
    low=0.7, high=1.4, source="no table has groups of 3, of 5 to 7 or of more than 8 devices; assumed"
)


class CollectiveLaw(Fitted):
    """One operation among `n_devices`: a latency and a share of the link's bandwidth for each protocol.

    Bandwidth counts what every device sends, the bus bandwidth of nccl-tests, so that it is comparable with the link's.
    """

    op: CollectiveOp
    n_devices: int = Field(ge=2)
    latencies_s: tuple[float, ...] = Field(min_length=1, description="fixed time of each protocol")
    bandwidth_fracs: tuple[float, ...] = Field(min_length=1, description="share of the link's bytes_per_s it reaches")

    @model_validator(mode="after")
    def _paired(self) -> CollectiveLaw:
        if len(self.latencies_s) != len(self.bandwidth_fracs):
            raise ValueError(f"{len(self.latencies_s)} latencies_s and {len(self.bandwidth_fracs)} bandwidth_fracs")
        if min(*self.latencies_s, *self.bandwidth_fracs) <= 0:
            raise ValueError("latencies_s and bandwidth_fracs must be positive")
        return self


class CollectiveCard(Spec):
    """Collectives of one library over one kind of link."""

    name: str
    link: str = Field(description="link card that the collectives were measured on")
    library: str = Field(description="nccl, or the engine and mode of a custom all-reduce")
    laws: tuple[CollectiveLaw, ...] = Field(min_length=1)
    note: str | None = None


def sent_bytes(op: CollectiveOp, total_bytes: ArrayLike, n_devices: int) -> Times:
    """Bytes that every device sends in a ring, float64[...]; `total_bytes` as nccl-tests counts them.

    total_bytes is the gathered buffer of an all-gather and the whole input of the others. A device sends
    (n - 1) / n of it, twice that in an all-reduce (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).
    """
    passes = 2 if op == "all-reduce" else 1
    return np.asarray(total_bytes, dtype=np.float64) * (passes * (n_devices - 1)) / n_devices


def protocol_s(sent: ArrayLike, law: CollectiveLaw, link_bytes_per_s: float) -> Times:
    """Time of a collective in which every device sends `sent` bytes: float64[...] [s].

    T = min over protocols of latency_s + sent / (bandwidth_frac * link_bytes_per_s).
    """
    amount = np.asarray(sent, dtype=np.float64)
    times = [
        latency_s + amount / (frac * link_bytes_per_s)
        for latency_s, frac in zip(law.latencies_s, law.bandwidth_fracs, strict=True)
    ]
    fastest: Times = np.minimum.reduce(times)
    return fastest


def collective_s(
    op: CollectiveOp, total_bytes: ArrayLike, n_devices: int, card: CollectiveCard, link_bytes_per_s: float
) -> Times:
    """Time of a collective of `n_devices`: float64[...] [s]; 0 for one device, the latency for no bytes.

    Between two measured group sizes the times of both for the same sent bytes are averaged, weighted by log2 n; above
    the largest its latencies grow as n - 1, the steps of a ring. Raises HardwareError where the card lacks the op.
    """
    if n_devices < 1:
        raise HardwareError(f"a collective of {n_devices} devices is impossible; give 1 or more")
    amount = sent_bytes(op, total_bytes, n_devices)
    if n_devices == 1:
        return np.zeros_like(amount)
    below, above = _neighbours(op, n_devices, card)
    if below is above:
        steps = (n_devices - 1) / (below.n_devices - 1)
        longer = below.model_copy(update={"latencies_s": tuple(steps * latency for latency in below.latencies_s)})
        return protocol_s(amount, longer, link_bytes_per_s)
    weight = float(np.log2(n_devices / below.n_devices) / np.log2(above.n_devices / below.n_devices))
    return (1 - weight) * protocol_s(amount, below, link_bytes_per_s) + weight * protocol_s(
        amount, above, link_bytes_per_s
    )


def collective_band(op: CollectiveOp, n_devices: int, card: CollectiveCard) -> tuple[float, float]:
    """Ends of the 80 % band of measured over predicted time; a wider, assumed one for group sizes without a table."""
    below, above = _neighbours(op, n_devices, card)
    if below is above and below.n_devices == n_devices:
        return below.low_high
    return UNMEASURED_SIZE.low, UNMEASURED_SIZE.high


def point_to_point_s(moved_bytes: ArrayLike, card: CollectiveCard, link_bytes_per_s: float) -> Times:
    """Time in which two devices send each other `moved_bytes`, both at once: float64[...] [s].

    An all-to-all of two, in which each sends half of its buffer; one direction alone is assumed to take as long.
    """
    return collective_s("all-to-all", 2 * np.asarray(moved_bytes, dtype=np.float64), 2, card, link_bytes_per_s)


def _neighbours(op: CollectiveOp, n_devices: int, card: CollectiveCard) -> tuple[CollectiveLaw, CollectiveLaw]:
    """Laws of the largest measured group up to `n_devices` and of the smallest from there on; one twice at the ends."""
    laws = sorted((law for law in card.laws if law.op == op), key=lambda law: law.n_devices)
    if not laws:
        have = ", ".join(sorted({law.op for law in card.laws}))
        raise HardwareError(f"collectives {card.name} have no {op}, only {have}; choose another library")
    below = [law for law in laws if law.n_devices <= n_devices] or laws[:1]
    above = [law for law in laws if law.n_devices >= n_devices] or laws[-1:]
    return below[-1], above[0]
