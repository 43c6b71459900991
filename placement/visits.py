"""Distinct ranks or nodes that a token visits under a plan (lambda), beside the least that any plan allows.

Both are counted on the same few tokens of the fitted steps: the bound is a linear programme over tokens, and holds for
these. Assumes home-return execution, in which every visit is one token sent and one partial result sent back.
"""

from __future__ import annotations

from dataclasses import replace

from placement.destination_bounds import destination_bound, least_visits
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.problem import PlacementProblem
from placement.reduction import reduce_trace
from placement.sample import TokenSample
from scenarios.errors import PlacementError

MOST_TOKENS = 512  # of the fitted steps; the companions' programme takes some 2 s a layer for them (64 experts, top-6)


def rank_visits(placement: Placement, problem: PlacementProblem) -> float:
    """Distinct ranks per token, mean over layers; replicas are chosen by the plan's own split."""
    sample = _few(problem)
    pairs = reduce_trace(sample.trace, sample.tokens, placement, _layout(problem, sample)).pairs_total
    return float(pairs.sum() / (sample.tokens.size * len(pairs)))


def node_visits(placement: Placement, problem: PlacementProblem) -> float:
    """Distinct nodes per token, mean over layers."""
    sample = _few(problem)
    layout = _layout(problem, sample)
    if layout.n_nodes == 1:
        return 1.0
    reduction = reduce_trace(sample.trace, sample.tokens, placement, layout, dedup="node")
    return float(reduction.node_pairs_total.sum() / (sample.tokens.size * placement.n_layers))


def rank_visits_bound(problem: PlacementProblem) -> float:
    """No plan of the problem sends these tokens to fewer distinct ranks, mean over layers."""
    return _bound(problem, problem.n_ranks)


def node_visits_bound(problem: PlacementProblem) -> float:
    """No plan of the problem sends these tokens to fewer distinct nodes, mean over layers."""
    return 1.0 if problem.n_nodes == 1 else _bound(problem, problem.n_nodes)


def _bound(problem: PlacementProblem, n_parts: int) -> float:
    sample = _few(problem)
    total = 0.0
    for layer in range(problem.n_layers):
        total += least_visits(
            sample.rows(layer), destination_bound, n_experts=problem.n_experts, n_parts=n_parts, n_slots=problem.n_slots
        )
    return total / (sample.tokens.size * problem.n_layers)


def _few(problem: PlacementProblem) -> TokenSample:
    """Up to MOST_TOKENS tokens of the fitted steps: the first tokens of every device, step by step."""
    sample = problem.sample
    if sample is None:
        raise PlacementError("visits are counted token by token: the problem needs a sample")
    own = max(1, MOST_TOKENS // sample.n_devices)
    per_step = min(own, sample.tokens.shape[2])
    steps = max(1, min(sample.n_steps, own // per_step))
    return replace(sample, tokens=sample.tokens[:steps, :, :per_step])


def _layout(problem: PlacementProblem, sample: TokenSample) -> ExpertLayout:
    if problem.machine is not None:
        return problem.machine.layout
    tp = sample.n_devices // problem.n_ranks
    per_node = min(problem.ranks_per_node, problem.n_ranks) * tp
    return ExpertLayout(n_devices=sample.n_devices, devices_per_node=per_node, tp=tp)
