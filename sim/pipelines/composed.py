"""A pipeline's result, composed of those of its parts: a microbatch of each part is simulated in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwmodels.links import transfer_s
from scenarios.schedule_specs import ScheduleSpec
from sim.bands import StepBand
from sim.kernel_pricing import token_bytes
from sim.memory import DeviceMemory
from sim.metrics import error_metrics, memory_metrics, pipeline_metrics
from sim.pipelines.pipeline import Pipelined
from sim.pipelines.tasks import PipelineShape
from sim.port_loads import PortLoads
from sim.result import RunResult
from sim.setting import Setting

NOT_SHARED = (
    *("step_time_s", "tokens_per_s", "model_error", "memory_bytes"),
    *("forward_s", "backward_s", "reduction_s", "update_s"),
)
"""Metrics of a part that say nothing of the whole, or that the whole has its own of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The pipeline of a plan, executed, with what its parts gave: one result a part, and the memory of each stage."""

    setting: Setting
    shape: PipelineShape
    schedule: ScheduleSpec
    parts: Sequence[RunResult]
    memory: Sequence[DeviceMemory]
    done: Pipelined


def transfers_s(setting: Setting, shape: PipelineShape) -> list[float]:
    """Time of the tokens of a device between each part of the model and the next [s].

    Device i of a stage sends to device i of the next one, over the network where any such pair is on two nodes.
    """
    ranks, cluster = setting.ranks, setting.cluster
    if ranks is None:
        return [0.0] * (shape.n_parts - 1)
    sent_bytes = setting.workload.tokens_per_device * token_bytes(setting, None)
    device, found = np.arange(ranks.stage_devices), []
    for part in range(shape.n_parts - 1):
        stages = part % shape.n_stages, (part + 1) % shape.n_stages
        here, there = ((device + stage * ranks.stage_devices) // ranks.devices_per_node for stage in stages)
        link = cluster.inter if (here != there).any() and cluster.inter is not None else cluster.intra
        found.append(float(transfer_s(sent_bytes, link)))
    return found


def composed(pipeline: Pipeline, name: str, plan: dict[str, Any]) -> RunResult:
    """The result of the whole pipeline.

    Arrays over layers hold those of all parts; bytes, tokens and imbalances are those of a microbatch on one expert
    group of each stage, and the log is that of the part that takes longest.
    """
    parts, overhead_s = pipeline.parts, pipeline.schedule.step_overhead
    slowest = parts[int(np.argmax([part.metrics["step_time_s"] for part in parts]))]
    step_times_s = pipeline.done.step_times_s + overhead_s
    fullest = max(pipeline.memory, key=lambda memory: float(memory.used_bytes.max()))
    times = pipeline_metrics(step_times_s, pipeline.done.bubble_s, pipeline.setting, pipeline.shape.n_microbatches)
    metrics = {
        **times,
        **error_metrics(times, _band(parts), overhead_s),
        **_of_parts(pipeline),
        **memory_metrics(fullest),
    }
    return replace(
        slowest,
        name=name,
        plan=plan,
        metrics=metrics,
        breakdown_s=_breakdown_s(pipeline),
        step_times_s=step_times_s,
        device_tokens=np.concatenate([part.device_tokens for part in parts]),
        device_experts=np.concatenate([part.device_experts for part in parts]),
        layer_imbalance=np.concatenate([part.layer_imbalance for part in parts]),
        traffic_bytes=np.sum([part.traffic_bytes for part in parts], axis=0),
        port_loads=_all_ports([part.port_loads for part in parts]),
        stages=pipeline.done.bars(int(np.argsort(step_times_s, kind="stable")[len(step_times_s) // 2])),
        notes=(_sentence(pipeline, metrics["bubble_frac"]),),
    )


def _sentence(pipeline: Pipeline, bubble_frac: float) -> str:
    """The pipeline in words: its size, and which part of the model takes longest."""
    shape, times_s = pipeline.shape, [part.metrics["step_time_s"] for part in pipeline.parts]
    return (
        f"Pipeline {pipeline.schedule.pipeline or '1f1b'}: {shape.n_stages} stages, {shape.n_microbatches} "
        f"microbatches, bubbles {bubble_frac:.1%}; part {int(np.argmax(times_s))} of {shape.n_parts} takes longest, "
        f"{max(times_s) / float(np.mean(times_s)):.2f} times the mean."
    )


def _band(parts: Sequence[RunResult]) -> StepBand:
    """80 % band of the step: its parts rest on the same laws, so that all of them move together."""
    own_s = sum(part.metrics["step_time_s"] for part in parts)
    low, high = (sum(part.metrics[f"step_time_s.{end}"] for part in parts) / own_s for end in ("low", "high"))
    return StepBand(low=low, high=high, families={})


def _of_parts(pipeline: Pipeline) -> dict[str, float]:
    """Metrics that parts have, of the whole: bytes of a step, shares of its time, and means over MoE layers."""
    parts, microbatches = pipeline.parts, pipeline.shape.n_microbatches
    times_s = np.array([part.metrics["step_time_s"] for part in parts])
    layers = [len(part.layer_imbalance) for part in parts]
    working = 1 - float(pipeline.done.bubble_s.mean() / pipeline.done.step_times_s.mean())
    pace_s = float((pipeline.done.step_times_s + pipeline.schedule.step_overhead).mean()) * pipeline.shape.n_stages
    found: dict[str, float] = {}
    for name in parts[0].metrics:
        values = np.array([part.metrics.get(name, 0.0) for part in parts])
        if name.startswith("bytes."):
            found[name] = float(values.sum() * microbatches)
        elif name == "mfu":
            found[name] = float((values * times_s).sum() * microbatches / pace_s)
        elif name.startswith("busy_frac."):
            found[name] = float(np.average(values, weights=times_s) * working)
        elif name == "hidden_comm_frac":
            found[name] = float(np.average(values, weights=times_s))
        elif name == "load_imbalance.worst_layer":
            found[name] = float(values.max())
        elif not name.startswith(NOT_SHARED):
            found[name] = float(np.average(values, weights=layers))
    return found


def _breakdown_s(pipeline: Pipeline) -> dict[str, float]:
    """Mean time of a device per step by cause: passes of its parts, the end of the step, the bubble, and the host.

    Passes that hide each other, and the turns in which batches are drawn, shorten all causes alike.
    """
    done, overhead_s = pipeline.done, pipeline.schedule.step_overhead
    causes = dict.fromkeys(cause for part in pipeline.parts for cause in part.breakdown_s)
    summed = {cause: sum(part.breakdown_s.get(cause, 0.0) for part in pipeline.parts) for cause in causes}
    closing_s = float(done.closing_s.mean())
    share = (float(done.busy_s.mean()) - closing_s) / sum(summed.values())
    own = {cause: time_s * share for cause, time_s in summed.items()}
    own |= {"update": closing_s} if "update" in own else {}
    return own | {"bubble": float(done.bubble_s.mean())} | ({"host": overhead_s} if overhead_s else {})


def _all_ports(loads: Sequence[PortLoads]) -> PortLoads:
    return replace(
        loads[0],
        moved_bytes=np.sum([one.moved_bytes for one in loads], axis=0),
        busy_s=np.sum([one.busy_s for one in loads], axis=0),
    )
