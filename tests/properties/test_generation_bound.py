"""No schedule of streamed weights is faster than the lanes of the hierarchical roofline at datasheet rates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.models import GroupedQueryAttention
from scenarios.specs import ScenarioSpec
from sim.bound.offload import LaneRates, LayerWork, layer_lanes_s
from sim.run import run
from sim.session import Session

N_LAYERS = 3


def random_scenario(seed: int) -> ScenarioSpec:
    rng = np.random.default_rng(seed)
    overlap = str(rng.choice(["cgopipe", "fastdecode", "flexgen", "flexgen-cpu"]))
    data: dict[str, Any] = {
        "name": "bound",
        "model": {"card": "mixtral-8x7b", "n_layers": N_LAYERS},
        "cluster": {"node": str(rng.choice(["l4-1", "t4-1", "a40-1"]))},
        "workload": {
            "synthetic": {"tokens": 512, "sequence_tokens": 64},
            "generate": {"prompt_tokens": int(rng.integers(1, 300)), "new_tokens": int(rng.integers(2, 200))},
            "steps": 2,
            "split": {"fit": 0, "evaluate": 1},
        },
        "memory": {"stream": {"held": float(rng.choice([0.0, 0.3])), "link_frac": float(rng.choice([0.5, 1.0]))}},
        "schedule": {"overlap": overlap, "microbatch": int(rng.integers(1, 40)), "chunks": int(rng.integers(1, 6))},
    }
    return ScenarioSpec.model_validate(data)


def least_pass_s(spec: ScenarioSpec) -> float:
    """The largest lane of a layer at the first decode pass, times the layers [s]."""
    session = Session(spec, Path())
    cluster = session.setting(spec.cluster, spec.parallel, spec.workload).cluster
    model, generate, stream = session.model, spec.workload.generate, spec.memory.stream
    assert generate is not None and stream is not None and cluster.host is not None and cluster.host_link is not None
    assert isinstance(model.attention, GroupedQueryAttention) and spec.schedule.microbatch is not None
    requests = spec.schedule.chunks * spec.schedule.microbatch
    on_host = spec.schedule.overlap != "flexgen"
    cache = requests * (generate.prompt_tokens + 1) * model.attention.kv_values_per_token() * 2.0
    device = cluster.device
    work = LayerWork(
        streamed_bytes=8 * model.expert_bytes * (1 - stream.held),
        device_bytes=0.0 if on_host else cache,
        device_flop=2.0 * requests * model.top_k * model.expert_parameters,
        host_bytes=cache if on_host else 0.0,
        host_flop=0.0,
    )
    rates = LaneRates(
        link_bytes_per_s=cluster.host_link.effective_bytes_per_s,
        device_bytes_per_s=device.memory_bytes_per_s,
        device_flop_per_s=device.peak_flop_per_s("bf16"),
        host_bytes_per_s=cluster.host.dram_bytes_per_s.value,
        host_flop_per_s=1.0,
    )
    return N_LAYERS * max(layer_lanes_s(work, rates))


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 80))])
def test_no_pass_is_faster_than_its_busiest_lane(seed: int) -> None:
    spec = random_scenario(seed)
    metrics = run(spec, Path(), "0").tables[0].results[0].metrics
    assert metrics["step_time_s"] >= least_pass_s(spec) * (1 - 1e-9)
    assert max(metrics[f"busy_frac.{lane}"] for lane in ("compute", "to-device", "to-host", "host")) <= 1 + 1e-9
