"""What a device and its host must hold where weights stream, and whether it fits."""

from __future__ import annotations

from dataclasses import replace

from placement.plan import Placement
from scenarios.errors import MemoryInfeasible
from scenarios.models import BYTES_PER_VALUE, ModelCard
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from scenarios.stream_specs import MIXED, StreamSpec
from scenarios.workload_specs import GenerateSpec
from sim.memory import (
    GIB,
    DeviceMemory,
    check_memory,
    device_memory,
    fullest,
    kv_bytes_per_request,
    pool_memories,
)
from sim.offload.host_cache import check_tiers
from sim.session import Plan
from sim.setting import Setting
from sim.stream.generation import check_streams


def checked_memory(setting: Setting, placement: Placement, plan: Plan, *, spills: bool = False) -> DeviceMemory:
    """Memory of every device, of two pools that of the one with the least room.

    Raises MemoryInfeasible where it, unless it spills, or that of the host is short.
    """
    check_streams(setting, plan)
    stream = plan.memory.stream
    if stream is None:
        memory = device_memory(setting, placement, plan.memory)
    else:
        memory = streamed_memory(setting, placement, plan.memory, stream, plan.schedule)
        check_streamed_host(setting, stream)
    memories = pool_memories(memory, setting, plan.memory)
    if not spills:
        for held in memories:
            check_memory(held, setting, placement)
    if plan.memory.offload is not None:
        check_tiers(setting, placement, plan.memory.offload)
    return fullest(memories)


def streamed_memory(
    setting: Setting, placement: Placement, spec: MemorySpec, stream: StreamSpec, schedule: ScheduleSpec
) -> DeviceMemory:
    """Memory of every device: what it keeps, its slots, and in generation activations instead of cache.

    FlexGen computes one expert after the other, so that activations are those of one.
    """
    model, generate = setting.model, setting.workload.generate
    whole = device_memory(setting, placement, spec)
    n_moe = len(model.moe_layers)
    kept = stream.held + min(stream.slots, n_moe) * (1 - stream.held) / n_moe
    streams = _other_streamed_bytes(model) if stream.weights == "layers" else 0.0
    other = whole.other_weight_bytes - streams * (1 - kept)
    memory = replace(whole, expert_bytes=whole.expert_bytes * kept, other_weight_bytes=other)
    if generate is None:
        return memory
    in_turn = model.n_experts if schedule.overlap.startswith("flexgen") else 1
    working = _activation_bytes(model, _largest_part(setting, generate, schedule)) / in_turn
    return replace(memory, kv_bytes=0.0, working_bytes=working)


def check_streamed_host(setting: Setting, stream: StreamSpec) -> None:
    """Raise MemoryInfeasible where weights and the cache of all requests do not fit into the host's memory."""
    host, model, generate = setting.cluster.host, setting.model, setting.workload.generate
    if host is None or host.dram_bytes is None:
        return
    weights = streamed_bytes(setting, stream)
    cache = 0.0
    if generate is not None:
        per_request = kv_bytes_per_request(model, generate.prompt_tokens + generate.new_tokens, 1)
        cache = setting.workload.tokens_per_device * setting.cluster.devices_per_node * per_request
    short = weights + cache - host.dram_bytes.value
    if short > 0:
        raise MemoryInfeasible(
            f"{host.name} must hold weights of {weights / GIB:.1f} GiB and a cache of {cache / GIB:.1f} GiB in "
            f"{host.dram_bytes.value / GIB:.1f} GiB; short by {short / GIB:.1f} GiB. Levers: fewer requests (fewer or "
            "smaller microbatches), a smaller weight or KV dtype, another host"
        )


def streamed_bytes(setting: Setting, stream: StreamSpec) -> float:
    """Bytes of the weights that lie in the host's memory."""
    experts = float(setting.expert_bytes.sum()) * (1 - stream.held)
    return experts + (_other_streamed_bytes(setting.model) if stream.weights == "layers" else 0.0)


def _largest_part(setting: Setting, generate: GenerateSpec, schedule: ScheduleSpec) -> int:
    """Tokens of the largest microbatch of any pass: whole prompts, or requests of all ages."""
    requests = -(-setting.workload.tokens_per_device // schedule.chunks)
    if schedule.overlap not in MIXED:
        return requests * generate.prompt_tokens
    return -(-requests * (generate.prompt_tokens + generate.new_tokens) // generate.new_tokens)


def _activation_bytes(model: ModelCard, tokens: int) -> float:
    """Bytes around the experts: 2 k (h + 3 I) a token (MoE-Lightning's cost model, without its factor 1.2)."""
    width = BYTES_PER_VALUE[model.activation_dtype]
    return tokens * model.top_k * (model.exchange_size + 3 * model.expert_intermediate_size) * width


def _other_streamed_bytes(model: ModelCard) -> float:
    """Bytes of attention, shared experts and dense MLPs of all layers."""
    n_moe = len(model.moe_layers)
    weights = model.n_layers * model.attention.parameters(model.hidden_size)
    weights += n_moe * (model.shared_parameters + model.bottleneck_parameters)
    weights += (model.n_layers - n_moe) * model.dense_parameters
    return weights * BYTES_PER_VALUE[model.weight_dtype]
