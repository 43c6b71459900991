"""Fused schedules and the search over schedules, on whole scenarios."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import ScenarioSpec
from sim.bound.bounds import bound_of
from sim.durations import ExchangeTime
from sim.pricing import price
from sim.result import RunResult
from sim.run import run, simulate
from sim.schedule_search import Speed, search
from sim.session import Plan, Session
from sim.tile_pricing import tile_prices

BASE: dict[str, Any] = {
    "name": "search",
    "model": "olmoe-1b-7b",
    "cluster": {"node": "h100-sxm-8", "intra_bandwidth": "100 GB/s"},
    "workload": {
        "synthetic": {"tokens": 4096},
        "phase": "prefill",
        "tokens_per_device": 256,
        "steps": 1,
    },
}


def spec_of(**schedule: Any) -> ScenarioSpec:
    return ScenarioSpec.model_validate({**BASE, "schedule": schedule})


def result_of(**schedule: Any) -> RunResult:
    return run(spec_of(**schedule), Path(), "test").tables[0].results[0]


SINGLES: list[dict[str, Any]] = [
    {"overlap": "none"},
    *({"overlap": "chunked", "chunks": n} for n in (2, 4)),
    {"overlap": "two-batch"},
    *({"overlap": "tiles", "sms": n} for n in (4, 20)),
    {"overlap": "persistent", "tiles": 4},
]
SEARCH = [
    {"overlap": "none"},
    {"overlap": "chunked", "chunks": [2, 4]},
    {"overlap": "two-batch"},
    {"overlap": "tiles", "sms": [4, 20]},
    {"overlap": "persistent", "tiles": 4},
]


@pytest.mark.slow
def test_a_search_takes_the_best_of_its_schedules_and_says_what_that_gains() -> None:
    times = [result_of(**single).metrics["step_time_s"] for single in SINGLES]
    found = result_of(search=SEARCH)
    assert found.metrics["step_time_s"] == min(times)
    told = found.plan["search"]
    assert [one["step_time_s"] for one in told["tried"]] == pytest.approx(times, rel=1e-12)
    assert told["gain_over_first"] == pytest.approx(times[0] / min(times) - 1)
    assert told["gain_over_worst"] == pytest.approx(max(times) / min(times) - 1)
    assert found.plan["schedule"]["overlap"] == SINGLES[int(np.argmin(times))]["overlap"]
    assert told["chosen"] in found.notes[0]


def test_a_search_goes_on_without_what_does_not_fit() -> None:
    """Every schedule is timed once; the best is handed on; a search in which nothing fits fails as its first entry."""
    one, two, three, four = (ScheduleSpec(tiles=tiles) for tiles in (1, 3, 2, 4))
    asked: list[int] = []

    def timed(schedule: ScheduleSpec) -> tuple[Speed, str]:
        asked.append(schedule.tiles)
        if schedule.tiles == 1:
            raise MemoryInfeasible("short by 2 GiB")
        speed = Speed(step_time_s=float(schedule.tiles), tokens_per_s=1 / schedule.tiles)
        return speed, f"run of {schedule.tiles}"

    found, best = search((one, two, three, four), timed)
    assert (best, found.chosen, asked) == ("run of 2", three, [1, 3, 2, 4])
    assert found.as_json()["tried"][0]["infeasible"] == "short by 2 GiB"
    assert found.as_json()["gain_over_first"] == pytest.approx(0.5)
    assert "best of 3 schedules" in found.sentence()
    assert "short by 2 GiB" in found.sentence()
    with pytest.raises(MemoryInfeasible, match="short by 2 GiB"):
        search((one,), timed)


def test_an_entry_takes_what_stands_beside_the_search() -> None:
    schedule = ScheduleSpec.model_validate(
        {"launch": "eager", "search": [{"overlap": "chunked", "chunks": [2, 4]}, {"launch": "graph"}]}
    )
    assert [(one.overlap, one.chunks, one.launch) for one in schedule.search] == [
        ("chunked", 2, "eager"),
        ("chunked", 4, "eager"),
        ("none", 2, "graph"),
    ]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"search": []}, "search is empty"),
        ({"search": [{"search": [{"overlap": "none"}]}]}, "within a search"),
        ({"overlap": "two-batch-prefill", "chunks": 3}, "orders 2 microbatches, not 3"),
        ({"overlap": "tiles", "exchange": {"algorithm": "hierarchical"}}, "leave exchange.algorithm out"),
        ({"overlap": "persistent", "exchange": {"algorithm": "sliced", "law": "port"}}, "leave exchange.algorithm out"),
        ({"overlap": "tiles", "exchange": {"kernel": "nccl"}}, "in its own kernel"),
        ({"overlap": "chunked", "sms": 20}, "option of overlap tiles"),
        ({"kernels_per_layer": 33}, "launch: eager"),
    ],
)
def test_contradictions_are_refused(schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ScheduleSpec.model_validate(schedule)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"overlap": "tiles", "sms": 132}, "leaves none of the 132 SMs"),
        ({"overlap": "tiles", "tiles": 257}, "257 tiles"),
    ],
)
def test_what_cannot_be_is_said_with_its_numbers(schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        result_of(**schedule)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["tiles", "persistent", "two-batch-prefill", "two-batch-decode"])
@pytest.mark.parametrize("bandwidth", ["20 GB/s", "2 TB/s"])
def test_no_schedule_exceeds_the_bound(overlap: str, bandwidth: str) -> None:
    """Whether links or kernels bind."""
    cluster = {"node": "h100-sxm-8", "intra_bandwidth": bandwidth}
    spec = ScenarioSpec.model_validate({**BASE, "cluster": cluster, "schedule": {"overlap": overlap}})
    session = Session(spec, Path())
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    plan = Plan.of(spec)
    bound = bound_of(session, setting, session.plan_of(setting, plan).placement, plan)
    assert simulate(session, setting, plan).metrics["tokens_per_s"] <= bound.tokens_per_s * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["tiles", "persistent"])
def test_tiles_are_parts_of_one_kernel_and_of_one_exchange(overlap: str) -> None:
    """However many: the same sums, launches and latency paid once."""
    spec = spec_of(overlap=overlap, sms=12) if overlap == "tiles" else spec_of(overlap=overlap)
    session, schedule = Session(spec, Path()), spec.schedule
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    plan = replace(Plan.of(spec), schedule=schedule)
    placement = session.plan_of(setting, plan).placement
    reduction = session.reduction(setting, placement, schedule)
    whole = price(setting, placement, reduction, schedule.exchange)
    slower = 132 / (132 - 12) if overlap == "tiles" else 132 / 131
    for n in (1, 16):
        cut = tile_prices(
            whole,
            setting,
            reduction,
            schedule.model_copy(update={"tiles": n}),
            "columns" if overlap == "tiles" else "rows",
        )
        experts_s = whole.per_chunk["experts"][3][0]
        assert not isinstance(experts_s, ExchangeTime)
        np.testing.assert_allclose(sum(cut.per_chunk["experts"][3]), experts_s * slower, rtol=1e-12)
        total, tiles = whole.per_chunk["dispatch"][3][0], cut.per_chunk["dispatch"][3]
        assert isinstance(total, ExchangeTime)
        carried_s = sum(tile.send_s for tile in tiles) - total.latency_s  # type: ignore[union-attr]
        ratio = carried_s / (total.send_s - total.latency_s)
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)
        assert 1 <= ratio[0, 0] < 1.01
