"""Laws of host cores and launches against public tables: limits on errors, and cards hold the fits they cite."""

from pathlib import Path

import numpy as np
import pytest

from hwmodels.calibration.fit import fit, residuals_of
from hwmodels.library import find_cpu_kernels, find_device, find_kernels
from hwmodels.validation import host as validation
from hwmodels.validation import launch as launches
from hwmodels.validation.held_out import leave_one_out_s
from hwmodels.validation.score import Score
from tests.shared import shared_file


def data_with(*tables: str) -> Path:
    """The folder of public tables; skips where one of the tables is absent."""
    for table in tables:
        shared_file(f"data/{table}")
    return shared_file("data")


def by_name(scores: tuple[Score, ...]) -> dict[tuple[str, str, str], Score]:
    return {(score.name, score.part, score.card): score for score in scores}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "fitted", "held_out"), [("epyc-9r14-avx512", 0.045, 0.08), ("epyc-9r14-ggml", 0.03, 0.05)]
)
def test_experts_by_threads(card: str, fitted: float, held_out: float) -> None:
    scores = by_name(validation.validate_threads(data_with(validation.THREADS_TABLE)))
    assert scores["CPU experts", "card", card].n == 9
    assert scores["CPU experts", "card", card].mean_ape <= fitted
    assert scores["CPU experts", "unseen rows", card].mean_ape <= held_out


@pytest.mark.slow
@pytest.mark.parametrize(("card", "column"), validation.ENGINES.items())
def test_cpu_cards_hold_the_fit_that_they_cite(card: str, column: str) -> None:
    rows = validation.read_thread_rows(data_with(validation.THREADS_TABLE), column)
    constants = find_cpu_kernels(card).constants
    law = validation.thread_law(rows, constants)
    fitted, _ = fit(law, rows.measured_s, validation.PARAMETERS, np.arange(len(rows.measured_s)))
    assert constants.vector.model_dump() == pytest.approx(fitted, rel=0.01)
    residuals = residuals_of(leave_one_out_s(law, rows.measured_s, validation.PARAMETERS), rows.measured_s)
    assert constants.residuals is not None
    assert constants.residuals.model_dump() == pytest.approx(residuals.model_dump(), abs=0.002)


def test_no_published_decode_rate_exceeds_the_bound_of_its_experts() -> None:
    (score,) = validation.validate_decode_bound(data_with(validation.DECODE_TABLE))
    # predicted/published - 1 of 7 rates: all positive, so bias and errors agree, and the bound is within a factor 2.3.
    assert score.n == 7
    assert 0.6 < score.bias == score.median_ape
    assert score.p90_ape < 1.3
    low, high = find_cpu_kernels("ktransformers-6454s").constants.low_high
    assert low <= 1 + score.mean_ape <= high


@pytest.mark.slow
def test_small_kernels() -> None:
    scores = by_name(launches.validate_small_kernels(data_with(launches.PROFILE_TABLE)))
    card = "rtx-pro-6000-vllm"
    assert scores["small kernels", "unseen shapes", card].n == 608
    assert scores["small kernels", "unseen shapes", card].mean_ape <= 0.37
    assert scores["small kernels, <= 64 tokens", "unseen shapes", card].mean_ape <= 0.09
    assert scores["small kernels", "unseen shapes", card].coverage_80 == pytest.approx(0.8, abs=0.02)


@pytest.mark.slow
def test_a_gate_in_eager_mode_is_a_chain_of_small_kernels() -> None:
    scores = by_name(launches.validate_gate(data_with(launches.GATE_TABLE)))
    assert scores["eager gate", "transfer", "datasheet-only"].mean_ape <= 0.25
    assert scores["eager gate", "unseen shapes", "datasheet-only"].mean_ape <= 0.021


@pytest.mark.slow
def test_eager_calls_take_the_time_of_their_launch() -> None:
    scores = launches.validate_eager(shared_file("data/kernels"))
    assert len(scores) == 4
    for score in scores:
        assert score.n == 18
        assert score.mean_ape <= 0.022, score


@pytest.mark.slow
def test_launch_cards_hold_the_fit_that_they_cite() -> None:
    data = data_with(launches.PROFILE_TABLE)
    for card, table in launches.EAGER_TABLES.items():
        device_s, measured_s = launches.read_eager(table.path(shared_file("data/kernels")), table.engine)
        assert (device_s < 0.5 * measured_s).all()
        assert np.exp(np.log(measured_s).mean()) == pytest.approx(find_kernels(card).launch().eager_kernel_s, rel=0.01)
    constants = find_kernels("rtx-pro-6000-vllm").launch()
    _, moved, measured_s = launches.read_profile(data)
    law = launches.small_law(moved, 1, find_device("rtx-pro-6000").memory_bytes_per_s.value, constants)
    fitted, _ = fit(law, measured_s, launches.SMALL, np.arange(len(measured_s)))
    assert {name: getattr(constants, name) for name in fitted} == pytest.approx(fitted, rel=0.01)


@pytest.mark.slow
def test_the_suite_judges_what_tables_there_are(tmp_path: Path) -> None:
    data = data_with(validation.THREADS_TABLE, validation.DECODE_TABLE, launches.PROFILE_TABLE, launches.GATE_TABLE)
    rows = validation.host(data / "kernels", lambda _what, _share: None)
    keys = {(row.score.name, row.score.part, row.score.table, row.score.card) for row in rows}
    assert len(keys) == len(rows) == 15
    errors = [(row.score.mean_ape, row.score.median_ape, row.score.p90_ape, row.score.bias) for row in rows]
    assert np.isfinite(errors).all()
    assert all(row.verdict.ok and row.suite == "host" for row in rows)
    assert validation.host(tmp_path / "kernels", lambda _what, _share: None) == []
