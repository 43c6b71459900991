"""Routed experts in torch by several back ends, all with the same result: loop, grouped GEMM, one batched product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nn

from scenarios.errors import ScenarioError


@dataclass(frozen=True, slots=True)
class Routing:
    """Chosen experts: `ids` int64 [token, k] and `weights` float [token, k], in descending order of weight."""

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Weights of a layer's experts: `up` [expert, hidden, 2 intermediate] (gate beside it), `down` [expert, I, h]."""

    up: Tensor
    down: Tensor


Backend = Callable[[Tensor, Routing, ExpertWeights], Tensor]
"""(tokens [token, hidden], routing, weights) -> weighted sums of the experts' results [token, hidden]."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """Routed tokens by expert: `rows` [routed, hidden], `token` [routed], `weight` [routed, 1], `counts` [expert]."""

    rows: Tensor
    token: Tensor
    weight: Tensor
    counts: Tensor


def sort_by_expert(tokens: Tensor, routing: Routing, n_experts: int) -> Sorted:
    """The routed rows in the order of their experts; a token is there once for each of its experts."""
    flat = routing.ids.flatten()
    order = torch.argsort(flat, stable=True)
    token = order // routing.ids.shape[1]
    counts = torch.bincount(flat, minlength=n_experts)
    return Sorted(tokens[token], token, routing.weights.flatten()[order].unsqueeze(1), counts)


def swiglu(up: Tensor) -> Tensor:
    """silu(gate) * up of rows whose first half is the gate."""
    gate, value = up.chunk(2, dim=-1)
    return nn.silu(gate) * value


def expert(rows: Tensor, weights: ExpertWeights, number: int) -> Tensor:
    """Result of one expert for its rows: [row, hidden]."""
    return swiglu(rows @ weights.up[number]) @ weights.down[number]


def loop(tokens: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Experts one after the other; those without tokens cost nothing."""
    routed = sort_by_expert(tokens, routing, len(weights.up))
    counts = routed.counts.tolist()
    parts = routed.rows.split(counts)
    results = [expert(rows, weights, number) for number, rows in enumerate(parts) if counts[number]]
    return combine(torch.cat(results), routed, tokens)


def grouped(tokens: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Two grouped GEMMs over all experts."""
    routed = sort_by_expert(tokens, routing, len(weights.up))
    ends = torch.cumsum(routed.counts, 0, dtype=torch.int32)
    grouped_mm = getattr(torch, "_grouped_mm", None)
    if grouped_mm is None:
        raise ScenarioError("this torch has no grouped GEMM; take torch 2.8 or later, or back end loop")
    up = grouped_mm(routed.rows, weights.up, offs=ends)
    return combine(grouped_mm(swiglu(up), weights.down, offs=ends), routed, tokens)


def batched(tokens: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """One batched product over all experts, each padded to the fullest (GShard, arXiv 2006.16668, without drops)."""
    n_experts = len(weights.up)
    routed = sort_by_expert(tokens, routing, n_experts)
    number = torch.repeat_interleave(torch.arange(n_experts, device=tokens.device), routed.counts)
    first = torch.cumsum(routed.counts, 0) - routed.counts
    place = torch.arange(len(number), device=tokens.device) - first[number]
    padded = tokens.new_zeros(n_experts, int(routed.counts.max()), tokens.shape[1])
    padded = padded.index_put((number, place), routed.rows)
    results = torch.bmm(swiglu(torch.bmm(padded, weights.up)), weights.down)
    return combine(results[number, place], routed, tokens)


def combine(results: Tensor, routed: Sorted, tokens: Tensor) -> Tensor:
    """Weighted sum of the results of every token's experts: [token, hidden]."""
    return torch.zeros_like(tokens).index_add(0, routed.token, results * routed.weight)


BACKENDS: dict[str, Backend] = {"loop": loop, "grouped": grouped, "batched": batched}
