"""What every device must hold, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from placement.reduction import Moves
from scenarios.errors import MemoryInfeasible
from scenarios.models import BYTES_PER_VALUE, GroupedQueryAttention, ModelCard
from scenarios.specs import MemorySpec
from scenarios.workload_specs import tokens_by_phase
from sim.offload.slots import low_slots_of, lowered, slots_of
from sim.pipelines.tasks import Order
from sim.setting import Setting
from sim.training_memory import TrainingMemory, divided_weights, in_flight, training_memory

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on each device, float64[device]; `usable_bytes` is the capacity less the reserve.

    pool  name of the machine of the experts, where they have devices of their own and these are its bytes.
    slotted  whether experts already share slots, and live in the host's memory.
    working_bytes  activations, where they are more than the reserve is for: whole prompts of many requests at once.
    """

    expert_bytes: NDArray[np.float64]
    other_weight_bytes: float
    kv_bytes: float
    usable_bytes: float
    capacity_bytes: float
    requests: int
    context_tokens: int
    working_bytes: float = 0.0
    training: TrainingMemory | None = None
    pool: str = ""
    slotted: bool = False

    @property
    def used_bytes(self) -> NDArray[np.float64]:
        """Weights, KV cache and activations of each device; in training gradients and states, too."""
        used = self.expert_bytes + self.other_weight_bytes + self.kv_bytes + self.working_bytes
        return used if self.training is None else used + self.training.total_bytes


def device_memory(setting: Setting, placement: Placement, spec: MemorySpec) -> DeviceMemory:
    """Memory of every device under `placement`; attention, dense and shared weights are replicated over `dp`."""
    model, layout = setting.model, setting.layout
    expert_bytes = np.repeat(_resident_bytes(setting, placement, spec) / layout.tp, layout.tp)
    if spec.offload is not None and spec.offload.grades is not None:
        low_bytes = lowered(model, spec.offload.grades).expert_bytes / layout.tp
        expert_bytes = (
            expert_bytes + np.repeat(low_slots_of(placement, spec.offload).sum(axis=0), layout.tp) * low_bytes
        )
    other_bytes = _other_weight_bytes(setting)
    if setting.trains:
        kept = divided_weights(setting, placement)
        expert_bytes, other_bytes = expert_bytes * kept.experts, other_bytes * float(kept.others[0])
    requests, context = _requests(setting, spec)
    capacity = setting.cluster.device.card.memory_bytes.value
    return DeviceMemory(
        expert_bytes=expert_bytes,
        other_weight_bytes=other_bytes,
        kv_bytes=requests * setting.attention_tp * kv_bytes_per_request(model, context, setting.attention_tp),
        usable_bytes=capacity * (1 - spec.reserve),
        capacity_bytes=capacity,
        requests=requests,
        context_tokens=context,
        training=training_memory(setting, placement) if setting.trains else None,
        slotted=spec.offload is not None,
    )


def _resident_bytes(setting: Setting, placement: Placement, spec: MemorySpec) -> NDArray[np.float64]:
    """Bytes of the experts that each rank holds of all layers, float64[rank]; with offload its slots, and room for one
    on its way past them, each as large as the widest expert of its layer.

    Numbers that a smaller layer of a pyramid lacks take no slot.
    """
    sizes, model = setting.expert_bytes, setting.model
    if spec.offload is not None:
        widest, passing = sizes.max(axis=1, keepdims=True), 0 if spec.offload.miss == "host" else 1
        widest = widest.max(axis=0, keepdims=True) if spec.offload.pool == "model" else widest
        slots: NDArray[np.float64] = (slots_of(placement, spec.offload) * widest).sum(axis=0)
        return slots + passing * float(widest.max())
    every = model.n_experts // np.array(model.expert_counts)
    there = placement.filled & (placement.expert_of_slot % every[:, None] == 0)
    of_slot = np.take_along_axis(sizes, np.maximum(placement.expert_of_slot.astype(np.intp), 0), axis=1)
    return np.bincount(placement.rank_of_slot[there], of_slot[there], placement.n_ranks).astype(np.float64)


def pool_memories(memory: DeviceMemory, setting: Setting, spec: MemorySpec) -> tuple[DeviceMemory, ...]:
    """The memory of the devices of each pool where experts have their own; else of all devices."""
    if setting.pool is None:
        return (memory,)
    capacity = setting.pool.device.card.memory_bytes.value
    experts = replace(
        memory,
        other_weight_bytes=0.0,
        kv_bytes=0.0,
        usable_bytes=capacity * (1 - spec.reserve),
        capacity_bytes=capacity,
        pool=setting.pool.name,
    )
    return replace(memory, expert_bytes=np.zeros(setting.cluster.n_devices)), experts


def fullest(memories: Sequence[DeviceMemory]) -> DeviceMemory:
    """The memory of the pool whose fullest device has the least room for its size."""
    return max(memories, key=lambda memory: float(memory.used_bytes.max()) / memory.usable_bytes)


def with_all_contexts(memory: DeviceMemory, n_devices: int) -> DeviceMemory:
    """Memory with the KV cache of the requests of all devices on each of them."""
    return replace(memory, kv_bytes=memory.kv_bytes * n_devices, requests=memory.requests * n_devices)


def with_copies(memory: DeviceMemory, moves: Moves, model: ModelCard, *, buffers: int) -> DeviceMemory:
    """Memory with the copies of experts that a device fetches for a layer, in so many buffers of the fullest layer."""
    copies = moves.fetched.sum(axis=-1).max(axis=(0, 1))
    return replace(memory, expert_bytes=memory.expert_bytes + buffers * copies * model.expert_bytes)


def stage_memory(parts: Mapping[int, DeviceMemory], order: Order) -> DeviceMemory:
    """Memory of the devices of a pipeline stage, which hold several parts of the model and work in this order."""
    whole = replace(
        next(iter(parts.values())),
        expert_bytes=np.sum([part.expert_bytes for part in parts.values()], axis=0),
        other_weight_bytes=sum(part.other_weight_bytes for part in parts.values()),
        kv_bytes=sum(part.kv_bytes for part in parts.values()),
    )
    trained = {number: part.training for number, part in parts.items() if part.training is not None}
    return replace(whole, training=in_flight(trained, order)) if trained else whole


def check_memory(memory: DeviceMemory, setting: Setting, placement: Placement) -> None:
    """Raise MemoryInfeasible where a device must hold more than it can, with the shortfall and the levers."""
    _check_host(memory, setting)
    worst = int(np.argmax(memory.used_bytes))
    short = memory.used_bytes[worst] - memory.usable_bytes
    if short <= 0:
        return
    levers = ", ".join(_levers(memory, setting, placement, short))
    working = f", activations {memory.working_bytes / GIB:.1f}" if memory.working_bytes else ""
    raise MemoryInfeasible(
        f"{placement.name} on {memory.pool or setting.cluster.name}: device {worst} needs "
        f"{memory.used_bytes[worst] / GIB:.1f} GiB of {memory.usable_bytes / GIB:.1f} GiB usable "
        f"({memory.capacity_bytes / GIB:.1f} less the reserve): experts "
        f"{memory.expert_bytes[worst] / GIB:.1f}, other weights {memory.other_weight_bytes / GIB:.1f}, "
        f"{_beside_weights(memory, worst)}{working}; short by {short / GIB:.1f} GiB. Levers: {levers}"
    )


def _levers(memory: DeviceMemory, setting: Setting, placement: Placement, short_bytes: float) -> list[str]:
    """What would make room on a device that is short of so many bytes."""
    levers = ["smaller microbatches (schedule.microbatch, or more schedule.chunks)"] if memory.working_bytes else []
    if int(placement.replica_slots.sum()):
        levers.append(f"fewer than {placement.redundant_slots} redundant slots")
    levers += ["more devices", "a smaller weight dtype"]
    if memory.slotted:
        levers.append("fewer slots (memory.offload)")
    elif setting.cluster.host is not None:
        levers.append("experts in the host's memory (memory.offload, memory.stream)")
    if memory.kv_bytes > short_bytes / 10:
        fewer = f"fewer than {memory.requests} requests a device or " if memory.requests > 1 else ""
        levers.append(f"{fewer}a shorter context than {memory.context_tokens} tokens")
    return levers + _training_levers(setting)


def _check_host(memory: DeviceMemory, setting: Setting) -> None:
    host = setting.cluster.host
    if memory.training is None or host is None or host.dram_bytes is None:
        return
    by_node = memory.training.host_bytes.reshape(setting.cluster.n_nodes, -1).sum(axis=1)
    if by_node.max() > host.dram_bytes.value:
        short = by_node.max() - host.dram_bytes.value
        raise MemoryInfeasible(
            f"{setting.cluster.name}: a node's host needs {by_node.max() / GIB:.1f} GiB for states of the optimizer "
            f"of {host.dram_bytes.value / GIB:.1f} GiB; short by {short / GIB:.1f} GiB. Levers: more nodes, "
            "training.zero 1, training.optimizer: {offload: none}"
        )


def _beside_weights(memory: DeviceMemory, device: int) -> str:
    training = memory.training
    if training is None:
        return f"KV cache {memory.kv_bytes / GIB:.1f}"
    parts = {
        "gradients": training.gradient_bytes,
        "optimizer": training.optimizer_bytes,
        "activations": training.activation_bytes,
    }
    return ", ".join(f"{name} {held[device] / GIB:.1f}" for name, held in parts.items())


def _training_levers(setting: Setting) -> list[str]:
    """What a training step could do without."""
    if not setting.trains:
        return []
    spec = setting.training
    levers = ["fewer workload.tokens_per_device"]
    levers += [f"training.zero {spec.zero + 1}"] if spec.zero < 3 else []
    levers += ["training.recompute full"] if spec.recompute != "full" else []
    return levers + (["training.optimizer.offload"] if spec.optimizer.offload == "none" else [])


def kv_bytes_per_request(model: ModelCard, context_tokens: int, tp: int) -> float:
    """KV cache of one request on one of `tp` devices: whole heads; a latent cache (MLA) is held whole by each."""
    attention = model.attention
    value_bytes = attention.kv_values_per_token() * BYTES_PER_VALUE[model.kv_dtype]
    if not isinstance(attention, GroupedQueryAttention):
        return model.n_layers * context_tokens * value_bytes
    held_frac = -(-attention.n_kv_heads // tp) / attention.n_kv_heads
    windowed = len(range(0, model.n_layers, attention.windowed_every)) if attention.window_tokens else 0
    kept = min(context_tokens, attention.window_tokens or context_tokens)
    return (windowed * kept + (model.n_layers - windowed) * context_tokens) * value_bytes * held_frac


def _requests(setting: Setting, spec: MemorySpec) -> tuple[int, int]:
    workload = setting.workload
    context = spec.context_tokens or int(setting.batches.contexts.max())
    if setting.trains:
        return 0, context
    if spec.requests_per_device is not None:
        return spec.requests_per_device, context
    n_decode, n_prompt = tokens_by_phase(workload)
    return n_decode + -(-n_prompt // context), context


def _other_weight_bytes(setting: Setting) -> float:
    model, attention_tp = setting.model, setting.attention_tp
    n_moe = len(model.moe_layers)
    attention = model.n_layers * model.attention.parameters(model.hidden_size) / attention_tp
    ffn = (
        n_moe * (model.shared_parameters + model.bottleneck_parameters)
        + (model.n_layers - n_moe) * model.dense_parameters
    )
    embeddings = setting.n_vocabularies * model.vocab_size * model.hidden_size / attention_tp
    router = sum(model.expert_counts) * model.hidden_size
    weights = (attention + ffn) * BYTES_PER_VALUE[model.weight_dtype]
    return weights + (embeddings + router) * BYTES_PER_VALUE[model.activation_dtype]
