"""Reading config.json of Hugging Face models: real configurations give the shipped cards; bad input is explained."""

import json
from pathlib import Path
from typing import Any

import pytest

from scenarios.config_json import MAX_BYTES
from scenarios.errors import ScenarioError
from scenarios.huggingface import FAMILIES, read_config
from scenarios.loader import load_spec
from scenarios.models import ModelCard
from tests.unit.huggingface_configs import CONFIGS, FP8_BLOCK, MIXTRAL, heads, routed, sizes

FOLDER = Path(__file__).resolve().parents[2] / "scenarios" / "library" / "models"


def write(folder: Path, config: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def shape(card: ModelCard) -> dict[str, Any]:
    return card.model_dump(exclude={"name", "sources", "note"})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_gives_the_shipped_card(name: str, tmp_path: Path) -> None:
    assert shape(read_config(write(tmp_path, CONFIGS[name]))) == shape(load_spec(FOLDER / f"{name}.yaml", ModelCard))


def test_the_card_is_named_after_the_folder_and_says_where_it_comes_from(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--mistralai--Mixtral-8x7B-v0.1" / "snapshots" / "985aa05"
    plain = tmp_path / "my-mixtral"
    for folder in (snapshot, plain):
        folder.mkdir(parents=True)
    assert read_config(write(snapshot, MIXTRAL)).name == "Mixtral-8x7B-v0.1"
    card = read_config(write(plain, MIXTRAL))
    assert card.name == "my-mixtral"
    assert card.sources["default"].source == "config.json of my-mixtral, model_type mixtral"
    assert set(card.sources) == {"default"}


def test_the_card_of_a_file_beside_a_trace_is_named_after_the_file(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, MIXTRAL, "my-mixtral.config.json")).name == "my-mixtral"


def test_transformers_5_counts_experts_of_qwen3_under_another_key(tmp_path: Path) -> None:
    config = dict(CONFIGS["qwen3-30b-a3b"])
    config["num_local_experts"] = config.pop("num_experts")
    assert shape(read_config(write(tmp_path, config))) == shape(load_spec(FOLDER / "qwen3-30b-a3b.yaml", ModelCard))


def test_other_conversion_of_grok_counts_experts_under_another_key(tmp_path: Path) -> None:
    config = {**CONFIGS["grok-1"], "num_local_experts": 8, "tie_word_embeddings": False}
    del config["num_experts"]
    card = read_config(write(tmp_path, config))
    assert (card.n_experts, card.tied_embeddings) == (8, False)


def test_language_part_of_a_multimodal_model_is_read(tmp_path: Path) -> None:
    """Llama 4 Maverick: every second layer has experts; outer keys fill what the inner ones leave out."""
    text = {
        "model_type": "llama4_text",
        **sizes(48, 5120, 8192, 202048),
        **heads(40, 8),
        "head_dim": 128,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8192,
    }
    del text["torch_dtype"]
    config = {"model_type": "llama4", "text_config": text, "vision_config": {}, "torch_dtype": "bfloat16"}
    card = read_config(write(tmp_path, config))
    assert card.moe_layers == tuple(range(1, 48, 2))
    assert (card.shared_intermediate_size, card.dense_intermediate_size, card.gating) == (8192, 16384, "sigmoid")
    assert card.total_parameters / 1e9 == pytest.approx(
        400, rel=0.01
    )  # ai.meta.com/blog/llama-4-multimodal-intelligence
    assert card.active_parameters / 1e9 == pytest.approx(17, rel=0.02)
    assert "Chunked attention" in (card.note or "")


def test_layers_that_qwen_leaves_dense(tmp_path: Path) -> None:
    config = {**CONFIGS["qwen1.5-moe-a2.7b"], "num_hidden_layers": 6, "mlp_only_layers": [1]}
    card = read_config(write(tmp_path, config))
    assert (card.moe_layers, card.dense_intermediate_size) == ((0, 2, 3, 4, 5), 5632)
    config = {**config, "decoder_sparse_step": 2, "mlp_only_layers": []}
    assert read_config(write(tmp_path, config)).moe_layers == (1, 3, 5)


def test_moe_layer_freq_of_deepseek_counts_from_layer_0(tmp_path: Path) -> None:
    config = {**CONFIGS["deepseek-moe-16b"], "num_hidden_layers": 8, "moe_layer_freq": 2}
    assert read_config(write(tmp_path, config)).moe_layers == (2, 4, 6)


def test_shared_experts_may_be_none(tmp_path: Path) -> None:
    config = {**CONFIGS["deepseek-moe-16b"], "n_shared_experts": None}
    assert read_config(write(tmp_path, config)).shared_intermediate_size == 0


def test_glm_is_read_as_deepseek_with_grouped_queries(tmp_path: Path) -> None:
    """GLM-4.5-Air: 106 B in total (arXiv 2508.06471)."""
    config = {
        "model_type": "glm4_moe",
        **sizes(46, 4096, 10944, 151552),
        **heads(96, 8),
        "head_dim": 128,
        **routed(128, 8, 1408, 1, 1),
        "n_group": 1,
        "topk_group": 1,
    }
    card = read_config(write(tmp_path, config))
    assert card.gating == "sigmoid"
    assert card.total_parameters / 1e9 == pytest.approx(106, rel=0.01)


def test_ernie_layers_and_shared_experts(tmp_path: Path) -> None:
    """ERNIE-4.5-21B-A3B: its name states the size."""
    config = {
        "model_type": "ernie4_5_moe",
        **sizes(28, 2560, 12288, 103424),
        **heads(20, 4),
        "tie_word_embeddings": True,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_intermediate_size": 1536,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    }
    card = read_config(write(tmp_path, config))
    assert (card.moe_layers, card.shared_intermediate_size) == (tuple(range(1, 28)), 3072)
    assert card.total_parameters / 1e9 == pytest.approx(21, rel=0.05)


def test_granite_with_a_shared_expert(tmp_path: Path) -> None:
    config = {
        **MIXTRAL,
        "model_type": "granitemoeshared",
        "shared_intermediate_size": 1024,
        "tie_word_embeddings": True,
    }
    card = read_config(write(tmp_path, config))
    assert (card.shared_intermediate_size, card.tied_embeddings) == (1024, True)


def test_window_of_attention(tmp_path: Path) -> None:
    def window(**change: object) -> tuple[int | None, int]:
        attention = read_config(write(tmp_path, {**MIXTRAL, **change})).attention
        assert attention.kind == "gqa"
        return attention.window_tokens, attention.windowed_every

    full, sliding = "full_attention", "sliding_attention"
    assert window(sliding_window=4096) == (4096, 1)
    assert window(sliding_window=4096, use_sliding_window=False) == (None, 1)
    assert window(sliding_window=32768) == (None, 1)
    assert window(sliding_window=4096, layer_types=[full] * 32) == (None, 1)
    assert window(sliding_window=4096, layer_types=[sliding, full, full, full] * 8) == (4096, 4)
    with pytest.raises(ScenarioError, match="layer_types: windows of attention are not in layers 0, n, 2n"):
        window(sliding_window=4096, layer_types=[full, sliding] * 16)
    with pytest.raises(ScenarioError, match="max_window_layers: a window in some layers only"):
        window(sliding_window=4096, use_sliding_window=True, max_window_layers=21)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"]}
INT4_EXPERTS = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn.q_a_proj"]}
QUANTISED = [
    (None, "bf16", None),
    ({"quant_method": "fp8"}, "fp8", None),
    ({**FP8_BLOCK, "modules_to_not_convert": ["model.layers.0.post_attention_layernorm"]}, "fp8_block", None),
    ({"quant_method": "mxfp4"}, "bf16", "mxfp4"),
    (AWQ, "int4", None),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", None),
    (INT4_EXPERTS, "bf16", "int4"),
    (NVFP4, "bf16", "nvfp4"),
]


@pytest.mark.parametrize(("settings", "weights", "experts"), QUANTISED)
def test_quantisation(settings: object, weights: str, experts: str | None, tmp_path: Path) -> None:
    card = read_config(write(tmp_path, {**MIXTRAL, "quantization_config": settings}))
    assert (card.weight_dtype, card.expert_dtype, card.activation_dtype) == (weights, experts, "bf16")


def test_quantisation_stated_beside_the_config(tmp_path: Path) -> None:
    write(tmp_path, {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}, "hf_quant_config.json")
    assert read_config(write(tmp_path, MIXTRAL)).weight_dtype == "fp8"


def test_what_a_file_does_not_state_is_marked_as_assumed(tmp_path: Path) -> None:
    config = {key: value for key, value in MIXTRAL.items() if key != "torch_dtype"}
    card = read_config(write(tmp_path, config))
    assert card.source_of("weight_dtype").kind == card.source_of("kv_dtype").kind == "assumed"
    card = read_config(write(tmp_path, {**config, "quantization_config": FP8_BLOCK}))
    assert card.source_of("weight_dtype").kind == "published"
    card = read_config(write(tmp_path, {**config, "quantization_config": INT4_EXPERTS}))
    assert "groups of 32 weights" in card.source_of("expert_dtype").source


BAD_KEYS = [
    (
        {"model_type": "mixtrel"},
        r"model_type: 'mixtrel' is not known \(did you mean 'mixtral'\?\); known: mixtral, phimoe",
    ),
    ({"model_type": None}, "model_type: is missing"),
    ({"model_type": 3}, "model_type: must be a text, not 3"),
    ({"num_local_experts": None}, "num_local_experts: is absent or 0, so the model is dense"),
    ({"num_local_experts": 0}, "num_local_experts: is absent or 0, so the model is dense"),
    ({"hidden_size": None, "hidden_sizes": 4096}, r"hidden_size: is null.*did the file mean 'hidden_sizes'\?"),
    ({"num_experts_per_tok": None}, "num_experts_per_tok: is null, and this model type needs it$"),
    ({"hidden_size": "4096"}, "hidden_size: must be a whole number, not '4096'"),
    ({"hidden_size": True}, "hidden_size: must be a whole number, not True"),
    ({"hidden_size": 4096.0}, "hidden_size: must be a whole number, not 4096.0"),
    ({"hidden_size": 10**30}, "hidden_size: a number of 100 bits must be from 1 to 1000000000"),
    ({"num_hidden_layers": 10**8}, "num_hidden_layers: 100000000 must be from 1 to 10000"),
    ({"vocab_size": -1}, "vocab_size: -1 must be from 1"),
    ({"num_attention_heads": 3}, "head_dim: is absent, and 4096 is not divisible by 3 heads"),
    ({"num_experts_per_tok": 9}, "top_k 9 exceeds n_experts 8"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false, not 'no'"),
    ({"torch_dtype": "float64"}, "torch_dtype: 'float64' is not known; known: float32"),
    ({"scoring_func": "relu"}, "scoring_func: 'relu' is not expressed by a card"),
    ({"text_config": 3}, "text_config: must be an object, not 3"),
    ({"sliding_window": 8, "layer_types": "full"}, "layer_types: must be a list, not 'full'"),
    ({"sliding_window": 8, "layer_types": [1]}, "layer_types: must be a list of texts"),
    (
        {"quantization_config": {"quant_method": "hqq"}},
        "quantization_config.quant_method: 'hqq' is not known; known: fp8",
    ),
    (
        {"quantization_config": {**FP8_BLOCK, "weight_block_size": [64, 64]}},
        r"weight_block_size: \[64, 64\] is not known",
    ),
    ({"quantization_config": {**AWQ, "bits": 3}}, "quantization_config.bits: 3 is not known"),
    ({"quantization_config": {"quant_algo": "W4A8"}}, "quant_algo: 'W4A8' is not known; known: FP8, NVFP4"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantization_config.config_groups: is missing"),
]


@pytest.mark.parametrize(("change", "message"), BAD_KEYS)
def test_a_wrong_key_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**MIXTRAL, **change})
    with pytest.raises(ScenarioError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", **sizes(32, 4096, 11008, 32000), **heads(32, 32)}
    with pytest.raises(ScenarioError, match="'llama' is a dense model: no key names experts"):
        read_config(write(tmp_path, config))
    config = {**CONFIGS["deepseek-moe-16b"], "first_k_dense_replace": 28}
    with pytest.raises(ScenarioError, match="no layer holds experts"):
        read_config(write(tmp_path, config))


def test_stacks_of_nllb_that_differ_are_refused(tmp_path: Path) -> None:
    config = {**CONFIGS["nllb-moe-54b"], "decoder_layers": 12}
    with pytest.raises(ScenarioError, match="decoder_layers: 12 differs from the encoder's 24"):
        read_config(write(tmp_path, config))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "mixtral",\n "hidden_size": }', r"config.json:2: is not JSON \(Expecting value\)"),
        (b"", "config.json:1: is not JSON"),
        (b"[1, 2]", "holds a list; a config.json holds an object"),
        (b"\xff\xfe{}", "is not text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "a number too long"),
        (b" " * (MAX_BYTES + 1), f"has {MAX_BYTES + 1} bytes, a config.json at most {MAX_BYTES}"),
    ],
    ids=["syntax", "empty", "list", "encoding", "depth", "digits", "size"],
)
def test_a_file_that_is_no_config_is_explained(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=message):
        read_config(path)


def test_a_path_that_is_no_file_is_explained(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(ScenarioError, match=r"is not a file; give the path of a model's config\.json"):
            read_config(path)


def test_every_family_asks_for_what_it_needs(tmp_path: Path) -> None:
    """An almost empty file never ends in another error than one that names a key."""
    for name in FAMILIES:
        with pytest.raises(ScenarioError, match=r"config\.json \w+"):
            read_config(write(tmp_path, {"model_type": name}))
