"""Attention and experts on devices of their own: what ran on which device of the two pools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.durations import Duration, ExchangeTime, Seconds
from sim.metrics import Execution
from sim.program import Lane, Lanes, Op
from sim.setting import Setting
from sim.vector import Finished


def on_devices(execution: Execution, setting: Setting) -> Execution:
    """The execution on the devices as they are: where experts have a pool of their own, on those of both pools."""
    return execution if setting.pool is None else where_it_ran(execution, setting)


def where_it_ran(execution: Execution, setting: Setting) -> Execution:
    """The execution on the devices of both pools, those of attention first: work of the other pool takes no time."""
    sizes = setting.cluster.n_devices, setting.expert_cluster.n_devices
    ops, ends_s = execution.op_list.ops, execution.finished.end_s
    end_s = [_side_by_side(end, end, sizes) for end in ends_s]
    sent_s = [_side_by_side(sent, sent, sizes) for sent in execution.finished.send_end_s]
    for index, op in enumerate(ops):
        if op.is_exchange and not _of_experts(op).any():
            end_s[index][..., sizes[0] :] = 0.0  # exchanges of attention alone cover no time of the experts' devices
    durations = [_placed(op, time, sizes) for op, time in zip(ops, execution.durations, strict=True)]
    op_list = replace(execution.op_list, ops=tuple(replace(op, lanes=_own_lanes(op)) for op in ops))
    return Execution(op_list=op_list, durations=durations, finished=Finished(end_s=np.stack(end_s), send_end_s=sent_s))


def _own_lanes(op: Op) -> Lanes:
    """The lanes of an operation as its device calls them: those of experts are a device's own."""
    own: dict[str, Lane] = {"experts": "compute", "send-experts": "send", "receive-experts": "receive"}
    return tuple(own.get(lane, lane) for lane in op.lanes)


def _of_experts(op: Op) -> NDArray[np.bool_]:
    return np.array([lane.endswith("experts") for lane in op.lanes])


def _placed(op: Op, duration: Duration, sizes: tuple[int, int]) -> Duration:
    """The duration on the devices of both pools: on those whose lane it occupies."""
    of_experts = _of_experts(op)
    if not isinstance(duration, ExchangeTime):
        return _one_side(duration, sizes, of_experts=of_experts[0])
    return replace(
        duration,
        send_s=_one_side(duration.send_s, sizes, of_experts=of_experts[0]),
        receive_s=_one_side(duration.receive_s, sizes, of_experts=of_experts[1]),
    )


def _one_side(values: Seconds, sizes: tuple[int, int], *, of_experts: bool) -> Seconds:
    none = np.zeros_like(values)
    return _side_by_side(none, values, sizes) if of_experts else _side_by_side(values, none, sizes)


def _side_by_side(attention: Seconds, experts: Seconds, sizes: tuple[int, int]) -> Seconds:
    both: Seconds = np.concatenate([attention[..., : sizes[0]], experts[..., : sizes[1]]], axis=-1)
    return both
