"""No schedule of streamed weights is faster than the division of its lanes allows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.specs import ScenarioSpec
from sim.bound.bounds import bound_of
from sim.run import simulate
from sim.session import Plan, Session

N_LAYERS = 3


def random_scenario(seed: int) -> ScenarioSpec:
    rng = np.random.default_rng(seed)
    prompt_tokens = int(rng.integers(1, 300))
    microbatch = min(int(rng.choice([rng.integers(1, 40), 400, 2000])), 20_000 // prompt_tokens)
    overlap = str(rng.choice(["cgopipe", "fastdecode", "flexgen", "flexgen-cpu", "vslpipe"]))
    data: dict[str, Any] = {
        "name": "bound",
        "model": {"card": "mixtral-8x7b", "n_layers": N_LAYERS},
        "cluster": {"node": str(rng.choice(["l4-1", "t4-1", "a40-1"]))},
        "workload": {
            "synthetic": {"tokens": 512, "sequence_tokens": 64},
            "generate": {"prompt_tokens": prompt_tokens, "new_tokens": int(rng.integers(2, 200))},
            "steps": 2,
            "split": {"fit": 0, "evaluate": 1},
        },
        "memory": {"stream": {"held": float(rng.choice([0.0, 0.3])), "link_frac": float(rng.choice([0.5, 1.0]))}},
        "schedule": {
            "overlap": overlap,
            "microbatch": microbatch,
            "chunks": 2 if overlap == "vslpipe" else int(rng.integers(1, 6)),
        },
    }
    return ScenarioSpec.model_validate(data)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 80))])
def test_no_schedule_exceeds_the_bound_of_streamed_weights(seed: int) -> None:
    """Nor is any lane busy for longer than a pass takes."""
    spec = random_scenario(seed)
    session = Session(spec, Path(), banded=False)
    plan, requests = Plan.of(spec), (spec.schedule.microbatch or 0) * spec.schedule.chunks
    workload = spec.workload.model_copy(update={"tokens_per_device": requests})
    setting = session.setting(plan.cluster, plan.parallel, workload)
    bound = bound_of(session, setting, session.plan_of(setting, plan).placement, plan)
    metrics = simulate(session, setting, plan).metrics
    assert metrics["tokens_per_s"] <= bound.tokens_per_s * (1 + 1e-9)
    assert max(metrics[f"busy_frac.{lane}"] for lane in ("compute", "to-device", "to-host", "host")) <= 1 + 1e-9
