"""Metrics: pure functions of what was reduced, priced and executed. Names and units: docs/reference/nomenclature.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import worked_tokens
from placement.plan import Placement, rank_loads
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim.bands import StepBand
from sim.bound.demand import Visits, demands
from sim.durations import Duration, ExchangeTime, Seconds
from sim.kernel_pricing import machine_of, token_bytes
from sim.log import begins_s, busy_s, covered_s
from sim.memory import DeviceMemory
from sim.program import COMPUTE_LANE, EXCHANGE_LANES, PIM_LANE, Lane, Lanes, OpList
from sim.setting import Setting
from sim.training import BACKWARD, part_of_step
from sim.vector import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An executed batch of steps: float64[step, device] inside; `step_times_s` float64[step], host time left out."""

    op_list: OpList
    durations: Sequence[Duration]
    finished: Finished

    @property
    def step_times_s(self) -> Seconds:
        """Time from the start of each step until its last operation ends on the last device."""
        ends: Seconds = self.finished.end_s.max(axis=(0, -1))
        return ends


def time_metrics(execution: Execution, times_s: Seconds, setting: Setting, overhead_s: float) -> dict[str, float]:
    """Step time, throughput and use of lanes; `times_s` float64[step + 1] are the begins of the steps."""
    step_s = execution.step_times_s + overhead_s
    n_devices = setting.n_devices * setting.n_groups
    n_tokens = setting.cluster.n_devices * setting.n_groups * setting.workload.tokens_per_device
    tokens_per_s = len(step_s) * n_tokens / times_s[-1]
    transfer_s, exposed_s = _communication_s(execution)
    ports_s = _ports_busy_s(execution)
    total_s = execution.step_times_s.mean()
    metrics = {
        "step_time_s": float(step_s.mean()),
        "step_time_s.p50": float(np.quantile(step_s, 0.5)),
        "step_time_s.p99": float(np.quantile(step_s, 0.99)),
        "tokens_per_s": float(tokens_per_s),
        "tokens_per_s_per_device": float(tokens_per_s / n_devices),
        "busy_frac.compute": float(sum(_compute_s(execution).values()) / total_s),
        "busy_frac.send": ports_s["send"] / total_s,
        "busy_frac.receive": ports_s["receive"] / total_s,
        "hidden_comm_frac": _hidden_frac(transfer_s, exposed_s),
    }
    if "send-inside" in ports_s:
        metrics["busy_frac.send-inside"] = ports_s["send-inside"] / total_s
        metrics["busy_frac.receive-inside"] = ports_s["receive-inside"] / total_s
    if any(op.lanes == PIM_LANE for op in execution.op_list.ops):
        metrics["busy_frac.pim"] = float(_total_s(execution, PIM_LANE).mean() / total_s)
    return metrics


def training_metrics(
    execution: Execution, setting: Setting, reduction: Reduction, overhead_s: float
) -> dict[str, float]:
    """Parts of a training step, one after the other, and the use of the devices' peak; none where nothing trains."""
    if not setting.trains:
        return {}
    forward_s, backward_s, sums_s, step_s = (float(ends_s.mean()) for ends_s in ends_of_parts(execution))
    routed = float(reduction.slot_tokens.sum(dtype=np.int64)) / setting.batches.n_steps
    flop = 3 * sum(demand.flop for demand in demands(setting, Visits(routed=routed, active=0.0)))
    peak = setting.layout.n_devices * setting.cluster.device.peak_flop_per_s(setting.model.weight_dtype)
    return {
        "forward_s": forward_s,
        "backward_s": backward_s - forward_s,
        "reduction_s": sums_s - backward_s,
        "update_s": step_s - sums_s,
        "exchange_stretch": _exchange_stretch(execution),
        "mfu": flop / (peak * (step_s + overhead_s)),
    }


def ends_of_parts(execution: Execution) -> list[Seconds]:
    """When the last device has done forward and backward pass, sums of gradients, and the update: float64[step]."""
    ends_s = execution.finished.end_s.max(axis=-1)
    parts = np.array([part_of_step(op.work.kind) for op in execution.op_list.ops])
    return [ends_s[parts <= part].max(axis=0) for part in range(4)]


def _exchange_stretch(execution: Execution) -> float:
    """How many times longer tokens of the backward pass are on their way than if ports were free for them."""
    op_list, end_s = execution.op_list, execution.finished.end_s
    begins = begins_s(op_list, execution.durations, execution.finished)
    asked, own = 0.0, 0.0
    for index, op in enumerate(op_list.ops):
        if op.work.kind in ("dispatch" + BACKWARD, "combine" + BACKWARD):
            ready_s = np.max([end_s[dep] for dep in op.after], axis=0)
            asked += float((end_s[index] - ready_s).mean())
            own += float((end_s[index] - begins[index]).mean())
    return asked / own if own else 1.0


def error_metrics(times: Mapping[str, float], band: StepBand, overhead_s: float) -> dict[str, float]:
    """Ends of the 80 % band of the step time and the throughput, and the larger deviation of the step time."""
    own_s = times["step_time_s"] - overhead_s  # host time is given, not predicted
    low_s, high_s = own_s * band.low + overhead_s, own_s * band.high + overhead_s
    tokens = times["tokens_per_s"] * times["step_time_s"]
    return {
        "step_time_s.low": low_s,
        "step_time_s.high": high_s,
        "tokens_per_s.low": tokens / high_s,
        "tokens_per_s.high": tokens / low_s,
        "model_error": max(1 - low_s / times["step_time_s"], high_s / times["step_time_s"] - 1),
    }


def pipeline_metrics(
    step_times_s: Seconds, bubble_s: Seconds, setting: Setting, n_microbatches: int
) -> dict[str, float]:
    """Step time and throughput of a pipeline, step_times_s float64[step]; bubble_s[step, stage] is what stages wait."""
    n_devices = setting.layout.n_devices * setting.n_groups * setting.n_stages
    n_tokens = n_devices // setting.n_stages * setting.workload.tokens_per_device * n_microbatches
    tokens_per_s = n_tokens / float(step_times_s.mean())
    return {
        "step_time_s": float(step_times_s.mean()),
        "step_time_s.p50": float(np.quantile(step_times_s, 0.5)),
        "step_time_s.p99": float(np.quantile(step_times_s, 0.99)),
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_device": tokens_per_s / n_devices,
        "bubble_frac": float(bubble_s.mean() / step_times_s.mean()),
    }


def _hidden_frac(transfer_s: float, exposed_s: float) -> float:
    """Share of the time covered by exchanges during which the device computes; rounding error counts as none."""
    hidden = 1 - exposed_s / transfer_s if transfer_s > 0 else 0.0
    return hidden if hidden > 1e-12 else 0.0


def breakdown_s(execution: Execution, overhead_s: float) -> dict[str, float]:
    """Mean time of a device per step by cause: computing by kind, own transfers not hidden, PIM, waiting, host."""
    step_s = execution.step_times_s[:, None]
    idle_s = step_s - _total_s(execution, COMPUTE_LANE)
    transfer_s = np.minimum(idle_s, _total_s(execution))
    units_s = np.minimum(idle_s - transfer_s, _total_s(execution, PIM_LANE))
    parts = _compute_s(execution) | {"transfer": float(transfer_s.mean())}
    parts |= {"pim": float(units_s.mean())} if units_s.any() else {}
    parts["waiting"] = float((idle_s - transfer_s - units_s).mean())
    return parts | ({"host": overhead_s} if overhead_s else {})


def load_metrics(setting: Setting, placement: Placement, reduction: Reduction) -> dict[str, float]:
    """Balance of tokens over ranks, on the judged steps and as planned on the fitted part."""
    imbalance = step_imbalance(placement, reduction)
    planned = rank_loads(placement, setting.fit_loads.astype(np.float64))
    metrics = {
        "load_imbalance": float(imbalance.mean()),
        "load_imbalance.worst_layer": float(imbalance.mean(axis=1).max()),
        "load_imbalance.fit": float((planned.max(axis=1) / planned.mean(axis=1)).mean()),
        "active_experts_per_device": float((worked_tokens(placement, reduction) > 0).sum(axis=-1).mean()),
    }
    if reduction.moves is not None:
        fetched, others = reduction.moves.fetched, max(setting.cluster.n_devices - 1, 1)
        metrics["moved_experts_frac"] = float(fetched.mean() * setting.cluster.n_devices / others)
    return metrics


def traffic_metrics(
    setting: Setting, reduction: Reduction, schedule: ScheduleSpec, moved: tuple[float, float] = (0.0, 0.0)
) -> dict[str, float]:
    """Where tokens went, and bytes per step on each kind of link: dispatch, combine, experts and contexts.

    moved: bytes of experts and contexts inside nodes and between them.
    """
    pairs, nodes = reduction.pairs_total.sum(axis=0), _node_visits(setting, reduction)
    n_steps, cluster = setting.batches.n_steps, setting.cluster
    apart = setting.pool is not None
    at_home = 0 if apart else nodes[np.arange(cluster.n_devices), cluster.node_of_device()].sum()
    n_tokens = n_steps * cluster.n_devices * setting.workload.tokens_per_device * len(reduction.pairs_total)
    both_ways = setting.exchange_passes * sum(way_bytes(setting, schedule)) * setting.n_groups / n_steps
    moved = (moved[0] * setting.n_groups, moved[1] * setting.n_groups)
    metrics = {
        "cross_device_frac": float(1 - np.trace(pairs) / pairs.sum()),
        "cross_node_frac": float(1 - at_home / nodes.sum()),
        "devices_per_token": float(pairs.sum() / n_tokens),
        f"bytes.{cluster.intra.kind}": float(_sent_inside(setting, reduction) * both_ways) + moved[0],
        "messages_per_exchange": float(sum(machine_of(setting, schedule.exchange).messages)),
    }
    if (cluster.n_nodes > 1 or apart) and cluster.inter is not None:
        name = f"bytes.{cluster.inter.kind}"  # may be the kind inside nodes, too
        metrics[name] = metrics.get(name, 0.0) + float(reduction.ports.send_inter.sum() * both_ways) + moved[1]
    return metrics


def _sent_inside(setting: Setting, reduction: Reduction) -> int:
    """Copies of tokens that cross links inside nodes on their way to experts, gathering in groups included."""
    return int(reduction.ports.send_intra.sum()) + (setting.layout.tp - 1) * int(reduction.held.sum())


def _node_visits(setting: Setting, reduction: Reduction) -> NDArray[np.int64]:
    """Copies of tokens that go to each node, int64[source, node]: once per node where they are forwarded inside."""
    by_node = reduction.node_pairs_total
    if setting.pool is not None:
        by_node = reduction.pairs_total
    elif not reduction.forwards:
        n_devices, n_nodes = setting.layout.n_devices, setting.layout.n_nodes
        by_node = reduction.pairs_total.reshape(-1, n_devices, n_nodes, n_devices // n_nodes).sum(axis=-1)
    visits: NDArray[np.int64] = by_node.sum(axis=0)
    return visits


def route_metrics(setting: Setting) -> dict[str, float]:
    """What became of the choices of tokens, where the workload changes routes."""
    routes = setting.routes
    if routes is None:
        return {}
    metrics = {"experts_per_token": routes.experts_per_token, "dropped_frac": routes.dropped_frac}
    for number, share in enumerate(routes.octiles, start=1):
        metrics[f"dropped_frac.octile_{number}"] = float(share)
    return metrics


def memory_metrics(memory: DeviceMemory) -> dict[str, float]:
    """Bytes of the fullest device."""
    return {"memory_bytes.peak": float(memory.used_bytes.max()), "memory_bytes.usable": memory.usable_bytes}


def step_imbalance(placement: Placement, reduction: Reduction) -> NDArray[np.float64]:
    """Max over mean tokens of the ranks, float64[layer, step]."""
    by_rank = worked_tokens(placement, reduction).sum(axis=-1)
    steps = by_rank.reshape(len(by_rank), -1, reduction.n_chunks, placement.n_ranks).sum(axis=2)
    imbalance: NDArray[np.float64] = steps.max(axis=-1) / steps.mean(axis=-1)
    return imbalance


def traffic_bytes(setting: Setting, reduction: Reduction, schedule: ScheduleSpec) -> NDArray[np.float64]:
    """Bytes per step from source to destination, float64[source, destination]: dispatch and, transposed, combine."""
    pairs = reduction.pairs_total.sum(axis=0) * (setting.exchange_passes / setting.batches.n_steps)
    np.fill_diagonal(pairs, 0)
    there, back = way_bytes(setting, schedule)
    both_ways: NDArray[np.float64] = pairs * there + pairs.T * back
    return both_ways


def way_bytes(setting: Setting, schedule: ScheduleSpec) -> tuple[float, float]:
    """Bytes of a copy of a token on its way to its expert, and on the way back where it has one."""
    exchange = schedule.exchange
    back = 0.0 if exchange.algorithm == "coherent" else token_bytes(setting, exchange.combine_dtype)
    return token_bytes(setting, exchange.dispatch_dtype), back


def _compute_s(execution: Execution) -> dict[str, float]:
    """Mean computing time per step and device by kind."""
    compute_s: dict[str, float] = {}
    for op, duration in zip(execution.op_list.ops, execution.durations, strict=True):
        if op.lanes == COMPUTE_LANE and not isinstance(duration, ExchangeTime):
            compute_s[op.work.kind] = compute_s.get(op.work.kind, 0.0) + float(duration.mean())
    return compute_s


def _communication_s(execution: Execution) -> tuple[float, float]:
    """Mean per step and device: time covered by exchanges, and idle time of the compute lane."""
    begins = begins_s(execution.op_list, execution.durations, execution.finished)
    exchanges = [index for index, op in enumerate(execution.op_list.ops) if op.is_exchange]
    covered = covered_s([begins[i] for i in exchanges], [execution.finished.end_s[i] for i in exchanges])
    exposed_s = float((execution.step_times_s[:, None] - _total_s(execution, COMPUTE_LANE)).mean())
    return float(covered.mean()), exposed_s


def _total_s(execution: Execution, lanes: Lanes | None = None) -> Seconds:
    """Own work of each device on some lanes, or in all exchanges, float64[step, device]."""
    total: Seconds = np.zeros_like(execution.finished.end_s[0])
    for op, duration in zip(execution.op_list.ops, execution.durations, strict=True):
        if op.is_exchange if lanes is None else op.lanes == lanes:
            total = total + busy_s(duration)
    return total


def lane_busy_s(execution: Execution, lane: Lane) -> float:
    """Own time of a lane without exchanges, mean over steps and devices [s]."""
    pairs = zip(execution.op_list.ops, execution.durations, strict=True)
    return float(sum(np.mean(np.asarray(duration)) for op, duration in pairs if op.lanes == (lane,)))


def _ports_busy_s(execution: Execution) -> dict[Lane, float]:
    """Own time of ports, mean per step and device, by lane of exchanges."""
    busy_s: dict[Lane, float] = dict.fromkeys(EXCHANGE_LANES, 0.0)
    for op, duration in zip(execution.op_list.ops, execution.durations, strict=True):
        if isinstance(duration, ExchangeTime):
            for lane, port_s in zip(op.lanes, (duration.send_s, duration.receive_s), strict=True):
                busy_s[lane] = busy_s.get(lane, 0.0) + float(port_s.mean())
    return busy_s
