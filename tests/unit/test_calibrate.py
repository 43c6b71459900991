"""Calibration: constants of made tables are found again, judged on unseen shapes, and make a card that is read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwmodels.calibration import fit
from hwmodels.calibration.calibrate import digest, problems_of, rounded, solve
from hwmodels.calibration.card import calibrate, card_yaml
from hwmodels.calibration.moe_rows import is_mistuned
from hwmodels.calibration.problem import Problem
from hwmodels.devices import Device
from hwmodels.fitted import Residuals
from hwmodels.kernels import BLOCKS, blocks_of
from hwmodels.library import find_kernels
from hwmodels.validation.score import validate_table
from hwmodels.validation.timings import Timings
from scenarios.errors import CalibrationError
from tests.devices import h200
from tests.timings import attention_rows, gemm_rows, mla_rows, moe_rows, timings, with_times

# Away from where fits start: a constant that begins at its value proves nothing.
TRUE = h200(
    moe={"fixed_s": "40 us", "expert_s": "0.2 us", "row_s": "2 ns", "wave_s": "1.4 us", "load_bytes_per_flop": 0.03}
    | {"weight_frac": 0.8, "activation_frac": 0.3},
    gemm={"fixed_s": "4 us", "split_s": "2 us", "load_bytes_per_flop": 0.028, "store_values_per_flop": 0.004}
    | {"memory_frac": 0.7, "compute_frac": 0.8, "quantise_frac": 0.5},
    decode={"fixed_s": "9 us", "memory_frac": 0.7, "request_s": "40 ns", "split_s": "3 us"},
    prefill={"item_s": "3.5 us"},
    mla_decode={"fixed_s": "8 us", "unit_s": "4 us", "compute_frac": 0.5, "max_splits": 64, "unsplit_tiles": 2},
    mla_prefill={"item_s": "3 us", "fixed_s": "11 us", "memory_frac": 2.0, "compute_frac": 0.9, "softmax_dims": 60}
    | {"token_s": "3 ns", "unsplit_tiles": 1_000_000},
)
# Exchangeable for one another: rate and time of a tile of the cache; products and softmax at the one width of MLA.
# Without a say: rate of MLA tiles that products bound, splits that no context has.
LOOSE = {("decode", "sm_memory_frac"), ("decode", "tile_s"), ("mla_prefill", "compute_frac")}
LOOSE |= {("mla_decode", "sm_memory_frac"), ("mla_prefill", "split_s"), ("mla_prefill", "softmax_dims")}


def problems(table: Timings, device: Device = TRUE) -> list[Problem]:
    found, reasons = problems_of(table, device)
    assert not reasons.any()
    return found


def every(problem: Problem) -> np.ndarray:
    return np.arange(len(problem.rows))


class TestKnownConstants:
    @pytest.mark.parametrize(
        "rows",
        [
            pytest.param(moe_rows(), marks=pytest.mark.slow, id="moe"),
            pytest.param(gemm_rows(), marks=pytest.mark.slow, id="gemm"),
            pytest.param(gemm_rows(gemm_dtype="fp8"), marks=pytest.mark.slow, id="gemm fp8"),
            pytest.param(attention_rows(), marks=pytest.mark.slow, id="attention"),
            pytest.param(mla_rows(), marks=pytest.mark.slow, id="mla"),
        ],
    )
    def test_they_are_found_again(self, rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
        table = with_times(timings(rows), TRUE)
        for problem in problems(table):  # as they are fitted
            solved = solve(problem, "made", "table")
            assert problem.law(solved.constants, every(problem)) == pytest.approx(problem.measured_s, rel=0.005)
            assert solved.residuals.mean_ape < 0.01
        monkeypatch.setattr(fit, "PRIOR", 1e-4)  # a table of a hundred rows feels the pull to the start, by up to 3 %
        for problem in problems(table):
            constants = solve(problem, "made", "table").constants
            true = TRUE.kernels.find(problem.block, problem.dtype)
            for parameter in problem.parameters:
                name, value = parameter.name, getattr(true, parameter.name)
                if (problem.block, name) not in LOOSE:
                    assert abs(parameter.start / value - 1) > 0.05, (problem.block, name)
                    assert getattr(constants, name) == pytest.approx(value, rel=0.01), (problem.block, name)

    @pytest.mark.slow
    def test_a_twentieth_of_outliers_has_little_say(self) -> None:
        table = with_times(timings(gemm_rows()), TRUE)
        outlier = np.arange(len(table)) % 20 == 7
        (problem,) = problems(replace(table, measured_s=np.where(outlier, 3, 1) * table.measured_s))
        constants = solve(problem, "made", "table").constants
        predicted_s = problem.law(constants, every(problem))
        error = np.abs(predicted_s / table.measured_s - 1)
        assert np.median(error) < 0.01
        assert np.quantile(error, 0.9) < 0.03

    @pytest.mark.slow
    def test_the_rule_of_tiles_that_fits_is_chosen(self) -> None:
        for rule in ("vllm-bf16", "fastest"):
            moe = {"tiles": rule, "ragged_factor": 4.0}
            device = Device(card=TRUE.card, kernels=h200(moe=moe).kernels)
            table = with_times(timings(moe_rows(kernel_source="vllm_fused_moe_triton")), device)
            (problem,) = problems(table)
            assert [option["tiles"] for option in problem.options] == ["vllm-bf16", "fastest"]
            constants = solve(problem, "made", "table").constants
            assert constants.tiles == rule  # type: ignore[attr-defined]
            assert problem.law(constants, every(problem)) == pytest.approx(table.measured_s, rel=0.01)


@pytest.fixture(scope="module")
def noisy() -> Timings:
    """Dense products with 5 % of noise."""
    table = with_times(timings(gemm_rows()), TRUE)
    return replace(table, measured_s=table.measured_s * np.random.default_rng(3).lognormal(0, 0.05, len(table)))


class TestUnseenShapes:
    @pytest.mark.slow
    def test_no_prediction_rests_on_the_rows_of_its_shape(self, noisy: Timings) -> None:
        (problem,) = problems(noisy)
        plain = solve(problem, "made", "table")
        shape = problem.shapes == 2
        corrupt = replace(problem, measured_s=np.where(shape, 20, 1) * problem.measured_s)
        other = solve(corrupt, "made", "table")
        assert (other.held_out_s[shape] == plain.held_out_s[shape]).all()
        assert other.constants != plain.constants
        assert set(plain.fold[shape]).isdisjoint(plain.fold[(problem.shapes != 2) & (problem.shapes != 7)])

    @pytest.mark.slow
    def test_residuals_are_those_of_held_out_rows(self, noisy: Timings) -> None:
        (problem,) = problems(noisy)
        solved = solve(problem, "made", "table")
        error = np.abs(solved.held_out_s / noisy.measured_s - 1)
        assert solved.residuals.mean_ape == pytest.approx(error.mean())
        assert solved.residuals.n == len(noisy)
        assert solved.constants.residuals == rounded(solved.residuals)
        (found,) = [s for s in validate_table(noisy, TRUE).scores if s.part == "unseen shapes"]
        assert found.mean_ape == pytest.approx(error.mean())
        assert found.coverage_80 == pytest.approx(solved.residuals.coverage_80)

    @pytest.mark.slow
    def test_skewed_rows_and_expert_parallel_ones_only_judge(self) -> None:
        kinds = ({}, {"distribution": "power_law_1.2"}, {"moe_ep_size": 4}, {"moe_ep_size": 64})
        rows = [
            row | kind for kind in kinds for row in moe_rows() if row["moe_tp_size"] == 1 if row["num_experts"] == 128
        ]
        table = with_times(timings(rows), TRUE)
        (problem,) = problems(table)
        plain = solve(problem, "made", "table")
        judge = np.array([bool(kind) for kind in kinds for _ in range(len(rows) // 4)])
        assert problem.fitting.tolist() == (~judge).tolist()
        corrupt = replace(problem, measured_s=np.where(judge, 2, 1) * problem.measured_s)
        other = solve(corrupt, "made", "table")
        assert (other.held_out_s == plain.held_out_s).all()
        assert other.constants.model_dump(exclude={"residuals"}) == plain.constants.model_dump(exclude={"residuals"})
        # Residuals pool the rows of one rank: skewed ones take twice the time predicted, those of EP do not count.
        assert other.residuals.n == len(rows) // 2
        assert other.residuals.high == pytest.approx(2, rel=0.1)


TIMES = {  # (tp, ep) -> times by tokens
    (1, 1): (10.0, 20.0, 40.0),
    (2, 1): (8.0, 14.0, 26.0),
    (4, 1): (16.0, 31.0, 61.0),  # longer than the whole by 1.6, 1.55 and 1.525
    (1, 2): (14.0, 29.0, 61.0),  # by 1.4, 1.45 and 1.525: the median stays below 1.5
    (2, 2): (13.0, 22.0, 40.0),  # 1.625, 1.57 and 1.54 times (2, 1)
}


class TestMistuned:
    def table(self, times: dict[tuple[int, int], tuple[float, ...]] = TIMES, **fields: object) -> Timings:
        rows = [row for row in moe_rows(**fields) if row["num_tokens"] in (1, 16, 256)][:3]
        return timings(
            row | {"moe_tp_size": tp, "moe_ep_size": ep, "latency": time}
            for (tp, ep), column in times.items()
            for row, time in zip(rows, column, strict=True)
        )

    def test_a_share_that_takes_longer_than_the_whole(self) -> None:
        assert is_mistuned(self.table()).reshape(5, 3).all(axis=1).tolist() == [False, False, True, False, True]
        assert is_mistuned(self.table()).reshape(5, 3).any(axis=1).tolist() == [False, False, True, False, True]

    def test_other_distributions_of_the_same_layer_are_as_much_work(self) -> None:
        balanced, skewed = self.table(), self.table({(1, 1): (16.0, 31.0, 61.0)}, distribution="power_law_1.2")
        columns = {name: np.concatenate([balanced.columns[name], skewed.columns[name]]) for name in balanced.columns}
        both = replace(
            balanced,
            columns=columns,
            measured_s=np.concatenate([balanced.measured_s, skewed.measured_s]),
            source=np.concatenate([balanced.source, skewed.source]),
        )
        assert is_mistuned(both)[-3:].all()
        elsewhere = replace(both, source=np.array(["toy"] * 15 + ["another"] * 3))
        assert not is_mistuned(elsewhere)[-3:].any()

    def test_they_are_left_out_with_the_reason_but_for_kernels_without_a_tuner(self) -> None:
        for source, left_out in (("toy", 6), ("sglang_fused_moe", 0), ("vllm_fused_moe_triton", 0)):
            _, reasons = problems_of(self.table(kernel_source=source), TRUE)
            assert (
                reasons == "failure of the autotuner: a share of the layer takes longer than the whole"
            ).sum() == left_out


class TestCards:
    @pytest.mark.slow
    def test_a_card_that_is_written_and_read_predicts_the_same(self, tmp_path: Path) -> None:
        rows = {"gemm": gemm_rows() + gemm_rows(gemm_dtype="fp8"), "attention": attention_rows(), "mla": mla_rows()}
        tables = {name: with_times(timings(listed, f"{name}.csv"), TRUE) for name, listed in rows.items()}
        found = calibrate(tables, TRUE, "own", base="ideal", origin="a test")
        assert [name for name, _ in blocks_of(found.card)] == [
            *("gemm bf16", "gemm fp8", "prefill bf16", "decode bf16", "mla_prefill bf16", "mla_decode bf16")
        ]
        (tmp_path / "own.yaml").write_text(card_yaml(found.card))
        kernels = find_kernels("own.yaml", tmp_path)
        assert [card.name for card in kernels.cards] == ["own", "ideal"]
        for solved in found.solved:
            problem = solved.problem
            law = kernels.find(problem.block, problem.dtype)
            assert law == solved.constants
            assert (
                law.source
                == f"fitted on {problem.block if problem.block == 'gemm' else law.source.split()[2]} of a test"
            )
            assert law.kind == "measured"
            (table,) = law.fitted_on
            assert table == digest(tables[table.partition(".")[0]])
            read_s = problem.law(law, every(problem))
            assert (read_s == problem.law(solved.constants, every(problem))).all()
            assert read_s == pytest.approx(problem.measured_s, rel=0.005)
        assert kernels.moe("bf16") == find_kernels("ideal").moe("bf16")

    @pytest.mark.slow
    def test_every_shipped_block_survives_writing(self, tmp_path: Path) -> None:
        for name in ("h200-vllm", "h200-sglang", "h200-trtllm", "b200-vllm"):
            card = find_kernels(name).cards[0]
            (tmp_path / "again.yaml").write_text(card_yaml(card))
            again = find_kernels("again.yaml", tmp_path).cards[0]
            for block in BLOCKS:
                for dtype, law in getattr(card, block).items():
                    written = getattr(again, block)[dtype]
                    assert written.residuals == law.residuals, (name, block, dtype)
                    for field, value in law.model_dump(exclude={"residuals"}).items():
                        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                        assert getattr(written, field) == close, (name, block, dtype, field)

    @pytest.mark.slow
    def test_of_two_tables_the_last_one_counts(self) -> None:
        first = with_times(timings(gemm_rows(), "first.csv"), TRUE)
        last = replace(first, measured_s=2 * first.measured_s, path=Path("last.csv"))
        (law,) = calibrate({"first": first, "last": last}, TRUE, "own").card.gemm.values()
        assert law.fitted_on[0].startswith("last.csv ")
        assert law.source == "fitted on last"
        assert law.fixed_s == pytest.approx(8e-6, rel=0.05)

    def test_what_no_constants_came_of_is_told(self) -> None:
        few = timings(gemm_rows(gemm_dtype="fp8")[:3])
        with pytest.raises(CalibrationError, match=r"no constants.*gemm fp8 \(toy\): 3 rows cannot fix 7"):
            calibrate({"few": few}, TRUE, "own")
        one_shape = timings(row for row in gemm_rows() if (row["n"], row["k"]) == (4096, 4096))
        with pytest.raises(CalibrationError, match="all rows have one shape"):
            calibrate({"one": one_shape}, TRUE, "own")
        nothing = timings(gemm_rows(gemm_dtype="int3"))
        with pytest.raises(CalibrationError, match="no row is claimed"):
            calibrate({"none": nothing}, TRUE, "own")

    @pytest.mark.slow
    def test_a_law_that_is_far_off_is_not_in_the_card(self) -> None:
        good = with_times(timings(gemm_rows(), "good.csv"), TRUE)
        noise = timings(gemm_rows(gemm_dtype="fp8"), "noise.csv")
        noise = replace(noise, measured_s=np.random.default_rng(0).lognormal(-9, 2, len(noise)))
        found = calibrate({"good": good, "noise": noise}, TRUE, "own")
        assert list(found.card.gemm) == ["bf16"]
        (text,) = found.unsolved
        assert text.startswith("gemm fp8 (toy): the law is off by ")
        with pytest.raises(CalibrationError, match="the law is off by"):
            calibrate({"noise": noise}, TRUE, "own")


def test_numbers_of_cards_have_four_digits() -> None:
    errors = {"mean_ape": 0.123456, "median_ape": 0.1, "p90_ape": 0.987654, "bias": -0.0123456}
    found = rounded(Residuals(n=123_456, **errors, low=0.912345, high=1.234567))
    assert (found.n, found.mean_ape, found.bias, found.low, found.high) == (123_456, 0.1235, -0.01235, 0.9123, 1.235)
    assert found.coverage_80 is None


def test_a_digest_changes_with_the_times() -> None:
    table = timings(gemm_rows())
    same, other = digest(timings(gemm_rows())), digest(replace(table, measured_s=table.measured_s * (1 + 1e-12)))
    assert digest(table) == same != other
    assert same.startswith("made.csv ") and len(same) == len("made.csv ") + 8
