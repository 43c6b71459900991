"""How long the works of a streaming pass take: copies by the link, attention on the host's cores, the rest as ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels import host as host_laws
from hwmodels.attention import (
    attention_decode_s,
    attention_prefill_s,
    attention_projections_s,
    input_projections_s,
    windowed_context,
)
from hwmodels.gemm import head_s, norm_s
from hwmodels.host import Host
from hwmodels.library import find_cpu_kernels
from hwmodels.sharing import fair_shares
from placement.moe_time import expert_times_s
from placement.plan import Placement
from placement.reduction import chunk_of_tokens
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, GroupedQueryAttention, ModelCard
from scenarios.schedule_specs import ExchangeSpec
from scenarios.stream_specs import StreamSpec
from sim.durations import Duration, Seconds
from sim.kernel_pricing import by_chunk, machine_of
from sim.pricing import Prices, layer_prices
from sim.setting import Setting
from sim.stream.passes import Pass

Tokens = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """A device's link to its host, each way, and the host's cores, with what each gets of the host's memory bandwidth.

    All rates [bytes/s]. Copies both ways and attention share the memory max-min fairly, as if all were always at work.
    """

    to_device: float
    to_host: float
    latency_s: float
    cores: Host
    attention: float

    def copy_s(self, moved_bytes: ArrayLike, rate: float) -> Seconds:
        """Time of a copy: latency + bytes / rate; none of nothing."""
        size = np.asarray(moved_bytes, np.float64)
        return np.where(size > 0, self.latency_s + size / rate, 0.0)


def ways_of(setting: Setting, *, host_attention: bool) -> Ways:
    """The ways of a device of the setting; the devices of a node share its host evenly.

    Raises ScenarioError where the node has no host.
    """
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        raise ScenarioError(
            f"memory.stream: {cluster.name} has no host whose memory could hold weights; use a node card with a host"
        )
    threads = max(cluster.host.cores.value // cluster.devices_per_node, 1)
    cores = Host(card=cluster.host, constants=find_cpu_kernels(cluster.host.kernels).constants, n_threads=threads)
    link = cluster.host_link.effective_bytes_per_s
    wanted = [cores.dram_bytes_per_s if host_attention else 0.0, link, link]
    attention, down, up = fair_shares(wanted, cluster.host.dram_bytes_per_s.value / cluster.devices_per_node)
    return Ways(
        to_device=float(down),
        to_host=float(up),
        latency_s=cluster.host_link.latency_s.value,
        cores=cores,
        attention=float(attention),
    )


def pass_prices(
    one: Pass, placement: Placement, exchange: ExchangeSpec, spec: StreamSpec, ways: Ways, n_pages: int
) -> Prices:
    """Prices of all works of a pass."""
    setting, n_parts = one.setting, one.reduction.n_chunks
    model = setting.model
    windowed = frozenset[int]()
    if isinstance(model.attention, GroupedQueryAttention) and model.attention.window_tokens is not None:
        windowed = frozenset(range(0, model.n_layers, model.attention.windowed_every))
    own = layer_prices(setting, n_parts, exchange)
    parts = [_part_prices(one, part, ways, spec.host_frac) for part in range(n_parts)]
    by_layer = setting.expert_bytes.sum(axis=1).tolist()

    def copied_s(kind: str, experts: float) -> Seconds:
        size = page_bytes(model, spec, experts, n_pages)[kind]
        return ways.copy_s(np.full((setting.batches.n_steps, 1), size), ways.to_device * spec.link_frac)

    others = [kind for kind in page_bytes(model, spec, by_layer[0], n_pages) if kind != "page"]
    experts = by_chunk(expert_times_s(machine_of(setting, exchange), placement, one.reduction), n_parts)
    return Prices(
        per_layer=own
        | {kind: tuple(prices[kind] for prices in parts) for kind in parts[0]}
        | {kind: (copied_s(kind, 0.0),) * n_parts for kind in others},
        per_chunk={
            "experts": [list(chunks) for chunks in experts],
            "page": [[copied_s("page", size)] * n_parts for size in by_layer],
        },
        windowed_layers=windowed,
        moe_row={layer: row for row, layer in enumerate(model.moe_layers)},
    )


def ring_prices(setting: Setting, spec: StreamSpec) -> list[list[Duration]]:
    """Copies of a layer's experts to each device that shares them: [MoE layer][0], float64[step, device]."""
    ways = ways_of(setting, host_attention=False)
    rate, shape = ways.to_device * spec.link_frac, (setting.batches.n_steps, setting.layout.n_devices)
    return [
        [ways.copy_s(np.full(shape, page_bytes(setting.model, spec, size)["page"] / setting.layout.n_devices), rate)]
        for size in setting.expert_bytes.sum(axis=1).tolist()
    ]


def page_bytes(model: ModelCard, spec: StreamSpec, experts: float, n_pages: int = 1) -> dict[str, float]:
    """Bytes of a page of an MoE layer ("page"), of one without experts, and of attention's weights, not in pages.

    experts  bytes of the routed experts of the layer.
    """
    if spec.weights == "experts":
        return {"page": experts * (1 - spec.held) / n_pages}
    width = BYTES_PER_VALUE[model.weight_dtype]
    attention = model.attention.parameters(model.hidden_size) * width
    beside = (model.shared_parameters + model.bottleneck_parameters) * width
    sizes = {"page": (experts + beside) / n_pages, "dense page": model.dense_parameters * width / n_pages}
    return {kind: size * (1 - spec.held) for kind, size in (sizes | {"attention page": attention}).items()}


def _part_prices(one: Pass, part: int, ways: Ways, host_frac: float) -> dict[str, Duration]:
    """Works of one microbatch that are the same in every layer, float64[step, device] each."""
    setting, model, device = one.setting, one.setting.model, one.setting.cluster.device
    own = chunk_of_tokens(len(one.decoding), one.reduction.n_chunks) == part
    decoding, prompts = own & one.decoding, own & ~one.decoding
    contexts = setting.batches.contexts
    shape = (len(contexts), 1)
    n_tokens = np.full(shape, int(own.sum()))
    asked = np.full(shape, int(decoding.sum() + one.prompts[own].sum()))
    around = (n_tokens, model.attention, model.hidden_size, 1, model.weight_dtype, device)
    moved = moved_bytes(one, own, contexts)
    prices: dict[str, Duration] = {
        "output": attention_projections_s(*around) - input_projections_s(*around),
        "head": norm_s(asked, model.hidden_size, model.activation_dtype, device)
        + head_s(asked, model.hidden_size, model.vocab_size, 1, model.activation_dtype, device),
        "queries": ways.copy_s(moved["queries"], ways.to_host),
        "results": ways.copy_s(moved["results"], ways.to_device),
        "cache": ways.copy_s(moved["cache"], ways.to_device),
        "store": ways.copy_s(moved["store"], ways.to_host),
    }
    window = model.attention.window_tokens if isinstance(model.attention, GroupedQueryAttention) else None
    for prefix, limit in (("", None), *([("windowed ", window)] if window is not None else [])):
        prices[f"{prefix}core"] = _core_s(one, decoding, limit, ways, host_frac)
        prices[f"{prefix}prompt"] = _prompt_s(one, prompts, limit)
    return prices


def moved_bytes(one: Pass, own: NDArray[np.bool_], contexts: Tokens) -> Mapping[str, NDArray[np.float64]]:
    """Bytes of the copies of a microbatch in a layer, by kind, float64[step, device].

    queries: queries of decoding tokens, keys and values of all; results: their attention's; cache: what decoding
    requests have cached, and hidden states in; store: keys and values of all tokens, and hidden states out.
    """
    model, decoding = one.setting.model, own & one.decoding
    attention, width = model.attention, BYTES_PER_VALUE[model.activation_dtype]
    cached = attention.kv_values_per_token() * BYTES_PER_VALUE[model.kv_dtype]
    rows = np.full((len(contexts), 1), float(own.sum()))
    stepping = np.full_like(rows, float(decoding.sum()))
    if isinstance(attention, GroupedQueryAttention):
        query = result = attention.n_heads * attention.head_dim
    else:
        query = attention.n_heads * (attention.kv_lora_rank + attention.qk_rope_head_dim)
        result = attention.n_heads * attention.kv_lora_rank
    hidden = model.hidden_size * width
    return {
        "queries": stepping * query * width + rows * cached,
        "results": stepping * result * width,
        "cache": contexts[..., decoding].sum(axis=-1) * cached + rows * hidden,
        "store": rows * (cached + hidden),
    }


def _core_s(one: Pass, decoding: NDArray[np.bool_], window: int | None, ways: Ways, host_frac: float) -> Seconds:
    """Decode attention of a microbatch in a layer, by the host where it has a share of the memory, or the device."""
    setting, attention = one.setting, one.setting.model.attention
    contexts = windowed_context(setting.batches.contexts[..., decoding], window).sum(axis=-1)
    n_requests = int(decoding.sum())
    if n_requests == 0:
        return np.zeros_like(contexts)
    kv_dtype, device = setting.model.kv_dtype, setting.cluster.device
    if ways.attention == 0:
        if isinstance(attention, GroupedQueryAttention):
            attention = attention.model_copy(update={"window_tokens": window})
        return attention_decode_s(np.full_like(contexts, n_requests), contexts, attention, 1, kv_dtype, device)
    values = attention.kv_values_per_token()
    cached = contexts * values * BYTES_PER_VALUE[kv_dtype]
    return host_laws.attention_s(cached, contexts * _flop_per_pair(setting), ways.cores, ways.attention) / host_frac


def _prompt_s(one: Pass, prompts: NDArray[np.bool_], window: int | None) -> Seconds:
    """Prefill attention of a microbatch's whole prompts in a layer."""
    setting, model = one.setting, one.setting.model
    contexts = windowed_context(setting.batches.contexts[..., prompts], window).sum(axis=-1)
    if not prompts.any():
        return np.zeros_like(contexts)
    attention = model.attention
    if isinstance(attention, GroupedQueryAttention):
        attention = attention.model_copy(update={"window_tokens": window})
    queries = np.full(contexts.shape, int(prompts.sum()))
    return attention_prefill_s(queries, contexts, attention, 1, model.kv_dtype, setting.cluster.device)


def _flop_per_pair(setting: Setting) -> float:
    """FLOP of a query token and a cached one, over all heads: scores and weighted sums."""
    attention = setting.model.attention
    if isinstance(attention, GroupedQueryAttention):
        return 4.0 * attention.n_heads * attention.head_dim
    return 2.0 * attention.n_heads * (2 * attention.kv_lora_rank + attention.qk_rope_head_dim)
