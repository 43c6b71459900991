"""Reconfigurations and failures: placements, memory and times by hand, controllers, what is refused."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from placement.copies import copies_of, held_by
from placement.resizing import held_after, least_changed, placed, relabelled_onto
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.scaling_specs import MethodName
from scenarios.specs import ScenarioSpec
from sim.elastic.checks import check_changes
from sim.elastic.measures import elastic_metrics
from sim.outputs import write_outputs
from sim.run import compare, run
from tests.elastic_fakes import ToyFormer, contiguous, requests_with, served_by, spec_of

EVENT = {"events": [{"at": "0.6 s", "devices": 4}]}


def test_new_ranks_take_from_the_fullest_and_the_rest_stays() -> None:
    before = contiguous(2)
    after = least_changed(held_after(before, [0, 1, None, None]), before)
    assert after.slots_per_rank().tolist() == [[2, 2, 2, 2]] * 2
    kept = held_by(after)[:, :, :2] & held_by(before)
    assert kept.sum() == 2 * 4
    back = least_changed(held_after(after, [0, 1]), after)
    assert back.slots_per_rank().tolist() == [[4, 4]] * 2
    assert (held_by(back)[:, :, :2] >= held_by(after)[:, :, :2]).all()


def test_replicas_of_ranks_that_go_are_not_needed() -> None:
    before = contiguous(4, n_experts=8, redundant=8)
    after = least_changed(held_after(before, [0, 1]), before, level=False)
    np.testing.assert_array_equal(held_by(after), held_by(before)[:, :, :2])


@pytest.mark.parametrize("seed", range(4))
def test_naming_ranks_never_moves_more(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def plan(n_ranks: int) -> Any:
        held = rng.random((2, 8, n_ranks)) < 0.3
        held[:, np.arange(8), rng.integers(n_ranks, size=8)] = True
        return placed(held, contiguous(2))

    wanted, held = plan(4), held_after(plan(3), [2, 0, None, 1])
    near = relabelled_onto(held, wanted)
    nodes = np.zeros(4, np.int64)
    moved = [len(copies_of(held.swapaxes(1, 2), held_by(p).swapaxes(1, 2), nodes)) for p in (near, wanted)]
    assert moved[0] <= moved[1]
    for layer in range(2):
        groups = [sorted(map(tuple, held_by(p)[layer].T.tolist())) for p in (near, wanted)]
        assert groups[0] == groups[1]


def test_memory_of_methods_by_hand() -> None:
    """Two layers of eight experts of 1 GB, two devices then four, each with 2 GB of other weights and a 1 GB cache."""
    old, new = 2 * (8 + 2 + 1), 4 * (4 + 2 + 1)
    expected = {
        ("elastic-moe",): old + new / 2,  # nothing twice but what new devices hold
        ("elastic-moe", "ipc-allocation"): old + new / 2 + 2 * 4,  # experts that stay get new buffers
        ("cold-restart",): new,
        ("extravagant",): old + new,
        ("colocated",): old + new,
        ("horizontal",): old,  # one replica of two devices
    }
    assert {method for method, *_ in expected} == set(get_args(MethodName))
    for (method, *without), total in expected.items():
        scaling = EVENT | {"method": method, "without": without}
        got = served_by(ToyFormer(contiguous(2)), requests_with(), scaling=scaling)
        assert got.history is not None
        assert got.history.changes[0].total_bytes == pytest.approx(total * 1e9), method


def test_times_of_methods_are_their_stages() -> None:
    """Stages of 300, 200, 100 and 2 x 50 ms; from the disk come 16 experts and 2 GB of other weights, at 7 GB/s."""
    disk_s = (16 + 2) / 7
    expected = {(): 0.1, ("ipc-allocation",): 0.2, ("connection-reuse",): 0.3, ("pre-initialised",): 0.4}
    expected[("pre-initialised", "connection-reuse", "zero-copy")] = 0.3 + 0.2 + disk_s + 0.1
    for without, time_s in expected.items():
        got = served_by(ToyFormer(contiguous(2)), requests_with(), scaling=EVENT | {"without": without})
        change = got.history.changes[0]  # type: ignore[union-attr]
        assert time_s <= change.takes_s < time_s + 0.08, without
        assert change.downtime_s == (pytest.approx(change.takes_s, abs=0.01) if "zero-copy" in without else 0)


@pytest.mark.parametrize("replicated", [True, False])
def test_a_failure_costs_detection_and_what_nobody_else_has(replicated: bool) -> None:
    former = ToyFormer(contiguous(2, redundant=8 if replicated else 0))
    got = served_by(former, requests_with(), failures=[{"at": "0.6 s", "device": 1}])
    change = got.history.changes[0]  # type: ignore[union-attr]
    lost = {} if replicated else {"disk": 8e9, "host": 8e9}
    assert change.moved_bytes == lost
    loading_s = 0.0 if replicated else 8 / 7 + 8 * 20e-6
    assert change.ready_s - change.at_s == pytest.approx(1.0 + loading_s, abs=0.01)
    assert change.lost_tokens > 0
    metrics = elastic_metrics(got, got.history, spec_of())  # type: ignore[arg-type]
    assert metrics["recover_s"] == change.takes_s
    assert metrics["devices.mean"] < 2


def test_survivors_without_memory_end_the_service() -> None:
    got = served_by(ToyFormer(contiguous(2), usable=12e9), requests_with(), failures=[{"at": "0.6 s", "device": 0}])
    assert got.history is not None and 0 < got.history.n_unfinished < 80
    assert len(got.requests) + got.history.n_unfinished == 80
    assert "The service ended" in got.history.notes[0] and "GiB" in got.history.notes[0]


def test_another_replica_takes_the_requests_of_one_that_ends() -> None:
    scaling = {"method": "horizontal", "events": [{"at": "0 s", "devices": 2}]}
    requests = requests_with(requests_per_s=10.0)
    got = served_by(ToyFormer(contiguous(1)), requests, scaling=scaling, failures=[{"at": "4.5 s", "device": 0}])
    assert got.history is not None and got.history.n_unfinished == 0
    assert "A replica ended" in got.history.notes[0]
    asked = requests.input_tokens.sum() + (requests.output_tokens - 1).sum()
    assert asked == got.requests.input_tokens.sum() + (got.requests.output_tokens - 1).sum()


def test_rates_of_windows_add_up_to_the_load() -> None:
    got = served_by(ToyFormer(contiguous(2)), requests_with(), scaling=EVENT)
    metrics = elastic_metrics(got, got.history, spec_of(scaling=EVENT, slo={"ttft": "10 s"}))  # type: ignore[arg-type]
    change, end_s = got.history.changes[0], got.done_s.max()  # type: ignore[union-attr]
    lengths_s = np.diff([0.0, change.at_s, change.ready_s, end_s])
    for name in ("tokens_per_s", "goodput_tokens_per_s"):
        rates = [metrics[f"{name}.{window}"] for window in ("before", "during", "after")]
        assert float(rates @ lengths_s) == pytest.approx(float(got.requests.output_tokens.sum()))


def test_a_cache_that_must_make_room_pre_empts() -> None:
    """From four devices to two that have room for half of their caches while experts come; no token is lost."""
    former = ToyFormer(contiguous(4), n_blocks=200, usable=10.5e9)
    requests = requests_with(requests_per_s=60.0)
    got = served_by(former, requests, scaling={"events": [{"at": "0.6 s", "devices": 3}]})
    change = got.history.changes[0]  # type: ignore[union-attr]
    assert max(change.peak_bytes.values()) <= 10.5e9
    assert not np.isnan(got.done_s).any()


def test_a_controller_follows_the_queue_and_says_where_it_oscillates() -> None:
    burst = requests_with(n=200, requests_per_s=100.0)
    scaling: dict[str, Any] = {
        "controller": {"queue": 5, "every": "50 ms", "calm": 0.0},
        "most": 8,
        "cooldown": "0.1 s",
    }
    got = served_by(ToyFormer(contiguous(2)), burst, scaling=scaling)
    assert got.history is not None
    assert [change.n_after for change in got.history.changes[:2]] == [3, 4]
    assert not got.history.notes
    scaling["controller"] |= {"calm": 0.9, "queue": 1}
    back = served_by(ToyFormer(contiguous(2)), requests_with(n=200, requests_per_s=40.0), scaling=scaling)
    assert back.history is not None and "The controller oscillates" in back.history.notes[-1]


def test_a_controller_keeps_limits_with_more_devices() -> None:
    burst = requests_with(n=200, requests_per_s=60.0)
    slo = {"ttft": "0.2 s", "tpot": "20 ms"}
    controller = {"slo_attainment": 0.9, "window": "0.5 s", "every": "50 ms", "calm": 0.1}
    scaling = {"controller": controller, "cooldown": "0.1 s", "by": 2}
    more = served_by(ToyFormer(contiguous(2)), burst, slo=slo, scaling=scaling)
    same = served_by(ToyFormer(contiguous(2)), burst, slo=slo, scaling={"events": [{"at": "90 s", "devices": 4}]})
    waits = [np.quantile(got.first_token_s - got.requests.arrival_s, 0.9) for got in (more, same)]
    assert waits[0] < waits[1]
    assert same.history is not None and "had ended before the changes at 90 s" in same.history.notes[0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"scaling": {"events": [{"at": "1 s", "devices": 12}]}},
        r"12 devices are asked for, and there are 8 \(2 nodes of 4\)",
    ),
    ({"scaling": {"events": [{"at": "1 s", "devices": 6}]}}, "nor whole nodes of 4"),
    ({"scaling": {"method": "horizontal", "events": [{"at": "1 s", "devices": 3}]}}, "replicas of 2 devices; 3 are no"),
    ({"scaling": {"method": "extravagant", "events": [{"at": "1 s", "devices": 8}]}}, "the 8 of the new one at once"),
    ({"scaling": {"controller": {"queue": 9}, "most": 16}}, "most 16 devices, of 2 at the beginning and 8 in all"),
    ({"failures": [{"at": "1 s", "device": 8}]}, "there is no device 8; there are 8, from 0"),
    ({"failures": [{"at": "1 s", "link": {"node": 2}}]}, "link of node 2: there are 2 nodes"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_changes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    former = ToyFormer(contiguous(2))
    with pytest.raises(ScenarioError, match=message):
        check_changes(spec_of(**fields), former, former.first())


def test_an_engine_beside_another_one_needs_the_memory_of_both() -> None:
    with pytest.raises(MemoryInfeasible, match=r"would hold .* GiB of 10\.7 usable"):
        served_by(ToyFormer(contiguous(2), usable=11.5e9), requests_with(), scaling=EVENT | {"method": "colocated"})


BASE: dict[str, Any] = {
    "name": "load",
    "model": {"card": "olmoe-1b-7b", "n_layers": 2},
    "cluster": {"node": "h100-sxm-8", "devices_per_node": 2},
    "workload": {"synthetic": {"tokens": 4096}},
    "serving": {
        "requests": {"requests_per_s": 200.0, "n": 60, "input_tokens": 100, "output_tokens": 20},
        "token_budget": 64,
        "max_requests": 16,
        "stages": {"start": "50 ms", "communicator": "20 ms", "warm_up_per_layer": "5 ms", "detect": "10 ms"},
    },
    "prices": {"device": "30 kUSD", "lifetime": "4 a", "energy": "0.1 USD/kWh"},
}


@pytest.mark.slow
def test_plans_of_a_scenario_scale_fail_and_pay_for_devices_over_time(tmp_path: Path) -> None:
    event = [{"at": "0.1 s", "devices": 4}]
    axes = [
        {"name": "fixed"},
        {"name": "elastic", "scaling": {"events": event}},
        {
            "name": "placement",
            "scaling": {"events": [{"at": "0.1 s", "placement": {"solver": "eplb", "redundant": 8}}]},
        },
        {"name": "fails", "failures": [{"at": "0.1 s", "device": 1}]},
    ]
    spec = ScenarioSpec.model_validate(BASE | {"compare": {"serving": axes}})
    comparison = compare(spec, Path(), "test")
    found = {result.name: result for result in comparison.tables[0].results}
    fixed, elastic = found["fixed"].metrics, found["elastic"].metrics
    assert elastic["devices.peak"] == 4
    for metrics, devices in ((fixed, 2.0), (elastic, elastic["devices.mean"])):
        device_usd_per_s = devices * 30e3 / (4 * 365.25 * 86400)
        energy_usd = 0.1 / 3.6e6 * metrics["energy_j_per_token"]
        assert metrics["cost_usd_per_mtok"] == pytest.approx(
            1e6 * (device_usd_per_s / metrics["tokens_per_s"] + energy_usd)
        )
    assert found["placement"].metrics["moved_bytes.intra"] % 1024 == 0
    assert found["fails"].plan["changes"][0]["devices"] == [2, 1]
    assert "serving.png" in {path.name for path in write_outputs(comparison, tmp_path / "out")}
    assert any(constant.name == "stages start" and constant.source == "scenario" for constant in comparison.constants)


@pytest.mark.slow
def test_routes_and_changes_do_not_go_together() -> None:
    serving = BASE["serving"] | {"routes": {"exact_every": 20}, "scaling": {"events": [{"at": "0.1 s", "devices": 4}]}}
    with pytest.raises(ScenarioError, match="leave routes and rebalance out"):
        run(ScenarioSpec.model_validate(BASE | {"serving": serving}), Path(), "test")
