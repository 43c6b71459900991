"""No simulation of a device with PIM units exceeds its bound, whatever the units, the schedule and the workload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import ScenarioSpec
from sim.bound.bounds import bounds_of
from sim.session import Session
from tests.properties.test_bound_stored import ROUNDING, bound_and_reached

CASES = 100  # a search outside the suite took 1,000


def random_scenario(seed: int) -> ScenarioSpec:
    """Units, size, attention, phase, batch, prompts and parallel groups drawn at random."""
    rng = np.random.default_rng(seed)
    tp, attention_tp = int(rng.choice([1, 2, 4])), int(rng.choice([1, 4]))
    phase = str(rng.choice(["decode", "prefill"], p=[0.85, 0.15]))
    tokens = int(rng.choice([1, 2, 8, 32, 128]))
    prompts = int(rng.choice([0, tokens // 2])) if phase == "decode" else 0
    attention = {"kind": "gqa", "n_heads": 8, "n_kv_heads": int(rng.choice([2, 8])), "head_dim": 64}
    attention |= {"window_tokens": 512, "windowed_every": 2} if rng.random() < 0.3 else {}
    return ScenarioSpec.model_validate(
        {
            "name": "random",
            "model": {
                "n_layers": 3, "hidden_size": 512, "vocab_size": 1024, "n_experts": int(rng.choice([8, 16])),
                "top_k": int(rng.choice([1, 2, 4])), "expert_intermediate_size": int(rng.choice([256, 2048])),
                "attention": attention,
            },
            "cluster": {
                "node": "logic-pim-4", "device": str(rng.choice(["logic-pim", "bank-pim", "bankgroup-pim"])),
                "kernels": str(rng.choice(["ideal", "datasheet-only"])),
            },
            "workload": {
                "synthetic": {"tokens": 2048, "sequence_tokens": 64, "seed": seed % 50},
                "phase": phase, "tokens_per_device": tokens, "prompt_tokens": prompts, "steps": 4,
                "context_tokens": int(rng.choice([16, 1024, 65_536])),
            },
            "parallel": {
                "attention": {"dp": 4 // attention_tp, "tp": attention_tp}, "experts": {"ep": 4 // tp, "tp": tp}
            },
            "schedule": {"pim": str(rng.choice(["by-operation", "co-processing"]))},
            "memory": {"reserve": 0},
        }
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, CASES, 25))
def test_no_simulation_exceeds_the_bound_of_its_device_and_units(first: int) -> None:
    for seed in range(first, first + 25):
        bound, reached = bound_and_reached(random_scenario(seed))
        assert reached <= bound.tokens_per_s * (1 + ROUNDING), seed
        assert reached > 0.01 * bound.tokens_per_s, f"{seed}: a bound that far away says nothing"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 6, 20])  # whose ports do not bind
def test_faster_units_raise_the_bound_as_the_price_of_their_time_says(seed: int) -> None:
    """A hundredth more of peak and bandwidth is a hundredth less of their time; prices of all rows add up."""
    spec = random_scenario(seed)
    cluster = spec.cluster.model_copy(update={"device": "logic-pim"})
    spec = spec.model_copy(update={"cluster": cluster, "schedule": ScheduleSpec(pim="co-processing")})
    found = bounds_of(Session(spec, Path()))
    at = found.at
    assert sum(at.price(row) * row.capacity for row in at.rows) == pytest.approx(at.tokens_per_s)
    gained = sum(lever.per_unit * lever.now for lever in found.levers if lever.name.startswith("PIM"))
    row = next(row for row in at.rows if row.name == "PIM time")
    assert gained > 0.05 * at.tokens_per_s
    assert gained == pytest.approx(at.price(row) * row.capacity, rel=0.05)
