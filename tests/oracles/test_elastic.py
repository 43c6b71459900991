"""Engines that change under load: schedules by brute force, bytes by loops, conservation, Lindley's recursion."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from placement.copies import held_by
from placement.plan import Placement
from placement.resizing import placed
from sim.elastic.copies import change_between
from sim.elastic.graph import add_task, executed, makespan_s, new_graph
from sim.serving.loop import serve
from sim.serving.measures import e2e_s
from sim.serving.ranks import RankLoad
from tests.elastic_fakes import RoundPrices, ToyFormer, contiguous, requests_with, served_by, spec_of
from tests.oracles.naive_engine import naive_serve


def random_tasks(seed: int, n: int) -> list[tuple[float, set[int], set[str]]]:
    rng = np.random.default_rng(seed)
    tasks = []
    for i in range(n):
        after = {j for j in range(i) if rng.random() < 0.25}
        needs = {name for name in "abc" if rng.random() < 0.4}
        tasks.append((float(rng.integers(1, 6)), after, needs))
    return tasks


def list_schedule(tasks: list[tuple[float, set[int], set[str]]]) -> list[float]:
    """Ends of tasks: at any moment those begin, in order, whose predecessors have ended and resources are free."""
    ends: dict[int, float] = {}
    now = 0.0
    while len(ends) < len(tasks):
        for i, (duration, after, needs) in enumerate(tasks):
            busy = {name for j, end in ends.items() if end > now for name in tasks[j][2]}
            if i not in ends and all(ends.get(j, np.inf) <= now for j in after) and not needs & busy:
                ends[i] = now + duration
        now = min((end for end in ends.values() if end > now), default=now)
    return [ends[i] for i in range(len(tasks))]


def best_makespan(tasks: list[tuple[float, set[int], set[str]]]) -> float:
    """The shortest schedule: tasks in every order, each as early as predecessors and resources allow."""
    best = np.inf
    for order in permutations(range(len(tasks))):
        ends: dict[int, float] = {}
        free = dict.fromkeys("abc", 0.0)
        for i in order:
            duration, after, needs = tasks[i]
            if not after <= ends.keys():
                break
            ends[i] = max([ends[j] for j in after] + [free[name] for name in needs], default=0.0) + duration
            free |= dict.fromkeys(needs, ends[i])
        else:
            best = min(best, max(ends.values()))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_tasks_run_as_a_list_schedule_and_no_shorter_than_the_best(seed: int) -> None:
    tasks = random_tasks(seed, 5)
    graph = new_graph()
    for i, (duration, after, needs) in enumerate(tasks):
        add_task(graph, str(i), duration, after=map(str, after), needs=needs)
    spans = executed(graph)
    assert [spans[str(i)].end_s for i in range(len(tasks))] == pytest.approx(list_schedule(tasks))
    assert makespan_s(spans) >= best_makespan(tasks) - 1e-9


def random_placement(rng: np.random.Generator, n_ranks: int) -> Placement:
    held = rng.random((2, 8, n_ranks)) < 0.4
    held[:, np.arange(8), rng.integers(n_ranks, size=8)] = True
    return placed(held, contiguous(2))


@pytest.mark.parametrize("seed", range(6))
def test_bytes_are_those_of_a_loop_over_slots(seed: int) -> None:
    rng = np.random.default_rng(seed)
    former = ToyFormer(contiguous(2))
    before = former.formed([0, 1, 2, 5], random_placement(rng, 4))
    after = former.formed([1, 2, 3, 4, 5], random_placement(rng, 5))
    dead = {5} if seed % 2 else set()
    change = change_between(before, after, dead)
    expected: dict[int, float] = dict.fromkeys(after.devices, 0.0)
    for i, device in enumerate(after.devices):
        for layer in range(2):
            for expert in range(8):
                if not held_by(after.placement)[layer, expert, i]:
                    continue
                own = device in before.devices and device not in dead and before.held[device][layer, expert]
                expected[device] += 0.0 if own else 1e9
        expected[device] += 0.0 if device in before.devices else 2e9
    if not dead:
        assert change.incoming == expected
    for (source, target), size in change.experts.items():
        holds = [one for one in before.devices if one not in dead and (before.held[one] & after.held[target]).any()]
        assert size > 0 and source != target
        assert source is None or source in holds
    lost = {d: wanted.sum() for d, wanted in change.lost.items()}
    for target, n in lost.items():
        nobody = ~np.any([before.held[one] for one in before.devices if one not in dead], axis=0)
        assert n == (after.held[target] & nobody).sum()


UP = {"scaling": {"events": [{"at": "0.6 s", "devices": 4}]}}
CHANGES: list[dict[str, Any]] = [
    UP,
    {"scaling": UP["scaling"] | {"gate": False}},
    {"scaling": UP["scaling"] | {"method": "cold-restart"}},
    {"scaling": {"events": [{"at": "0.6 s", "devices": 1}]}},
    {"scaling": {"events": [{"at": "0.6 s", "devices": 1}], "kv": "move"}},
    {"scaling": {"events": [{"at": "0.5 s", "devices": 8}, {"at": "0.6 s", "devices": 3}]}, "router": "least-tokens"},
    {"failures": [{"at": "0.6 s", "device": 1}]},
    {"failures": [{"at": "0.6 s", "device": 1}], "scaling": {"events": [{"at": "0.7 s", "devices": 3}]}},
]


@pytest.mark.parametrize("fields", CHANGES)
def test_every_request_is_answered_once_and_tokens_are_conserved(fields: dict[str, Any]) -> None:
    """Tokens computed are those asked for, and those of caches that were lost."""
    requests = requests_with()
    got = served_by(ToyFormer(contiguous(2)), requests, **fields)
    history = got.history
    assert history is not None and history.n_unfinished == 0 and got.n_preempted == 0
    assert len(history.changes) == len(fields.get("failures", [])) + len(fields.get("scaling", {}).get("events", []))
    assert (got.first_token_s > requests.arrival_s).all() and (got.done_s >= got.first_token_s).all()
    asked = requests.input_tokens.sum() + (requests.output_tokens - 1).sum()
    lost = sum(change.lost_tokens for change in history.changes)
    assert got.prompt_tokens.sum() + got.decoding.sum() == asked + lost
    assert got.used_blocks[-1] == 0
    assert all(np.diff(got.end_s) >= got.busy_s[1:] - 1e-9)
    stopped = [c for c in history.changes if c.downtime_s]
    assert not any(
        ((got.end_s > c.ready_s - c.downtime_s + 0.01) & (got.end_s < c.ready_s - 1e-9)).any() for c in stopped
    )


@pytest.mark.parametrize("router", ["round-robin", "least-tokens"])
@pytest.mark.parametrize("rate", [4.0, 30.0])
def test_more_ranks_behind_a_gate_equal_a_loop_over_requests(router: str, rate: float) -> None:
    requests, fields = requests_with(requests_per_s=rate), {"router": router}
    got = served_by(ToyFormer(contiguous(2)), requests, **UP, **fields)
    assert got.history is not None
    change = got.history.changes[0]
    growth = change.at_s, change.at_s + change.takes_s, 2
    prices = RoundPrices().iteration_s
    first_s, done_s, _ = naive_serve(requests, spec_of(**fields), 2, 10_000, prices, growth)
    np.testing.assert_allclose(got.first_token_s, first_s, rtol=1e-9)
    np.testing.assert_allclose(got.done_s, done_s, rtol=1e-9)


def test_an_event_that_changes_nothing_changes_no_result() -> None:
    requests, spec = requests_with(), spec_of(scaling={"events": [{"at": "0.6 s", "devices": 2}]})
    got = served_by(ToyFormer(contiguous(2)), requests, scaling={"events": [{"at": "0.6 s", "devices": 2}]})
    plain = serve(requests, spec, 2, 10_000, RoundPrices())
    np.testing.assert_allclose(got.done_s, plain.done_s, rtol=1e-9)
    np.testing.assert_allclose(got.first_token_s, plain.first_token_s, rtol=1e-9)
    assert got.history is not None and got.history.changes == ()
    assert got.history.device_s(10.0) == 20.0


def test_replicas_that_serve_one_request_at_a_time_are_lindley_queues() -> None:
    """Requests go to the replicas in turn, from when the second one is ready; each waits W' = max(0, W + S - gap)."""
    requests, prices = requests_with(requests_per_s=12.0), RoundPrices()
    scaling = {"method": "horizontal", "events": [{"at": "0.5 s", "devices": 2}]}
    got = served_by(ToyFormer(contiguous(1)), requests, scaling=scaling, max_requests=1, token_budget=4096)
    assert got.history is not None
    ready_s = got.history.changes[0].ready_s
    assert 1.0 < ready_s < requests.arrival_s[-1]
    free_s, latency_s = [0.0, 0.0], []
    for i, (arrival_s, n_in, n_out) in enumerate(
        zip(requests.arrival_s, requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
    ):
        replica = i % 2 if arrival_s > ready_s else 0
        service_s = prices.iteration_s([RankLoad(0, 0, n_in, n_in * (n_in + 1) // 2, 1)])
        service_s += sum(prices.iteration_s([RankLoad(1, n_in + k)]) for k in range(1, n_out))
        free_s[replica] = max(free_s[replica], arrival_s) + service_s
        latency_s.append(free_s[replica] - arrival_s)
    np.testing.assert_allclose(e2e_s(got), latency_s, rtol=1e-9)
    assert max(latency_s) > 0.1
