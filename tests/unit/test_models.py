"""Shipped model cards against published sizes, and the formulas of a card against hand numbers."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from scenarios.loader import load_spec
from scenarios.models import GroupedQueryAttention, LatentAttention, ModelCard

FOLDER = Path(__file__).resolve().parents[2] / "scenarios" / "library" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Stated size [1e9 weights]. `embeddings` is how many of the embedding matrices `active` counts."""

    total: float
    source: str
    active: float | None = None
    embeddings: int = 2
    tolerance: float = 0.03


DEEPSPEED = "arXiv 2201.05596, table of inference models: size, and the dense base model"
SWITCH = "arXiv 2101.03961, Switch-Base and Switch-Large with 128 experts"
QWEN3 = "arXiv 2505.09388, table 2, and the Hugging Face model cards"
PUBLISHED = {
    "mixtral-8x7b": Published(total=46.7, active=12.9, source="mistral.ai/news/mixtral-of-experts"),
    "mixtral-8x22b": Published(total=141, active=39, source="mistral.ai/news/mixtral-8x22b"),
    "deepseek-v2-lite": Published(total=15.7, active=2.4, embeddings=1, source="arXiv 2405.04434, appendix B"),
    "deepseek-v2": Published(total=236, active=21, source="arXiv 2405.04434"),
    "deepseek-v3": Published(total=671, active=37, source="arXiv 2412.19437"),
    "deepseek-r1": Published(total=671, active=37, source="arXiv 2501.12948"),
    "deepseek-moe-16b": Published(total=16.4, active=2.8, source="arXiv 2401.06066"),
    "kimi-k2": Published(total=1040, active=32.6, source="arXiv 2507.20534"),
    "qwen1.5-moe-a2.7b": Published(total=14.3, active=2.7, source="qwenlm.github.io/blog/qwen-moe"),
    "qwen2-57b-a14b": Published(total=57.4, active=14, source="arXiv 2407.10671, table 1; Hugging Face model card"),
    "qwen3-30b-a3b": Published(total=30.5, active=3.3, source=QWEN3),
    "qwen3-235b-a22b": Published(total=235, active=22, source=QWEN3),
    "olmoe-1b-7b": Published(total=6.9, active=1.3, source="arXiv 2409.02060"),
    "gpt-oss-20b": Published(total=20.91, active=3.61, embeddings=1, source="arXiv 2508.10925, table 1"),
    "gpt-oss-120b": Published(total=116.83, active=5.13, embeddings=1, source="arXiv 2508.10925, table 1"),
    "phi-3.5-moe": Published(
        total=41.9, active=6.6, source="Hugging Face model card of microsoft/Phi-3.5-MoE-instruct"
    ),
    "dbrx": Published(total=132, active=36, source="databricks.com/blog, DBRX, March 2024"),
    "glam-143b": Published(total=143, active=9.8, embeddings=0, source="arXiv 2112.06905, table 4"),
    "grok-1": Published(total=314, source="x.ai/news/grok-os"),
    "switch-base-128": Published(total=7.4, source=SWITCH),
    "switch-large-128": Published(total=26.3, source=SWITCH),
    "switch-c-2048": Published(total=1571, source="arXiv 2101.03961, table 9"),
    "nllb-moe-54b": Published(total=54.5, source="arXiv 2207.04672"),
    # The card's note says why the active count is off; 2.1 is the paper's figure without embeddings.
    "openmoe-8b": Published(total=8.7, active=2.1, embeddings=0, tolerance=0.06, source="arXiv 2402.01739"),
    "flame-moe-290m": Published(total=1.3, active=0.290, source="arXiv 2505.20225"),
    "megascale-352b": Published(total=352, source="arXiv 2505.11432"),
    "deepspeed-moe-52b": Published(total=52, active=1.3, embeddings=1, source=DEEPSPEED),
    "deepspeed-pr-moe-31b": Published(total=31, source="arXiv 2201.05596, section 4.1"),
    "deepspeed-moe-107b": Published(total=107.7, active=2.4, embeddings=0, source=DEEPSPEED),
    "deepspeed-moe-349b": Published(total=349.0, active=8, embeddings=0, source=DEEPSPEED),
    "deepspeed-moe-1t": Published(total=1064.9, active=24, embeddings=0, source=DEEPSPEED),
    # By hand: 8 x (3 x 192 x (64 x 64 + 128) + 192 x 64 + 2 x 192 x 64 x 4) + 1024 x 192; six of 64 experts active.
    "moesim-20m": Published(total=0.020546, active=0.003441, source="counted by hand; weights of the decoder alone"),
    # Eight of the 26 MoE layers of DeepSeek-V2-Lite, each 584.9 million weights, and its embeddings.
    "moesim-20m-v2-lite-widths": Published(total=8 * 0.5849 + 2 * 0.2097, source="DeepSeek-V2-Lite, layer by layer"),
    "deepspeed-moe-2t": Published(total=2024.0, active=47, embeddings=0, source=DEEPSPEED),
}
# Megabytes of one expert at two bytes a weight, half a unit of the last digit that the papers on offloading print.
EXPERT_MB = {
    "mixtral-8x7b": (352, 0.5),
    "deepseek-v2-lite": (17.3, 0.05),
    "phi-3.5-moe": (157, 0.5),
    "switch-base-128": (9.4, 0.05),
}
MOE_LAYERS = {
    "switch-base-128": 12,
    "switch-large-128": 24,
    "switch-c-2048": 30,
    "nllb-moe-54b": 12,
    "deepseek-v2-lite": 26,
    "deepseek-v3": 58,
    "deepseek-moe-16b": 27,
    "openmoe-8b": 4,
    "flame-moe-290m": 8,
    "glam-143b": 16,
}


def load(name: str) -> ModelCard:
    return load_spec(FOLDER / f"{name}.yaml", ModelCard)


def test_every_card_is_compared_with_a_published_size() -> None:
    assert sorted(PUBLISHED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_named_after_its_file_and_says_where_its_numbers_come_from(name: str) -> None:
    card = load(name)
    assert card.name == name
    assert "default" in card.sources
    assert [field for field, origin in card.sources.items() if len(origin.source) < 20] == []


@pytest.mark.parametrize("name", NAMES)
def test_parameters_agree_with_the_published_size(name: str) -> None:
    card, published = load(name), PUBLISHED[name]
    assert card.total_parameters / 1e9 == pytest.approx(published.total, rel=0.03), published.source
    if published.active is not None:
        matrices = 1 if card.tied_embeddings else 2
        left_out = (matrices - min(matrices, published.embeddings)) * card.vocab_size * card.hidden_size
        active = (card.active_parameters - left_out) / 1e9
        assert active == pytest.approx(published.active, rel=published.tolerance), published.source


@pytest.mark.parametrize(("name", "figure"), EXPERT_MB.items())
def test_an_expert_has_the_bytes_that_papers_state(name: str, figure: tuple[float, float]) -> None:
    megabytes, rounding = figure
    assert load(name).expert_bytes / 1e6 == pytest.approx(megabytes, abs=rounding)


def test_bytes_of_quantised_experts() -> None:
    """Blocks of 128 x 128 weights share an fp32 scale, groups of 32 an 8-bit scale."""
    assert load("deepseek-v3").expert_bytes == 3 * 7168 * 2048 * (1 + 4 / 128**2)
    assert load("gpt-oss-120b").expert_bytes == 3 * 2880 * 2880 * (4 + 8 / 32) / 8


@pytest.mark.parametrize(("name", "count"), MOE_LAYERS.items())
def test_number_of_layers_with_experts(name: str, count: int) -> None:
    assert len(load(name).moe_layers) == count


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("mixtral-8x7b", 128.0),  # MoE-Lens, arXiv 2504.09345
        ("deepseek-v3", 70272 / 1024),  # arXiv 2505.09343, table 1: 70.272 KB
    ],
)
def test_kv_cache_of_a_token_is_as_published(name: str, kib: float) -> None:
    card = load(name)
    assert card.n_layers * card.attention.kv_values_per_token() * 2 == kib * 1024


def test_encoder_decoder_models_say_what_they_leave_out() -> None:
    for name in ("switch-base-128", "switch-large-128", "switch-c-2048", "nllb-moe-54b"):
        assert "Cross attention" in (load(name).note or "")


def test_parameters_of_a_small_card_by_hand() -> None:
    """Layers 1 and 3 have experts.

    Attention: 4 layers x 8 x 2 x (2 x 4 heads + 2 x 2 heads) = 768. Experts: 2 x (3 experts x 3 x 8 x 5 + router 3 x 8
    + shared 3 x 8 x 6) = 1056. Dense: 2 x 2 x 8 x 7 = 224. Embeddings: 2 x 10 x 8 = 160.
    """
    card = small_card()
    assert card.moe_layers == (1, 3)
    assert card.total_parameters == 768 + 1056 + 224 + 160
    assert card.active_parameters == card.total_parameters - 2 * 2 * 120
    assert card.source_of("top_k").kind == "assumed"
    assert card.source_of("gated").kind == "published"


def test_parameters_of_latent_attention_by_hand() -> None:
    """Queries 5 x (8 + 2 x (3 + 1)); latent 8 x (4 + 1); expansion 4 x 2 x (3 + 2); output 2 x 2 x 8."""
    shape = {
        "kind": "mla",
        "n_heads": 2,
        "kv_lora_rank": 4,
        "qk_nope_head_dim": 3,
        "qk_rope_head_dim": 1,
        "v_head_dim": 2,
    }
    assert LatentAttention.model_validate({**shape, "q_lora_rank": 5}).parameters(8) == 80 + 40 + 40 + 32
    assert LatentAttention.model_validate(shape).parameters(8) == 8 * 8 + 40 + 40 + 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 4}, "top_k 4 exceeds n_experts 3"),
        ({"n_group": 2}, "not divisible by n_group 2"),
        ({"n_group": 3, "topk_group": 4}, "topk_group 4 exceeds n_group 3"),
        ({"first_moe_layer": 4}, "no MoE layer"),
        ({"dense_intermediate_size": 0}, "give dense_intermediate_size"),
        ({"moe_layer_list": (1, 4)}, "names layer 4, but there are 4 layers"),
        ({"moe_layer_list": (3, 1)}, "ascending, each once"),
        ({"moe_layer_list": (1, 1)}, "ascending, each once"),
        ({"moe_layer_list": (-1, 2)}, "from 0 on"),
        (
            {
                "sources": {
                    "default": {"source": "by hand", "kind": "assumed"},
                    "depth": {"source": "x y", "kind": "assumed"},
                }
            },
            "depth",
        ),
        ({"sources": {}}, "at least 1 item"),
        ({"hidden": 8}, "Extra inputs are not permitted"),
    ],
)
def test_an_inconsistent_card_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_card(**change)


def small_card(**change: object) -> ModelCard:
    origin = {"source": "made up for this test", "kind": "published"}
    shape = {
        "name": "small",
        "sources": {"default": origin, "top_k": {**origin, "kind": "assumed"}},
        "n_layers": 4,
        "hidden_size": 8,
        "vocab_size": 10,
        "attention": GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=2),
        "n_experts": 3,
        "top_k": 1,
        "expert_intermediate_size": 5,
        "shared_intermediate_size": 6,
        "dense_intermediate_size": 7,
        "dense_gated": False,
        "first_moe_layer": 1,
        "moe_layer_every": 2,
    }
    return ModelCard.model_validate({**shape, **change})
