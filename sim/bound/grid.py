"""What binds over batch and context length: bounds on a grid, with what the memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from placement.plan import Placement
from scenarios.workload_specs import tokens_by_phase
from sim.bound.bound import Bound
from sim.memory import device_memory
from sim.session import Plan
from sim.setting import Setting

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CONTEXTS = (512, 2048, 8192, 32_768, 131_072)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The bound at one batch and context, what binds, and whether weights and caches fit into the memory.

    binding  the row; of device time also whether reading memory or multiplying takes it, by datasheet numbers.
    """

    tokens_per_device: int
    context_tokens: int
    tokens_per_s: float
    binding: str
    fits: bool


def with_context(setting: Setting, context_tokens: int) -> Setting:
    """The setting with requests that attend to so many tokens; prompts of mixed steps keep their length."""
    n_decode, _ = tokens_by_phase(setting.workload)
    contexts = setting.batches.contexts.copy()
    contexts[..., :n_decode] = context_tokens
    workload = setting.workload.model_copy(update={"context_tokens": context_tokens})
    return replace(setting, workload=workload, batches=replace(setting.batches, contexts=contexts))


def _named(bound: Bound) -> str:
    rows = {row.name: row for row in bound.rows}
    if bound.binding.name != "device time":
        return bound.binding.name
    reads = rows["memory bandwidth"].tokens_per_s < rows["multiplication"].tokens_per_s
    return f"device time, {'memory' if reads else 'multiplication'}"


def cells(
    setting: Setting,
    placement: Placement,
    plan: Plan,
    bound: Callable[[Setting], Bound],
    contexts: Sequence[int] = CONTEXTS,
) -> list[Cell]:
    """The cells of one batch; routing does not depend on the context, so that only prices differ."""
    found = []
    for context_tokens in contexts:
        longer = with_context(setting, context_tokens)
        there = bound(longer)
        memory = device_memory(longer, placement, plan.memory.model_copy(update={"context_tokens": context_tokens}))
        found.append(
            Cell(
                tokens_per_device=setting.workload.tokens_per_device,
                context_tokens=context_tokens,
                tokens_per_s=there.tokens_per_s,
                binding=_named(there),
                fits=bool(np.max(memory.used_bytes) <= memory.usable_bytes),
            )
        )
    return found
