"""Baseline placement solvers: fixed patterns, chance, and longest-first filling."""

from __future__ import annotations

import math

import numpy as np

from placement.eplb import IntArray, Loads, replicate_experts
from placement.plan import Placement
from placement.problem import PlacementProblem, placement_from
from scenarios.placement_specs import PlacementSpec


def contiguous(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """Expert e on rank e // (experts / ranks); with replicas slot p holds expert p mod experts (SGLang's `trivial`)."""
    slots = np.arange(problem.n_slots) % problem.n_experts
    return placement_from(np.tile(slots, (problem.n_layers, 1)), problem, spec)


def round_robin(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """Expert e on rank e mod ranks; replicas go on dealing in the same order, each expert to ranks new to it."""
    n_experts, n_ranks = problem.n_experts, problem.n_ranks
    dealt = np.arange(problem.n_slots)
    # Dealing on meets the same ranks again after this many copies; from then on start one rank later.
    period = n_ranks // math.gcd(n_experts, n_ranks)
    rank = (dealt + dealt // n_experts // period) % n_ranks
    slots = dealt[np.argsort(rank, kind="stable")] % n_experts
    return placement_from(np.tile(slots, (problem.n_layers, 1)), problem, spec)


def random(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """A random order of the experts in each layer; copies per expert differ by at most one, extra ones at random."""
    slots = np.empty((problem.n_layers, problem.n_slots), dtype=np.int32)
    for layer in range(problem.n_layers):
        rng = np.random.default_rng([problem.seed, spec.seed, layer])
        copies = np.arange(problem.n_slots) % problem.n_experts
        slots[layer] = rng.permutation(rng.permutation(problem.n_experts)[copies])
    return placement_from(slots, problem, spec)


def greedy(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """Replicas to the largest load / copies, then longest first: each to the least loaded rank that has room.

    Unlike EPLB's, an expert gets at most one copy per rank, and a second on a rank only where no other has room.
    """
    loads = problem.loads_or_uniform()
    experts, counts = replicate_experts(loads, problem.n_slots, most=problem.n_ranks)
    shares = np.take_along_axis(loads / counts, experts, axis=1)
    order = np.argsort(-shares, axis=1, kind="stable")
    slots = _fill_longest_first(
        np.take_along_axis(experts, order, axis=1), np.take_along_axis(shares, order, axis=1), problem.n_ranks
    )
    return placement_from(slots, problem, spec)


def _fill_longest_first(experts: IntArray, shares: Loads, n_ranks: int) -> IntArray:
    """Expert of each slot, int[layer, slot]; `experts` and `shares` are [layer, copy] in descending order of share."""
    n_layers, n_slots = experts.shape
    room = n_slots // n_ranks
    layers = np.arange(n_layers)
    loads = np.zeros((n_layers, n_ranks))
    filled = np.zeros((n_layers, n_ranks), dtype=np.intp)
    holds = np.zeros((n_layers, int(experts.max()) + 1, n_ranks), dtype=bool)
    expert_of_slot = np.empty_like(experts)
    for expert, share in zip(experts.T, shares.T, strict=True):
        # Ranks in order of preference: new to the expert, then least loaded; never one without room.
        blocked = np.where(filled == room, 2, holds[layers, expert])
        rank = np.where(blocked == blocked.min(axis=1, keepdims=True), loads, np.inf).argmin(axis=1)
        expert_of_slot[layers, rank * room + filled[layers, rank]] = expert
        filled[layers, rank] += 1
        loads[layers, rank] += share
        holds[layers, expert, rank] = True
    return expert_of_slot
