"""A plan of a scenario under load: tables filled by its own simulation, requests served, the error of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import build_cluster
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.models import ModelCard
from scenarios.seeds import Use, generator
from scenarios.serving_specs import ServingSpec
from scenarios.workload_specs import tokens_by_phase
from sim.memory import GIB, check_memory, device_memory, kv_bytes_per_request, pool_memories
from sim.serving.corrected import Corrected
from sim.serving.loop import Served, serve
from sim.serving.measures import expert_metrics, serving_metrics, with_samples
from sim.serving.prices import Phase, StepOf, TablePrices, fill_tables
from sim.serving.ranks import RankLoad
from sim.serving.rebalance import Rebalancing
from sim.serving.routed import Experts, check_routed
from sim.serving.unfinished import journal_of, journaled_prices, journaled_steps, watch_of
from sim.session import Plan, Session
from sim.setting import Setting, sequence_parts
from traces.request_routes import request_routes
from traces.requests import RequestTrace, requests_of

TABLE_STEPS = 4  # steps of the trace that an entry of a table is the mean of; fewer, down to 1, where they are large:
TABLE_TOKENS = 1 << 14  # tokens of all these steps
CHECKS = 3  # sizes between entries at which the tables are checked, of either phase and of both at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """A served load: what happened, its metrics, and the setting of a typical iteration."""

    served: Served
    metrics: dict[str, float]
    typical: Setting
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A plan ready to serve: its ranks, the KV cache of each in blocks, and tables of its iterations.

    setting  of its smallest decode step.
    errors  by how much the tables miss steps of sizes between their entries, simulated whole.
    """

    plan: Plan
    spec: ServingSpec
    setting: Setting
    n_devices: int
    n_ranks: int
    n_blocks: int
    prices: TablePrices
    errors: list[float]

    @property
    def table_error(self) -> float:
        """Mean size of `errors`."""
        return float(np.mean(np.abs(self.errors)))

    @property
    def note(self) -> str:
        """How iterations are priced, in words."""
        return (
            f"Iterations are priced by tables of {len(self.prices.steps['decode'].sizes)} sizes, which are "
            f"{self.table_error:.1%} off on average and {np.max(np.abs(self.errors)):.1%} at most on "
            f"{len(self.errors)} sizes between, simulated whole."
        )


def serve_plan(session: Session, plan: Plan, spec: ServingSpec, step_of: StepOf) -> LoadResult:
    """The requests of `spec` under a plan.

    Raises MemoryInfeasible where no KV cache is left, or a request is longer than it, and ScenarioError where one is
    longer than the context of the model.
    """
    requests = asked_requests(session, spec)
    journal = journal_of(session, plan)
    deployment = deployed(session, plan, spec, journaled_steps(step_of, journal))
    corrected, rebalancing = _correction(session, deployment, spec, requests)
    prices, watch = journaled_prices(deployment.prices, journal), watch_of(journal, spec.slo, deployment.table_error)
    served = serve(requests, spec, deployment.n_ranks, deployment.n_blocks, prices, corrected, watch=watch)
    if journal is not None:
        journal.write()
    experts = {}
    if corrected is not None:
        served = with_samples(served, corrected, rebalancing)
        experts = expert_metrics(served, corrected, rebalancing)
    return LoadResult(
        served=served,
        metrics=serving_metrics(served, spec.slo, deployment.table_error) | experts,
        typical=typical_of(session, plan, served, deployment.n_devices),
        notes=(load_note(requests, deployment),),
    )


def asked_requests(session: Session, spec: ServingSpec) -> RequestTrace:
    """The requests of a load. Raises ScenarioError where one is longer than the context of the model."""
    requests = requests_of(spec.requests, session.base, session.spec.seed)
    _check_context(requests, session.model)
    return requests


def typical_of(session: Session, plan: Plan, served: Served, n_devices: float) -> Setting:
    """The setting of a decode step of the load's mean size."""
    tokens = np.average(served.decoding + served.prompt_tokens, weights=served.busy_s) / n_devices
    return setting_of(session, plan, "decode", max(round(float(tokens)), plan.schedule.n_parts), None)


def load_note(requests: RequestTrace, deployment: Deployment) -> str:
    """What a reader must know of a load."""
    return (
        f"Requests: {requests.source}, {len(requests):,}, {requests.input_tokens.mean():,.0f} tokens in and "
        f"{requests.output_tokens.mean():,.0f} out on average. {deployment.note} Loads, traffic and timeline are of a "
        "decode step of typical size."
    )


def _correction(
    session: Session, deployment: Deployment, spec: ServingSpec, requests: RequestTrace
) -> tuple[Corrected | None, Rebalancing | None]:
    """What the routes of the requests make of the tables, and who changes placements meanwhile.

    Raises ScenarioError where iterations cannot be simulated one by one.
    """
    if spec.routes is None:
        return None, None
    plan, setting = deployment.plan, deployment.setting
    check_routed(setting, plan)
    workload, seed = session.spec.workload, session.spec.seed
    parts = sequence_parts(setting.trace, workload, seed)
    rng = generator(seed, Use.REQUEST_ROUTES)
    own = np.union1d(parts.judged, parts.shifted)
    experts = Experts(
        setting=setting,
        placement=session.plan_of(setting, plan).placement,
        schedule=plan.schedule,
        memory=plan.memory,
        routes=request_routes(setting.trace, own, requests, spec.routes.mix, rng),
    )
    corrected = Corrected(experts=experts, every=spec.routes.exact_every, host_s=plan.schedule.step_overhead)
    if spec.rebalance is None:
        return corrected, None
    rebalance = spec.rebalance
    rebalancing = Rebalancing(
        spec=rebalance, plan=rebalance.placement or plan.placement, seed=seed, corrected=corrected
    )
    corrected.look, corrected.look_every = rebalancing.look, rebalance.every
    corrected.n_loads = -(-rebalance.window // spec.routes.exact_every)
    return corrected, rebalancing


def deployed(session: Session, plan: Plan, spec: ServingSpec, step_of: StepOf) -> Deployment:
    """The plan with tables filled by its own simulation. Raises MemoryInfeasible where no KV cache is left."""

    def of(phase: Phase, tokens: int, context_tokens: int | None = 1, prompt_tokens: int = 0) -> Setting:
        return setting_of(session, plan, phase, tokens, context_tokens, prompt_tokens)

    def step_s(setting: Setting) -> float:
        return step_of(plan, setting)

    first = of("decode", plan.schedule.n_parts)
    tp = first.attention_tp
    sizes = _sizes(plan.schedule.n_parts, -(-spec.token_budget // tp))
    prices = fill_tables(of, step_s, sizes, plan.schedule.step_overhead)
    checked = [of(phase, tokens, None) for phase in ("decode", "prefill") for tokens in _between(sizes)]
    if first.pool is None:  # microbatches of ping-pong hold requests or prompts, not both
        checked += [of("decode", tokens, None, tokens // 2) for tokens in _between(sizes) if tokens > 1]
    return Deployment(
        plan=plan,
        spec=spec,
        setting=first,
        n_devices=first.cluster.n_devices,
        n_ranks=first.cluster.n_devices // tp,
        n_blocks=_kv_tokens(session, plan, first, spec) // spec.block_tokens,
        prices=prices,
        errors=[_error(prices, setting, step_s) for setting in checked],
    )


def setting_of(
    session: Session, plan: Plan, phase: Phase, tokens: int, context_tokens: int | None, prompt_tokens: int = 0
) -> Setting:
    """A few steps of so many tokens a device under a plan; contexts are the trace's own where none is given."""
    n_devices = build_cluster(plan.cluster, session.base).n_devices
    workload = session.spec.workload.model_copy(
        update={
            "phase": phase,
            "tokens_per_device": tokens,
            "prompt_tokens": prompt_tokens,
            "context_tokens": context_tokens,
            "steps": max(1, min(TABLE_STEPS, TABLE_TOKENS // (tokens * n_devices))),
        }
    )
    return session.setting(plan.cluster, plan.parallel, workload, bits=plan.bits)


def _sizes(least: int, most: int) -> list[int]:
    """Tokens of a device: powers of two and their halves between, up to the budget."""
    steps = {round(2**power) for power in np.arange(0, np.log2(most), 1.0)}
    return sorted({max(least, size) for size in steps} | {max(least, most)})


def _between(sizes: list[int]) -> list[int]:
    """A few sizes half way between entries, spread over the table."""
    middle = [(low + high) // 2 for low, high in pairwise(sizes) if high > low + 1]
    return [middle[i] for i in np.linspace(0, len(middle) - 1, min(CHECKS, len(middle))).astype(int)]


def _error(prices: TablePrices, setting: Setting, step_s: Callable[[Setting], float]) -> float:
    """By how much the tables miss the simulated steps of a setting with the trace's own contexts."""
    contexts, tp = setting.batches.contexts, setting.attention_tp
    n_decode, _ = tokens_by_phase(setting.workload)
    ranks = contexts.reshape(len(contexts), -1, tp, contexts.shape[-1])
    told = [prices.iteration_s([_load(rank, n_decode) for rank in step]) for step in ranks]
    return float(np.mean(told) / (step_s(setting) + prices.host_s) - 1)


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


def _check_context(requests: RequestTrace, model: ModelCard) -> None:
    lengths = requests.input_tokens + requests.output_tokens
    longest = int(np.argmax(lengths))
    if model.max_context_tokens is not None and lengths[longest] > model.max_context_tokens:
        raise ScenarioError(
            f"serving.requests: request {longest} of {requests.source} has {requests.input_tokens[longest]:,} tokens "
            f"in and {requests.output_tokens[longest]:,} out, but the context of {model.name} ends at "
            f"{model.max_context_tokens:,}; leave it out, shorten it, or set model: {{card: {model.name}, "
            "max_context_tokens: N}"
        )


def _kv_tokens(session: Session, plan: Plan, setting: Setting, spec: ServingSpec) -> int:
    """Tokens that the KV cache of a rank holds: what weights leave of the fullest device."""
    if spec.kv_tokens is not None:
        return spec.kv_tokens
    empty = plan.memory.model_copy(update={"requests_per_device": 0})
    placement = session.plan_of(setting, plan).placement
    memory, *of_experts = pool_memories(device_memory(setting, placement, empty), setting, empty)
    for held in of_experts:
        check_memory(held, setting, placement)
    left = memory.usable_bytes - float(memory.used_bytes.max())
    tokens = int(left / kv_bytes_per_request(setting.model, 1, setting.attention_tp))
    if tokens < spec.block_tokens:
        raise MemoryInfeasible(
            f"weights leave {left / GIB:.1f} GiB of {memory.usable_bytes / GIB:.1f} usable for the KV cache of a "
            f"device; levers: more devices, a smaller weight dtype, a smaller memory.reserve"
        )
    return tokens
