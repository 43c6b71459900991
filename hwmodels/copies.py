"""Time of copies between a device and its host, block by block, by a copy engine or by a kernel."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from hwmodels.fitted import Fitted
from scenarios.errors import HardwareError
from scenarios.sources import Spec

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
    """Host copies over one kind of link. Both directions at once are assumed not to slow each other."""

    name: str
    link: str
    laws: tuple[CopyLaw, ...] = Field(min_length=1)
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


def find_copy_law(
    card: CopyCard, direction: Direction, method: CopyMethod, host_memory: str = "pinned"
) -> CopyLaw:
    """The law of this kind of copy. Raises HardwareError where the card has none."""
    for law in card.laws:
        if (law.direction, law.method, law.host_memory) == (direction, method, host_memory):
            return law
    have = ", ".join(f"{law.direction} {law.method} {law.host_memory}" for law in card.laws)
    raise HardwareError(f"copies {card.name} have no {direction} {method} {host_memory}; they have {have}")
