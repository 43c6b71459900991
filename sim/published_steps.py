"""Suite `published`: steps and layers of DeepSeek-V3 on large clusters, as their operators published them.

Single figures, each with its source; what a source leaves open is assumed and named in the docstring that takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from hwmodels.attention import attention_prefill_s, attention_projections_s
from hwmodels.devices import Device
from hwmodels.expert_exchange import DEFAULT_SMS
from hwmodels.gemm import mlp_s, norm_s
from hwmodels.launch import compute_slowdown
from hwmodels.library import find_device
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.score import score
from placement.reduction import reduce_trace
from scenarios.catalog import find_model
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import SynthesisSpec, WorkloadSpec
from sim.priced_steps import execute_schedule
from sim.session import solve_placement
from sim.setting import Setting, make_setting, open_trace
from sim.tensor_parallel_step import stacked_kernels, with_kernels
from traces.routing import RoutingTrace

MODEL, KERNELS = "deepseek-v3", ("h200-sglang", "h200-trtllm")
ROUTING = SynthesisSpec(tokens=32768)
STEPS = 2
REPLICAS = PlacementSpec(solver="eplb", redundant=32)
TRAINED_TOKENS, TRAINED_RANKS = 4096, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published time, where it is from, and how it is predicted."""

    name: str
    source: str
    measured_s: float
    predict: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Decode of DeepSeek-V3 by data-parallel attention and one expert rank a device, 32 replicas by EPLB."""

    node: str
    nodes: int
    requests_per_device: int
    context_tokens: int


def decode_step_s(deployment: Deployment, schedule: ScheduleSpec) -> float:
    """Mean step [s]: DeepEP low-latency kernels, dispatch in fp8, H200 constants of kernels; routing is made up.

    Assumed: every request at the stated context, no host time, no speculative tokens.
    """
    setting = _setting(deployment)
    placement = solve_placement(setting, REPLICAS)
    tokens, dedup = setting.batches.tokens, schedule.exchange.dedup
    reduction = reduce_trace(
        setting.batches.trace, tokens, placement, setting.layout, chunks=schedule.n_parts, dedup=dedup
    )
    return float(execute_schedule(setting, placement, reduction, schedule).step_times_s.mean())


def core_attention_s() -> float:
    """Forward attention kernel of one layer [s], one sequence of 4096 tokens, keys and values expanded."""
    model, pairs = find_model(MODEL, Path()), TRAINED_TOKENS * (TRAINED_TOKENS + 1) // 2
    return float(attention_prefill_s(TRAINED_TOKENS, pairs, model.attention, 1, "bf16", _h800("h200-trtllm")))


def trained_attention_s() -> float:
    """Norm, projections and attention kernel of one layer forward [s], beside kernels of communication on 20 SMs."""
    model, device = find_model(MODEL, Path()), _h800("h200-trtllm")
    hidden, dtype = model.hidden_size, model.weight_dtype
    projected_s = attention_projections_s(TRAINED_TOKENS, model.attention, hidden, 1, dtype, device)
    alone_s = norm_s(TRAINED_TOKENS, hidden, "bf16", device) + projected_s + core_attention_s()
    return float(alone_s * compute_slowdown(DEFAULT_SMS, device.n_sms))


def trained_mlp_s() -> float:
    """Routed and shared experts of one layer forward [s] beside 20 SMs of communication, routing balanced."""
    model, device = find_model(MODEL, Path()), _h800("h200-sglang", "h200-trtllm")
    slots = model.n_experts // TRAINED_RANKS
    routed_s = grouped_gemm_moe_s(np.full(slots, TRAINED_TOKENS * model.top_k // slots), expert_shape(model), device)
    shared_s = mlp_s(
        TRAINED_TOKENS, model.hidden_size, model.shared_intermediate_size, model.gated, model.weight_dtype, device
    )
    return float((routed_s + shared_s) * compute_slowdown(DEFAULT_SMS, device.n_sms))


SGLANG = Deployment(node="h100-sxm-8", nodes=9, requests_per_device=256, context_tokens=2048)
DEEPSEEK = Deployment(node="h800-8", nodes=18, requests_per_device=88, context_tokens=4989)
EXCHANGE = {"kernel": "deepep-low-latency", "dispatch_dtype": "fp8_block"}
SEQUENTIAL = ScheduleSpec.model_validate({"exchange": EXCHANGE})
CHUNKED = ScheduleSpec.model_validate({"exchange": EXCHANGE, "overlap": "chunked", "chunks": 2})
BLOG = "LMSYS blog, 2025-05-05: 22,282 output tokens/s a node, 256 requests a GPU, two-batch overlap"
OVERVIEW = "DeepSeek inference system overview, 2025-03-01: 20 to 22 tokens/s a user, 14.8k tokens/s a node, KV 4,989"
PROFILE = "deepseek-ai/profile-data, train.json: H800, EP64, one sequence of 4096 tokens, balanced routing"

PUBLISHED = (
    Published(
        name="decode EP72 no overlap",
        source=BLOG,
        measured_s=256 / (22_282 / 8),
        predict=lambda: decode_step_s(SGLANG, SEQUENTIAL),
    ),
    Published(
        name="decode EP72 chunks overlap",
        source=BLOG,
        measured_s=256 / (22_282 / 8),
        predict=lambda: decode_step_s(SGLANG, CHUNKED),
    ),
    Published(
        name="decode EP144 no overlap",
        source=OVERVIEW,
        measured_s=1 / 21,
        predict=lambda: decode_step_s(DEEPSEEK, SEQUENTIAL),
    ),
    Published(
        name="decode EP144 chunks overlap",
        source=OVERVIEW,
        measured_s=1 / 21,
        predict=lambda: decode_step_s(DEEPSEEK, CHUNKED),
    ),
    Published(name="attention kernel forward", source=PROFILE, measured_s=1.24e-3, predict=core_attention_s),
    Published(name="attention forward", source=PROFILE, measured_s=4.37e-3, predict=trained_attention_s),
    Published(name="experts forward", source=PROFILE, measured_s=4.60e-3, predict=trained_mlp_s),
)


def published(folder: Path, progress: Progress) -> list[Judged]:
    """Errors of all published figures; they need no file of the folder."""
    del folder
    rows: list[Judged] = []
    for number, one in enumerate(PUBLISHED):
        progress(one.name, number / len(PUBLISHED))
        label = ("", one.source.partition(":")[0], MODEL, ", ".join(KERNELS))
        errors = score(one.name, "card", label, np.array([one.predict()]), np.array([one.measured_s]))
        rows.append(judged("published", errors))
    return rows


def _h800(*kernels: str) -> Device:
    """An H800 with the constants of H200 kernels: same multiprocessors, its own memory."""
    return Device(card=find_device("h800"), kernels=stacked_kernels(*kernels))


@lru_cache(maxsize=2)
def _setting(deployment: Deployment) -> Setting:
    model = find_model(MODEL, Path())
    workload = WorkloadSpec(
        synthetic=ROUTING,
        phase="decode",
        tokens_per_device=deployment.requests_per_device,
        context_tokens=deployment.context_tokens,
        steps=STEPS,
    )
    setting = make_setting(
        model=model,
        cluster=ClusterSpec(node=deployment.node, nodes=deployment.nodes),
        parallel=ParallelSpec(),
        workload=workload,
        trace=_trace(),
        seed=0,
    )
    return replace(setting, cluster=with_kernels(setting.cluster, KERNELS))


@lru_cache(maxsize=1)
def _trace() -> RoutingTrace:
    return open_trace(WorkloadSpec(synthetic=ROUTING), find_model(MODEL, Path()), Path())
