"""Recipes: which decoder is trained, on how many tokens, how."""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.errors import ScenarioError
from traces.capture.config import MoeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run: `steps` of `batch` sequences of `context_tokens`, drawn evenly from all domains.

    learning_rate  reached after `warmup` steps; over the last fifth of the steps it falls to a tenth.
    balance        weight of each layer's balancing loss under softmax gating (Switch, arXiv 2101.03961, equation 4);
                   under sigmoid gating, step of the bias of each expert (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    half           dense products, and on a GPU experts, in bfloat16; parameters stay float32.
    backend        name of the experts' back end.
    domain_characters  most text read of each domain.

    Raises ScenarioError where numbers contradict each other.
    """

    config: MoeConfig
    steps: int
    batch: int
    context_tokens: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1
    balance: float = 0.01
    half: bool = False
    backend: str = "grouped"
    domain_characters: int = 4_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "context_tokens"):
            if getattr(self, name) < 1:
                raise ScenarioError(f"recipe: {name} is {getattr(self, name)}; give at least 1")
        if self.context_tokens > self.config.max_tokens:
            raise ScenarioError(
                f"recipe: {self.context_tokens} tokens of context exceed the model's {self.config.max_tokens}"
            )

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch * self.context_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much routing is recorded of each domain: `requests` prompts of `prompt_tokens`, each with `new_tokens` more.

    Raises ScenarioError where a number is below 1.
    """

    requests: int
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        for name in ("requests", "prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise ScenarioError(f"{name} is {getattr(self, name)}; give at least 1")


RECIPES = {
    # Routing shape of DeepSeek-V2-Lite (64 experts, top 6, two shared), in widths that two CPU cores can train.
    "cpu-small": Recipe(
        config=MoeConfig(
            vocab_size=1024,
            n_layers=8,
            hidden_size=192,
            n_heads=3,
            n_kv_heads=1,
            head_dim=64,
            n_experts=64,
            top_k=6,
            expert_intermediate_size=64,
            shared_intermediate_size=128,
            max_tokens=1024,
        ),
        steps=600,
        batch=8,
        half=True,
        domain_characters=1_500_000,
    ),
    # About 8e16 floating-point operations (6 per active weight and token): minutes on one GPU of the H100 class.
    "gpu-large": Recipe(
        config=MoeConfig(
            vocab_size=4096,
            n_layers=12,
            hidden_size=768,
            n_heads=12,
            n_kv_heads=4,
            head_dim=64,
            n_experts=64,
            top_k=8,
            expert_intermediate_size=384,
            shared_intermediate_size=768,
            max_tokens=2048,
        ),
        steps=3000,
        batch=64,
        context_tokens=512,
        learning_rate=6e-4,
        warmup=200,
        half=True,
        domain_characters=20_000_000,
    ),
}
