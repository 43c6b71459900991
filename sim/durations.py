"""How long the operations of a program take: one entry an operation, arrays over steps and devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTime:
    """Time that an exchange needs at the ports of each device.

    send_s, receive_s  float64[..., device]: time of the send and receive port, fixed latency included (law `port`).
    message_s          float64[..., port, source, destination]: time of each message alone at one kind of port, latency
                       left out; None where the law does not need it. A device has one send and one receive port a kind.
    latency_s          fixed time before the first byte (laws `fifo` and `maxmin`).
    group_size         devices exchange within groups of this many neighbours.
    """

    send_s: Seconds
    receive_s: Seconds
    group_size: int
    message_s: Seconds | None = None
    latency_s: float = 0.0


Duration = Seconds | ExchangeTime
"""A compute operation has float64[..., device]; `...` are the steps of a batch, or nothing."""


def at_steps(duration: Duration, steps: NDArray[np.int64] | int) -> Duration:
    """The duration of some steps (or of one, without the axis of steps)."""
    if not isinstance(duration, ExchangeTime):
        rows: Seconds = duration[steps]
        return rows
    return replace(
        duration,
        send_s=duration.send_s[steps],
        receive_s=duration.receive_s[steps],
        message_s=None if duration.message_s is None else duration.message_s[steps],
    )


def folded(duration: Duration, n_devices: int) -> Duration:
    """The duration of `n_devices` simulated devices, which stand for the fewer devices of a pool in turn."""
    if not isinstance(duration, ExchangeTime):
        return repeated(duration, n_devices)
    send_s, receive_s = repeated(duration.send_s, n_devices), repeated(duration.receive_s, n_devices)
    return replace(duration, send_s=send_s, receive_s=receive_s)


def repeated(values: Seconds, n_devices: int) -> Seconds:
    """Values float64[..., device] over and over, until there are `n_devices`."""
    turns: Seconds = np.take(values, np.arange(n_devices) % values.shape[-1], axis=-1)
    return turns


def scaled(duration: Duration, factor: float) -> Duration:
    """The duration, `factor` times as long."""
    if not isinstance(duration, ExchangeTime):
        return duration * factor
    return replace(
        duration,
        send_s=duration.send_s * factor,
        receive_s=duration.receive_s * factor,
        message_s=None if duration.message_s is None else duration.message_s * factor,
        latency_s=duration.latency_s * factor,
    )
