"""Iterations priced by tables that the simulator fills: steps of a plan by tokens, attention by tokens and contexts.

    T = host + M(mean) + max over ranks of [L(n) - L(mean) + decode attention + prompt attention + head]

M(n) is the simulated step of n tokens on every device whose tokens attend to themselves alone, without its head:
experts and exchanges with the trace's routing, and all else; of one request a token, or of prompts, in the shares of
the iteration. L(n) is the part of M that a rank does by itself; ranks wait for the slowest. Attention is that of the
laws beyond what M has; where experts have devices of their own and attention runs beside them, it is what the simulated
step takes more with those contexts. Between entries lines are drawn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import attention_decode_s, attention_prefill_s
from hwmodels.gemm import head_s, norm_s
from scenarios.models import GroupedQueryAttention
from sim.durations import Seconds
from sim.pricing import layer_prices, layer_windows
from sim.serving.ranks import RankLoad
from sim.session import Plan
from sim.setting import Setting

Phase = Literal["decode", "prefill"]
StepOf = Callable[[Plan, Setting], float]
"""Mean time of the steps of a setting under a plan, host time left out [s]."""
SettingOf = Callable[[Phase, int, int], Setting]
"""The setting of a phase with so many tokens a device and such a context of each."""
CONTEXTS = (1, 64, 256, 1024, 4096, 16384, 65536, 262144)
"""Mean contexts [tokens] at which attention is priced; beyond the last one lines go on."""


@dataclass(frozen=True, slots=True)
class Line:
    """Straight lines between points; the first value before the first size, the last line beyond the last one."""

    sizes: list[float]
    values: list[float]

    def at(self, size: float) -> float:
        """The value at a size."""
        sizes, values, last = self.sizes, self.values, len(self.sizes) - 1
        if size <= sizes[0] or not last:
            return values[0]
        i = bisect_right(sizes, size)
        i = i if i < last else last
        share = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])


@dataclass(frozen=True, slots=True)
class Surface:
    """Lines over a second size at points of a first one, and lines between them."""

    sizes: list[float]
    lines: list[Line]

    def along(self, size: float, others: Seconds) -> Seconds:
        """The values at one first size and several ascending second ones."""
        sizes = self.lines[0].sizes
        knots = [at for at in sizes if others[0] < at < others[-1]]
        ends = [float(others[0]), *knots, float(others[-1])]
        return np.interp(others, ends, [self.at(size, end) for end in ends])

    def at(self, size: float, other: float) -> float:
        """The value at two sizes; nothing below the first of the first sizes."""
        sizes, last = self.sizes, len(self.sizes) - 1
        if size <= sizes[0] or not last:
            return self.lines[0].at(other) * min(size / sizes[0], 1.0)
        i = bisect_right(sizes, size)
        i = i if i < last else last
        low = self.lines[i - 1].at(other)
        return low + (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1]) * (self.lines[i].at(other) - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePrices:
    """Prices of iterations by tables, all in seconds; see the module for their meaning.

    steps   phase -> M over tokens of a device; local: L over tokens of a rank; head over positions.
    decode, prompts  attention over (tokens, mean context); host_s: host time of an iteration.
    """

    steps: dict[Phase, Line]
    local: Line
    head: Line
    decode: Surface
    prompts: Surface
    attention_tp: int
    host_s: float

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        """Time of an iteration [s]."""
        decoding = sum(load.decoding for load in loads)
        total = decoding + sum(load.prompt_tokens for load in loads)
        mean = total / len(loads)
        per_device = mean / self.attention_tp
        share = decoding / total
        step_s = share * self.steps["decode"].at(per_device) if share else 0.0
        if share < 1:
            step_s += (1 - share) * self.steps["prefill"].at(per_device)
        return self.host_s + step_s + max(map(self._own_s, loads)) - self.local.at(mean)

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> Seconds:
        """Times of `n` iterations in which all ranks but decode, from this one on: float64[n] [s]."""
        mean = sum(load.decoding for load in loads) / len(loads)
        rest_s = self.host_s + self.steps["decode"].at(mean / self.attention_tp) - self.local.at(mean)
        own_s = [
            self.local.at(load.decoding)
            + self.head.at(load.decoding)
            + self.decode.along(load.decoding, load.context_tokens / load.decoding + np.arange(n, dtype=np.float64))
            for load in dict.fromkeys(loads)
            if load.decoding
        ]
        idle_s = self.local.at(0)
        times_s: Seconds = rest_s + np.maximum(np.max(own_s, axis=0), idle_s)
        return times_s

    def _own_s(self, load: RankLoad) -> float:
        """What a rank does by itself: tokens, attention of decoding requests and of prompts, logits."""
        own_s = self.local.at(load.decoding + load.prompt_tokens)
        if load.decoding:
            own_s += self.decode.at(load.decoding, load.context_tokens / load.decoding)
        if load.prompt_tokens:
            own_s += self.prompts.at(load.prompt_tokens, load.attended_pairs / load.prompt_tokens)
        positions = load.decoding + load.finishing
        return own_s + (self.head.at(positions) if positions else 0.0)


def fill_tables(
    setting_of: SettingOf, step_s: Callable[[Setting], float], sizes: Sequence[int], host_s: float
) -> TablePrices:
    """Tables of a plan.

    step_s      mean step time of a setting under the plan, host time left out.
    sizes       tokens of a device, ascending.
    """
    phases: tuple[Phase, ...] = ("decode", "prefill")
    steps, local_s = {}, []
    alone_s: dict[Phase, dict[int, float]] = {phase: {} for phase in phases}
    for phase in phases:
        values = []
        for size in sizes:
            setting = setting_of(phase, size, 1)
            alone_s[phase][size] = step_s(setting)
            values.append(alone_s[phase][size] - _head_of_step_s(setting))
            if phase == "prefill":
                local_s.append(_local_s(setting))
        steps[phase] = Line(list(map(float, sizes)), values)
    tp = setting.attention_tp
    ranked = [float(size * tp) for size in sizes]
    if setting.pool is None:
        decode, prompts = (_attention(setting, ranked, phase) for phase in phases)
    else:
        decode, prompts = (_beside_experts(partial(setting_of, phase), step_s, alone_s[phase], tp) for phase in phases)
    return TablePrices(
        steps=steps,
        local=Line(ranked, local_s),
        head=Line(ranked, head_times_s(setting, np.array(ranked)).tolist()),
        decode=decode,
        prompts=prompts,
        attention_tp=tp,
        host_s=host_s,
    )


def head_times_s(setting: Setting, positions: NDArray[np.float64]) -> Seconds:
    """Norm and logits of so many positions of a rank."""
    model, device, tp = setting.model, setting.cluster.device, setting.attention_tp
    norm = norm_s(positions / tp, model.hidden_size, model.activation_dtype, device)
    return norm + head_s(positions, model.hidden_size, model.vocab_size, tp, model.activation_dtype, device)


def _head_of_step_s(setting: Setting) -> float:
    return float(layer_prices(setting)["head"][0].mean())  # type: ignore[union-attr]


def _local_s(setting: Setting) -> float:
    """What a device does for its own tokens in all layers, as `M` has it."""
    model, prices = setting.model, layer_prices(setting)

    def mean(kind: str) -> float:
        return float(prices[kind][0].mean()) if kind in prices else 0.0  # type: ignore[union-attr]

    n_moe = len(model.moe_layers)
    total = model.n_layers * mean("attention") + n_moe * (mean("gate") + mean("shared"))
    return total + (model.n_layers - n_moe) * mean("mlp")


def _attention(setting: Setting, sizes: list[float], phase: Phase) -> Surface:
    """Attention of all layers beyond that of tokens that attend to themselves alone, over (tokens, mean context)."""
    lines = []
    for size in sizes:
        contexts = np.array(CONTEXTS, np.float64)
        alone_s = attention_times_s(setting, phase, np.array([size]), np.array([size]))[0]
        times_s = attention_times_s(setting, phase, np.full(len(contexts), size), size * contexts) - alone_s
        lines.append(Line(list(map(float, CONTEXTS)), times_s.tolist()))
    return Surface(sizes, lines)


def _beside_experts(
    setting_of: Callable[[int, int], Setting], step_s: Callable[[Setting], float], alone_s: dict[int, float], tp: int
) -> Surface:
    """What steps take more than `alone_s`, by tokens of a device, where tokens attend to themselves alone, over (tokens
    of a rank, mean context)."""
    lines = [
        Line(
            list(map(float, CONTEXTS)),
            [0.0, *(step_s(setting_of(size, context)) - least_s for context in CONTEXTS[1:])],
        )
        for size, least_s in alone_s.items()
    ]
    return Surface([float(size * tp) for size in alone_s], lines)


def attention_times_s(
    setting: Setting, phase: Phase, tokens: NDArray[np.float64], attended: NDArray[np.float64]
) -> Seconds:
    """Attention kernels of all layers of a rank, float64[...]; attended: contexts summed over the tokens."""
    model, attention = setting.model, setting.model.attention
    law = attention_decode_s if phase == "decode" else attention_prefill_s
    total_s = np.zeros(np.shape(tokens))
    for window, n_layers in layer_windows(model):
        if isinstance(attention, GroupedQueryAttention):
            attention = attention.model_copy(update={"window_tokens": window})
        clipped = attended if window is None else np.minimum(attended, tokens * window)
        one_s = law(tokens, clipped, attention, setting.attention_tp, model.kv_dtype, setting.cluster.device)
        total_s = total_s + n_layers * one_s
    return total_s
