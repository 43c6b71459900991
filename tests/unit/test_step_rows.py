"""Published step times: which rows can be predicted, and why the others cannot."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hwmodels.validation.beside import TablesMissing
from hwmodels.validation.layer_parts import even_counts
from hwmodels.validation.layers import layers, layers_absent
from hwmodels.validation.rank_experts import spread_tokens
from hwmodels.validation.step_rows import NEEDED, read_step_rows
from scenarios.errors import HardwareError

ROW = {
    "model_path": "openai/gpt-oss-120b",
    "system": "h200_sxm",
    "backend": "vllm",
    "backend_version": "0.18.0",
    "mode": "agg",
    "isl": "1024",
    "osl": "1024",
    "batch_size": "16.0",
    "tp_size": "2.0",
    "pp_size": "1.0",
    "attention_dp_size": "",
    "moe_tp_size": "2.0",
    "moe_ep_size": "1.0",
    "silicon_ttft_ms": "100.0",
    "silicon_tpot_ms": "8.0",
}


def written(folder: Path, *changes: dict[str, str], name: str = "silicon_sample.csv") -> Path:
    """A folder of tables beside which the file lies, a row for each set of changes."""
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(NEEDED))
        writer.writeheader()
        writer.writerows([ROW | change for change in changes])
    tables = folder / "data"
    tables.mkdir()
    return tables


def test_a_row_as_it_is_written(tmp_path: Path) -> None:
    (row,) = read_step_rows(written(tmp_path, {})).rows
    assert (row.model.card, row.engine, row.version) == ("gpt-oss-120b", "vllm", "0.18.0")
    assert (row.isl, row.osl, row.batch, row.tp, row.moe_tp, row.moe_ep) == (1024, 1024, 16, 2, 2, 1)
    assert (row.ttft_s, row.tpot_s) == (pytest.approx(0.1), pytest.approx(0.008))
    assert row.group == "h200_sxm gpt-oss-120b vllm"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_path": "Qwen/Qwen3-32B"}, "model without a card"),
        ({"system": "b300_sxm"}, "system without"),
        ({"mode": "disagg"}, "devices of their own"),
        ({"pp_size": "2.0"}, "pipeline"),
        ({"attention_dp_size": "8.0"}, "data parallelism"),
        ({"moe_tp_size": "4.0"}, "layout"),
        ({"batch_size": "3.0"}, "does not divide"),
        ({"batch_size": "1.0"}, "does not divide"),
        # Of 10 s + 1024 x 8 ms, more than half passes before the first token.
        ({"silicon_ttft_ms": "10000"}, "waited"),
        ({}, "the same measurement again"),
        ({"silicon_tpot_ms": "8.0000001"}, "the same measurement again"),
    ],
)
def test_rows_that_are_left_out(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    found = read_step_rows(written(tmp_path, {}, change))
    assert len(found.rows) == 1
    ((why, count),) = found.left_out.items()
    assert reason in why
    assert count == 1


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(TablesMissing, match=r"silicon_sample\.csv"):
        read_step_rows(tmp_path / "data")
    with pytest.raises(TablesMissing, match="layer profile"):
        layers(tmp_path / "data", lambda _what, _share: None)
    assert len(layers_absent(tmp_path / "data")) == 4


def test_times_must_be_positive_numbers(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="row 0 must hold positive"):
        read_step_rows(written(tmp_path, {"silicon_tpot_ms": "0"}))


def test_a_file_without_columns(tmp_path: Path) -> None:
    (tmp_path / "silicon_sample.csv").write_text("model_path,system\na,b\n")
    (tmp_path / "data").mkdir()
    with pytest.raises(HardwareError, match="lacks columns backend"):
        read_step_rows(tmp_path / "data")


def test_choices_spread_over_the_active_experts() -> None:
    # 3 tokens, 2 choices each: 6 choices over 4 of 6 experts are 2 2 1 1.
    counts = even_counts(np.array([3, 1]), np.array([4, 2]), 2, 6)
    assert counts.tolist() == [[2, 2, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_tokens_that_reach_a_rank() -> None:
    # One rank holds all: each of 10 tokens has all its 8 choices here.
    assert spread_tokens(10, 8, 1, 16).tolist() == [5] * 16
    # Two choices, two ranks: a token has 2 x 1/2 / (1 - 1/4) = 4/3 choices on a rank that it visits.
    assert spread_tokens(9, 2, 2, 5).tolist() == [3, 3, 2, 2, 2]
    # Many ranks: hardly any token has two choices on one; 100 tokens have 100.7.
    assert spread_tokens(100, 8, 512, 2).sum() == 101
