"""Reads from a solid-state drive: a law of latency, requests in flight, and bandwidth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cards import SsdCard
from scenarios.errors import HardwareError


def read_bytes_per_s(card: SsdCard, queue_depth: int) -> float:
    """Rate of large reads with so many requests in flight [bytes/s].

    min(nominal rate x efficiency, queue depth x request / latency): Little's law bounds what requests in flight bring.
    Raises HardwareError where nothing is in flight.
    """
    if queue_depth < 1:
        raise HardwareError(f"{card.name}: {queue_depth} requests in flight read nothing; give 1 or more")
    in_flight = queue_depth * card.request_bytes.value / card.latency_s.value
    return min(card.bytes_per_s.value * card.efficiency.value, in_flight)


def read_s(n_bytes: ArrayLike, card: SsdCard, queue_depth: int, share: float = 1.0) -> NDArray[np.float64]:
    """Time to read so many bytes in one go, float64[...] [s]: latency + bytes / (share x rate); nothing takes none.

    share  of the rate that the reader has, where several read at a time.
    """
    wanted = np.asarray(n_bytes, np.float64)
    return np.where(wanted > 0, card.latency_s.value + wanted / (share * read_bytes_per_s(card, queue_depth)), 0.0)
