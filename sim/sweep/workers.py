"""Points simulated in processes of this machine, or on a Ray cluster; what points share is made once a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scenarios.errors import MoesimError, ScenarioError
from scenarios.specs import ScenarioSpec
from sim.run import simulate
from sim.session import Plan, Session
from sim.sweep.store import Result, save

MOST_SHARED = 64
"""Reductions that a process keeps; with more it begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One point: its key, its text, its scenario, and the folder that paths in it are relative to."""

    key: str
    point: tuple[tuple[str, str], ...]
    spec: ScenarioSpec
    base: Path


_sessions: dict[tuple[str, int, Path], Session] = {}


def simulated(task: Task) -> Result:
    """What one point gives: name of the plan, metrics and times by cause, or the error of what cannot be."""
    result: Result = {"key": task.key, "point": dict(task.point)}
    try:
        session = _shared(task)
        plan = Plan.of(task.spec)
        setting = session.setting(plan.cluster, plan.parallel, task.spec.workload)
        found = simulate(session, setting, plan)
    except MoesimError as error:
        return result | {"error": str(error), "infeasible": error.exit_code == 3}
    return result | {"plan": found.name, "metrics": found.metrics, "breakdown_s": found.breakdown_s}


def _shared(task: Task) -> Session:
    """A session with what earlier points of the same model and seed have read, reduced and solved."""
    name = (str(task.spec.model), task.spec.seed, task.base)
    known = _sessions.get(name)
    if known is None or len(known.shared.reductions) > MOST_SHARED:
        _sessions.clear()
        _sessions[name] = known = Session(task.spec, task.base)
    return replace(known, spec=task.spec)


def _batch(tasks: Sequence[Task], folder: Path | None) -> list[Result]:
    """Points one after another; each is kept as soon as it is done."""
    results = []
    for task in tasks:
        results.append(simulated(task))
        if folder is not None:
            save(folder, results[-1])
    return results


def in_processes(tasks: Sequence[Task], folder: Path | None, jobs: int) -> Iterator[list[Result]]:
    """Results as they come, from `jobs` processes (1: this one); each is stored by the process that made it.

    Without a folder nothing is stored.
    """
    batches = _batches(tasks, jobs)
    if jobs == 1:
        for batch in batches:
            yield _batch(batch, folder)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by libraries that the processes load
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_batch, batch, folder) for batch in batches}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def on_ray(tasks: Sequence[Task], folder: Path | None, address: str) -> Iterator[list[Result]]:
    """Results as they come from a Ray cluster, stored here; its nodes have moesim and see the scenario's files.

    Raises ScenarioError where Ray is missing, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise ScenarioError("--ray needs Ray: pip install 'moesim[ray]'") from None
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ScenarioError(
            f"--ray {address}: no cluster answers ({error}); start one with `ray start --head`"
        ) from None
    n_cpus = int(ray.cluster_resources().get("CPU", 1))
    remote: Callable[..., Any] = ray.remote(num_cpus=1)(_batch).remote
    waiting = [remote(batch, None) for batch in _batches(tasks, n_cpus)]
    while waiting:
        done, waiting = ray.wait(waiting)
        for results in ray.get(done):
            for result in results:
                if folder is not None:
                    save(folder, result)
            yield results


def _batches(tasks: Sequence[Task], jobs: int) -> list[Sequence[Task]]:
    """Neighbours together, since they share most; several batches a process, so that none waits long at the end."""
    size = max(1, min(64, len(tasks) // (4 * jobs)))
    return [tasks[first : first + size] for first in range(0, len(tasks), size)]
