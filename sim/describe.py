"""Words for results: names of plans, what they consist of, where the inputs come from."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import numpy as np
import simpy

from placement.plan import Placement
from scenarios.budget_specs import BitsSpec
from scenarios.cluster_specs import ParallelSpec
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import GradientsSpec, ScheduleSpec
from scenarios.serving_specs import ServingSpec
from scenarios.specs import CompareSpec, MemorySpec, ScenarioSpec
from scenarios.training_specs import TrainingSpec
from scenarios.workload_specs import WorkloadSpec
from sim.session import Plan, Session
from sim.setting import Setting


def table_title(workload: WorkloadSpec, spec: ScenarioSpec) -> str:
    """Title of a workload's table; says which routing where the scenario has several."""
    title = f"{workload.phase}, {workload.tokens_per_device} tokens per device"
    if spec.serving is not None or (spec.compare is not None and spec.compare.serving):
        title = "requests under load"
    others = spec.compare.workload if spec.compare is not None else ()
    if len({(other.trace, other.synthetic) for other in others}) > 1:
        title += f", {workload.trace or 'synthetic'}"
    if len({str(other.batches) for other in others}) > 1:
        title += f", batches: {workload.batches.by}"
    if len({str(other.routing) for other in others}) > 1:
        title += f", routes: {changed_routes(workload) or 'as they are'}"
    return title


def changed_routes(workload: WorkloadSpec) -> str:
    """How the workload changes the routes of its trace, in words; empty where it does not."""
    changes = workload.routing.model_dump(exclude_defaults=True)
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def notes(setting: Setting) -> tuple[str, ...]:
    """What a reader must know of the routing and the steps behind a table."""
    origin, batches = setting.trace.provenance, setting.batches
    sentences = [
        f"Trace: {origin.model}, {origin.kind}, {setting.trace.n_tokens:,} tokens in {setting.trace.n_sequences:,} "
        f"sequences; {origin.source}.",
        f"Plans fitted on {setting.fit_sequences} sequences and judged on {setting.judged_sequences} others "
        f"({batches.n_steps} steps, {batches.passes:.2f} passes)."
        if setting.fit_sequences
        else "Plans were fitted on the very sequences that judge them: the split leaves nothing to fit on.",
        f"Batches: {batches.discipline}.",
    ]
    if setting.workload.routing.changes:
        sentences.append(f"Routes were changed: {changed_routes(setting.workload)}.")
    if origin.kind != "synthetic" and setting.trace.phase not in (setting.workload.phase, "mixed"):
        sentences.append(
            f"The trace was recorded in {setting.trace.phase}; {setting.workload.phase} replays the same routes."
        )
    if origin.kind == "synthetic":
        sentences.insert(0, "The routing is synthetic: rankings hold for its statistics, not for a captured model.")
    return (*sentences, *_slow_start(setting))


SLOW_START_S = 20e-6
"""A fixed time of dense products beyond which a reader is told: launches take 2 to 10 us."""


def _slow_start(setting: Setting) -> tuple[str, ...]:
    """A word of warning where the fixed time of products decides a step with few tokens."""
    kernels, dtype = setting.cluster.device.kernels, setting.model.weight_dtype
    fixed_s = kernels.gemm(dtype).fixed_s
    if fixed_s < SLOW_START_S:
        return ()
    return (
        f"Dense products in {dtype} take {fixed_s * 1e6:.0f} µs at least, as the engine of {kernels.cards[0].name} was "
        "measured; cards of other engines: cluster.kernels (`moesim list hardware`).",
    )


def plan_name(spec: ScenarioSpec, plan: Plan, placement: Placement) -> str:
    """The parts of a plan that vary in this scenario, as a row's name."""
    axes = spec.compare or CompareSpec()
    parts = [placement.name] if axes.placement or not _varies(axes) else []
    if len(axes.schedule) > 1:
        parts.append(schedule_name(plan.schedule))
    if len(axes.parallel) > 1:
        parts.append(_parallel_name(plan.parallel))
    if len(axes.memory) > 1:
        parts.append(memory_name(plan.memory))
    if len(axes.bits) > 1 and plan.bits is not None:
        parts.append(bits_name(plan.bits))
    if len(axes.serving) > 1 and plan.serving is not None:
        parts.append(serving_name(plan.serving))
    if len(axes.training) > 1:
        parts.append(training_name(plan.training))
    if len(axes.cluster) > 1:
        parts.append(f"{plan.cluster.nodes} x {plan.cluster.node}")
    return ", ".join(parts)


def _varies(axes: CompareSpec) -> bool:
    varied = (axes.schedule, axes.parallel, axes.memory, axes.serving, axes.training, axes.cluster, axes.bits)
    return max(map(len, varied)) > 1


def schedule_name(schedule: ScheduleSpec) -> str:
    """The name that the scenario gives a schedule, or one made of its options."""
    if schedule.name is not None:
        return schedule.name
    if schedule.search:
        return f"best of {len(schedule.search)}"
    name = "sequential" if schedule.overlap == "none" else f"{schedule.overlap} x{schedule.n_chunks}"
    if schedule.microbatch is not None:
        name = f"{schedule.overlap} {schedule.chunks} x {schedule.microbatch}"
    law, kernel = schedule.exchange.law, schedule.exchange.kernel
    usual = ("port" if schedule.overlap != "persistent" else "fifo", "alpha-beta")
    special: list[str] = [word for word in (law, kernel) if word not in usual]
    if schedule.overlap == "tiles" and schedule.sms != "auto":
        special.append(f"{schedule.sms} SMs")
    special += [f"compressed to {schedule.payload.rate:g}"] if schedule.payload is not None else []
    special += [schedule.encode] if schedule.encode != "index" else []
    special += [schedule.move.kind] if schedule.move is not None else []
    special += [f"PIM {schedule.pim}"] if schedule.pim != "none" else []
    special += ["peers"] if schedule.chunks_by == "peers" else []
    special += [_gradients_name(schedule.gradients)] if schedule.gradients != GradientsSpec() else []
    special += [schedule.pipeline] if schedule.pipeline is not None else []
    return f"{name} ({', '.join(special)})" if special else name


def _gradients_name(gradients: GradientsSpec) -> str:
    cut = "" if gradients.partition is None else f" in {gradients.partition / 1e6:g} MB"
    return f"gradients {gradients.order}{cut}"


def memory_name(memory: MemorySpec) -> str:
    """The name that the scenario gives a memory section, or one made of how its experts are offloaded."""
    spec = memory.offload
    if memory.name is None and memory.stream is not None:
        return f"{memory.stream.weights} streamed, {memory.stream.held:.0%} held"
    if memory.name is not None or spec is None:
        return memory.name or "all on the device"
    held = f"{spec.slots}" if spec.slots is not None else f"{spec.share:.0%}"
    return f"{held} {way_name(spec)}"


def way_name(spec: OffloadSpec) -> str:
    """How misses are served and who keeps a slot, without the number of slots."""
    parts = [spec.evict if spec.miss == "load" else f"{spec.evict}, {spec.miss}"]
    parts += ["one pool"] if spec.pool == "model" else []
    parts += [f"defer {spec.defer:.0%}"] if spec.defer else []
    if spec.prefetch is not None:
        options: list[object] = [spec.prefetch.width, spec.prefetch.recall and f"{spec.prefetch.recall:.0%}"]
        options += ["cancelled"] if spec.prefetch.cancel else []
        parts.append(" ".join(["prefetch", spec.prefetch.by, *(str(option) for option in options if option)]))
    parts += [spec.priority] if spec.priority != "fifo" else []
    parts += [f"packets of {spec.packet / 2**20:g} MiB"] if spec.packet is not None else []
    parts += [spec.replay] if spec.replay != "event-atomic" else []
    if spec.ssd is not None:
        held = "" if spec.host_memory is None else f" under {spec.host_memory / 2**30:g} GiB"
        parts.append(f"{spec.ssd}{held} {spec.host_evict}")
    return ", ".join(parts)


def bits_name(bits: BitsSpec) -> str:
    """The name that the scenario gives a table of bits, or what it says of them."""
    if bits.name is not None:
        return bits.name
    if bits.mean_bits is not None or bits.uniform is not None:
        return f"mean of {bits.mean_bits:g} bits" if bits.mean_bits is not None else f"{bits.uniform:g} bits"
    return f"bits of {bits.file}" if bits.file is not None else "bits of a table"


def serving_name(serving: ServingSpec) -> str:
    """The name that the scenario gives a load, or that of its requests."""
    requests = serving.requests
    if requests.file is None:
        return serving.name or ", ".join(f"{rate.requests_per_s:g}/s" for rate in requests.all_rates)
    return serving.name or (requests.file if requests.speed == 1 else f"{requests.file} x{requests.speed:g}")


def training_name(training: TrainingSpec) -> str:
    """The name that the scenario gives a way of training, or one of what it keeps and divides."""
    kept = {"none": "keeps all", "selective": "selective recompute", "full": "full recompute"}
    parts = [kept[training.recompute], f"ZeRO-{training.zero}"]
    parts += [f"{training.replicas} replicas"] if training.replicas > 1 else []
    return training.name or ", ".join(parts)


def _parallel_name(parallel: ParallelSpec) -> str:
    attention, experts = parallel.attention, parallel.experts
    words: list[str] = []
    if attention is not None:
        words += [f"DP{attention.dp} TP{attention.tp}", *([f"CP{attention.cp}"] if attention.cp > 1 else [])]
    if experts is not None:
        words += [f"EP{experts.ep} ETP{experts.tp}", *([f"EDP{experts.edp}"] if experts.edp > 1 else [])]
        words += [] if experts.folded else ["unfolded"]
    stages = max((side.pp for side in (attention, experts) if side is not None), default=1)
    return " ".join([*words, *([f"PP{stages}"] if stages > 1 else [])]) or "default layout"


def described(plan: Plan, placement: Placement) -> dict[str, Any]:
    """What a plan consists of, for the result file."""
    sections = {
        name: getattr(plan, name).model_dump(exclude_none=True, exclude={"search"})
        for name in ("cluster", "parallel", "placement", "schedule", "memory")
    }
    if plan.bits is not None:
        sections["bits"] = plan.bits.model_dump(exclude_none=True)
    if plan.training != TrainingSpec():
        sections["training"] = plan.training.model_dump(exclude_none=True)
    return sections | {"slots_per_layer": placement.n_slots, "wasted_slots": int(placement.duplicate_slots().sum())}


def provenance(spec: ScenarioSpec, session: Session, version: str) -> dict[str, Any]:
    """Versions, seed and digests of all inputs."""
    return {
        "moesim": version,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "simpy": simpy.__version__,
        "seed": spec.seed,
        "scenario": hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16],
        "traces": [{"source": trace.provenance.source, "layer_0": digest} for trace, digest in session.traces()],
    }
