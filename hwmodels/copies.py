"""Time of copies between a device and its host, block by block, by a copy engine or by a kernel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from hwmodels.fitted import Fitted
from scenarios.errors import HardwareError
from scenarios.sources import Sourced, Spec

Times = NDArray[np.float64]
Direction = Literal["to-device", "to-host"]
CopyMethod = Literal["copy-engine", "copy-kernel"]


class CopyLaw(Fitted):
    """Constants of one direction, method and kind of host memory."""

    direction: Direction
    method: CopyMethod
    host_memory: Literal["pinned", "pageable"] = "pinned"
    block_latency_s: float = Field(gt=0, description="beside the bytes of a block")
    least_block_s: float = Field(default=0.0, ge=0, description="a block takes no less")
    bandwidth_frac: float = Field(gt=0, description="share of the link's bytes_per_s")


class CopyCard(Spec):
    """Host copies over one kind of link."""

    name: str
    link: str
    laws: tuple[CopyLaw, ...] = Field(min_length=1)
    both_ways_frac: Sourced[float] = Field(description="speed of each direction while the other one is busy too")
    note: str | None = None


def block_s(block_bytes: ArrayLike, law: CopyLaw, link_bytes_per_s: float) -> Times:
    """Time of one of many blocks copied in a row: float64[...] [s].

    T = max(least_block_s, block_latency_s + bytes / (bandwidth_frac * link_bytes_per_s)).
    """
    moving_s = np.asarray(block_bytes, dtype=np.float64) / (law.bandwidth_frac * link_bytes_per_s)
    return np.maximum(law.least_block_s, law.block_latency_s + moving_s)


def host_copy_s(n_blocks: ArrayLike, block_bytes: ArrayLike, law: CopyLaw, link_bytes_per_s: float) -> Times:
    """Time of `n_blocks` blocks, scattered in memory: float64[...] [s]; none takes no time."""
    return np.asarray(n_blocks, dtype=np.float64) * block_s(block_bytes, law, link_bytes_per_s)


def both_ways_s(to_device_s: ArrayLike, to_host_s: ArrayLike, both_ways_frac: float) -> Times:
    """Time until copies in both directions, begun together, are done: float64[...] [s].

    T = max + min (1 / both_ways_frac - 1): the shorter one slows both while it lasts.
    """
    up, down = np.asarray(to_device_s, dtype=np.float64), np.asarray(to_host_s, dtype=np.float64)
    return np.maximum(up, down) + np.minimum(up, down) * (1 / both_ways_frac - 1)


def find_copy_law(card: CopyCard, direction: Direction, method: CopyMethod, host_memory: str = "pinned") -> CopyLaw:
    """The law of this kind of copy. Raises HardwareError where the card has none."""
    for law in card.laws:
        if (law.direction, law.method, law.host_memory) == (direction, method, host_memory):
            return law
    have = ", ".join(f"{law.direction} {law.method} {law.host_memory}" for law in card.laws)
    raise HardwareError(f"copies {card.name} have no {direction} {method} {host_memory}; they have {have}")
