"""Shape of the decoder that is run to record routing and timings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scenarios.errors import ScenarioError

Gating = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A compact decoder whose every block holds experts: RMSNorm, rotary GQA, router, SwiGLU experts.

    shared_intermediate_size  width of the experts that every token visits, all together; 0: none.
    gating      softmax over all experts, or sigmoid scores chosen with a bias that does not weigh in (DeepSeek-V3,
                arXiv 2412.19437, equations 13 to 16); the weights of a token's experts are made to sum to one.
    max_tokens  longest context.

    Raises ScenarioError where sizes contradict each other.
    """

    vocab_size: int
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    top_k: int
    expert_intermediate_size: int
    shared_intermediate_size: int = 0
    gating: Gating = "softmax"
    max_tokens: int = 2048
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.top_k > self.n_experts:
            raise ScenarioError(f"top_k {self.top_k} exceeds n_experts {self.n_experts}; choose at most as many")
        if self.n_heads % self.n_kv_heads:
            raise ScenarioError(f"{self.n_heads} heads do not share {self.n_kv_heads} KV heads; choose a divisor")
        if self.head_dim % 2:
            raise ScenarioError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs of values")
