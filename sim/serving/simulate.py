"""A plan of a scenario under load: tables filled by its own simulation, requests served, the error of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import build_cluster
from scenarios.errors import MemoryInfeasible
from scenarios.serving_specs import ServingSpec
from scenarios.workload_specs import tokens_by_phase
from sim.memory import GIB, DeviceMemory, device_memory, kv_bytes_per_request
from sim.serving.loop import Served, serve
from sim.serving.measures import serving_metrics
from sim.serving.prices import Phase, TablePrices, fill_tables
from sim.serving.ranks import RankLoad
from sim.session import Plan, Session
from sim.setting import Setting
from traces.requests import requests_of

StepOf = Callable[[Setting], float]
TABLE_STEPS = 4  # steps of the trace that an entry of a table is the mean of; fewer, down to 1, where they are large:
TABLE_TOKENS = 1 << 14  # tokens of all these steps
CHECKS = 3  # sizes between entries at which the tables are checked, of either phase and of both at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """A served load: what happened, its metrics, and the setting of a typical iteration."""

    served: Served
    metrics: dict[str, float]
    typical: Setting
    note: str


def serve_plan(session: Session, plan: Plan, spec: ServingSpec, step_of: StepOf) -> LoadResult:
    """The requests of `spec` under a plan; `step_of` simulates a setting under it, host time left out [s].

    Raises MemoryInfeasible where no KV cache is left, or a request is longer than it.
    """

    n_devices = build_cluster(plan.cluster, session.base).n_devices

    def setting_of(phase: Phase, tokens: int, context_tokens: int | None = 1, prompt_tokens: int = 0) -> Setting:
        workload = session.spec.workload.model_copy(
            update={
                "phase": phase,
                "tokens_per_device": tokens,
                "prompt_tokens": prompt_tokens,
                "context_tokens": context_tokens,
                "steps": max(1, min(TABLE_STEPS, TABLE_TOKENS // (tokens * n_devices))),
            }
        )
        return session.setting(plan.cluster, plan.parallel, workload, plan.bits)

    first = setting_of("decode", plan.schedule.n_parts)
    tp, n_ranks = first.attention_tp, first.cluster.n_devices // first.attention_tp
    sizes = _sizes(plan.schedule.n_parts, -(-spec.token_budget // tp))
    prices = fill_tables(setting_of, step_of, sizes, plan.schedule.step_overhead)
    checked = [setting_of(phase, tokens, None) for phase in ("decode", "prefill") for tokens in _between(sizes)]
    checked += [setting_of("decode", tokens, None, tokens // 2) for tokens in _between(sizes) if tokens > 1]
    errors = [_error(prices, setting, step_of) for setting in checked]
    n_blocks = _kv_tokens(session, plan, first, spec) // spec.block_tokens
    requests = requests_of(spec.requests, session.base, session.spec.seed)
    served = serve(requests, spec, n_ranks, n_blocks, prices)
    typical = np.average(served.decoding + served.prompt_tokens, weights=served.busy_s) / first.cluster.n_devices
    note = (
        f"Requests: {requests.source}, {len(requests):,}, {requests.input_tokens.mean():,.0f} tokens in and "
        f"{requests.output_tokens.mean():,.0f} out on average. Iterations are priced by tables of {len(sizes)} sizes, "
        f"which are {np.mean(np.abs(errors)):.1%} off on average and {np.max(np.abs(errors)):.1%} at most on "
        f"{len(errors)} sizes between, simulated whole. Loads, traffic and timeline are of a decode step of typical "
        "size."
    )
    return LoadResult(
        served=served,
        metrics=serving_metrics(served, spec.slo, float(np.mean(np.abs(errors)))),
        typical=setting_of("decode", max(round(float(typical)), plan.schedule.n_parts), None),
        note=note,
    )


def _sizes(least: int, most: int) -> list[int]:
    """Tokens of a device: powers of two and their halves between, up to the budget."""
    steps = {round(2**power) for power in np.arange(0, np.log2(most), 1.0)}
    return sorted({max(least, size) for size in steps} | {max(least, most)})


def _between(sizes: list[int]) -> list[int]:
    """A few sizes half way between entries, spread over the table."""
    middle = [(low + high) // 2 for low, high in pairwise(sizes) if high > low + 1]
    return [middle[i] for i in np.linspace(0, len(middle) - 1, min(CHECKS, len(middle))).astype(int)]


def _error(prices: TablePrices, setting: Setting, step_of: StepOf) -> float:
    """By how much the tables miss the simulated steps of a setting with the trace's own contexts."""
    contexts, tp = setting.batches.contexts, setting.attention_tp
    n_decode, _ = tokens_by_phase(setting.workload)
    ranks = contexts.reshape(len(contexts), -1, tp, contexts.shape[-1])
    told = [prices.iteration_s([_load(rank, n_decode) for rank in step]) for step in ranks]
    return float(np.mean(told) / (step_of(setting) + prices.host_s) - 1)


def _load(contexts: NDArray[np.int64], n_decode: int) -> RankLoad:
    """What a rank does whose devices have these contexts, int64[device, token], `n_decode` of requests each."""
    asked, prompts = contexts[:, :n_decode], contexts[:, n_decode:]
    return RankLoad(
        decoding=asked.size,
        context_tokens=int(asked.sum()),
        prompt_tokens=prompts.size,
        attended_pairs=int(prompts.sum()),
        finishing=len(contexts) if prompts.size else 0,
    )


def _kv_tokens(session: Session, plan: Plan, setting: Setting, spec: ServingSpec) -> int:
    """Tokens that the KV cache of a rank holds: what weights leave of the fullest device."""
    if spec.kv_tokens is not None:
        return spec.kv_tokens
    memory: DeviceMemory = device_memory(
        setting,
        session.plan_of(setting, plan).placement,
        plan.memory.model_copy(update={"requests_per_device": 0}),
    )
    left = memory.usable_bytes - float(memory.used_bytes.max())
    tokens = int(left / kv_bytes_per_request(setting.model, 1, setting.attention_tp))
    if tokens < spec.block_tokens:
        raise MemoryInfeasible(
            f"weights leave {left / GIB:.1f} GiB of {memory.usable_bytes / GIB:.1f} usable for the KV cache of a "
            f"device; levers: more devices, a smaller weight dtype, a smaller memory.reserve"
        )
    return tokens
