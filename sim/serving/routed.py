"""Iterations of an engine simulated whole, with the experts that their tokens visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import tokens_by_expert
from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.durations import Seconds
from sim.metrics import step_imbalance
from sim.priced_steps import Steps, priced
from sim.serving.ranks import Positions
from sim.session import Plan, reduced
from sim.setting import Setting
from traces.batches import Batches
from traces.request_routes import RequestRoutes

RankTokens = tuple[Positions, Positions]
"""(request, position) of the tokens that decode on a rank, and of those of prompts: int64[2, token] each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Iterations simulated whole.

    time_s     float64[iteration]: host time left out.
    loads      int64[iteration, layer, expert]: tokens that visit each expert; none where they are not asked for.
    imbalance  float64[iteration]: tokens of the fullest rank over their mean, mean over layers.
    """

    time_s: Seconds
    loads: NDArray[np.integer]
    imbalance: NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Experts:
    """Experts of an engine where they are now; `slower` is by how much copies on the links stretch exchanges."""

    setting: Setting
    placement: Placement
    schedule: ScheduleSpec
    memory: MemorySpec
    routes: RequestRoutes
    slower: float = 1.0

    def simulated(self, iterations: Sequence[Sequence[RankTokens]], *, with_loads: bool = True) -> Whole:
        """Iterations of ranks that work on these tokens."""
        setting = iterations_of(self.setting, self.routes, iterations, self.schedule.n_parts)
        reduction = reduced(setting, self.placement, self.schedule)
        steps = Steps(
            setting=setting,
            placement=self.placement,
            reduction=reduction,
            schedule=self.schedule,
            memory=self.memory,
        )
        ready = priced(steps)
        if self.slower > 1:
            ready = replace(ready, prices=ready.prices.times(dict.fromkeys(("dispatch", "combine"), self.slower)))
        shape = (self.placement.n_layers, len(iterations), reduction.n_chunks, -1)
        loads: NDArray[np.integer] = np.empty((len(iterations), 0, 0), np.int64)
        if with_loads:
            slots = reduction.slot_tokens.reshape(shape).sum(axis=2)
            loads = tokens_by_expert(self.placement, slots).swapaxes(0, 1)
        return Whole(
            time_s=ready.executed().step_times_s,
            loads=loads,
            imbalance=step_imbalance(self.placement, reduction).mean(axis=0),
        )


def iterations_of(
    template: Setting, routes: RequestRoutes, iterations: Sequence[Sequence[RankTokens]], n_parts: int
) -> Setting:
    """The setting whose steps are these iterations; tokens of a rank are dealt to the devices of its attention."""
    tp = template.attention_tp
    # Of each rank in turn those that decode, and those of prompts.
    groups = [[part for rank in iteration for part in rank] for iteration in iterations]
    decode = max(-(-group[i].shape[1] // tp) for group in groups for i in range(0, len(group), 2))
    prompt = max(-(-group[i].shape[1] // tp) for group in groups for i in range(1, len(group), 2))
    prompt = max(prompt, n_parts - decode)
    shape = (len(groups), template.cluster.n_devices, decode + prompt)
    tokens, contexts = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    for step, group in enumerate(groups):
        for number, (requests, positions) in enumerate(group):
            rank, of_prompts = divmod(number, 2)
            first, width = (decode, prompt) if of_prompts else (0, decode)
            turn = np.arange(len(requests))
            device, place = rank * tp + turn % tp, turn // tp
            column = first + place * width // max(-(-len(requests) // tp), 1)
            tokens[step, device, column] = routes.tokens(requests, positions)
            contexts[step, device, column] = positions + 1
    workload = template.workload.model_copy(
        update={
            "phase": "decode" if decode else "prefill",
            "tokens_per_device": decode + prompt,
            "prompt_tokens": prompt if decode else 0,
            "context_tokens": None,
            "steps": len(groups),
        }
    )
    batches = Batches(
        trace=template.trace,
        tokens=tokens,
        contexts=contexts,
        passes=0.0,
        discipline="iterations of an engine",
        ragged=True,
    )
    return replace(template, workload=workload, batches=batches)


def check_routed(setting: Setting, plan: Plan) -> None:
    """Raise ScenarioError where iterations of a plan cannot be simulated one by one."""
    schedule, routing = plan.schedule, setting.workload.routing
    unlike = {
        "memory.offload": plan.memory.offload is not None,
        "memory.stream": plan.memory.stream is not None,
        "cluster.experts": setting.pool is not None,
        "schedule.move": schedule.move is not None,
        "schedule.payload": schedule.payload is not None,
        "schedule.encode": schedule.encode == "einsum",
        "schedule.exchange.algorithm coherent": schedule.exchange.algorithm == "coherent",
        "workload.routing.capacity_factor": routing.capacity_factor is not None,
    }
    for name in (name for name, there in unlike.items() if there):
        raise ScenarioError(f"serving.routes and {name} do not go together yet; leave one of them out")
