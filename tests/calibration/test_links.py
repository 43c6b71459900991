"""Errors of the laws of links on the public tables, held out; skipped where the tables are absent.

Limits are the measured mean error plus a tenth of it; the goal stands beside each.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hwmodels.calibration.links import calibrate_links, cards_yaml, is_link_table, link_problems
from hwmodels.calibration.ship_links import JUDGED_ONLY, SHIPPED, ship_links
from hwmodels.fitted import Fitted
from hwmodels.library import list_cards, read_cards
from hwmodels.validation.links import links, score_link_table
from hwmodels.validation.score import Score
from scenarios.errors import HardwareError
from tests.shared import shared_file

H200 = "data/kernels/h200_sxm/comm"
LL_ONE = f"{H200}/sglang_0.5.12_wideep_deepep_ll_perf_1node.parquet"
LL_MORE = f"{H200}/sglang_0.5.6.post2_wideep_deepep_ll_perf_multinode.parquet"
NORMAL_ONE = f"{H200}/sglang_0.5.12_wideep_deepep_normal_perf_1node.parquet"
NORMAL_TWO = f"{H200}/sglang_0.5.6.post2_wideep_deepep_normal_perf_multinode.parquet"
RACK = "data/kernels/gb200/comm/trtllm_1.3.0rc10_alltoall_NVL72.parquet"
# table, name, part, measured mean error, goal; the comment says why a goal is missed
LIMITS = [
    (f"{H200}/nccl_2.26.2.parquet", "nccl all", "unseen shapes", 0.038, 0.05),
    ("data/kernels/a100_sxm/comm/nccl_2.27.3.parquet", "nccl all", "unseen shapes", 0.049, 0.05),
    ("data/kernels/b200_sxm/comm/nccl_2.29.2.parquet", "nccl all", "unseen shapes", 0.050, 0.05),
    # times of eight devices fall where messages grow past a switch of algorithms; a minimum of lines cannot follow
    ("data/kernels/rtx_pro_6000_server/comm/nccl_2.29.2.parquet", "nccl all", "unseen shapes", 0.055, 0.05),
    (LL_ONE, "deepep-low-latency all by size", "unseen rows", 0.025, 0.03),
    # left out, the one shape of 8 experts is off by 45 %: only it is bound by the few SMs that prepare its tokens
    (LL_ONE, "deepep-low-latency all", "unseen shapes", 0.049, 0.03),
    (LL_MORE, "deepep-low-latency all", "unseen shapes", 0.026, 0.03),
    (NORMAL_ONE, "deepep-normal all", "unseen shapes", 0.032, 0.07),
    (NORMAL_TWO, "deepep-normal all", "unseen shapes", 0.047, 0.07),
    (RACK, "nvl72-two-sided all", "unseen shapes", 0.034, 0.04),
    # its combine among four devices is 10 to 20 % faster on few tokens than a latency that grows with log2 n
    (RACK, "nvl72-one-sided all", "unseen shapes", 0.045, 0.04),
    ("data/offload/pcie_nvlink/h100_pcie_h2d_d2h_vs_block.csv", "all", "unseen shapes", 0.024, 0.03),
]  # fmt: skip


def scores_of(table: str) -> tuple[Score, ...]:
    path, folder = shared_file(table), shared_file("data/kernels")
    own = next(shipped for shipped in SHIPPED if shipped.table.find(folder) == path)
    return score_link_table(path, own.links)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "name", "part", "measured", "goal"), LIMITS)
def test_held_out_errors_stay_as_measured(table: str, name: str, part: str, measured: float, goal: float) -> None:
    score = next(score for score in scores_of(table) if (score.name, score.part) == (name, part))
    assert score.mean_ape <= 1.1 * measured, f"goal {goal}"
    assert abs(score.bias) <= 0.02
    assert score.coverage_80 is not None
    assert 0.75 <= score.coverage_80 <= 0.85


@pytest.mark.slow
def test_shipped_cards_are_what_the_tables_give(tmp_path: Path) -> None:
    written = ship_links(shared_file("data/kernels"), tmp_path)
    assert [path.name for path in written] == ["collectives.yaml", "exchanges.yaml", "copies.yaml"]
    fitted, shipped = read_cards(tmp_path), list_cards()
    for kind in ("collectives", "exchanges", "copies"):
        public = [card for card in getattr(shipped, kind) if not card.name.startswith("zen4-core")]
        assert [card.name for card in getattr(fitted, kind)] == [card.name for card in public]
        new, old = blocks(getattr(fitted, kind)), blocks(public)
        # Cards are fitted on the tables of the package itself. The copies beside the repository lack rows, among them
        # those of four devices; where they do not, the fit is the same.
        assert {key for key in old.keys() - new.keys() if key[-1] != 4} == set()
        alike = [key for key, block in new.items() if block.residuals.n == old[key].residuals.n]
        assert alike
        for key in new:
            assert new[key].source == old[key].source
        for key in alike:
            assert new[key].residuals.mean_ape == pytest.approx(old[key].residuals.mean_ape, rel=0.1), key


def blocks(cards: Iterable[BaseModel]) -> dict[tuple[object, ...], Any]:
    """The measured blocks of cards, by card, field and what tells laws of one card apart."""
    entries = [(card, field, value) for card in cards for field, value in card]
    every = [
        (card, field, block)
        for card, field, value in entries
        for block in (value if isinstance(value, tuple) else (value,))
        if isinstance(block, Fitted) and block.residuals is not None
    ]
    names = ("op", "direction", "method", "n_devices")
    return {
        (getattr(card, "name", ""), field, *(getattr(block, name, None) for name in names)): block
        for card, field, block in every
    }


@pytest.mark.slow
def test_every_table_of_links_is_scored() -> None:
    folder, shares = shared_file("data/kernels"), []
    rows = links(folder, lambda _what, share: shares.append(share))
    assert {row.score.table for row in rows} == {one.table.name for one in (*SHIPPED, *JUDGED_ONLY)}
    assert {row.score.part for row in rows} == {"unseen shapes", "unseen rows", "transfer"}
    assert [f"{row.score.table} {row.score.name}" for row in rows if not row.verdict.ok] == []
    assert all(row.verdict.goal is None for row in rows if row.score.part == "transfer")
    assert shares == sorted(shares) and shares[0] == 0


@pytest.mark.slow
def test_rows_that_are_left_out_are_counted_with_a_reason() -> None:
    problems = link_problems(shared_file(f"{H200}/nccl_2.26.2.parquet"))
    reduce = next(problem for problem in problems if problem.part == "all-reduce 8")
    assert sorted(reduce.left_out.values()) == [21, 42]  # repeats averaged; int8, both runs
    assert len(reduce.measured_s) == 21


@pytest.mark.slow
def test_a_small_table_of_copies_gives_a_card(tmp_path: Path) -> None:
    table = tmp_path / "copies.csv"
    rows = [f"H2D,DMA,{kib},{kib * 1024 / (5e-6 + kib * 1024 / 40e9) / 1e9}" for kib in (64, 256, 1024, 4096, 16384)]
    table.write_text("\n".join(["direction,method,block_KB,GB_per_s_digitised", *rows]))
    card = calibrate_links(table, "made up for a test").copies[0]
    assert card.laws[0].block_latency_s == pytest.approx(5e-6, rel=0.01)
    assert card.laws[0].bandwidth_frac == pytest.approx(40 / 64, rel=0.01)
    assert card.laws[0].residuals is not None and card.laws[0].residuals.n == 5
    assert "made up for a test" in cards_yaml(calibrate_links(table, "made up for a test"))


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "other.csv"
    table.write_text("a,b\n1,2\n")
    assert not is_link_table(("a", "b"))
    with pytest.raises(HardwareError, match="fit no family of communication tables"):
        link_problems(table)
