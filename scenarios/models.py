"""Model cards: the shape of an MoE model, as far as time, memory and traffic depend on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scenarios.sources import Source, Spec

DType = Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4"]

# Bytes per weight including block scales: fp8_block one fp32 scale per 128x128 block, int4 one fp16 scale per group
# of 128, mxfp4 one byte per 32 values (OCP MX specification 1.0), nvfp4 one byte per 16 values.
BYTES_PER_VALUE: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / (128 * 128),
    "int8": 1.0,
    "int4": 0.5 + 2 / 128,
    "mxfp4": 0.5 + 1 / 32,
    "nvfp4": 0.5 + 1 / 16,
}

# The same of an activation: fp8_block has one fp32 scale per 128 values of a token (DeepSeek-V3, arXiv 2412.19437).
BYTES_PER_ACTIVATION = BYTES_PER_VALUE | {"fp8_block": 1.0 + 4 / 128}

LARGEST = 10**9  # of sizes of a model: beyond it numbers of bytes and FLOP would overflow
MAX_EXPERTS = 1 << 15  # of a layer: ids of traces and plans are 16 bits wide
Size = Annotated[int, Field(gt=0, le=LARGEST)]


class GroupedQueryAttention(Spec):
    """MHA, GQA or MQA. `window_tokens` limits the context of the layers in `windowed_every`-th position."""

    kind: Literal["gqa"] = "gqa"
    n_heads: Size
    n_kv_heads: Size
    head_dim: Size
    window_tokens: Size | None = None
    windowed_every: int = Field(default=1, gt=0, description="1: every layer is windowed; 2: layers 0, 2, 4, ...")

    def kv_values_per_token(self) -> int:
        """Values that one token adds to the KV cache of one layer."""
        return 2 * self.n_kv_heads * self.head_dim

    def parameters(self, hidden_size: int) -> int:
        """Weights of the query, key, value and output projections of one layer."""
        return hidden_size * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)


class LatentAttention(Spec):
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"]
    n_heads: Size
    q_lora_rank: Size | None = Field(default=None, description="none: queries are projected directly")
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size

    def kv_values_per_token(self) -> int:
        """Values that one token adds to the KV cache of one layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def parameters(self, hidden_size: int) -> int:
        """Weights of the down, up and output projections of one layer."""
        q_dim = self.n_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        rank = self.q_lora_rank
        query = hidden_size * q_dim if rank is None else rank * (hidden_size + q_dim)
        latent = hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
        expand = self.kv_lora_rank * self.n_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return query + latent + expand + self.n_heads * self.v_head_dim * hidden_size


Attention = Annotated[GroupedQueryAttention | LatentAttention, Field(discriminator="kind")]


class ModelCard(Spec):
    """Shape of an MoE model. `sources` names the origin of the numbers: key `default`, or a field's own name."""

    name: str
    sources: dict[str, Source] = Field(min_length=1)
    note: str | None = None
    n_layers: int = Field(gt=0, le=10_000, description="transformer blocks, dense ones included")
    hidden_size: Size
    vocab_size: Size
    attention: Attention
    n_experts: int = Field(
        gt=0, le=MAX_EXPERTS, description="routed experts per MoE layer; of the largest where they differ"
    )
    experts_by_layer: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        default=None, description="experts of every MoE layer where they differ (pyramid of PR-MoE); divide n_experts"
    )
    top_k: Size
    iterations: int = Field(
        default=1, gt=0, le=1000, description="times that a MoE layer is run, with a gate of its own (Chain-of-Experts)"
    )
    expert_intermediate_size: Size
    bottleneck_size: int | None = Field(
        default=None,
        gt=0,
        description="size at which tokens travel and experts work, between a shared projection before the dispatch and "
        "one after the combine (BigMac); default: hidden_size",
    )
    gated: bool = Field(default=True, description="SwiGLU-like (three matrices) or plain (two matrices)")
    shared_intermediate_size: int = Field(
        default=0, ge=0, le=LARGEST, description="all shared experts of a layer together"
    )
    dense_intermediate_size: int = Field(default=0, ge=0, le=LARGEST, description="FFN of the layers without experts")
    dense_gated: bool = True
    first_moe_layer: int = Field(default=0, ge=0)
    moe_layer_every: int = Field(default=1, gt=0)
    moe_layer_list: tuple[int, ...] | None = Field(default=None, description="overrides first_moe_layer and every")
    gating: Literal["softmax", "sigmoid"] = "softmax"
    n_group: int = Field(default=1, gt=0, description="expert groups of group-limited routing")
    topk_group: int = Field(default=1, gt=0)
    weight_dtype: DType = "bf16"
    expert_dtype: DType | None = Field(default=None, description="dtype of routed experts; none: weight_dtype")
    activation_dtype: DType = "bf16"
    kv_dtype: DType = "bf16"
    tied_embeddings: bool = False
    max_context_tokens: Size | None = Field(default=None, description="longest context of the model; none: not stated")

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        if self.choices > self.n_experts:
            times = f" times iterations {self.iterations}" if self.iterations > 1 else ""
            raise ValueError(f"top_k {self.top_k}{times} exceeds n_experts {self.n_experts}")
        self._check_pyramid()
        if self.n_experts % self.n_group:
            raise ValueError(f"n_experts {self.n_experts} is not divisible by n_group {self.n_group}")
        if not self.moe_layers:
            raise ValueError(f"no MoE layer: first_moe_layer {self.first_moe_layer} of n_layers {self.n_layers}")
        if self.bottleneck_size is not None and self.bottleneck_size > self.hidden_size:
            raise ValueError(f"bottleneck_size {self.bottleneck_size} exceeds hidden_size {self.hidden_size}")
        listed = self.moe_layer_list or ()
        if list(listed) != sorted(set(listed)) or min(listed, default=0) < 0:
            raise ValueError("moe_layer_list must hold layer numbers from 0 on, ascending, each once")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        if max(self.moe_layers) >= self.n_layers:
            raise ValueError(f"moe_layer_list names layer {max(self.moe_layers)}, but there are {self.n_layers} layers")
        if len(self.moe_layers) < self.n_layers and self.dense_intermediate_size == 0:
            raise ValueError("some layers have no experts: give dense_intermediate_size")
        unknown = sorted(set(self.sources) - set(type(self).model_fields) - {"default"})
        if unknown:
            raise ValueError(f"sources names no field of the card: {', '.join(unknown)}")
        return self

    def _check_pyramid(self) -> None:
        counts = self.experts_by_layer
        if counts is None:
            return
        if len(counts) != len(self.moe_layers):
            raise ValueError(f"experts_by_layer has {len(counts)} numbers for {len(self.moe_layers)} MoE layers")
        wrong = [count for count in counts if self.n_experts % count or count < self.choices]
        if wrong or max(counts) != self.n_experts:
            raise ValueError(
                f"experts_by_layer: {wrong[0] if wrong else max(counts)} experts of a layer; each number must divide "
                f"n_experts {self.n_experts}, the largest of them, and be at least the {self.choices} of a token"
            )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that hold routed experts."""
        if self.moe_layer_list is not None:
            return self.moe_layer_list
        return tuple(range(self.first_moe_layer, self.n_layers, self.moe_layer_every))

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Routed experts of every MoE layer."""
        return self.experts_by_layer or (self.n_experts,) * len(self.moe_layers)

    @property
    def choices(self) -> int:
        """Experts that a token takes of a MoE layer, in all iterations."""
        return self.top_k * self.iterations

    def source_of(self, field: str) -> Source:
        """Origin of one field of the card."""
        return self.sources.get(field) or self.sources["default"]

    @property
    def router_dtype(self) -> DType:
        """Data type of the router's weights: 16 bits where others are packed into fewer, too."""
        return "fp32" if self.weight_dtype == "fp32" else "bf16"

    @property
    def exchange_size(self) -> int:
        """Values of a token on its way to its experts and inside them: `bottleneck_size`, or `hidden_size`."""
        return self.bottleneck_size or self.hidden_size

    @property
    def bottleneck_parameters(self) -> int:
        """Weights of the shared projections down before the dispatch and up after the combine of one MoE layer."""
        return 0 if self.bottleneck_size is None else 2 * self.hidden_size * self.bottleneck_size

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        return (3 if self.gated else 2) * self.exchange_size * self.expert_intermediate_size

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert's weights."""
        return self.expert_parameters * BYTES_PER_VALUE[self.expert_dtype or self.weight_dtype]

    @property
    def shared_parameters(self) -> int:
        """Weights of all shared experts of one MoE layer."""
        return (3 if self.gated else 2) * self.hidden_size * self.shared_intermediate_size

    @property
    def dense_parameters(self) -> int:
        """Weights of the FFN of one layer without experts."""
        return (3 if self.dense_gated else 2) * self.hidden_size * self.dense_intermediate_size

    @property
    def total_parameters(self) -> int:
        """Weights of the whole model, without norms and biases."""
        n_moe = len(self.moe_layers)
        experts = sum(self.expert_counts) * (self.expert_parameters + self.hidden_size)
        moe = experts + n_moe * (self.shared_parameters + self.bottleneck_parameters)
        blocks = self.n_layers * self.attention.parameters(self.hidden_size) + moe
        dense = (self.n_layers - n_moe) * self.dense_parameters
        return blocks + dense + self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    @property
    def active_parameters(self) -> int:
        """Weights that one token touches, without norms and biases."""
        idle = sum(count - self.choices for count in self.expert_counts)
        return self.total_parameters - idle * self.expert_parameters
