"""Memory of a device by hand, and what the user is told where it does not suffice."""

import numpy as np
import pytest

from placement.plan import Placement
from scenarios.errors import MemoryInfeasible
from scenarios.models import ModelCard
from scenarios.specs import MemorySpec
from sim.memory import DeviceMemory, check_memory, device_memory, kv_bytes_per_request
from tests.small import even_placement, gqa, random_trace, tiny_cluster, tiny_model, tiny_setting

H, V = 64, 256
MLA = {
    "kind": "mla",
    "n_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}


def memory_of(
    model: ModelCard, placement: Placement | None = None, spec: MemorySpec | None = None, **fields: object
) -> DeviceMemory:
    tp = int(str(fields.get("expert_tp", 1)))
    placement = placement or even_placement(model, 4 // tp)
    setting = tiny_setting(model, tiny_cluster(), random_trace(model, sequence_tokens=20), **fields)
    return device_memory(setting, placement, spec or MemorySpec())


def test_weights_of_a_model_with_all_kinds_of_layers() -> None:
    # layer 0 is dense, layers 1 and 2 have 8 experts, two a rank, and shared experts
    model = tiny_model(n_layers=3, first_moe_layer=1, dense_intermediate_size=48, shared_intermediate_size=40)
    memory = memory_of(model)
    assert memory.expert_bytes.tolist() == [2 * 2 * 3 * H * 32 * 2] * 4
    attention = 3 * H * 16 * 2 * (4 + 2)  # query and output of 4 heads, key and value of 2
    ffn = 2 * 3 * H * 40 + 1 * 3 * H * 48
    router, embeddings = 2 * 8 * H, 2 * V * H
    assert memory.other_weight_bytes == 2 * (attention + ffn + router + embeddings)
    assert memory.capacity_bytes == 141e9
    assert memory.usable_bytes == pytest.approx(0.9 * 141e9)


def test_attention_and_embeddings_are_split_over_attention_tp() -> None:
    model = tiny_model(shared_intermediate_size=40, tied_embeddings=True)
    attention, embeddings = 2 * H * 16 * 2 * (4 + 2), V * H
    whole = 2 * 3 * H * 40 + 2 * 8 * H
    for tp in (1, 2):
        memory = memory_of(model, attention_tp=tp)
        assert memory.other_weight_bytes == 2 * (attention / tp + embeddings / tp + whole)


def test_dtypes_of_experts_and_other_weights() -> None:
    model = tiny_model(weight_dtype="fp8", expert_dtype="int4", shared_intermediate_size=40)
    memory = memory_of(model)
    assert memory.expert_bytes.tolist() == pytest.approx([4 * 3 * H * 32 * (0.5 + 2 / 128)] * 4)
    quantised = 2 * H * 16 * 2 * (4 + 2) + 2 * 3 * H * 40
    assert memory.other_weight_bytes == quantised * 1 + 2 * (2 * 8 * H + 2 * V * H)


def test_replicas_and_expert_tp() -> None:
    model = tiny_model()
    one_expert = 3 * H * 32 * 2
    # layer 0 has 3, 1, 2 and 4 slots on the ranks, layer 1 has 4, 2, 4 and 0
    placement = Placement(
        expert_of_slot=np.tile([0, 1, 2, 3, 4, 5, 6, 7, 0, 0], (2, 1)),
        rank_of_slot=np.array([[0, 0, 0, 1, 2, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]]),
        n_experts=8,
        n_ranks=4,
        name="uneven",
    )
    assert memory_of(model, placement).expert_bytes.tolist() == [n * one_expert for n in (7, 3, 6, 4)]
    halves = memory_of(model, even_placement(model, 2), expert_tp=2)
    assert halves.expert_bytes.tolist() == [2 * 4 * one_expert / 2] * 4


@pytest.mark.parametrize(
    ("fields", "tp", "expected"),
    [
        # 2 layers, 100 tokens, 2 heads of 16 values for keys and values each, bf16
        ({}, 1, 2 * 100 * 2 * 2 * 16 * 2),
        ({}, 2, 2 * 100 * 2 * 1 * 16 * 2),
        ({}, 4, 2 * 100 * 2 * 1 * 16 * 2),  # each head is held twice
        ({"kv_dtype": "fp8"}, 1, 2 * 100 * 2 * 2 * 16),
        # 3 heads on 2 devices: the fuller one holds 2
        ({"attention": gqa(n_heads=6, n_kv_heads=3)}, 2, 2 * 100 * 2 * 2 * 16 * 2),
        # layers 0 and 2 of 3 keep 10 tokens, layer 1 all 100
        (
            {"n_layers": 3, "attention": gqa(window_tokens=10, windowed_every=2)},
            1,
            (10 + 100 + 10) * 2 * 2 * 16 * 2,
        ),
        # a window longer than the context
        ({"attention": gqa(window_tokens=500)}, 1, 2 * 100 * 2 * 2 * 16 * 2),
        # the latent and the rotary key, whole on every device
        ({"attention": MLA}, 1, 2 * 100 * (32 + 8) * 2),
        ({"attention": MLA}, 4, 2 * 100 * (32 + 8) * 2),
    ],
)
def test_kv_cache_of_a_request(fields: dict, tp: int, expected: float) -> None:
    assert kv_bytes_per_request(tiny_model(**fields), 100, tp) == expected


def test_requests_of_a_decode_step_hold_the_longest_context() -> None:
    # sequences of 20 tokens are replayed whole, so the longest context is 20; 4 requests a device
    memory = memory_of(tiny_model(), steps=60)
    assert (memory.requests, memory.context_tokens) == (4, 20)
    assert memory.kv_bytes == 4 * 2 * 20 * 2 * 2 * 16 * 2


def test_a_group_of_attention_tp_shares_the_cache_of_its_requests() -> None:
    grouped, whole = (memory_of(tiny_model(), steps=60, attention_tp=tp) for tp in (2, 1))
    assert grouped.kv_bytes == whole.kv_bytes  # twice the requests, half the heads
    latent = memory_of(tiny_model(attention=MLA), steps=60, attention_tp=2)
    assert latent.kv_bytes == 2 * 4 * 2 * 20 * (32 + 8) * 2


def test_prefill_holds_the_prompts_of_a_step() -> None:
    # 50 tokens of prompts of 20 tokens: three of them
    memory = memory_of(tiny_model(), phase="prefill", tokens_per_device=50, steps=2)
    assert (memory.requests, memory.context_tokens) == (3, 20)


def test_the_scenario_may_state_requests_and_context() -> None:
    spec = MemorySpec(requests_per_device=10, context_tokens=1000, reserve=0.25)
    memory = memory_of(tiny_model(), spec=spec)
    assert memory.kv_bytes == 10 * 2 * 1000 * 2 * 2 * 16 * 2
    assert memory.usable_bytes == 0.75 * 141e9
    assert memory_of(tiny_model(), spec=MemorySpec(requests_per_device=0)).kv_bytes == 0


def test_used_memory_is_the_sum() -> None:
    memory = memory_of(tiny_model())
    total = memory.expert_bytes + memory.other_weight_bytes + memory.kv_bytes
    assert memory.used_bytes.tolist() == total.tolist()


def shortfall(model: ModelCard, spec: MemorySpec, n_slots: int) -> MemoryInfeasible:
    setting = tiny_setting(model, tiny_cluster(), random_trace(model, sequence_tokens=20))
    slots = np.tile(np.arange(n_slots) % 8, (len(model.moe_layers), 1))
    placement = Placement.from_slots(slots, 4, n_experts=8, name="large plan")
    with pytest.raises(MemoryInfeasible) as caught:
        check_memory(device_memory(setting, placement, spec), setting, placement)
    return caught.value


def test_what_does_not_fit_is_said_with_the_shortfall_and_the_levers() -> None:
    # 3 slots a rank in 2 layers of experts of 3 x 64 x 2^26 values: 6 x 24 GiB; 141 GB are 131.3 GiB, 118.2 after 10 %
    model = tiny_model(expert_intermediate_size=2**26)
    text = str(shortfall(model, MemorySpec(requests_per_device=0), 12))
    assert "large plan on tiny: device 0 needs 144.0 GiB of 118.2 GiB usable (131.3 less the reserve)" in text
    assert "experts 144.0, other weights 0.0, KV cache 0.0; short by 25.8 GiB" in text
    assert text.endswith("Levers: fewer than 4 redundant slots, more devices, a smaller weight dtype")


def test_a_cache_that_does_not_fit_names_its_levers() -> None:
    # 2^20 requests of 2 x 1000 x 128 bytes: 250 GiB
    error = shortfall(tiny_model(), MemorySpec(requests_per_device=2**20, context_tokens=1000), 8)
    assert "KV cache 250.0; short by 131.8 GiB" in str(error)
    assert "redundant" not in str(error)
    assert str(error).endswith("fewer than 1048576 requests a device or a shorter context than 1000 tokens")


def test_the_exit_code_says_infeasible() -> None:
    assert shortfall(tiny_model(), MemorySpec(requests_per_device=2**20, context_tokens=1000), 8).exit_code == 3


def test_the_fullest_device_is_named_and_exact_fit_is_enough() -> None:
    model = tiny_model(n_layers=1)
    setting = tiny_setting(model, tiny_cluster(), random_trace(model))
    placement = Placement(
        expert_of_slot=np.arange(8)[None],
        rank_of_slot=np.array([[0, 1, 2, 2, 2, 2, 3, 3]]),
        n_experts=8,
        n_ranks=4,
        name="uneven",
    )
    memory = device_memory(setting, placement, MemorySpec())
    fields = {name: getattr(memory, name) for name in DeviceMemory.__slots__}
    peak = float(memory.used_bytes.max())
    check_memory(DeviceMemory(**fields | {"usable_bytes": peak}), setting, placement)
    with pytest.raises(MemoryInfeasible, match="device 2 needs"):
        check_memory(DeviceMemory(**fields | {"usable_bytes": peak - 1}), setting, placement)
