"""A load served by engines whose devices come, go and fail, under a plan of a scenario."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import simpy
from numpy.typing import NDArray

from hwmodels.cluster import Cluster
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.scaling_specs import FailureSpec, ScaleEventSpec
from scenarios.serving_specs import ServingSpec
from sim.elastic.checks import check_changes
from sim.elastic.controller import Controller
from sim.elastic.devices import TooFewDevices
from sim.elastic.failing import fail
from sim.elastic.fleet import Fleet
from sim.elastic.formations import Former, PlanFormer
from sim.elastic.measures import elastic_metrics
from sim.elastic.scaling import scale
from sim.serving.engine import Progress
from sim.serving.history import History
from sim.serving.loop import Served, answered, arrivals, delay_until, served
from sim.serving.measures import serving_metrics
from sim.serving.prices import StepOf
from sim.serving.simulate import LoadResult, asked_requests, load_note, setting_of, typical_of
from sim.session import Plan, Session
from traces.requests import RequestTrace

STATES = ("decoding", "prompt_tokens", "waiting", "used_blocks", "most_tokens")


def serve_changing_plan(session: Session, plan: Plan, spec: ServingSpec, step_of: StepOf) -> LoadResult:
    """The requests of `spec` under a plan whose devices change.

    Raises ScenarioError for changes that cannot be, MemoryInfeasible where something does not fit.
    """
    requests = asked_requests(session, spec)
    former = PlanFormer(session, plan, spec, step_of)
    setting = setting_of(session, plan, "decode", plan.schedule.n_parts, 1)
    check_changes(spec, former, former.first())
    load = serve_changing(requests, spec, former, setting.cluster, setting.model.n_layers)
    history = load.history
    if history is None:
        raise ScenarioError("serving: nothing changed, and nothing was recorded")
    ready = former.deployments
    error = float(np.mean([one.table_error for one in ready]))
    metrics = serving_metrics(load, spec.slo, error) | elastic_metrics(load, history, spec)
    metrics |= {"step_time_s": history.iteration_s, "n_iterations": float(history.n_iterations)}
    if "slo_frac" in metrics:
        metrics["slo_frac"] *= len(load.requests) / (len(load.requests) + history.n_unfinished)
    named = "" if spec.name is None else f"{spec.name}: "
    return LoadResult(
        served=load,
        metrics=metrics,
        typical=typical_of(session, plan, load, history.device_s(float(load.done_s.max())) / float(load.done_s.max())),
        notes=(load_note(requests, ready[0]), *(named + note for note in history.notes)),
    )


def serve_changing(
    requests: RequestTrace, spec: ServingSpec, former: Former, cluster: Cluster, n_layers: int
) -> Served:
    """All requests, by engines that change as `spec` says; its `history` says what happened to them.

    cluster  whose links, disks and devices reconfigurations use.
    """
    env = simpy.Environment()
    progress = Progress.of(len(requests), env)
    fleet = Fleet(env, requests, spec, former, cluster, n_layers, progress, env.event())
    env.process(arrivals(env, requests.arrival_s, fleet.submit))
    events = spec.scaling.events if spec.scaling is not None else ()
    coming: list[ScaleEventSpec | FailureSpec] = [*events, *spec.failures]
    for event in coming:
        env.process(_at(fleet, event))
    controller = None
    if spec.scaling is not None and spec.scaling.controller is not None:
        controller = Controller(fleet, spec.scaling.controller)
        env.process(controller.run())
    env.run(until=progress.all_done | fleet.ended)
    late = [f"{event.at:g} s" for event in coming if event.at > env.now]
    fleet.notes += [f"The load had ended before the changes at {', '.join(late)}."] if late else []
    fleet.notes += controller.note() if controller is not None else []
    return _recorded(fleet, progress)


def _at(fleet: Fleet, event: ScaleEventSpec | FailureSpec) -> Generator[simpy.Event, None, None]:
    if event.at > 0:
        yield fleet.env.timeout(delay_until(event.at, fleet.env.now))
    if isinstance(event, FailureSpec):
        yield from fail(fleet, event)
        return
    try:
        yield from scale(fleet, event.devices, event.placement)
    except TooFewDevices as short:
        fleet.notes.append(f"The change at {event.at:g} s did not happen: {short}.")


def _recorded(fleet: Fleet, progress: Progress) -> Served:
    """What happened, of the requests that were answered; the others are counted."""
    engines = [engine for engine in fleet.engines if engine.log]
    loads = [served(fleet.requests, engine, progress) for engine in engines]
    whole = answered(loads[0] if len(loads) == 1 else _together(loads)) if loads else None
    if whole is None:
        raise MemoryInfeasible(f"no request was answered. {' '.join(fleet.notes)}")
    written_s = np.concatenate([load.end_s for load in loads])
    times_s = np.concatenate([load.busy_s for load in loads])
    history = History(
        changes=tuple(fleet.changes),
        holds=tuple(fleet.holds),
        notes=tuple(fleet.notes),
        n_unfinished=len(fleet.requests) - len(whole.requests),
        written_s=written_s,
        written=np.concatenate([load.decoding for load in loads]),
        iteration_s=float(times_s.mean()),
        n_iterations=len(times_s),
    )
    return replace(
        whole,
        n_ranks=fleet.most_ranks,
        n_blocks=-(-fleet.most_blocks // fleet.most_ranks),
        n_preempted=sum(rank.n_preempted for rank in fleet.ranks),
        history=history,
    )


def _together(loads: list[Served]) -> Served:
    """Several engines as one: sums of their states between any two ends of iterations, where any of them works."""
    ends = [np.stack([load.end_s - load.busy_s, load.end_s], axis=1).ravel() for load in loads]
    grid = np.unique(np.concatenate(ends))
    low, high = grid[:-1], grid[1:]
    middle = (low + high) / 2
    states = dict.fromkeys(STATES, np.zeros(len(middle), np.int64))
    works = np.zeros(len(middle), bool)
    for load in loads:
        row = np.minimum(np.searchsorted(load.end_s, middle), len(load.end_s) - 1)
        inside = (middle <= load.end_s[row]) & (middle >= load.end_s[row] - load.busy_s[row])
        works |= inside
        for name in STATES:
            value: NDArray[np.int64] = np.where(inside, getattr(load, name)[row], 0)
            states[name] = np.maximum(states[name], value) if name == "most_tokens" else states[name] + value
    decoding, prompts, waiting, blocks, most = (states[name][works].astype(np.int32) for name in STATES)
    return replace(
        loads[0],
        end_s=high[works],
        busy_s=(high - low)[works],
        decoding=decoding,
        prompt_tokens=prompts,
        waiting=waiting,
        used_blocks=blocks.astype(np.float64),
        most_tokens=most,
        n=np.ones(int(works.sum()), np.int32),
        peak_blocks=blocks,
    )
