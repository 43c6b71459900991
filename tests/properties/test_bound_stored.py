"""No simulation of experts in the host's memory exceeds the bound of its slots, whatever the rules and the hardware."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.offload_specs import OffloadSpec
from scenarios.specs import MemorySpec, ScenarioSpec
from sim.bound.bound import Bound
from sim.bound.bounds import bound_of, bounds_of
from sim.bound.division import Limits, Row, divided
from sim.bound.resources import Resource
from sim.bound.stored import served_of
from sim.run import simulate
from sim.session import Plan, Session

ROUNDING = 1e-9
CASES, CASES_A_TEST = 300, 25  # a search outside the suite took 2,000

NODES = {  # node card -> devices of a node that are used
    "rtx-4090-1": 1, "a6000-1": 1, "a40-1": 1, "t4-1": 1, "l4-1": 1, "rtx-3090-1": 1, "rtx-4090-4": 4,
    "h100-sxm-8": 4, "h200-sxm-8": 2, "a100-80-8": 2, "b200-8": 1, "gb200-nvl72": 4,
}  # fmt: skip


def random_scenario(seed: int) -> ScenarioSpec:
    """Hardware, size, phase, batch, slots and rules drawn at random."""
    rng = np.random.default_rng(seed)
    node = str(rng.choice(list(NODES)))
    n_devices = NODES[node]
    tp = int(rng.choice([1, n_devices])) if n_devices > 1 else 1
    experts, top_k = int(rng.choice([8, 16, 32])), int(rng.choice([1, 2, 4]))
    phase = str(rng.choice(["prefill", "decode"], p=[0.2, 0.8]))
    tokens = int(rng.choice([16, 256] if phase == "prefill" else [1, 2, 8, 64]))
    held = experts * tp // n_devices
    miss = str(rng.choice(["load", "host", "cheaper", "balanced"]))
    evict = str(rng.choice(["static", "lru", "lfu", "sch", "belady"]))
    least = 0 if miss == "host" else min(top_k, held)
    offload: dict[str, Any] = {"slots": int(rng.integers(least, held + 1)), "miss": miss}
    offload["start"] = str(rng.choice(["popular", "first"]))
    guess = str(rng.choice(["none", "oracle", "last", "popular", "learned", "noisy"]))
    if guess != "none" and offload["slots"]:
        width = {} if guess in ("oracle", "last") else {"width": int(rng.integers(1, offload["slots"] + 1))}
        offload["prefetch"] = {"by": guess, "lead": int(rng.integers(1, 3)), **width}
        offload["prefetch"] |= {"recall": float(rng.uniform(0.3, 1))} if guess == "noisy" else {}
        evict = evict if evict != "static" else "lru"
    elif miss == "host":
        evict = "static"
    offload["evict"] = evict
    offload |= {"defer": float(rng.choice([0.0, 0.5, 1.0]))} if miss != "load" else {}
    offload |= {"whole_layers": 1} if rng.random() < 0.2 else {}
    offload |= random_copies(np.random.default_rng([seed, 1]), offload)
    return ScenarioSpec.model_validate(
        {
            "name": "random",
            "model": {
                "n_layers": 3, "hidden_size": 512, "vocab_size": 1024, "n_experts": experts, "top_k": top_k,
                "expert_intermediate_size": int(rng.choice([256, 1024, 2048])),
                "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 4, "head_dim": 64},
                "weight_dtype": str(rng.choice(["bf16", "int4"])),
            },
            "cluster": {
                "node": node, "devices_per_node": n_devices,
                "kernels": str(rng.choice(["ideal", "datasheet-only"])),
                "host_bandwidth": f"{float(rng.choice([4, 25, 400]))} GB/s",
            },
            "workload": {
                "synthetic": {"tokens": 2048, "sequence_tokens": 64, "seed": seed % 50},
                "phase": phase, "tokens_per_device": tokens, "context_tokens": int(rng.choice([16, 4096])), "steps": 6,
            },
            "parallel": {"attention": {"dp": n_devices}, "experts": {"ep": n_devices // tp, "tp": tp}},
            "memory": {"offload": offload, "reserve": 0},
        }
    )  # fmt: skip


def random_copies(rng: np.random.Generator, offload: dict[str, Any]) -> dict[str, Any]:
    """Who passes whom, in which packets, what is given up, a drive, and the contract of the replay, drawn at random."""
    chosen: dict[str, Any] = {"packet": "64 KiB"} if rng.random() < 0.3 else {}
    if "prefetch" in offload and rng.random() < 0.5:
        chosen |= {"priority": "demand-first", "prefetch": offload["prefetch"] | {"cancel": bool(rng.random() < 0.5)}}
    elif offload["miss"] in ("load", "host") and rng.random() < 0.3:
        chosen["replay"] = "per-access"
    return chosen | ({"ssd": "samsung-980-pro", "host_memory": "100 MiB"} if rng.random() < 0.2 else {})


def bound_and_reached(spec: ScenarioSpec) -> tuple[Bound, float]:
    session, plan = Session(spec, Path()), Plan.of(spec)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    bound = bound_of(session, setting, session.plan_of(setting, plan).placement, plan)
    return bound, float(simulate(session, setting, plan).metrics["tokens_per_s"])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, CASES, CASES_A_TEST))
def test_no_simulation_exceeds_the_bound_of_its_slots(first: int) -> None:
    for seed in range(first, first + CASES_A_TEST):
        spec = random_scenario(seed)
        bound, reached = bound_and_reached(spec)
        assert reached <= bound.tokens_per_s * (1 + ROUNDING), seed
        drive = spec.memory.offload is not None and spec.memory.offload.ssd  # of which the bound knows nothing
        assert drive or reached > 0.005 * bound.tokens_per_s, f"{seed}: a bound that far away says nothing"


def row(name: str, capacity: float, fixed: float, per_other: float, per_away: list[float]) -> Row:
    resource = Resource(
        name=name, kind="links", unit="s", demand_per_token=0, capacity=capacity, holds="this plan", detail=""
    )
    return Row(resource=resource, fixed=fixed, per_other=per_other, per_away=np.array(per_away))


def test_the_division_of_misses_is_that_of_equal_times() -> None:
    """Copies take 2 s each, the host 1 s a use: of 3 misses 1 is copied, at 2 s; both capacities share the weight.

    T = 2 c = h with c + h = 3, so that T(cap) = 3 / (cap_c / 2 + cap_h): relative slopes 1/3 and 2/3.
    """
    found = divided(
        [row("link", 1, 0, 2, [0]), row("host", 1, 0, 0, [1])], Limits(other=5, away=np.array([5.0]), least=3)
    )
    assert (found.other, found.away[0]) == pytest.approx((1, 2))
    assert found.weights == pytest.approx([1 / 3, 2 / 3])


def test_the_host_takes_the_uses_of_fewest_tokens_and_the_device_is_spared_the_most() -> None:
    """Two kinds of uses, 1 and 4 tokens, which the host computes in 1 s and 4 s: by a grid over all divisions."""
    rows = [row("link", 1, 0, 3, [0, 0]), row("host", 1, 0, 0, [1, 4]), row("device", 1, 6, 0, [-1, -3])]
    asked = Limits(other=4, away=np.array([2.0, 2.0]), least=2)
    found = divided(rows, asked)
    reached = max(one.asked(found.other, found.away) for one in rows)
    grid = itertools.product(np.linspace(0, 2, 41), np.linspace(0, 2, 41))
    best = min(max(one.asked(max(2 - a - b, 0), np.array([a, b])) for one in rows) for a, b in grid)
    assert best * 0.97 <= reached <= best + 1e-9


def test_weights_of_the_rows_are_the_slopes_of_the_bound() -> None:
    """More of a capacity, solved again: 0.1 % of the one that the dual value speaks of."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows = [row(str(n), 1, rng.random(), rng.random(), list(rng.uniform(-0.1, 1, 3))) for n in range(4)]
        asked = Limits(other=6, away=np.array([1.0, 2.0, 3.0]), least=float(rng.uniform(0, 6)))
        found = divided(rows, asked)
        before = max(one.asked(found.other, found.away) for one in rows)
        for place, one in enumerate(rows):
            grown = replace(one, resource=replace(one.resource, capacity=1.001))
            changed = [*rows[:place], grown, *rows[place + 1 :]]
            again = divided(changed, asked)
            after = max(o.asked(again.other, again.away) / o.resource.capacity for o in changed)
            assert (before / after - 1) / 0.001 == pytest.approx(found.weights[place], abs=2e-3)
        assert found.weights.sum() == pytest.approx(1)


@pytest.mark.slow
def test_levers_and_prices_of_hosts_agree() -> None:
    """Prices by dual values against the bound with a hundredth more of the link, by another simulation of nothing."""
    spec = random_scenario(3).model_copy(update={"name": "levers"})
    found = bounds_of(Session(spec, Path()))
    assert sum(found.at.price(one) * one.capacity for one in found.at.rows) == pytest.approx(found.at.tokens_per_s)
    for lever in found.levers:
        assert -1e-6 <= lever.tenth_more_tokens_per_s <= 0.1 * found.at.tokens_per_s * (1 + 1e-6)


@pytest.mark.slow
def test_every_expert_in_a_slot_leaves_nothing_to_copy(tmp_path: Path) -> None:
    spec = random_scenario(0)
    offload = OffloadSpec(share=1.0)
    spec = spec.model_copy(update={"memory": MemorySpec(offload=offload, reserve=0)})
    session, plan = Session(spec, tmp_path), Plan.of(spec)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    placement = session.plan_of(setting, plan).placement
    reduction = session.reduction(setting, placement, plan.schedule)
    served = served_of(setting, placement, reduction, plan.schedule, offload)
    assert served.limits.least == 0
    assert served.uses.total == (reduction.slot_tokens > 0).sum() / setting.batches.n_steps
