"""Laws of link sharing: when an exchange ends on every device, given when each device starts it.

Messages are written to the receiver's memory from one side, so they may arrive before it starts the exchange itself.
Under law `port` all devices of a group take part, as in the kernels of NCCL and DeepEP, and nobody ends before the last
one has sent; the laws that tell messages apart let a device end when its own messages are out and in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import HardwareError
from sim.durations import ExchangeTime, Seconds

MAXMIN_DEVICES = 64

Law = Callable[[Seconds, Seconds, ExchangeTime, Seconds, Seconds], None]
"""(start_s, receive_free_s, time, send_end_s, end_s), each float64[..., device]; writes the last two."""


def port(start_s: Seconds, free_s: Seconds, time: ExchangeTime, send_end_s: Seconds, end_s: Seconds) -> None:
    """Each port works through its bytes; a receive port opens with the first sender and closes after the last.

    send_end = start + send; end = max(max(receive_free, min start) + receive, max send_end); min, max over the group.
    """
    np.add(start_s, time.send_s, out=send_end_s)
    if start_s.ndim == 1 and time.group_size == start_s.size:
        first, last = start_s.argmin(), send_end_s.argmax()  # a third of the time of min and max on short arrays
        first_s, last_s = start_s[first : first + 1], send_end_s[last : last + 1]
    else:
        first_s = _over_group(np.minimum, start_s, time.group_size)
        last_s = _over_group(np.maximum, send_end_s, time.group_size)
    np.maximum(free_s, first_s, out=end_s)
    np.add(end_s, time.receive_s, out=end_s)
    np.maximum(end_s, last_s, out=end_s)


def _over_group(extremum: np.ufunc, times_s: Seconds, size: int) -> Seconds:
    """Extremum over each device's group of neighbours, broadcast over its devices."""
    if size == times_s.shape[-1]:
        everyone: Seconds = extremum.reduce(times_s, axis=-1, keepdims=True)
        return everyone
    groups = times_s.reshape(*times_s.shape[:-1], -1, size)
    extremes: Seconds = np.repeat(extremum.reduce(groups, axis=-1), size, axis=-1)
    return extremes


def fifo(start_s: Seconds, free_s: Seconds, time: ExchangeTime, send_end_s: Seconds, end_s: Seconds) -> None:
    """Messages leave in ring order (to the next device first), arrive whole, and queue at the receiver's port.

    The receive port ends at max over its messages j, by arrival, of arrival_j + the time of j and all later ones
    (Lindley's recursion); simultaneous arrivals may be served in any order without changing the end.
    """
    messages = _messages(time)
    n_devices = start_s.shape[-1]
    begin_s = start_s + time.latency_s
    source = np.arange(n_devices)[:, None]
    ring = (source + np.arange(1, n_devices + 1)) % n_devices
    in_turn = np.take_along_axis(messages, np.broadcast_to(ring, messages.shape), axis=-1)
    sent_s = begin_s[..., None, :, None] + np.cumsum(in_turn, axis=-1)
    np.max(sent_s[..., -1], axis=-2, out=send_end_s)
    position = (np.arange(n_devices) - source - 1) % n_devices
    arrival_s = np.take_along_axis(sent_s, np.broadcast_to(position, sent_s.shape), axis=-1)
    arrival_s = np.where(messages > 0, arrival_s, -np.inf)
    order = np.argsort(arrival_s, axis=-2, kind="stable")
    service_s = np.take_along_axis(messages, order, axis=-2)
    left_s = np.cumsum(service_s[..., ::-1, :], axis=-2)[..., ::-1, :]
    done_s = (np.take_along_axis(arrival_s, order, axis=-2) + left_s).max(axis=-2)
    done_s = np.maximum(done_s, free_s[..., None, :] + messages.sum(axis=-2)).max(axis=-2)
    np.maximum(send_end_s, done_s, out=end_s)


def maxmin(start_s: Seconds, free_s: Seconds, time: ExchangeTime, send_end_s: Seconds, end_s: Seconds) -> None:
    """All messages flow at once and share the ports max-min fairly, each from when both its ends are ready."""
    messages = _messages(time)
    n_devices = start_s.shape[-1]
    if n_devices > MAXMIN_DEVICES:
        raise HardwareError(
            f"law maxmin is exact and meant for at most {MAXMIN_DEVICES} devices, not {n_devices}: use port"
        )
    begin_s = start_s + time.latency_s
    open_s = np.maximum(begin_s[..., :, None], free_s[..., None, :])
    send_end_s[...] = begin_s
    np.maximum(begin_s, free_s, out=end_s)
    for step in np.ndindex(*start_s.shape[:-1]):
        for size_s in messages[step]:
            done_s = fluid_ends_s(np.broadcast_to(open_s[step], size_s.shape), size_s)
            send_end_s[step] = np.maximum(send_end_s[step], done_s.max(axis=1))
            end_s[step] = np.maximum(end_s[step], done_s.max(axis=0))
    np.maximum(end_s, send_end_s, out=end_s)


def fluid_ends_s(open_s: Seconds, size_s: Seconds) -> Seconds:
    """End of every flow float64[source, destination]; -inf where there is none. Ports have unit capacity."""
    left_s, done_s = size_s.astype(np.float64), np.full(size_s.shape, -np.inf)
    pending = size_s > 0
    now_s = float(open_s[pending].min()) if pending.any() else 0.0
    while pending.any():
        flowing = pending & (open_s <= now_s)
        rates = fair_rates(flowing)
        arrivals_s = open_s[pending & ~flowing]
        to_arrival_s = float(arrivals_s.min()) - now_s if arrivals_s.size else np.inf
        needed_s = np.where(flowing, left_s / np.where(flowing, rates, 1.0), np.inf)
        step_s = min(float(needed_s.min()), to_arrival_s)
        left_s = left_s - rates * step_s
        now_s = float(arrivals_s.min()) if step_s == to_arrival_s else now_s + step_s
        ended = flowing & ((needed_s <= step_s) | (left_s <= 1e-15 * size_s))
        done_s[ended], pending = now_s, pending & ~ended
    return done_s


def fair_rates(flowing: NDArray[np.bool_]) -> Seconds:
    """Max-min fair rates float64[source, destination]: freeze the flows of the fullest port, share what is left."""
    rates = np.zeros(flowing.shape)
    open_flows = flowing.copy()
    out_left, in_left = np.ones(flowing.shape[0]), np.ones(flowing.shape[1])
    while open_flows.any():
        out_n, in_n = open_flows.sum(axis=1), open_flows.sum(axis=0)
        out_share = np.where(out_n > 0, out_left / np.maximum(out_n, 1), np.inf)
        in_share = np.where(in_n > 0, in_left / np.maximum(in_n, 1), np.inf)
        share = min(out_share.min(), in_share.min())
        full = open_flows & ((out_share <= share)[:, None] | (in_share <= share)[None, :])
        rates[full] = share
        out_left, in_left = out_left - (full * share).sum(axis=1), in_left - (full * share).sum(axis=0)
        open_flows &= ~full
    return rates


def _messages(time: ExchangeTime) -> Seconds:
    if time.message_s is None:
        raise HardwareError("this law of link sharing needs the time of every message; use law port")
    return time.message_s


LAWS: dict[str, Law] = {"port": port, "fifo": fifo, "maxmin": maxmin}
