"""Bands of step times and eager launches by hand: one device, whose kernels run one after another."""

from typing import Any

import numpy as np
import pytest

from hwmodels.devices import Device
from hwmodels.kernels import BLOCKS
from placement.plan import Placement
from scenarios.schedule_specs import ScheduleSpec
from sim.bands import StepBand, step_band
from sim.forward import build_step
from sim.launches import kernel_counts, launched_eagerly
from sim.laws import LAWS
from sim.metrics import error_metrics
from sim.policies import POLICIES
from sim.pricing import Prices, price
from sim.program import OpList, Work, compile_program
from sim.setting import Setting
from sim.vector import execute
from tests.devices import round_gpu
from tests.small import even_placement, random_trace, reduced, tiny_cluster, tiny_model, tiny_setting

WIDE = {"low": 0.5, "high": 2.0, "source": "a test"}


def gpu(*wide: str) -> Device:
    """`round_gpu`; the named blocks may take half or double the time."""
    return round_gpu(**{block: {"device_band" if block == "launch" else "band": WIDE} for block in wide})


def priced(device: Device, n_devices: int = 1, **load: Any) -> tuple[Setting, Placement, Prices, OpList]:
    model = tiny_model()
    cluster = tiny_cluster(1, n_devices, device=device)
    setting = tiny_setting(model, cluster, random_trace(model), **load)
    placement = even_placement(model, n_devices)
    prices = price(setting, placement, reduced(setting, placement, ScheduleSpec()), ScheduleSpec().exchange)
    step = build_step(model, chunks=1, attention_tp=1)
    return setting, placement, prices, compile_program(POLICIES["none"], step)


def band_of(device: Device, n_devices: int = 1, **load: Any) -> StepBand:
    setting, _, prices, op_list = priced(device, n_devices, **load)
    return step_band(setting, prices, op_list, ScheduleSpec())


def seconds(prices: Prices, kind: str, layer: int = 0) -> np.ndarray:
    duration = prices.of(Work(kind, layer, 0))
    assert isinstance(duration, np.ndarray)
    return duration


def test_laws_without_a_band_leave_only_the_links() -> None:
    band = band_of(gpu())
    assert band.families.keys() == {"experts", "dense", "attention", "small", "links"}
    assert all(ends == (1, 1) for family, ends in band.families.items() if family != "links")


def test_experts_take_the_ends_of_their_band() -> None:
    _, _, prices, op_list = priced(gpu("moe"))
    step_s = execute(op_list, prices.durations(op_list), law=LAWS["port"]).end_s.max(axis=(0, -1)).mean()
    share = sum(seconds(prices, "experts", layer).mean() for layer in (0, 1)) / step_s
    assert 0.2 < share < 0.8
    # Double the time of a share s: s more; half of it: s / 2 less.
    assert band_of(gpu("moe")).families["experts"] == pytest.approx((1 - share / 2, 1 + share))


@pytest.mark.parametrize(
    ("blocks", "family"),
    [(("gemm",), "dense"), (("decode",), "attention"), (("launch",), "small"), (("moe",), "experts")],
)
def test_each_family_moves_alone_and_by_its_share(blocks: tuple[str, ...], family: str) -> None:
    band = band_of(gpu(*blocks))
    moved = {name for name, ends in band.families.items() if ends != (1, 1) and name != "links"}
    assert moved == {family}
    low, high = band.families[family]
    # Of dense products the peak of a tile's steps stays, which matters little here.
    assert high - 1 == pytest.approx(2 * (1 - low), rel=0.02 if family == "dense" else 1e-9)
    assert 0 < high - 1 < 1


def test_shares_of_all_families_make_up_the_step() -> None:
    band = band_of(gpu(*BLOCKS, "launch"))
    links_low, links_high = band.families["links"]
    shares = {name: high - 1 for name, (_, high) in band.families.items() if name != "links"}
    exchange = (links_high - 1) / 0.35  # the band of one latency and bandwidth: 0.75 to 1.35
    assert 1 - links_low == pytest.approx(0.25 * exchange)
    assert sum(shares.values()) + exchange == pytest.approx(1, rel=1e-3)


def test_deviations_of_families_add_up_in_squares() -> None:
    band = band_of(gpu(*BLOCKS, "launch"))
    assert band.high - 1 == pytest.approx(np.sqrt(sum((high - 1) ** 2 for _, high in band.families.values())))
    assert 1 - band.low == pytest.approx(np.sqrt(sum((1 - low) ** 2 for low, _ in band.families.values())))


def test_metrics_keep_the_hosts_share_as_it_is_given() -> None:
    # 8 ms predicted and 2 ms of host time: 0.5 * 8 + 2 = 6 and 1.5 * 8 + 2 = 14 ms; 1000 tokens a step.
    times = {"step_time_s": 0.010, "tokens_per_s": 1e5}
    found = error_metrics(times, StepBand(low=0.5, high=1.5, families={}), 0.002)
    assert found == pytest.approx(
        {
            "step_time_s.low": 0.006,
            "step_time_s.high": 0.014,
            "tokens_per_s.low": 1000 / 0.014,
            "tokens_per_s.high": 1000 / 0.006,
            "model_error": 0.4,
        }
    )


def test_eager_kernels_take_at_least_their_launches() -> None:
    setting, _, prices, _ = priced(gpu())
    eager = launched_eagerly(prices, setting, ScheduleSpec())
    # 10 us each: 6 kernels of attention, 3 of the gate, 7 of the experts, 3 of the head.
    counts = kernel_counts(setting.model, ScheduleSpec())
    assert (counts["attention"], counts["projections"] + counts["core"], counts["experts"]) == (6, 6, 7)
    for kind, floor_s in (("attention", 60e-6), ("gate", 30e-6), ("experts", 70e-6), ("head", 30e-6)):
        assert seconds(eager, kind) == pytest.approx(np.maximum(seconds(prices, kind), floor_s))
        assert (seconds(prices, kind) < floor_s).all()
    assert eager.of(Work("dispatch", 0, 0)) is prices.of(Work("dispatch", 0, 0))
