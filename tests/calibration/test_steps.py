"""Layers and steps against published measurements: nothing is fitted on them; guards are measured errors plus a tenth.

Rows of aiconfigurator-core 0.12.0 (Apache-2.0) and of LLMServingSim, commit 5daddb2 (MIT).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from hwmodels.validation.goals import Judged
from hwmodels.validation.layers import layers
from sim.published_steps import published
from sim.step_validation import steps, steps_left_out
from tests.shared import shared_file

pytestmark = pytest.mark.slow

# Group and name of a suite: rows, measured mean and median error in per cent.
STEPS = [
    ("h100_sxm qwen3-235b-a22b trtllm", "tpot", 57, 9.8, 7.8),
    ("h200_sxm gpt-oss-120b vllm", "tpot", 19, 3.6, 3.5),
    ("all", "tpot", 76, 8.3, 6.0),
    ("all", "tpot of decode alone", 76, 13.6, 8.0),
    ("all", "ttft to 4 requests", 6, 64.5, 66.3),
]
LAYERS = [
    ("projections above 256 tokens", 224, 10.3, 9.8),
    ("head", 40, 2.0, 1.7),
    ("experts from memory", 38, 14.4, 2.5),
    ("decode attention", 171, 12.1, 10.3),
    ("prefill attention", 19, 16.6, 13.2),
    ("masked even EP to 16", 24, 5.2, 2.8),
    ("masked skewed EP to 16", 72, 6.7, 4.5),
    ("wide eplb EP to 16", 648, 15.6, 13.2),
]


def ignored(what: str, share: float) -> None:
    del what, share


@cache
def judged_steps() -> tuple[Judged, ...]:
    return tuple(steps(shared_file("data/kernels/e2e/silicon_e2e_dedup.csv.gz").parents[1], ignored))


@cache
def judged_layers() -> tuple[Judged, ...]:
    pytest.importorskip("pyarrow")
    shared_file("data/llmservingsim/RTXPRO6000_Qwen3-30B-A3B/moe.csv")
    shared_file("data/kernels/h200_sxm/moe/trtllm_1.3.0rc10_wideep_moe_perf.parquet")
    return tuple(layers(shared_file("data/kernels"), ignored))


def guard(rows: list[Judged], n: int, mean: float, median: float) -> None:
    (row,) = rows
    assert row.verdict.ok
    assert row.score.n == n
    assert 100 * row.score.mean_ape < 1.1 * mean
    assert 100 * row.score.median_ape < 1.1 * median


@pytest.mark.parametrize(("table", "name", "n", "mean", "median"), STEPS)
def test_steps_of_engines(table: str, name: str, n: int, mean: float, median: float) -> None:
    rows = [row for row in judged_steps() if (row.score.table, row.score.name) == (table, name)]
    guard(rows, n, mean, median)


def test_every_step_row_is_judged_or_left_out_for_a_reason() -> None:
    shared_file("data/kernels/e2e/silicon_e2e_dedup.csv.gz")
    assert 76 + sum(steps_left_out(shared_file("data/kernels")).values()) == 81


@pytest.mark.parametrize(("name", "n", "mean", "median"), LAYERS)
def test_parts_of_layers(name: str, n: int, mean: float, median: float) -> None:
    guard([row for row in judged_layers() if row.score.name == name], n, mean, median)


def test_accepted_errors_have_a_cause_and_are_met() -> None:
    missed = [row for row in judged_layers() if not row.verdict.reached]
    assert all(row.verdict.ok and row.verdict.cause for row in missed)
    assert len(missed) == 12


def test_published_figures() -> None:
    errors = {row.score.name: row for row in published(Path(), ignored)}
    assert all(row.verdict.ok for row in errors.values())
    assert errors["attention kernel forward"].score.median_ape < 0.10
    assert errors["decode EP72 chunks overlap"].score.bias < errors["decode EP72 no overlap"].score.bias
