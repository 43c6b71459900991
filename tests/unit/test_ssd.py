"""Experts on a drive below the host's memory: the law of reads by hand, the cache against a dict, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodels.library import find_ssd
from hwmodels.ssd import read_bytes_per_s, read_s
from scenarios.errors import HardwareError, MemoryInfeasible, ScenarioError
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import ScenarioSpec
from sim.offload.host_cache import read_from_drive
from sim.offload.plot import slot_lines
from sim.offload.replay import Replayed
from sim.offload.wanted import wanted_of
from sim.result import RunResult
from sim.run import run
from sim.session import reduced
from tests.small import even_placement, random_trace, tiny_cluster, tiny_model, tiny_setting

DRIVE = find_ssd("samsung-980-pro")
EXPERT_BYTES = 3 * 2048 * 1024 * 2  # olmoe-1b-7b in bf16
BASE: dict[str, Any] = {
    "name": "drive",
    "model": {"card": "olmoe-1b-7b", "n_layers": 2},
    "cluster": {"node": "rtx-4090-1"},
    "workload": {"synthetic": {"tokens": 512, "sequence_tokens": 64}, "tokens_per_device": 1, "steps": 4},
}
ALL_EXPERTS = f"{2 * 64 * EXPERT_BYTES} B"
SOME_EXPERTS = f"{40 * EXPERT_BYTES} B"


def test_requests_in_flight_bound_the_rate() -> None:
    """Of 128 KiB after 45 us: 2.9 GB/s one at a time; two or more reach 43 % of 7 GB/s."""
    assert read_bytes_per_s(DRIVE, 1) == pytest.approx(131072 / 45e-6)
    assert read_bytes_per_s(DRIVE, 2) == pytest.approx(0.43 * 7e9)
    assert read_s([0, 3.01e9], DRIVE, 32, share=0.5).tolist() == pytest.approx([0.0, 2 + 45e-6])
    with pytest.raises(HardwareError, match="give 1 or more"):
        read_bytes_per_s(DRIVE, 0)


def test_the_hosts_memory_is_one_lru_cache_of_all_layers() -> None:
    """A dict, layer after layer: of experts needed at once, and of those of the start, the more used ones stay."""
    setting = tiny_setting(tiny_model(), tiny_cluster(1, 1), random_trace(tiny_model()), steps=12)
    placement = even_placement(setting.model, 1)
    wanted = wanted_of(setting, placement, reduced(setting, placement, ScheduleSpec()))
    rng = np.random.default_rng(0)
    ahead, nothing = rng.random(wanted.tokens.shape) < 0.1, np.zeros(wanted.tokens.shape, bool)
    served = Replayed(resident=nothing, coming=nothing, loaded=wanted.used, hosted=nothing, fetched_ahead=ahead)
    n_slots = 7
    room = n_slots * setting.model.expert_bytes + 1
    spec = OffloadSpec.model_validate({"slots": 2, "ssd": DRIVE.name, "host_memory": f"{room} B"})
    got = read_from_drive(setting, wanted, served, spec)
    n_steps, n_layers, _, n_places = wanted.tokens.shape
    keys = [(layer, place) for layer in range(n_layers) for place in range(n_places)]
    better = {
        key: number for number, key in enumerate(sorted(keys, key=lambda key: -wanted.popular[key[0], 0, key[1]]))
    }
    held = {key: -1 for key in keys if better[key] < n_slots}
    for step in range(n_steps):
        for layer in range(n_layers):
            now = step * n_layers + layer
            needed = {(layer, p) for p in np.flatnonzero((wanted.used | ahead)[step, layer, 0]).tolist()}
            assert {(layer, p) for p in np.flatnonzero(got[step, layer, 0]).tolist()} == needed - held.keys()
            fresh = needed - held.keys()
            held |= dict.fromkeys(needed, now)
            order = sorted(held, key=lambda key: (key in fresh, held[key], -better[key]), reverse=True)
            held = {key: held[key] for key in order[:n_slots]}
    assert got.any() and not got.all()


def simulated(offload: dict[str, Any], **fields: Any) -> RunResult:
    fields |= {"memory": {"offload": {"slots": 16} | offload}}
    table = run(ScenarioSpec.model_validate(BASE | fields), Path(), "test").tables[0]
    assert slot_lines(table) == {}  # one size is no line; options in bytes are read back from the result
    return table.results[0]


def test_a_memory_for_all_experts_needs_no_drive() -> None:
    plain = simulated({})
    whole = simulated({"ssd": DRIVE.name, "host_memory": ALL_EXPERTS})
    np.testing.assert_array_equal(whole.step_times_s, plain.step_times_s)
    assert whole.metrics["ssd_bytes"] == 0.0 and whole.metrics["host_hit_frac"] == 1.0


@pytest.mark.parametrize("way", [{}, {"miss": "host", "evict": "static", "slots": 0}, {"prefetch": {"by": "oracle"}}])
def test_reads_take_their_time_in_both_executors(way: dict[str, Any]) -> None:
    """Never less than the drive is busy; at most that longer than with all experts in the host's memory."""
    drive = {"ssd": DRIVE.name, "host_memory": SOME_EXPERTS}
    plain, slow = simulated(way), simulated(way | drive)
    event = simulated(way | drive, schedule={"executor": "event"})
    np.testing.assert_allclose(event.step_times_s, slow.step_times_s, rtol=1e-9)
    metrics = slow.metrics
    read_time_s = metrics["busy_frac.from-ssd"] * metrics["step_time_s"]
    assert read_time_s >= metrics["ssd_bytes"] / read_bytes_per_s(DRIVE, 32) > 0
    assert metrics["step_time_s"] >= read_time_s
    assert metrics["step_time_s"] <= plain.metrics["step_time_s"] + read_time_s + 1e-12
    assert metrics["exposed_copy_s"] > plain.metrics["exposed_copy_s"]


@pytest.mark.parametrize(
    ("offload", "fields", "error", "words"),
    [
        ({"host_memory": SOME_EXPERTS}, {}, MemoryInfeasible, "an ssd below its memory"),
        ({"ssd": DRIVE.name, "host_memory": "50 MiB"}, {}, ScenarioError, "cannot hold the 8 of one token"),
        ({"ssd": "floppy"}, {}, HardwareError, "no SSD card 'floppy'"),
        ({"ssd": DRIVE.name, "host_memory": "200 TiB"}, {}, MemoryInfeasible, "less host_memory"),
        (
            {"ssd": DRIVE.name},
            {"cluster": {"node": "rtx-4090-1", "host": "epyc-7532-1s"}},
            ScenarioError,
            "host_memory",
        ),
    ],
)
def test_a_tier_without_room_is_refused(
    offload: dict[str, Any], fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        simulated(offload, **fields)
