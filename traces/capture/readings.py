"""Where Hugging Face MoE models say which experts a token visits: one table, from architecture to reading."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scenarios.errors import TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Experts of the tokens of one pass in one layer.

    ids      integer [token, k], in the order in which the model holds them.
    weights  floating [token, k], the factors of the experts' results.
    """

    ids: Tensor
    weights: Tensor
    n_experts: int


# Reads the choice from a module and what its forward returned.
Reading = Callable[[nn.Module, Any], Choice]


def from_router(router: nn.Module, output: Any) -> Choice:
    """Choice of a router that returns it: (logits, weights, ids) in transformers 5, (ids, weights) before."""
    if len(output) == 3:
        logits, weights, ids = output
        return Choice(ids=ids, weights=weights, n_experts=logits.shape[-1])
    ids, weights = output
    return Choice(ids=ids, weights=weights, n_experts=router.weight.shape[0])


def from_gpt_oss(router: nn.Module, output: Any) -> Choice:
    """Choice of the gpt-oss router, which before transformers 5 returned (weights of all experts, ids)."""
    if len(output) == 3:
        return from_router(router, output)
    scores, ids = output
    return Choice(ids=ids, weights=scores.gather(-1, ids), n_experts=scores.shape[-1])


def softmax_block(block: nn.Module, output: Any) -> Choice:
    """Choice of an MoE block before transformers 5, (hidden, logits): the best k of the softmax, as the block computes.

    Blocks without a switch for it make the weights sum to one (Mixtral).
    """
    logits = output[1]
    weights, ids = logits.float().softmax(dim=-1).topk(block.top_k, dim=-1)
    if getattr(block, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Choice(ids=ids, weights=weights, n_experts=logits.shape[-1])


def sparsemixer_block(block: nn.Module, output: Any) -> Choice:
    """Choice of the Phi-MoE block before transformers 5, (hidden, logits), by its own function."""
    logits = output[1]
    sparsemixer = sys.modules[type(block).__module__].sparsemixer
    weights, ids = sparsemixer(logits, jitter_eps=block.router_jitter_noise, training=False)
    return Choice(ids=ids, weights=weights, n_experts=logits.shape[-1])


def granite_gating(router: nn.Module, output: Any) -> Choice:
    """Choice of the Granite gating before transformers 5, (..., logits): softmax over the best k logits."""
    logits = output[-1]
    best, ids = logits.topk(router.top_k, dim=-1)
    return Choice(ids=ids, weights=best.softmax(dim=-1), n_experts=logits.shape[-1])


def llama4_router(router: nn.Module, output: Any) -> Choice:
    """Choice of the Llama 4 router, (sigmoids of the chosen and 0, logits): the best k logits."""
    _, logits = output
    best, ids = logits.topk(router.top_k, dim=1)
    return Choice(ids=ids, weights=best.float().sigmoid(), n_experts=logits.shape[-1])


# Architecture (`model_type` of config.json) -> class of the module that is read, and how. The first class that the
# model holds counts: transformers 5 comes first, then what transformers 4.57 calls it.
ARCHITECTURES: dict[str, tuple[tuple[str, Reading], ...]] = {
    "mixtral": (("MixtralTopKRouter", from_router), ("MixtralSparseMoeBlock", softmax_block)),
    "olmoe": (("OlmoeTopKRouter", from_router), ("OlmoeSparseMoeBlock", softmax_block)),
    "flex_olmo": (("FlexOlmoTopKRouter", from_router), ("FlexOlmoSparseMoeBlock", softmax_block)),
    "qwen2_moe": (("Qwen2MoeTopKRouter", from_router), ("Qwen2MoeSparseMoeBlock", softmax_block)),
    "qwen3_moe": (("Qwen3MoeTopKRouter", from_router), ("Qwen3MoeSparseMoeBlock", softmax_block)),
    "qwen3_next": (("Qwen3NextTopKRouter", from_router), ("Qwen3NextSparseMoeBlock", softmax_block)),
    "deepseek_v2": (("DeepseekV2TopkRouter", from_router), ("DeepseekV2MoEGate", from_router)),
    "deepseek_v3": (("DeepseekV3TopkRouter", from_router),),
    "glm4_moe": (("Glm4MoeTopkRouter", from_router),),
    "dots1": (("Dots1TopkRouter", from_router),),
    "gpt_oss": (("GptOssTopKRouter", from_gpt_oss),),
    "phimoe": (("PhimoeTopKRouter", from_router), ("PhimoeSparseMoeBlock", sparsemixer_block)),
    "granitemoe": (("GraniteMoeTopKRouter", from_router), ("GraniteMoeTopKGating", granite_gating)),
    "granitemoeshared": (("GraniteMoeSharedTopKRouter", from_router), ("GraniteMoeSharedTopKGating", granite_gating)),
    "ernie4_5_moe": (("Ernie4_5_MoeTopKRouter", from_router),),
    "hunyuan_v1_moe": (("HunYuanMoEV1Gate", from_router),),
    "minimax_m2": (("MiniMaxM2TopKRouter", from_router),),
    "jamba": (("JambaTopKRouter", from_router),),
    "lfm2_moe": (("Lfm2MoeTopKRouter", from_router),),
    "llama4_text": (("Llama4Router", llama4_router),),
}


def check_architecture(model_type: str) -> None:
    """Raise TraceError where the routers of models of this type cannot be read."""
    if model_type not in ARCHITECTURES:
        raise TraceError(
            f"model type '{model_type}' is dense or unknown to capture, which reads {', '.join(ARCHITECTURES)}; for "
            "another MoE model add the class of its router to ARCHITECTURES in traces/capture/readings.py"
        )


def routers_of(model: nn.Module, model_type: str) -> dict[int, tuple[nn.Module, Reading]]:
    """Modules to be read, and how, by model layer in ascending order; dense layers are not among them.

    Raises TraceError where the architecture is unknown, or the model holds no such module.
    """
    check_architecture(model_type)
    for class_name, reading in ARCHITECTURES[model_type]:
        found = {
            _layer_number(name): (module, reading)
            for name, module in model.named_modules()
            if type(module).__name__ == class_name
        }
        if found:
            return dict(sorted(found.items()))
    names = " or ".join(name for name, _ in ARCHITECTURES[model_type])
    raise TraceError(
        f"this {model_type} model holds no {names}: all its layers are dense, or this version of transformers names "
        "its router otherwise; then add the name to ARCHITECTURES in traces/capture/readings.py"
    )


def _layer_number(name: str) -> int:
    """The first number in the name of a module: 3 of `model.layers.3.mlp.gate`."""
    match = re.search(r"\.(\d+)\.", name)
    if match is None:
        raise TraceError(f"router '{name}' is in no numbered layer, so that its routes have no place in a trace")
    return int(match[1])


def by_weight(choice: Choice) -> Choice:
    """The same choice, the experts of every token in descending order of weight; equals stay as they are."""
    weights, order = torch.sort(choice.weights.float(), dim=-1, descending=True, stable=True)
    return Choice(ids=choice.ids.gather(-1, order), weights=weights, n_experts=choice.n_experts)
