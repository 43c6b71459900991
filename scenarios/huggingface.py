"""Model cards from the config.json of Hugging Face models: one small function per family, one dict of families."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from scenarios.config_json import Config, load_config
from scenarios.errors import ScenarioError
from scenarios.models import ModelCard
from scenarios.quantisation import dtype_fields
from scenarios.sources import Source

Fields = dict[str, object]
Family = Callable[[Config], Fields]

MAX_LAYERS = 10_000
CROSS_ATTENTION = "Encoder layers come first, then decoder layers; cross attention of the decoder is not expressed."
CHUNKED = "Chunked attention of some layers is not expressed: the KV cache of long contexts is overstated."


def read_config(path: Path) -> ModelCard:
    """Card of the MoE model whose Hugging Face config.json is at `path`, named after its folder.

    Raises ScenarioError, naming file and key, where the file is unreadable, the model type unknown or dense, a key
    missing or of a wrong type, or the shape beyond what a card expresses.
    """
    config = load_config(path)
    family = _family(config)
    shape = FAMILIES[family](config)
    dtypes, dtype_sources = dtype_fields(config)
    origin = Source(source=f"{path.name} of {_model_name(path)}, model_type {family}", kind="published")
    card = {"name": _model_name(path), "sources": {"default": origin, **dtype_sources}, **shape, **dtypes}
    try:
        return ModelCard.model_validate(card)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ScenarioError(f"{path}: {'; '.join(problems)}") from None


def _family(config: Config) -> str:
    name = config.word("model_type", "")
    if name in FAMILIES:
        return name
    if not name:
        raise config.problem("model_type", f"is missing; is this a model's config.json? Known: {', '.join(FAMILIES)}")
    if not any("expert" in key for key in config.values):
        raise config.problem("model_type", f"'{name}' is a dense model: no key names experts; give an MoE model")
    near = difflib.get_close_matches(name, FAMILIES, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise config.problem(
        "model_type", f"'{name}' is not known{hint}; known: {', '.join(FAMILIES)}; or write a card in YAML"
    )


def _model_name(path: Path) -> str:
    """Name of the model's folder; in the Hugging Face cache (models--OWNER--NAME/snapshots/HASH), NAME.

    Of a file NAME.config.json, as `moesim capture hf` writes it beside a trace, NAME.
    """
    if path.name.endswith(".config.json"):
        return path.name.removesuffix(".config.json")
    folder = path.absolute().parent
    name = folder.parent.parent.name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name
    return name or path.stem


def _base(config: Config, *, n_layers: int | None = None, tied: bool = False) -> Fields:
    """Sizes that every family states. `tied` is what the family's code assumes where the file says nothing."""
    return {
        "n_layers": _n_layers(config) if n_layers is None else n_layers,
        "hidden_size": config.integer(config.first("hidden_size", "d_model")),
        "vocab_size": config.integer("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=tied),
        "max_context_tokens": config.integer_or("max_position_embeddings", 0) or None,
    }


def _n_layers(config: Config, key: str = "num_hidden_layers") -> int:
    return config.integer(key, maximum=MAX_LAYERS)


def _experts(
    config: Config,
    count: str,
    *,
    size: str = "moe_intermediate_size",
    top_k: str = "num_experts_per_tok",
    default_top_k: int | None = None,
) -> Fields:
    """Number, top-k and width of the routed experts; `default_top_k` where the family's code fixes it."""
    if config.integer_or(count, 0) == 0:
        raise config.problem(count, "is absent or 0, so the model is dense; moesim needs a model with experts")
    return {
        "n_experts": config.integer(count),
        "top_k": config.integer(top_k) if default_top_k is None else default_top_k,
        "expert_intermediate_size": config.integer(size),
    }


def _gating(config: Config, default: str = "softmax") -> Fields:
    function = config.word("scoring_func", default)
    if function not in ("softmax", "sigmoid"):
        raise config.problem("scoring_func", f"'{function}' is not expressed by a card; it knows softmax and sigmoid")
    return {"gating": function}


def _head_dim(config: Config, hidden_size: int, n_heads: int) -> int:
    if config.has("head_dim"):
        return config.integer("head_dim")
    if hidden_size % n_heads:
        raise config.problem("head_dim", f"is absent, and {hidden_size} is not divisible by {n_heads} heads")
    return hidden_size // n_heads


def _gqa(config: Config, *, windowed_every: int = 1) -> Fields:
    n_heads = config.integer("num_attention_heads")
    head_dim = _head_dim(config, config.integer("hidden_size"), n_heads)
    explicit_none = "num_key_value_heads" in config.values and not config.has("num_key_value_heads")
    kv_heads = n_heads if explicit_none else config.integer("num_key_value_heads")
    heads = {"kind": "gqa", "n_heads": n_heads, "n_kv_heads": kv_heads, "head_dim": head_dim}
    return {"attention": {**heads, **_window(config, windowed_every)}}


def _window(config: Config, every: int) -> Fields:
    """Window of attention; a window as long as the longest context, or switched off, is none."""
    size = config.integer_or("sliding_window", 0)
    longest = config.integer_or("max_position_embeddings", 0)
    if size == 0 or 0 < longest <= size or not config.flag("use_sliding_window", default=True):
        return {}
    if config.has("layer_types"):
        kinds = config.words("layer_types")
        windowed = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
        if not windowed:
            return {}
        every = windowed[1] - windowed[0] if len(windowed) > 1 else len(kinds)
        if windowed != list(range(0, len(kinds), every)):
            raise config.problem("layer_types", "windows of attention are not in layers 0, n, 2n, ...; write a card")
    elif config.has("max_window_layers"):
        raise config.problem("max_window_layers", "a window in some layers only is not expressed; write a card")
    return {"window_tokens": size, "windowed_every": every}


def _mla(config: Config) -> Fields:
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    rank = config.integer("q_lora_rank") if config.has("q_lora_rank") else None
    heads = {"kind": "mla", "n_heads": config.integer("num_attention_heads"), "q_lora_rank": rank}
    return {"attention": {**heads, **{key: config.integer(key) for key in keys}}}


def _layers(config: Config, moe_layers: Sequence[int], n_layers: int, dense_key: str) -> Fields:
    """Which layers hold experts, and the width of the others."""
    if not moe_layers:
        raise config.problem("model_type", "no layer holds experts, so the model is dense")
    first = moe_layers[0]
    every = moe_layers[1] - first if len(moe_layers) > 1 else n_layers
    regular = list(moe_layers) == list(range(first, n_layers, every))
    where: Fields = {"first_moe_layer": first, "moe_layer_every": every} if regular else {"moe_layer_list": moe_layers}
    return where if len(moe_layers) == n_layers else {**where, "dense_intermediate_size": config.integer(dense_key)}


def _all_moe(config: Config, *, count: str = "num_local_experts", windowed_every: int = 1) -> Fields:
    """Mixtral and its kin: every layer holds experts as wide as `intermediate_size`."""
    experts = _experts(config, count, size="intermediate_size")
    attention = _gqa(config, windowed_every=windowed_every)
    shared = {"shared_intermediate_size": config.integer_or("shared_intermediate_size", 0)}
    return {**_base(config), **attention, **experts, **shared, **_gating(config)}


def _grok(config: Config) -> Fields:
    """Grok-1 in the public conversions, which count experts in `num_experts` or `num_local_experts`."""
    return {**_all_moe(config, count=config.first("num_experts", "num_local_experts")), **_base(config, tied=True)}


def _qwen(config: Config) -> Fields:
    step, dense = config.integer_or("decoder_sparse_step", 1, minimum=1), set(config.integers("mlp_only_layers"))
    n_layers = _n_layers(config)
    moe_layers = [layer for layer in range(n_layers) if layer not in dense and (layer + 1) % step == 0]
    shared = {"shared_intermediate_size": config.integer_or("shared_expert_intermediate_size", 0)}
    layers = _layers(config, moe_layers, n_layers, "intermediate_size")
    count = config.first("num_experts", "num_local_experts")  # the latter where transformers 5 wrote the file
    return {**_base(config), **_gqa(config), **_experts(config, count), **shared, **layers}


def _deepseek(config: Config, *, attention: Family = _mla, gating: str = "softmax") -> Fields:
    """DeepSeek-MoE, V2, V3 and models of the same code (Kimi K2, GLM 4.5)."""
    first, freq = config.integer_or("first_k_dense_replace", 0), config.integer_or("moe_layer_freq", 1, minimum=1)
    n_layers = _n_layers(config)
    layers = _layers(
        config, [i for i in range(n_layers) if i >= first and i % freq == 0], n_layers, "intermediate_size"
    )
    experts = _experts(config, "n_routed_experts")
    shared = config.integer_or("n_shared_experts", 0) * config.integer("moe_intermediate_size")
    shape = {**_base(config), **attention(config), **experts, **layers, **_gating(config, gating)}
    return {**shape, **_groups(config), "shared_intermediate_size": shared}


def _groups(config: Config) -> Fields:
    if config.word("topk_method", "") == "greedy":
        return {}
    return {key: config.integer_or(key, 1, minimum=1) for key in ("n_group", "topk_group")}


def _dbrx(config: Config) -> Fields:
    attention, ffn = config.section("attn_config"), config.section("ffn_config")
    n_heads, kv_heads = config.integer("n_heads"), attention.integer("kv_n_heads")
    head_dim = _head_dim(config, config.integer("d_model"), n_heads)
    return {
        **_base(config, n_layers=_n_layers(config, "n_layers")),
        "attention": {"kind": "gqa", "n_heads": n_heads, "n_kv_heads": kv_heads, "head_dim": head_dim},
        **_experts(ffn, "moe_num_experts", size="ffn_hidden_size", top_k="moe_top_k"),
    }


def _switch(config: Config) -> Fields:
    """Switch Transformers (T5): of each stack layers 1, 1 + step, ... hold experts, or all where the step is 1."""
    n_encoder = _n_layers(config, "num_layers")
    n_decoder = _n_layers(config, config.first("num_decoder_layers", "num_layers"))
    moe_layers: list[int] = []
    for side, offset, n_layers in (("encoder", 0, n_encoder), ("decoder", n_encoder, n_decoder)):
        n_sparse = config.integer_or(f"num_sparse_{side}_layers", 0)
        step = n_layers // n_sparse if n_sparse else config.integer_or(f"{side}_sparse_step", 0)
        moe_layers += [offset + layer for layer in range(n_layers) if step == 1 or (step and layer % step == 1)]
    heads, gated = config.integer("num_heads"), config.flag("is_gated_act", default=False)
    return {
        **_base(config, n_layers=n_encoder + n_decoder, tied=True),
        "attention": {"kind": "gqa", "n_heads": heads, "n_kv_heads": heads, "head_dim": config.integer("d_kv")},
        **_experts(config, "num_experts", size="d_ff", default_top_k=1),
        "gated": gated,
        "dense_gated": gated,
        **_layers(config, moe_layers, n_encoder + n_decoder, "d_ff"),
        "note": CROSS_ATTENTION,
    }


def _nllb(config: Config) -> Fields:
    """NLLB-MoE: of each stack every step-th layer holds experts, the last of each group; top-2."""
    for key in ("layers", "ffn_dim", "attention_heads", "sparse_step"):
        encoder, decoder = config.integer(f"encoder_{key}"), config.integer(f"decoder_{key}")
        if encoder != decoder:
            raise config.problem(f"decoder_{key}", f"{decoder} differs from the encoder's {encoder}; write a card")
    n_layers, step = _n_layers(config, "encoder_layers"), config.integer("encoder_sparse_step")
    stack = range(step - 1, n_layers, step)
    moe_layers = [*stack, *(n_layers + layer for layer in stack)]
    hidden_size, heads = config.integer("d_model"), config.integer("encoder_attention_heads")
    head_dim = _head_dim(config, hidden_size, heads)
    return {
        **_base(config, n_layers=2 * n_layers, tied=True),
        "attention": {"kind": "gqa", "n_heads": heads, "n_kv_heads": heads, "head_dim": head_dim},
        **_experts(config, "num_experts", size="encoder_ffn_dim", default_top_k=2),
        "gated": False,
        "dense_gated": False,
        **_layers(config, moe_layers, 2 * n_layers, "encoder_ffn_dim"),
        "note": CROSS_ATTENTION,
    }


def _llama4(config: Config) -> Fields:
    """Llama 4: one shared expert as wide as a routed one; dense layers have a width of their own."""
    n_layers, step = _n_layers(config), config.integer_or("interleave_moe_layer_step", 1, minimum=1)
    moe_layers = config.integers("moe_layers") or tuple(range(step - 1, n_layers, step))
    shape = {**_base(config), **_gqa(config), **_experts(config, "num_local_experts", size="intermediate_size")}
    layers = _layers(config, moe_layers, n_layers, "intermediate_size_mlp")
    shared = config.integer("intermediate_size")
    note = {"note": CHUNKED} if config.has("attention_chunk_size") else {}
    return {**shape, **layers, "shared_intermediate_size": shared, "gating": "sigmoid", **note}


def _ernie(config: Config) -> Fields:
    n_layers, interval = _n_layers(config), config.integer_or("moe_layer_interval", 1, minimum=1)
    start = config.integer_or("moe_layer_start_index", 0)
    end = config.integer_or("moe_layer_end_index", -1, minimum=-1)
    last = n_layers - 1 if end == -1 else end
    moe_layers = [layer for layer in range(start, min(last + 1, n_layers)) if (layer + 1) % interval == 0]
    experts = _experts(config, "moe_num_experts", top_k="moe_k")
    shared = config.integer_or("moe_num_shared_experts", 0) * config.integer("moe_intermediate_size")
    layers = _layers(config, moe_layers, n_layers, "intermediate_size")
    return {**_base(config, tied=True), **_gqa(config), **experts, **layers, "shared_intermediate_size": shared}


FAMILIES: dict[str, Family] = {
    "mixtral": _all_moe,
    "phimoe": _all_moe,
    "minimax_m2": _all_moe,
    "granitemoe": _all_moe,
    "granitemoeshared": _all_moe,
    "olmoe": functools.partial(_all_moe, count="num_experts"),
    "gpt_oss": functools.partial(_all_moe, windowed_every=2),
    "grok-1": _grok,
    "dbrx": _dbrx,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "qwen3_vl_moe_text": _qwen,
    "deepseek": functools.partial(_deepseek, attention=_gqa),
    "deepseek_v2": _deepseek,
    "deepseek_v3": functools.partial(_deepseek, gating="sigmoid"),
    "kimi_k2": functools.partial(_deepseek, gating="sigmoid"),
    "glm4_moe": functools.partial(_deepseek, attention=_gqa, gating="sigmoid"),
    "llama4": _llama4,
    "llama4_text": _llama4,
    "ernie4_5_moe": _ernie,
    "switch_transformers": _switch,
    "nllb-moe": _nllb,
}
