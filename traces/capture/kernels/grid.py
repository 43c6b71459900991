"""Which points are measured: shapes of the decoders that whole runs use, and others around them to judge cards on."""

from __future__ import annotations

from dataclasses import dataclass

from traces.capture.kernels.attention import Call, Heads
from traces.capture.kernels.experts import Layer

Products = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Points of every family.

    products  (n, k) of dense products.   backends  of experts, the first on all layers, others on the first one.
    """

    dtypes: tuple[str, ...]
    layers: tuple[Layer, ...]
    expert_tokens: tuple[int, ...]
    backends: tuple[str, ...]
    products: Products
    product_tokens: tuple[int, ...]
    heads: tuple[Heads, ...]
    calls: tuple[Call, ...]
    other_calls: tuple[Call, ...]
    small_tokens: tuple[int, ...]
    copy_bytes: tuple[int, ...]


def layer(hidden: int, intermediate: int, n_experts: int, top_k: int) -> Layer:
    """A layer by its four sizes."""
    return Layer(hidden=hidden, intermediate=intermediate, n_experts=n_experts, top_k=top_k)


def heads(n_heads: int, n_kv_heads: int, head_dim: int) -> Heads:
    """Heads by their three sizes."""
    return Heads(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)


def calls(requests: tuple[int, ...], contexts: tuple[int, ...], prompts: tuple[tuple[int, int], ...]) -> list[Call]:
    """Decode of requests x contexts, ragged where there are several, and prefill of (requests, tokens)."""
    decode = [Call(requests=r, past=c - 1, new=1, ragged=r > 1) for r in requests for c in contexts]
    return decode + [Call(requests=r, past=0, new=tokens) for r, tokens in prompts]


def even(requests: tuple[int, ...], contexts: tuple[int, ...]) -> list[Call]:
    """Decode of requests that are equally long."""
    return [Call(requests=r, past=c - 1, new=1) for r in requests for c in contexts]


POWERS = tuple(1 << n for n in range(11))  # 1 to 1024
CPU_PROMPTS = ((1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (2, 64), (2, 256), (4, 64), (8, 128))
OTHER_PROMPTS = ((1, 24), (1, 96), (1, 384), (1, 768), (3, 96), (6, 48))
CPU = Grid(
    dtypes=("fp32",),
    layers=(
        layer(512, 512, 32, 4),
        layer(384, 640, 16, 2),
        layer(256, 256, 8, 2),
        layer(256, 512, 64, 4),
        layer(256, 1536, 8, 2),
        layer(384, 256, 32, 4),
        layer(512, 256, 64, 8),
        layer(512, 1024, 16, 2),
        layer(640, 384, 24, 3),
        layer(768, 512, 16, 2),
        layer(768, 768, 8, 2),
        layer(1024, 256, 32, 4),
        layer(1024, 512, 16, 4),
        layer(1024, 1024, 8, 2),
    ),
    expert_tokens=POWERS,
    backends=("loop", "batched"),
    products=(
        (1024, 512), (512, 512), (4096, 512), (32, 512), (768, 384), (384, 384), (1280, 384), (384, 640), (4096, 384),
        (16, 384), (256, 256), (512, 256), (2048, 256), (8, 256), (64, 256), (512, 1024), (1024, 1024), (3072, 1024),
        (1024, 2048), (4096, 1024), (16, 1024), (640, 640), (1536, 768), (768, 1536), (2304, 768), (24, 640), (64, 768),
    ),
    product_tokens=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024),
    heads=(
        heads(8, 4, 64), heads(6, 3, 64), heads(6, 2, 64), heads(4, 2, 64), heads(8, 8, 64), heads(8, 2, 64),
        heads(16, 8, 64), heads(12, 4, 64), heads(8, 4, 32), heads(4, 2, 128), heads(8, 4, 96),
        heads(8, 2, 128), heads(16, 4, 96), heads(6, 2, 32),
    ),
    calls=tuple(
        calls((1, 2, 4, 8, 16, 32, 64), (16, 32, 64, 128, 256, 512), CPU_PROMPTS)
        + even((4, 16, 64), (16, 128, 512))
    ),
    other_calls=tuple(calls((1, 3, 8, 24, 64), (24, 96, 384), OTHER_PROMPTS)),
    small_tokens=POWERS,
    copy_bytes=tuple(1 << n for n in range(14, 25)),
)  # fmt: skip

GPU_TOKENS = tuple(1 << n for n in range(14))  # 1 to 8192
GPU_PROMPTS = (*((1, 1 << n) for n in range(7, 14)), (4, 512))
GPU = Grid(
    dtypes=("bf16",),
    layers=(
        layer(2048, 1024, 64, 8),  # OLMoE (arXiv 2409.02060)
        layer(2048, 1408, 64, 6),  # DeepSeek-V2-Lite (arXiv 2405.04434)
        layer(2048, 768, 128, 8),  # Qwen3-30B-A3B (arXiv 2505.09388)
        layer(2880, 2880, 32, 4),  # gpt-oss-20b (arXiv 2508.10925)
        layer(4096, 14336, 8, 2),  # Mixtral-8x7B (arXiv 2401.04088)
        layer(4096, 1536, 128, 8),  # Qwen3-235B-A22B (arXiv 2505.09388)
        layer(1024, 512, 64, 8),
        layer(1536, 768, 64, 6),
    ),
    expert_tokens=GPU_TOKENS,
    backends=("grouped", "loop", "batched"),
    products=(
        (4096, 2048), (2048, 2048), (50304, 2048), (64, 2048), (128, 2048), (5120, 2880), (2880, 4096), (6144, 4096),
        (4096, 4096), (32000, 4096), (8, 4096), (128, 4096), (3072, 1024), (1024, 1024), (2816, 2048), (2048, 1408),
        (28672, 4096), (4096, 14336),
    ),
    product_tokens=(*GPU_TOKENS, 3, 24, 96, 384, 1536, 6144),
    heads=(heads(16, 16, 128), heads(32, 4, 128), heads(32, 8, 128), heads(64, 8, 64), heads(16, 4, 64)),
    calls=tuple(
        calls((1, 4, 16, 64, 128), (128, 512, 2048, 8192), GPU_PROMPTS)
    ),
    other_calls=tuple(calls((1, 8, 32), (384, 1536, 4096), ((1, 384), (1, 1536), (1, 6144), (3, 768)))),
    small_tokens=GPU_TOKENS,
    copy_bytes=tuple(1 << n for n in range(12, 29)),
)  # fmt: skip


def grid_of(device_type: str) -> Grid:
    """The grid of a kind of device."""
    return CPU if device_type == "cpu" else GPU
