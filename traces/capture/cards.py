"""Model cards of decoders that were run. Apart from the rest of the package, which needs torch and numpy alone."""

from __future__ import annotations

from scenarios.models import DType, GroupedQueryAttention, ModelCard
from scenarios.sources import Source
from traces.capture.config import MoeConfig


def model_card(config: MoeConfig, name: str, dtype: DType, source: str) -> ModelCard:
    """The card by which the simulator knows a decoder; weights, activations and cache in `dtype`."""
    return ModelCard(
        name=name,
        sources={"default": Source(source=source, kind="measured")},
        n_layers=config.n_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        attention=GroupedQueryAttention(n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, head_dim=config.head_dim),
        n_experts=config.n_experts,
        top_k=config.top_k,
        expert_intermediate_size=config.expert_intermediate_size,
        shared_intermediate_size=config.shared_intermediate_size,
        gating=config.gating,
        weight_dtype=dtype,
        activation_dtype=dtype,
        kv_dtype=dtype,
        tied_embeddings=True,
    )
