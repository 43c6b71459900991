"""Which kernel laws a setting uses: operations of its model, by the data types of its weights and cache."""

from __future__ import annotations

from hwmodels.fitted import Fitted
from scenarios.models import GroupedQueryAttention, ModelCard
from scenarios.specs import WorkloadSpec
from sim.setting import Setting


def used_laws(setting: Setting) -> dict[str, Fitted]:
    """ "moe fp8" -> constants, for every law that prices the setting's computing, each once."""
    kernels = setting.cluster.device.kernels
    laws = {f"{block} {dtype}": kernels.find(block, dtype) for block, dtype in _blocks(setting.model, setting.workload)}
    return {**laws, "launch": kernels.launch()}


def attention_block(model: ModelCard, workload: WorkloadSpec) -> str:
    """Block of kernel cards that prices the model's attention in this phase."""
    latent = "" if isinstance(model.attention, GroupedQueryAttention) else "mla_"
    return f"{latent}{workload.phase}"


def _blocks(model: ModelCard, workload: WorkloadSpec) -> list[tuple[str, str]]:
    gemms = dict.fromkeys((model.weight_dtype, "bf16", model.activation_dtype))  # layers, gate, head
    return [
        ("moe", model.expert_dtype or model.weight_dtype),
        *(("gemm", dtype) for dtype in gemms),
        (attention_block(model, workload), model.kv_dtype),
    ]
