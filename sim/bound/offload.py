"""Closed forms for models whose weights stream from the host: MoE-Lens (arXiv 2504.09345), MoE-Lightning (2411.11217).

Pure formulas over floats; nothing here knows a scenario.
"""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.errors import ScenarioError


def tokens_to_saturate(flop_per_s: float, link_bytes_per_s: float, n_experts: int, top_k: int) -> float:
    """Tokens of a pass from which multiplication takes longer than streaming the weights (MoE-Lens, section 3).

    n = (C / B) (experts / top_k), for bf16 weights: 2 FLOP for a weight and token, 2 bytes for a weight.
    """
    return flop_per_s / link_bytes_per_s * n_experts / top_k


def passes_per_cached_token(prompt_tokens: float, new_tokens: float) -> float:
    """Parallelism-memory efficiency: tokens of a pass for each token of cache that memory holds (MoE-Lens, section 3).

    PME = 2 (p + g) / ((2 p + g) g): a request holds p + g / 2 tokens on average and brings p + g in g passes.
    Raises ScenarioError where nothing is generated.
    """
    if new_tokens <= 0 or prompt_tokens < 0:
        raise ScenarioError(f"prompts of {prompt_tokens} and {new_tokens} new tokens: give at least one new token")
    return 2 * (prompt_tokens + new_tokens) / ((2 * prompt_tokens + new_tokens) * new_tokens)


def streamed_tokens_per_s(
    *, weight_bytes: float, link_bytes_per_s: float, cached_tokens: float, pme: float, compute_tokens_per_s: float
) -> float:
    """Tokens/s, prompts included, of passes that stream all weights (MoE-Lens, section 3).

    T = min(PME M / delta, T_GPU), delta = weight bytes / link: time of a pass that the link binds.
    """
    return min(pme * cached_tokens * link_bytes_per_s / weight_bytes, compute_tokens_per_s)


def hierarchical_flop_per_s(
    peak_flop_per_s: float,
    near_bytes_per_s: float,
    near_flop_per_byte: float,
    link_bytes_per_s: float,
    far_flop_per_byte: float,
) -> float:
    """Rate at one level with an operand at another level (MoE-Lightning's hierarchical roofline) [FLOP/s].

    P = min(P_i, B_i I_i, B_ji I_j): peak, memory of the level, and the link that brings the operand.
    """
    return min(peak_flop_per_s, near_bytes_per_s * near_flop_per_byte, link_bytes_per_s * far_flop_per_byte)


def stay_intensity(
    far_flop_per_s: float, far_bytes_per_s: float, far_flop_per_byte: float, link_bytes_per_s: float
) -> float:
    """First turning point P1 [FLOP/byte]: below it, computing where the data lie is faster than moving them.

    I = min(P_j, B_j I_j) / B_ji.
    """
    return min(far_flop_per_s, far_bytes_per_s * far_flop_per_byte) / link_bytes_per_s


def link_free_intensity(
    peak_flop_per_s: float, near_bytes_per_s: float, near_flop_per_byte: float, link_bytes_per_s: float
) -> float:
    """Second turning point P2 [FLOP/byte]: above it the link no longer binds. I = min(P_i, B_i I_i) / B_ji."""
    return min(peak_flop_per_s, near_bytes_per_s * near_flop_per_byte) / link_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What a layer of a decode pass asks of the three lanes, all microbatches together [bytes, FLOP]."""

    streamed_bytes: float
    device_bytes: float
    device_flop: float
    host_bytes: float
    host_flop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRates:
    """What link, device and host reach [bytes/s, FLOP/s]."""

    link_bytes_per_s: float
    device_bytes_per_s: float
    device_flop_per_s: float
    host_bytes_per_s: float
    host_flop_per_s: float


def layer_lanes_s(work: LayerWork, rates: LaneRates) -> tuple[float, float, float]:
    """Time of a layer on link, device and host [s], each max(bytes / b, flop / p); the largest is the layer's.

    T = max(comm, T_gpu, T_cpu), MoE-Lightning, section 4; its optimiser prints T for all three, since its variables are
    bounded below only.
    """
    return (
        work.streamed_bytes / rates.link_bytes_per_s,
        max(work.device_bytes / rates.device_bytes_per_s, work.device_flop / rates.device_flop_per_s),
        max(work.host_bytes / rates.host_bytes_per_s, work.host_flop / rates.host_flop_per_s),
    )


def generated_tokens_per_s(requests: int, new_tokens: int, pass_s: float) -> float:
    """Tokens/s of decode alone: all tokens of the answers over the passes after the prefill, N g / ((g - 1) T)."""
    return requests * new_tokens / (pass_s * (new_tokens - 1))
