"""Data types of a Hugging Face model: what its config.json says of storage and quantisation."""

from __future__ import annotations

import re
from collections.abc import Callable

from scenarios.config_json import Config, load_beside
from scenarios.models import DType
from scenarios.sources import Source

BASE_DTYPES: dict[str, DType] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
INT4_GROUP = 128

Quantised = tuple[DType, int | None]
"""Type of the quantised weights and, for integers, how many share a scale (-1: a whole row)."""

_ATTENTION = re.compile(r"self_attn(\W*|\.(q|k|v|o|kv|qkv)\w*_proj\w*)$")
_EXCLUSIONS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")


def dtype_fields(config: Config) -> tuple[dict[str, DType], dict[str, Source]]:
    """Data types of weights, experts, activations and KV cache as fields of a card, and their sources where assumed.

    Where attention is left out of the quantisation, only the routed experts get the quantised type.
    """
    base, stated = _base_dtype(config)
    fields: dict[str, DType] = {"weight_dtype": base, "activation_dtype": base, "kv_dtype": base}
    assumed = {} if stated else dict.fromkeys(fields, "bf16: config.json states no torch_dtype")
    settings = _settings(config)
    if settings is not None:
        field, dtype, doubt = _quantised(settings)
        fields[field] = dtype
        assumed.pop(field, None)
        assumed |= {field: doubt} if doubt else {}
    return fields, {field: Source(source=text, kind="assumed") for field, text in assumed.items()}


def _base_dtype(config: Config) -> tuple[DType, bool]:
    """Type of what is not quantised, and whether the file states it; bf16 where it does not."""
    key = config.first("torch_dtype", "dtype")
    name = config.word(key, "")
    if name and name not in BASE_DTYPES:
        raise config.problem(key, f"'{name}' is not known; known: {', '.join(BASE_DTYPES)}")
    return BASE_DTYPES.get(name, "bf16"), bool(name)


def _quantised(settings: Config) -> tuple[str, DType, str | None]:
    """Field of the card that is quantised, its type, and what the card cannot express of it."""
    method = settings.word("quant_method", "modelopt")
    if method not in METHODS:
        raise settings.problem("quant_method", f"'{method}' is not known; known: {', '.join(METHODS)}")
    dtype, group = METHODS[method](settings)
    excluded = [name for key in _EXCLUSIONS for name in settings.words(key)]
    only_experts = method == "mxfp4" or any(_ATTENTION.search(name) for name in excluded)
    doubt = None
    if dtype == "int4" and group != INT4_GROUP:
        doubt = f"quantised in groups of {group} weights; the card counts the scales of groups of {INT4_GROUP}"
    return "expert_dtype" if only_experts else "weight_dtype", dtype, doubt


def _settings(config: Config) -> Config | None:
    """Quantisation section of config.json, or of the hf_quant_config.json that NVIDIA ModelOpt writes beside it."""
    if config.has("quantization_config"):
        return config.section("quantization_config")
    beside = load_beside(config.path, "hf_quant_config.json")
    return None if beside is None else beside.section("quantization")


def _fp8(settings: Config) -> Quantised:
    if not settings.has("weight_block_size"):
        return "fp8", None
    block = settings.integers("weight_block_size")
    if block != (128, 128):
        raise settings.problem("weight_block_size", f"{list(block)} is not known; a card knows blocks of 128 x 128")
    return "fp8_block", None


def _integer(settings: Config) -> Quantised:
    bits = settings.integer("bits")
    if bits not in (4, 8):
        raise settings.problem("bits", f"{bits} is not known; a card knows 4 and 8")
    return "int4" if bits == 4 else "int8", settings.integer_or("group_size", INT4_GROUP, minimum=-1)


def _mxfp4(_settings: Config) -> Quantised:
    return "mxfp4", None


def _modelopt(settings: Config) -> Quantised:
    known: dict[str, DType] = {"FP8": "fp8", "NVFP4": "nvfp4"}
    algorithm = settings.word("quant_algo", "")
    if algorithm not in known:
        raise settings.problem("quant_algo", f"'{algorithm}' is not known; known: {', '.join(known)}")
    return known[algorithm], None


def _compressed_tensors(settings: Config) -> Quantised:
    groups = settings.section("config_groups")
    kinds = {_weights_dtype(groups.section(name).section("weights")) for name in groups.values}
    if len(kinds) != 1:
        raise settings.problem("config_groups", f"{len(kinds)} kinds of weights where a card knows one; write a card")
    return kinds.pop()


def _weights_dtype(weights: Config) -> Quantised:
    group = weights.integer_or("group_size", -1, minimum=-1)
    known: dict[tuple[int, str], DType] = {
        (4, "int"): "int4",
        (8, "int"): "int8",
        (8, "float"): "fp8_block" if weights.has("block_structure") else "fp8",
        (4, "float"): "mxfp4" if group == 32 else "nvfp4",
    }
    kind = (weights.integer("num_bits"), weights.word("type", "int"))
    if kind not in known:
        raise weights.problem("num_bits", f"{kind[0]} bits of type '{kind[1]}' are not known")
    return known[kind], group


METHODS: dict[str, Callable[[Config], Quantised]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _integer,
    "awq": _integer,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
}
