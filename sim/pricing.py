"""The pricing plane: reduction x hardware -> durations of every work, float64[step, device]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import (
    attention_decode_s,
    attention_prefill_s,
    attention_projections_s,
    input_projections_s,
    windowed_context,
)
from hwmodels.gemm import gate_s, gemm_s, head_s, mlp_s, norm_s
from placement.moe_time import expert_times_s
from placement.plan import Placement
from placement.reduction import Reduction, chunk_of_tokens
from scenarios.models import GroupedQueryAttention, ModelCard
from scenarios.schedule_specs import ExchangeSpec
from scenarios.workload_specs import logit_positions, tokens_by_phase
from sim.coherent import context_prices
from sim.context_parallel import ring_attention_s
from sim.durations import Duration, ExchangeTime, Seconds, at_steps, folded, scaled
from sim.exchange_pricing import exchange_prices
from sim.kernel_pricing import by_chunk, machine_of, slowdown_beside_exchange, token_bytes
from sim.pool_pricing import pool_prices
from sim.program import OpList, Work
from sim.setting import Setting
from sim.stage_pricing import gathered_rows_s, inside_collective_s
from sim.training import BACKWARD, plain_kind
from sim.training_pricing import backward_prices, expert_gradients_s

Tokens = NDArray[np.integer]
PARTS_OF_ATTENTION = frozenset({"projections", "core", "windowed core", "output"})
"""What `attention` is divided into where a schedule issues it in parts; `output` is the end of `core`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Durations by kind of work.

    per_layer  kind -> [part] -> float64[step, device], the same in every layer ("attention" with `layers_windowed` in
               two kinds); one part, or as many as there are microbatches.
    per_chunk  kind -> [MoE layer][chunk] -> duration; also of other works, where tokens stay with their experts.
    moe_row    layer -> runs of MoE layers before it, of the head (-1) all of them.
    single     works with a duration of their own.

    A work of a backward pass, or issued again, that has no price takes as long as its like of the forward pass.
    """

    per_layer: dict[str, tuple[Duration, ...]]
    per_chunk: dict[str, list[list[Duration]]]
    windowed_layers: frozenset[int]
    moe_row: dict[int, int]
    single: dict[Work, Duration] = field(default_factory=dict)

    def of(self, work: Work) -> Duration:
        """Duration of `work`."""
        if work in self.single:
            return self.single[work]
        kind = work.kind if work.kind in self.per_chunk or work.kind in self.per_layer else plain_kind(work.kind)
        windowed = f"windowed {kind}"
        if work.layer in self.windowed_layers and (windowed in self.per_chunk or windowed in self.per_layer):
            kind = windowed
        if kind in self.per_chunk:
            return self.per_chunk[kind][self.moe_row[work.layer] + work.step][work.chunk]
        return self.per_layer[kind][max(work.chunk, 0)]

    def durations(self, op_list: OpList) -> list[Duration]:
        """Durations of all operations of a program."""
        return [self.of(op.work) for op in op_list.ops]

    def at(self, steps: NDArray[np.int64]) -> Prices:
        """Prices of the chosen steps."""
        return self.changed(lambda _kind, duration: at_steps(duration, steps))

    def plus(self, per_layer: dict[str, tuple[Duration, ...]]) -> Prices:
        """Prices with works of further kinds, the same in every layer."""
        return replace(self, per_layer=self.per_layer | per_layer)

    def plus_chunks(self, per_chunk: dict[str, list[list[Duration]]]) -> Prices:
        """Prices with works of further kinds of every MoE layer."""
        return replace(self, per_chunk=self.per_chunk | per_chunk)

    def plus_single(self, single: dict[Work, Duration]) -> Prices:
        """Prices with works that have a duration of their own."""
        return replace(self, single=self.single | single)

    def times(self, factors: Mapping[str, float]) -> Prices:
        """Prices with the durations of some kinds of work multiplied."""
        return self.changed(lambda kind, d: scaled(d, factors[kind]) if kind in factors else d)

    def changed(self, change: Callable[[str, Duration], Duration]) -> Prices:
        """Prices with every duration replaced by `change(kind, duration)`."""
        layers = {kind: tuple(change(kind, d) for d in parts) for kind, parts in self.per_layer.items()}
        chunks = {
            kind: [[change(kind, duration) for duration in row] for row in rows]
            for kind, rows in self.per_chunk.items()
        }
        single = {work: change(work.kind, duration) for work, duration in self.single.items()}
        return replace(self, per_layer=layers, per_chunk=chunks, single=single)


def price(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    exchange: ExchangeSpec,
    *,
    microbatched: bool = False,
) -> Prices:
    """Prices of one placement on one setting; works of a layer outside the experts do not depend on the placement."""
    model = setting.model
    windowed = frozenset[int]()
    if isinstance(model.attention, GroupedQueryAttention) and model.attention.window_tokens is not None:
        windowed = frozenset(range(0, model.n_layers, model.attention.windowed_every))
    if setting.pool is not None:
        chunks = pool_prices(setting, placement, reduction, exchange)
    else:
        chunks = _experts(setting, placement, reduction, exchange) | exchange_prices(setting, reduction, exchange)
    n_parts = reduction.n_chunks if microbatched else 1
    per_layer = layer_prices(setting, n_parts, exchange)
    if reduction.located is not None:
        chunks = {**chunks, **_located_prices(setting, reduction.located, reduction.n_chunks, n_parts)}
        per_layer |= {"contexts": context_prices(setting, exchange, n_parts)}
    return Prices(
        per_layer=per_layer,
        per_chunk=chunks,
        windowed_layers=windowed,
        moe_row={
            layer: int(np.searchsorted(model.moe_layers, layer if layer >= 0 else model.n_layers)) * model.iterations
            for layer in range(-1, model.n_layers)
        },
    )


def layer_prices(
    setting: Setting, n_parts: int = 1, exchange: ExchangeSpec | None = None
) -> dict[str, tuple[Duration, ...]]:
    """What every device does for its own tokens, whatever the placement: kind -> [part] -> float64[step, device].

    Each of several microbatches computes beside the exchange of another one, which may slow it.
    """
    slower = 1.0 if exchange is None else slowdown_beside_exchange(setting, n_parts, exchange)
    return dict(_own_prices(setting, n_parts, slower))


@lru_cache(maxsize=64)
def _own_prices(setting: Setting, n_parts: int, slower: float) -> dict[str, tuple[Duration, ...]]:
    """`layer_prices`, kept for the schedules of a setting and for its error bands."""
    parts = [_part_prices(part) for part in parts_of(setting, n_parts)]
    if setting.pool is not None:
        parts = [{kind: folded(time, setting.simulated_devices) for kind, time in part.items()} for part in parts]
    return {kind: tuple(_slowed(prices[kind], slower) for prices in parts) for kind in parts[0]}


def _located_prices(
    setting: Setting, located: NDArray[np.integer], n_chunks: int, n_parts: int
) -> dict[str, list[list[Duration]]]:
    """What a device does for the tokens that are there, kind -> [MoE layers before][part] -> float64[step, device].

    located  int[MoE layer + 1, step x chunk, device]; every token has the mean context of its step.
    """
    by_step = located.reshape(len(located), -1, n_chunks, located.shape[-1])
    held = by_step if n_parts > 1 else by_step.sum(axis=2, keepdims=True)
    parts = parts_of(setting, n_parts)
    rows = [[_part_prices(part, row[:, number]) for number, part in enumerate(parts)] for row in held]
    return {kind: [[prices[kind] for prices in row] for row in rows] for kind in rows[0][0]}


def _slowed(duration: Duration, factor: float) -> Duration:
    return duration if isinstance(duration, ExchangeTime) else duration * factor


def parts_of(setting: Setting, n_parts: int) -> list[Setting]:
    """The setting of each microbatch: the tokens that the reduction counts as one chunk."""
    if n_parts == 1:
        return [setting]
    chunk = chunk_of_tokens(setting.workload.tokens_per_device, n_parts)
    batches, found = setting.batches, []
    for part in range(n_parts):
        own = chunk == part
        changed = replace(batches, tokens=batches.tokens[..., own], contexts=batches.contexts[..., own])
        workload = setting.workload.model_copy(update={"tokens_per_device": int(own.sum())})
        found.append(replace(setting, batches=changed, workload=workload))
    return found


def _part_prices(setting: Setting, held: Tokens | None = None) -> dict[str, Duration]:
    """Prices of one layer by kind; held: tokens int[step, device] of each device, default: its own."""
    model, device = setting.model, setting.cluster.device
    shape = setting.batches.tokens.shape[:2]
    tokens = setting.batches.held() if held is None else held
    norm = norm_s(tokens, model.hidden_size, model.activation_dtype, device)
    prices: dict[str, Duration] = {
        **_attention(setting, None, held),
        "gate": norm + gate_s(tokens, model.hidden_size, model.n_experts, model.top_k, model.router_dtype, device),
        "head": norm + _head(setting, tokens, held) if setting.is_last else np.zeros(shape),
    }
    if isinstance(model.attention, GroupedQueryAttention) and model.attention.window_tokens is not None:
        windowed = _attention(setting, model.attention.window_tokens, held)
        prices |= {"windowed attention": windowed["attention"], "windowed core": windowed["core"]}
    if model.shared_intermediate_size:
        prices["shared"] = mlp_s(
            tokens, model.hidden_size, model.shared_intermediate_size, model.gated, model.weight_dtype, device
        )
    if model.dense_intermediate_size:
        prices["mlp"] = norm + mlp_s(
            tokens, model.hidden_size, model.dense_intermediate_size, model.dense_gated, model.weight_dtype, device
        )
    if model.bottleneck_size is not None:
        low, high, dtype = model.bottleneck_size, model.hidden_size, model.weight_dtype
        prices |= {
            "descend": gemm_s(tokens, low, high, dtype, device),
            "ascend": gemm_s(tokens, high, low, dtype, device),
        }
    if setting.trains:
        forward = {kind: times for kind, times in prices.items() if not isinstance(times, ExchangeTime)}
        prices |= {kind + BACKWARD: times for kind, times in backward_prices(setting, tokens, forward).items()}
    if setting.attention_tp > 1:
        prices |= _collectives(setting)
    return prices


def _attention(setting: Setting, window_tokens: int | None, held: Tokens | None) -> dict[str, Seconds]:
    """Norm, projections and attention of one layer, together ("attention") and in two parts ("projections", "core").

    The devices of a tensor-parallel group work on all its tokens.
    """
    model, device, tp = setting.model, setting.cluster.device, setting.attention_tp
    tokens = of_group(setting.batches.held(), tp) if held is None else held
    norm = norm_s(tokens, model.hidden_size, model.activation_dtype, device)
    around = (tokens, model.attention, model.hidden_size, tp, model.weight_dtype, device)
    projections, inputs = attention_projections_s(*around), input_projections_s(*around)
    requests_s, prompts_s = attention_cores_s(setting, window_tokens, held)
    whole = norm + projections + (requests_s + prompts_s)
    before = norm + inputs
    return {"attention": whole, "projections": before, "core": whole - before, "output": projections - inputs}


def layer_windows(model: ModelCard) -> list[tuple[int | None, int]]:
    """(window, layers that have it)."""
    attention = model.attention
    if not isinstance(attention, GroupedQueryAttention) or attention.window_tokens is None:
        return [(None, model.n_layers)]
    windowed = len(range(0, model.n_layers, attention.windowed_every))
    return [(attention.window_tokens, windowed), (None, model.n_layers - windowed)]


def attention_cores_s(
    setting: Setting, window_tokens: int | None, held: Tokens | None = None
) -> tuple[Seconds, Seconds]:
    """Time of the core of a layer's attention, of requests that decode and of prompts: float64[step, device] each.

    held  tokens int[step, device] of each device, in the shares of requests and prompts; default: its own.
    """
    model, device, tp = setting.model, setting.cluster.device, setting.attention_tp
    attention = model.attention
    if isinstance(attention, GroupedQueryAttention):
        attention = attention.model_copy(update={"window_tokens": window_tokens})
    n_decode, n_prompt = tokens_by_phase(setting.workload)

    def core_s(law: Callable[..., Seconds], tokens: slice, n_tokens: int) -> Seconds:
        attended = attended_tokens(setting, tokens, window_tokens)
        if not n_tokens:
            return np.zeros(attended.shape)
        queries = of_group(setting.batches.held(tokens), tp)
        if held is not None:
            share = held / setting.workload.tokens_per_device
            attended, queries = share * attended.mean(axis=-1, keepdims=True), np.round(share * queries).astype(int)
        return ring_attention_s(setting, law(queries, attended, attention, tp, model.kv_dtype, device), queries)

    return core_s(attention_decode_s, slice(n_decode), n_decode), core_s(
        attention_prefill_s, slice(n_decode, None), n_prompt
    )


def attended_tokens(setting: Setting, tokens: slice, window_tokens: int | None) -> NDArray[np.float64]:
    """Contexts of some of the tokens, summed over a tensor-parallel group, float64[step, device]."""
    contexts = windowed_context(setting.batches.contexts[..., tokens], window_tokens).sum(axis=-1)
    return of_group(contexts, setting.attention_tp)


Values = TypeVar("Values", bound=NDArray[np.generic])


def of_group(values: Values, tp: int) -> Values:
    """Values [step, device] summed over the devices that share their attention, for each of them."""
    return np.repeat(values.reshape(len(values), -1, tp).sum(axis=-1), tp, axis=-1)  # type: ignore[return-value]


def _head(setting: Setting, tokens: Tokens, held: Tokens | None) -> Seconds:
    """Logits of every token in decode and training, and of one position of a device's prompts, as few end in a step."""
    model, tp, batches = setting.model, setting.attention_tp, setting.batches
    n_positions = logit_positions(setting.workload)
    positions = np.full_like(tokens, n_positions)
    if held is not None:
        positions = np.round(held * (n_positions / max(setting.workload.tokens_per_device, 1))).astype(np.int64)
    elif batches.ragged:
        n_decode, _ = tokens_by_phase(setting.workload)
        positions = batches.held(slice(n_decode)) + np.minimum(batches.held(slice(n_decode, None)), 1)
    return head_s(
        of_group(positions, tp), model.hidden_size, model.vocab_size, tp, model.activation_dtype, setting.cluster.device
    )


def _collectives(setting: Setting) -> dict[str, Duration]:
    """Gather and scatter around tensor-parallel attention: as measured on the link, or rings where nobody measured."""
    tp = setting.attention_tp
    total_bytes = of_group(setting.batches.held(), tp) * token_bytes(setting, None)
    gather = inside_collective_s(setting.cluster, "all-gather", total_bytes, tp)
    scatter = inside_collective_s(setting.cluster, "reduce-scatter", total_bytes, tp)
    return {
        "gather": ExchangeTime(send_s=gather, receive_s=gather, group_size=tp),
        "scatter": ExchangeTime(send_s=scatter, receive_s=scatter, group_size=tp),
    }


def _experts(
    setting: Setting, placement: Placement, reduction: Reduction, exchange: ExchangeSpec
) -> dict[str, list[list[Duration]]]:
    """Works of the experts, forward and where the setting trains backward, [MoE layer][chunk]."""
    rank_s = {"experts": expert_times_s(machine_of(setting, exchange), placement, reduction)}
    if setting.trains:
        rank_s["experts" + BACKWARD] = expert_gradients_s(setting, placement, reduction, exchange)
    if exchange.algorithm == "all-gather":
        gathered_s = gathered_rows_s(setting, reduction)
        rank_s = {kind: times_s + gathered_s for kind, times_s in rank_s.items()}
    slower = slowdown_beside_exchange(setting, reduction.n_chunks, exchange)
    by_device = {kind: np.repeat(times_s, setting.layout.tp, axis=-1) * slower for kind, times_s in rank_s.items()}
    return {
        kind: [list(chunks) for chunks in by_chunk(times_s, reduction.n_chunks)] for kind, times_s in by_device.items()
    }
