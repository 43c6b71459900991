"""Payloads that shrink: compressed tokens (LSH-MoE), a low dimension on the wire (BigMac); by hand, by the papers."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodels.gemm import gemm_s
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.memory import device_memory
from sim.payload import encode_prices, payload_prices
from sim.priced_steps import execute_schedule
from sim.pricing import price
from sim.session import reduced
from sim.setting import Setting
from tests.devices import ideal_gpu, round_gpu
from tests.small import even_placement, measured, random_trace, tiny_cluster, tiny_model, tiny_setting

PLAIN = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}})
PACKED = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}, "payload": {"rate": 0.25, "hashes": 3}})
H = 64


def setting_of(n_nodes: int = 1, **fields: object) -> Setting:
    model = tiny_model(**fields)
    return tiny_setting(model, tiny_cluster(n_nodes, device=ideal_gpu()), random_trace(model), tokens_per_device=16)


def bigmac(**fields: object) -> dict[str, object]:
    return {"bottleneck_size": 16, "expert_intermediate_size": H} | fields


def test_compression_scales_bytes_and_rows_and_adds_its_own_passes() -> None:
    """On a card without losses: 3 rotations of 16 x 64 by 64 x 64, then passes over h = 64 values of two bytes."""
    setting = setting_of()
    placement = even_placement(setting.model, 4)
    prices = payload_prices(setting, PACKED.payload, 1)
    rotated_s = 3 * gemm_s(16, H, H, "bf16", setting.cluster.device)
    row_s = 16 * H * 2 / 4e12
    assert prices["compress"][0] == pytest.approx(rotated_s + row_s * (3 + 2 + 2 * 0.25))
    assert prices["restore"][0] == pytest.approx(row_s * (2 + 2 * 2))
    plain, packed = reduced(setting, placement, PLAIN), reduced(setting, placement, PACKED)
    assert (packed.slot_tokens <= plain.slot_tokens).all()
    assert packed.slot_tokens.sum() == packed.pairs_total.sum() < 0.6 * plain.slot_tokens.sum()
    result = measured(setting, placement, PACKED)
    assert set(result.breakdown_s) >= {"compress", "restore"}
    assert result.breakdown_s["compress"] == pytest.approx(2 * float(prices["compress"][0].mean()))


def test_at_rate_one_only_the_passes_are_added() -> None:
    setting = setting_of()
    placement = even_placement(setting.model, 4)
    whole = ScheduleSpec.model_validate({"exchange": {"dedup": "none"}, "payload": {"rate": 1.0}})
    added = payload_prices(setting, whole.payload, 1)
    plain_s = execute_schedule(setting, placement, reduced(setting, placement, PLAIN), PLAIN).step_times_s
    packed_s = execute_schedule(setting, placement, reduced(setting, placement, whole), whole).step_times_s
    extra_s = 2 * (added["compress"][0] + added["restore"][0]).max(axis=-1)
    np.testing.assert_allclose(packed_s - plain_s, extra_s, rtol=1e-9)


@pytest.mark.parametrize("overlap", ["none", "chunked", "two-batch"])
def test_an_einsum_multiplies_every_token_with_every_place(overlap: str) -> None:
    """4 k n^2 h FLOP of a layer on a card without losses; microbatches have smaller masks."""
    setting = setting_of(expert_intermediate_size=H)
    placement = even_placement(setting.model, 4)
    dense = PLAIN.model_copy(update={"overlap": overlap, "encode": "einsum"})
    added = encode_prices(setting, 1)
    flop_s = 2 * 2 * 16 * 16 * H / setting.cluster.device.peak_flop_per_s("bf16")
    mask_s = 16 * 32 * 2 / 4e12
    assert added["encode"][0].mean() == pytest.approx(mask_s + gemm_s(32, H, 16, "bf16", setting.cluster.device))
    assert added["decode"][0].mean() == pytest.approx(gemm_s(16, H, 32, "bf16", setting.cluster.device))
    assert added["decode"][0].mean() >= flop_s
    reduction = reduced(setting, placement, dense)
    steps_s = [
        execute_schedule(setting, placement, reduction, dense.model_copy(update={"executor": name})).step_times_s
        for name in ("vector", "event")
    ]
    np.testing.assert_allclose(steps_s[0], steps_s[1], rtol=1e-12)
    plain = PLAIN.model_copy(update={"overlap": overlap})
    plain_s = execute_schedule(setting, placement, reduced(setting, placement, plain), plain).step_times_s
    if overlap != "two-batch":
        extra_s = 2 * (added["encode"][0] + added["decode"][0]).max(axis=-1)
        np.testing.assert_allclose(steps_s[0] - plain_s, extra_s, rtol=1e-9)


def test_the_mask_of_an_einsum_has_a_gradient() -> None:
    """Backward three products: of tokens, of what came back, and of the mask, n x k n x h."""
    setting = setting_of()
    trained = replace(setting, workload=setting.workload.model_copy(update={"phase": "train"}))
    forward, both = encode_prices(setting, 1), encode_prices(trained, 1)
    device = setting.cluster.device
    assert set(both) - set(forward) == {"encode.backward", "decode.backward"}
    assert both["encode.backward"][0].mean() == pytest.approx(gemm_s(16, H, 32, "bf16", device))
    mask_s = gemm_s(16, 32, H, "bf16", device)
    assert both["decode.backward"][0].mean() == pytest.approx(gemm_s(32, H, 16, "bf16", device) + mask_s)


def test_clusters_have_nothing_to_send_once() -> None:
    with pytest.raises(ValidationError, match="dedup: none"):
        ScheduleSpec.model_validate({"payload": {"rate": 0.2}})
    for wrong in (0, 1.5):
        with pytest.raises(ValidationError):
            ScheduleSpec.model_validate({"exchange": {"dedup": "none"}, "payload": {"rate": wrong}})


def gpt3_xl(**fields: object) -> dict[str, object]:
    """GPT3-XL with 64 fine-grained experts a layer, as BigMac's paper counts it (vocabulary of 51,200, tied)."""
    attention = {"kind": "gqa", "n_heads": 16, "n_kv_heads": 16, "head_dim": 128}
    shape = {"n_layers": 24, "hidden_size": 2048, "vocab_size": 51200, "n_experts": 64, "top_k": 8, "gated": False}
    return shape | {"attention": attention, "tied_embeddings": True, "expert_intermediate_size": 512} | fields


def test_bigmac_has_the_parameters_of_its_paper() -> None:
    """AAAI 2025, table of GPT3-XL: 3.73 to 3.78 billion parameters."""
    fine, low = tiny_model(**gpt3_xl()), tiny_model(**gpt3_xl(bottleneck_size=512, expert_intermediate_size=2048))
    assert fine.total_parameters / 1e9 == pytest.approx(3.73, abs=0.006)
    assert low.total_parameters / 1e9 == pytest.approx(3.78, abs=0.006)
    assert low.total_parameters - fine.total_parameters == 2 * 2048 * 512 * 24


def test_a_bottleneck_cuts_bytes_by_its_share_and_adds_two_products() -> None:
    plain, low = setting_of(), setting_of(**bigmac())
    placement = even_placement(plain.model, 4)
    kind = "bytes.nvlink"
    whole, cut = (measured(s, placement, PLAIN) for s in (plain, low))
    assert cut.metrics[kind] == pytest.approx(whole.metrics[kind] * 16 / H)
    prices = price(low, placement, reduced(low, placement, PLAIN), PLAIN.exchange).per_layer
    device = low.cluster.device
    assert prices["descend"][0] == pytest.approx(gemm_s(16, 16, H, "bf16", device))
    assert prices["ascend"][0] == pytest.approx(gemm_s(16, H, 16, "bf16", device))
    extra = 2 * 2 * 2 * H * 16  # two layers, two products, two bytes
    memory = [device_memory(s, placement, MemorySpec()) for s in (plain, low)]
    assert memory[1].other_weight_bytes - memory[0].other_weight_bytes == extra
    assert memory[1].expert_bytes[0] == 2 * 2 * 3 * 16 * H * 2


def test_a_bottleneck_is_not_wider_than_the_model() -> None:
    with pytest.raises(ValidationError, match="bottleneck_size 65 exceeds hidden_size 64"):
        tiny_model(bottleneck_size=65)


@pytest.mark.parametrize("overlap", ["none", "chunked", "two-batch"])
def test_all_schedules_run_with_both(overlap: str) -> None:
    model = tiny_model(**bigmac())
    setting = tiny_setting(model, tiny_cluster(2, 2, device=round_gpu()), random_trace(model), tokens_per_device=8)
    schedule = PACKED.model_copy(update={"overlap": overlap})
    placement = even_placement(model, 4)
    reduction = reduced(setting, placement, schedule)
    steps_s = [
        execute_schedule(setting, placement, reduction, schedule.model_copy(update={"executor": name})).step_times_s
        for name in ("vector", "event")
    ]
    np.testing.assert_allclose(steps_s[0], steps_s[1], rtol=1e-12)
