"""Tiny randomly initialised Hugging Face models of every architecture that capture reads; nothing is downloaded."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
DEEPSEEK = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}

# Architecture -> keys of its config beside SIZES.
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL,
    "olmoe": MOE,
    "flex_olmo": MOE,
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 32, "mlp_only_layers": [1]},
    "qwen3_moe": {**MOE, "norm_topk_prob": True, "decoder_sparse_step": 2},
    "qwen3_next": {**MOE, **LINEAR, "shared_expert_intermediate_size": 32, "norm_topk_prob": True},
    "deepseek_v2": {**DEEPSEEK, **MLA, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**DEEPSEEK, **MLA},
    "glm4_moe": {**DEEPSEEK, "n_group": 1, "topk_group": 1},
    "dots1": {**DEEPSEEK, "first_k_dense_replace": 2},
    "gpt_oss": {**LOCAL, "sliding_window": 8},
    "phimoe": LOCAL,
    "granitemoe": LOCAL,
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 32},
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
    },
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2},
    "minimax_m2": LOCAL,
    "jamba": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "lfm2_moe": {**MOE, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]},
    "llama4_text": {**LOCAL, "num_experts_per_tok": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
}
# The layers that hold experts, by the rules of these configs.
MOE_LAYERS = {
    "qwen2_moe": (0, 2),
    "qwen3_moe": (1,),
    "deepseek_v2": (1, 2),
    "deepseek_v3": (1, 2),
    "glm4_moe": (1, 2),
    "dots1": (2,),
    "ernie4_5_moe": (1, 2),
    "jamba": (1,),
    "lfm2_moe": (1, 2),
    "llama4_text": (1,),
}


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Config of the tiny model of this architecture."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **{**SIZES, **CONFIGS[model_type], **changes})


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """The tiny model in float32, with weights wide enough that experts differ, and biases of routers that matter."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).float().eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("bias"):
                tensor.normal_(std=0.1)
    return model
