"""Keys of public config.json files that decide a model's shape, as their repositories on Hugging Face state them."""

from typing import Any

FP8_BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def heads(n_heads: int, n_kv_heads: int) -> dict[str, int]:
    return {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads}


def sizes(n_layers: int, hidden: int, ffn: int, vocab: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": n_layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def mla(n_heads: int, q_lora_rank: int | None) -> dict[str, int | None]:
    return {
        **heads(n_heads, n_heads),
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }


def routed(n_experts: int, top_k: int, width: int, n_shared: int, dense_layers: int) -> dict[str, int]:
    """Keys of the DeepSeek family."""
    return {
        "n_routed_experts": n_experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "n_shared_experts": n_shared,
        "first_k_dense_replace": dense_layers,
        "moe_layer_freq": 1,
    }


MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    **sizes(32, 4096, 14336, 32000),
    **heads(32, 8),
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "max_position_embeddings": 32768,
}
QWEN: dict[str, Any] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": False,
    "sliding_window": 32768,
}
GPT_OSS_120B: dict[str, Any] = {
    "model_type": "gpt_oss",
    **sizes(36, 2880, 2880, 201088),
    **heads(64, 8),
    "head_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "max_position_embeddings": 163840,
    **sizes(61, 7168, 18432, 129280),
    **mla(128, 1536),
    **routed(256, 8, 2048, 1, 3),
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "quantization_config": FP8_BLOCK,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": MIXTRAL,
    "mixtral-8x22b": {**MIXTRAL, "max_position_embeddings": 65536, **sizes(56, 6144, 16384, 32000), **heads(48, 8)},
    "phi-3.5-moe": {
        "model_type": "phimoe",
        **sizes(32, 4096, 6400, 32064),
        **heads(32, 8),
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "sliding_window": 131072,
        "max_position_embeddings": 131072,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "max_position_embeddings": 4096,
        **sizes(16, 2048, 1024, 50304),
        **heads(16, 16),
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    "gpt-oss-120b": GPT_OSS_120B,
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "max_position_embeddings": 163840,
        **sizes(27, 2048, 10944, 102400),
        **mla(16, None),
        **routed(64, 6, 1408, 2, 1),
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
    },
    "deepseek-v2": {
        "model_type": "deepseek_v2",
        "max_position_embeddings": 163840,
        **sizes(60, 5120, 12288, 102400),
        **mla(128, 1536),
        **routed(160, 6, 1536, 2, 1),
        "n_group": 8,
        "topk_group": 3,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
    },
    "deepseek-v3": DEEPSEEK_V3,
    "kimi-k2": {
        **DEEPSEEK_V3,
        "model_type": "kimi_k2",
        "max_position_embeddings": 131072,
        "vocab_size": 163840,
        **mla(64, 1536),
        **routed(384, 8, 2048, 1, 1),
        "n_group": 1,
        "topk_group": 1,
    },
    "deepseek-moe-16b": {
        "model_type": "deepseek",
        **sizes(28, 2048, 10944, 102400),
        **heads(16, 16),
        **routed(64, 6, 1408, 2, 1),
        "scoring_func": "softmax",
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        **sizes(24, 2048, 5632, 151936),
        **heads(16, 16),
        **QWEN,
        "max_position_embeddings": 8192,
        "max_window_layers": 21,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen2-57b-a14b": {
        "model_type": "qwen2_moe",
        **sizes(28, 3584, 18944, 151936),
        **heads(28, 4),
        **QWEN,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2560,
        "shared_expert_intermediate_size": 20480,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "max_position_embeddings": 40960,
        **sizes(48, 2048, 6144, 151936),
        **heads(32, 4),
        **QWEN,
        "sliding_window": None,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "dbrx": {
        "model_type": "dbrx",
        "d_model": 6144,
        "n_heads": 48,
        "n_layers": 40,
        "vocab_size": 100352,
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "grok-1": {
        "model_type": "grok-1",
        **sizes(64, 6144, 32768, 131072),
        **heads(48, 8),
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": True,
    },
    "switch-base-128": {
        "model_type": "switch_transformers",
        "d_model": 768,
        "d_ff": 3072,
        "d_kv": 64,
        "num_heads": 12,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_sparse_encoder_layers": 6,
        "num_sparse_decoder_layers": 6,
        "num_experts": 128,
        "is_gated_act": False,
        "vocab_size": 32128,
        "torch_dtype": "bfloat16",
    },
    "nllb-moe-54b": {
        "model_type": "nllb-moe",
        "d_model": 2048,
        "encoder_layers": 24,
        "decoder_layers": 24,
        "encoder_ffn_dim": 8192,
        "decoder_ffn_dim": 8192,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_sparse_step": 4,
        "decoder_sparse_step": 4,
        "num_experts": 128,
        "vocab_size": 256206,
        "torch_dtype": "bfloat16",
    },
}
