"""Closed forms of offloading against the numbers that the papers print."""

import pytest

from scenarios.errors import ScenarioError
from sim.bound.offload import (
    LaneRates,
    LayerWork,
    generated_tokens_per_s,
    hierarchical_flop_per_s,
    layer_lanes_s,
    link_free_intensity,
    passes_per_cached_token,
    stay_intensity,
    streamed_tokens_per_s,
    tokens_to_saturate,
)


def test_tokens_that_saturate_an_a40_are_those_of_moe_lens_table_2() -> None:
    """Mixtral-8x7B, 150 TFLOP/s, 32 GB/s: 19.2 k tokens."""
    tokens = tokens_to_saturate(150e12, 32e9, 8, 2)
    assert tokens == pytest.approx(19.2e3, rel=0.025)  # the table prints three digits of a rounded peak
    mib = 19.2e3 * 256 * 128 / 1024  # 128 KiB of cache a token, 256 tokens a request
    assert mib / 1000 == pytest.approx(614, rel=0.02)  # printed as 614 GB: thousands of MiB
    assert 2 * mib / 1000 == pytest.approx(1228, rel=0.02)


def test_parallelism_memory_efficiency_of_two_request_shapes() -> None:
    """(98, 32): 2 x 130 / (228 x 32); (98, 64): 2 x 162 / (260 x 64)."""
    assert passes_per_cached_token(98, 32) == pytest.approx(0.0356, rel=0.02)
    assert passes_per_cached_token(98, 64) == pytest.approx(0.0195, rel=0.02)
    with pytest.raises(ScenarioError, match="at least one new token"):
        passes_per_cached_token(98, 0)


def test_mean_tokens_of_a_request_give_the_same_efficiency_when_simulated_pass_by_pass() -> None:
    """A request of p + g tokens: prefill in one pass, then g - 1 single tokens; it holds p + i tokens in pass i."""
    prompt, new = 98, 32
    held = sum(prompt + i for i in range(1, new + 1)) / new
    assert (prompt + new) / new / held == pytest.approx(passes_per_cached_token(prompt, new), rel=0.005)


def test_streamed_throughput_of_moe_lens_seventy_gb_case() -> None:
    """94 GB at 19.5 GB/s: 4.82 s a pass; 70 GB of cache (534 k tokens) bring 19.0 k tokens a pass."""
    pme, cached = passes_per_cached_token(98, 32), 70e9 / (128 * 1024)
    rate = streamed_tokens_per_s(
        weight_bytes=94e9, link_bytes_per_s=19.5e9, cached_tokens=cached, pme=pme, compute_tokens_per_s=1e9
    )
    assert rate * 94e9 / 19.5e9 == pytest.approx(19.0e3, rel=0.02)
    bound = streamed_tokens_per_s(
        weight_bytes=94e9, link_bytes_per_s=19.5e9, cached_tokens=cached, pme=pme, compute_tokens_per_s=1234.0
    )
    assert bound == 1234.0


def test_at_the_turning_points_two_terms_of_the_hierarchical_roofline_are_equal() -> None:
    peak, near, near_intensity, link = 104e12, 306e9, 200.0, 17.18e9
    free = link_free_intensity(peak, near, near_intensity, link)
    assert link * free == pytest.approx(min(peak, near * near_intensity))
    assert hierarchical_flop_per_s(peak, near, near_intensity, link, free * 2) == min(peak, near * near_intensity)
    assert hierarchical_flop_per_s(peak, near, near_intensity, link, free / 2) == pytest.approx(link * free / 2)
    stay = stay_intensity(1.6e12, 81.6e9, 5.0, link)
    assert link * stay == pytest.approx(81.6e9 * 5.0)
    assert stay_intensity(1.6e12, 81.6e9, 1e6, link) == pytest.approx(1.6e12 / link)


def moe_lightning_example() -> tuple[LayerWork, LaneRates]:
    """Inputs of the artifact's README: Mixtral-8x7B on an L4, 14 x 324 requests of 77 + 32 tokens, 0.0559 held."""
    hidden, intermediate, experts, top_k, requests, context = 4096, 14336, 8, 2, 14 * 324, 77 + 32
    layer = 2 * 3 * hidden * intermediate * experts
    work = LayerWork(
        streamed_bytes=layer * 0.94411531,
        device_bytes=14 * (layer + 2 * 324 * (hidden + intermediate)),
        device_flop=2 * requests * hidden * intermediate * 3 * top_k,
        host_bytes=requests * 2 * (2 * context * 8 * 128 + 2 * hidden),
        host_flop=requests * context * 32 * (2 * 128 + 2),
    )
    rates = LaneRates(
        link_bytes_per_s=17179869184,
        device_bytes_per_s=306016419840,
        device_flop_per_s=104e12,
        host_bytes_per_s=81604378624,
        host_flop_per_s=1.6e12,
    )
    return work, rates


def test_the_example_of_moe_lightning() -> None:
    """Printed: 0.1549 s a layer, 4.957 s a pass, 944.66 tokens/s.

    The three equal lanes that it prints are slack of its linear programme: the link alone takes 0.1549 s, the device
    0.84 and the host 0.17 of that.
    """
    lanes_s = layer_lanes_s(*moe_lightning_example())
    assert max(lanes_s) == lanes_s[0] == pytest.approx(0.1549, rel=1e-3)
    assert 32 * max(lanes_s) == pytest.approx(4.957, rel=1e-3)
    assert generated_tokens_per_s(14 * 324, 32, 32 * max(lanes_s)) == pytest.approx(944.66, rel=1e-3)
    assert [lane_s / lanes_s[0] for lane_s in lanes_s[1:]] == pytest.approx([0.837, 0.167], abs=0.005)
