"""Scenarios with a `serving:` section, from their text to metrics, tables and figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.specs import ScenarioSpec
from sim.bound.bounds import bounds_of
from sim.outputs import write_outputs
from sim.result import Comparison
from sim.run import compare, run
from sim.session import Session
from sim.tables import comparison_columns

BASE: dict[str, Any] = {
    "name": "load",
    "model": {"card": "olmoe-1b-7b", "n_layers": 2},
    "cluster": {"node": "h100-sxm-8", "devices_per_node": 4},
    "workload": {"synthetic": {"tokens": 4096}},
    "serving": {
        "requests": {"requests_per_s": 200.0, "n": 100, "input_tokens": 100, "output_tokens": 20},
        "token_budget": 64,
        "max_requests": 16,
    },
}


def loaded(**fields: Any) -> Comparison:
    return run(ScenarioSpec.model_validate(BASE | fields), Path(), "test")


@pytest.mark.slow
def test_a_load_is_served_and_measured() -> None:
    result = loaded().tables[0].results[0]
    metrics = result.metrics
    assert result.served is not None
    assert result.served.n_ranks == 4
    assert metrics["table_error"] < 0.05
    assert 0 < metrics["ttft_s.p50"] <= metrics["ttft_s.p99"] < metrics["e2e_s.p99"]
    assert metrics["tokens_per_s"] == pytest.approx(
        result.served.requests.output_tokens.sum() / result.served.done_s.max()
    )
    assert "step_time_s.low" not in metrics
    assert "busy_frac.send" in metrics


def test_a_lone_request_takes_the_steps_of_the_simulator() -> None:
    """Answer of one request on one device: its iterations are decode steps of one token, simulated whole."""
    one = {"cluster": {"node": "h100-sxm-8", "devices_per_node": 1}}
    serving = BASE["serving"] | {
        "requests": {"requests_per_s": 1.0, "n": 1, "input_tokens": 64, "output_tokens": 200, "length_cv": 0.0}
    }
    result = loaded(serving=serving, **one).tables[0].results[0]
    steps = {"workload": BASE["workload"] | {"tokens_per_device": 1, "steps": 32, "context_tokens": 164}}
    spec = ScenarioSpec.model_validate({key: value for key, value in (BASE | one | steps).items() if key != "serving"})
    step_s = run(spec, Path(), "test").tables[0].results[0].metrics["step_time_s"]
    assert result.metrics["tpot_s.mean"] == pytest.approx(step_s, rel=0.02)


@pytest.mark.slow
def test_plans_are_ranked_by_goodput_or_latency(tmp_path: Path) -> None:
    serving = BASE["serving"] | {"slo": {"ttft": "4 ms"}}
    axes = {"serving": [{"name": "budget 64"}, {"name": "budget 16", "token_budget": 16}]}
    limited = compare(ScenarioSpec.model_validate(BASE | {"serving": serving, "compare": axes}), Path(), "test")
    table = limited.tables[0]
    assert table.ranked_by == "goodput_tokens_per_s"
    goodput = [result.metrics["goodput_tokens_per_s"] for result in table.results]
    assert goodput == sorted(goodput, reverse=True)
    assert table.gain(table.results[0]) >= 0
    free = compare(ScenarioSpec.model_validate(BASE | {"compare": axes}), Path(), "test").tables[0]
    assert free.ranked_by == "e2e_s.mean"
    latency = [result.metrics["e2e_s.mean"] for result in free.results]
    assert latency == sorted(latency)
    headers = [column.header for column in comparison_columns(table)]
    assert "TTFT p50–99" in headers and "step" not in headers
    written = {path.name for path in write_outputs(limited, tmp_path / "out")}
    assert {"serving.png", "report.html", "result.json"} <= written


@pytest.mark.slow
def test_prefill_and_decode_on_halves_of_a_node() -> None:
    half = {"cluster": {"node": "h100-sxm-8", "devices_per_node": 2}}
    cases = [{"transfer": "whole"}, {"transfer": "layerwise"}, {"engines": 3}]
    results = []
    for case in cases:
        serving = BASE["serving"] | {"prefill": half | {"over": "node", "token_budget": 256} | case, "decode": half}
        results.append(loaded(serving=serving).tables[0].results[0])
    whole, layerwise, several = (result.metrics for result in results)
    assert whole["bytes.kv_transfer"] == layerwise["bytes.kv_transfer"]
    served = results[0].served
    assert served is not None and served.n_ranks == 2
    several_tokens = served.requests.input_tokens[served.requests.output_tokens > 1]
    # Two layers of 16 heads of 128 keys and 128 values in two bytes each.
    assert whole["bytes.kv_transfer"] * len(served.requests) == several_tokens.sum() * 2 * 2 * 16 * 128 * 2
    assert whole["kv_transfer_s.mean"] > layerwise["kv_transfer_s.mean"] > 0
    assert several["busy_frac.prefill"] < whole["busy_frac.prefill"] < 1
    assert several["ttft_s.p99"] < whole["ttft_s.p99"]
    assert "energy_j_per_token" not in whole and "busy_frac.send" in whole
    with pytest.raises(ScenarioError, match="one node of 8 devices, and they are 10"):
        loaded(serving=BASE["serving"] | {"prefill": half | {"over": "node", "engines": 4}, "decode": half})
    with pytest.raises(ScenarioError, match="name one schedule"):
        search = {"schedule": {"search": [{"overlap": "none"}]}}
        loaded(serving=BASE["serving"] | {"prefill": half | search, "decode": half})


@pytest.mark.slow
def test_the_same_seed_serves_the_same_load() -> None:
    first, second = (loaded().tables[0].results[0] for _ in range(2))
    assert first.metrics == second.metrics
    assert first.served is not None and second.served is not None
    np.testing.assert_array_equal(first.served.done_s, second.served.done_s)


@pytest.mark.slow
def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ScenarioError, match="name one schedule"):
        loaded(schedule={"search": [{"overlap": "none"}]})
    with pytest.raises(ScenarioError, match="the context of olmoe-1b-7b changed ends at 4,096; leave it out, shorten"):
        loaded(serving=BASE["serving"] | {"requests": {"requests_per_s": 1.0, "n": 1, "input_tokens": 9000}})
    with pytest.raises(MemoryInfeasible, match="the KV cache of a rank holds"):
        loaded(serving=BASE["serving"] | {"kv_tokens": 64})
    with pytest.raises(MemoryInfeasible):
        loaded(memory={"reserve": 0.99})
    spec = ScenarioSpec.model_validate(BASE)
    with pytest.raises(ScenarioError, match="leave serving out"):
        bounds_of(Session(spec, Path()))


@pytest.mark.parametrize(
    "how",
    [
        {"scaling": {"events": [{"at": "1 s", "devices": 2}]}},
        {"prefill": {"cluster": {"node": "h100-sxm-8", "devices_per_node": 4}}},
    ],
    ids=["scaled", "apart"],
)
def test_requests_beyond_the_context_are_refused_however_they_are_served(how: dict[str, Any]) -> None:
    model = BASE["model"] | {"max_context_tokens": 50}
    with pytest.raises(ScenarioError, match="the context of olmoe-1b-7b changed ends at 50"):
        loaded(model=model, serving=BASE["serving"] | how)


APART: dict[str, Any] = {
    "cluster": {"node": "h100-sxm-8", "devices_per_node": 4, "experts": {"node": "h100-sxm-8", "devices_per_node": 4}},
    "parallel": {"attention": {"dp": 4}, "experts": {"ep": 4}},
    "schedule": {"overlap": "ping-pong", "chunks": 2},
}


@pytest.mark.slow
def test_experts_on_devices_of_their_own_are_served_in_the_time_of_their_steps() -> None:
    """64 like requests at once, 16 a rank: tokens come in decode steps of 16, at the mean context, simulated whole."""
    asked = {"requests_per_s": 1e6, "n": 64, "input_tokens": 1500, "output_tokens": 400, "length_cv": 0.0}
    serving = {"requests": asked | {"arrivals": "even"}, "token_budget": 32768}
    result = loaded(serving=serving, **APART).tables[0].results[0]
    assert result.served is not None
    assert result.served.n_ranks == 4
    assert result.metrics["table_error"] < 0.06
    steps = {"workload": BASE["workload"] | {"tokens_per_device": 16, "steps": 16, "context_tokens": 1700}}
    spec = ScenarioSpec.model_validate(
        {key: value for key, value in (BASE | APART | steps).items() if key != "serving"}
    )
    step_s = run(spec, Path(), "test").tables[0].results[0].metrics["step_time_s"]
    assert result.metrics["tpot_s.p50"] == pytest.approx(step_s, rel=0.05)


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"prefill": {"cluster": APART["cluster"]}}, "cluster.experts and serving.prefill do not go together"),
        ({"scaling": {"events": [{"at": "1 s", "devices": 8}]}}, "cluster.experts and serving.scaling"),
    ],
)
def test_experts_apart_do_not_go_with_prefill_apart_or_scaling(serving: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        loaded(serving=BASE["serving"] | serving, **APART)
