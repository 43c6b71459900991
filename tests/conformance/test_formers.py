"""Every batch former through one suite, against all divisions of a few requests, and on a trace."""

from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from scenarios.specs import ScenarioSpec
from scenarios.workload_specs import BatchesSpec, FormerName
from sim.run import run
from tests.small import random_trace, tiny_model
from traces.batches import compose_batches
from traces.formers import FORMERS, Forming, distinct, expert_aware, formed_batches, least_distinct, similar

N_REQUESTS, SIZE = 8, 4


def random_routes(seed: int, n_layers: int = 2, n_experts: int = 6, top_k: int = 2) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.gumbel(size=(N_REQUESTS, n_layers, n_experts)) - np.arange(n_experts) / 2, axis=-1)
    routes = np.zeros(ids.shape, bool)
    np.put_along_axis(routes, ids[..., :top_k], True, axis=-1)
    return routes.reshape(N_REQUESTS, -1)


def test_names_match_implementations() -> None:
    assert set(FORMERS) == set(get_args(FormerName))


@pytest.mark.parametrize("by", FORMERS)
def test_batches_are_full_and_hold_nobody_twice(by: str) -> None:
    for seed in range(10):
        batches = FORMERS[by](random_routes(seed), SIZE)
        together = np.concatenate(batches)
        assert {len(batch) for batch in batches} == {SIZE}
        assert len(set(together.tolist())) == len(together)
        assert set(together.tolist()) <= set(range(N_REQUESTS))


@pytest.mark.parametrize("by", FORMERS)
def test_every_request_goes_on_by_one_token_after_another(by: str) -> None:
    trace = random_trace(tiny_model())
    pool = 2
    rng = np.random.default_rng(1)
    waiting = compose_batches(
        trace,
        np.arange(trace.n_sequences),
        phase="decode",
        shape=(4, 2, 3 * pool),
        context_tokens=None,
        rng=rng,
    )
    batches = formed_batches(waiting, 3, Forming(by=by, pool=pool, recall=0.7), rng)  # type: ignore[arg-type]
    np.testing.assert_array_equal(batches.contexts, trace.positions[batches.tokens] + 1)
    assert batches.tokens.shape == (4, 2, 3)
    for device in range(2):
        seen: list[int] = []
        for step in batches.tokens[:, device].tolist():
            assert len(set(step)) == 3
            seen += step
        inside = [token for token in seen if trace.positions[token] > 0]
        begun = [token for token in inside if token - 1 not in seen]
        assert len(set(seen)) == len(seen) and len(begun) <= 3 * pool
        assert all(token - 1 in seen[: seen.index(token)] for token in inside if token not in begun)


def test_with_one_expert_a_token_the_longest_queues_are_the_best_choice() -> None:
    for seed in range(20):
        routes = random_routes(seed, n_layers=1, top_k=1)
        best = min(distinct(routes, np.array(batch)) for batch in combinations(range(N_REQUESTS), SIZE))
        (chosen,) = expert_aware(routes, SIZE)
        assert distinct(routes, chosen) == best


def test_clusters_lie_between_arrival_and_the_best_division() -> None:
    """Of all 35 divisions of eight requests into two batches; the bound is never above the best."""
    gaps = []
    for seed in range(20):
        routes = random_routes(seed)

        def total(first: tuple[int, ...], routes: NDArray[np.bool_] = routes) -> int:
            others = [request for request in range(N_REQUESTS) if request not in first]
            return distinct(routes, np.array(first)) + distinct(routes, np.array(others))

        every = [total((0, *rest)) for rest in combinations(range(1, N_REQUESTS), SIZE - 1)]
        got = sum(distinct(routes, batch) for batch in similar(routes, SIZE))
        assert least_distinct(routes.sum(axis=0), SIZE) <= min(every) <= got <= total((0, 1, 2, 3))
        gaps.append(got / min(every) - 1)
    assert np.mean(gaps) < 0.06


def test_two_kinds_of_requests_are_told_apart() -> None:
    kinds = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    routes = np.repeat(np.eye(2, dtype=bool)[kinds], 3, axis=1)
    found = {tuple(batch.tolist()) for batch in similar(routes, SIZE)}
    assert found == {(0, 3, 5, 6), (1, 2, 4, 7)}


def test_a_name_alone_is_enough() -> None:
    assert BatchesSpec.model_validate("similar") == BatchesSpec(by="similar", pool=2)
    with pytest.raises(ValueError, match="give pool: 2 or more"):
        BatchesSpec.model_validate({"by": "similar"})


def test_runs_say_how_far_from_the_least_they_are() -> None:
    """On the same waiting requests: clusters keep no more experts busy than turns, and both no fewer than the bound."""
    fields = {
        "name": "formers",
        "model": {"card": "olmoe-1b-7b", "n_layers": 2},
        "cluster": {"node": "rtx-4090-1"},
        "workload": {"synthetic": {"tokens": 2048, "sequence_tokens": 64}, "tokens_per_device": 4, "steps": 8},
        "memory": {"offload": {"slots": 32}},
    }
    found = {}
    for by in ("arrival", "similar", "expert-aware"):
        workload = fields["workload"] | {"batches": {"by": by, "pool": 4}}  # type: ignore[operator]
        spec = ScenarioSpec.model_validate(fields | {"workload": workload})
        found[by] = run(spec, Path(), "test").tables[0].results[0].metrics
        name = "active_experts_per_device"
        assert 8 <= found[by][f"{name}.least"] <= found[by][name]
    assert found["expert-aware"][name] < found["similar"][name] < found["arrival"][name]
    assert found["similar"][f"{name}.least"] == found["arrival"][f"{name}.least"]
    assert found["similar"]["tokens_per_s"] > found["arrival"]["tokens_per_s"]
