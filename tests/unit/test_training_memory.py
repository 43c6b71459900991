"""Memory of training steps by hand: states by ZeRO stage, activations by recomputation."""

import pytest

from scenarios.errors import MemoryInfeasible
from scenarios.specs import MemorySpec
from scenarios.training_specs import TrainingSpec
from sim.gradient_sums import buckets_of
from sim.memory import check_memory, device_memory
from sim.optimizer import divided_parameters, held_parameters
from sim.training_memory import activation_bytes, row_values, token_values
from tests.small import gqa, tiny_model
from tests.training import even, setting_of


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_by_zero_stage(zero: int) -> None:
    """ZeRO, figure 1: (2 + 2 + 12) bytes a parameter, of which 12, 14 or 16 are divided among 4 devices."""
    setting = setting_of(TrainingSpec(zero=zero))  # type: ignore[arg-type]
    placement = even(setting)
    memory = device_memory(setting, placement, MemorySpec())
    held = held_parameters(setting, placement)
    dense, experts = held.others[0], held.experts[0]
    assert dense == 2 * 64 * 16 * 2 * (4 + 2) + 2 * 8 * 64 + 2 * 256 * 64
    assert experts == 2 * 2 * 3 * 64 * 32
    assert memory.training is not None
    divided = [1, 4, 4, 4][zero], [1, 1, 4, 4][zero], [1, 1, 1, 4][zero]
    assert memory.training.optimizer_bytes[0] == pytest.approx(12 * (experts + dense / divided[0]))
    assert memory.training.gradient_bytes[0] == pytest.approx(2 * (experts + dense / divided[1]))
    assert memory.other_weight_bytes == pytest.approx(2 * dense / divided[2])
    assert memory.expert_bytes[0] == 2 * experts
    assert memory.kv_bytes == 0
    parts = [memory.expert_bytes, memory.training.total_bytes]
    assert memory.used_bytes[0] == pytest.approx(sum(part[0] for part in parts) + memory.other_weight_bytes)


def test_replicas_divide_states_of_experts() -> None:
    setting = setting_of(TrainingSpec(zero=1, replicas=2))
    held = held_parameters(setting, even(setting))
    kept = divided_parameters(held, buckets_of(setting, even(setting)))
    assert kept.experts[0] == held.experts[0] / 2
    assert kept.others[0] == pytest.approx(held.others[0] / 8)


def test_values_of_a_dense_layer_are_those_of_korthikanti() -> None:
    """arXiv 2205.05198, equation 2 without attention's scores: 34 h bytes, of which 2 h are masks of dropout."""
    h = 1024
    model = tiny_model(
        hidden_size=h,
        attention=gqa(n_heads=16, n_kv_heads=16, head_dim=64),
        n_layers=3,
        moe_layer_list=[1],
        dense_intermediate_size=4 * h,
        dense_gated=False,
    )
    assert 2 * token_values(model, False, "none") == 34 * h - 2 * h
    assert 2 * token_values(model, False, "selective") == 32 * h - 2 * (2 * h + 4 * h)


def test_values_of_rows_are_those_of_megascale_moe() -> None:
    """arXiv 2505.11432: the terms with k are 2 k + 3 k f of h; f is the expert's size over h."""
    model = tiny_model(hidden_size=1024, expert_intermediate_size=3584)
    assert row_values(model, "none", 1) == (2 + 3 * 3.5) * 1024
    assert row_values(model, "selective", 1) == (2 + 2 * 3.5) * 1024
    assert row_values(model, "none", 2) == (2 + 3 * 3.5 / 2) * 1024


def test_activations_by_hand() -> None:
    """32 tokens a device, of which 64 rows come to each rank of balanced experts on average; 4 bytes of fp32 logits."""
    fields = {"steps": 1, "tokens_per_device": 32}
    whole, full = (setting_of(TrainingSpec(recompute=name), **fields) for name in ("none", "full"))  # type: ignore[arg-type]
    token = 2 * (4 * 64 + 2 * 64 + 2 * 2 * 16) + 4 * (4 + 8)
    row = 2 * (2 * 64 + 3 * 32)
    logits = 32 * (4 * 256 + 2 * 64)
    assert activation_bytes(whole, even(whole)).mean() == pytest.approx(2 * (32 * token + 64 * row) + logits)
    inputs = 2 * 32 * 64 * 2
    fullest = activation_bytes(full, even(full)) - inputs
    assert fullest.min() >= logits
    assert fullest.max() <= 32 * token + 4 * 64 * row


def test_what_does_not_fit_names_the_levers() -> None:
    setting = setting_of()
    placement = even(setting)
    with pytest.raises(MemoryInfeasible, match=r"optimizer .* activations .* training.zero 1, training.recompute full"):
        check_memory(device_memory(setting, placement, MemorySpec(reserve=0.999999)), setting, placement)
