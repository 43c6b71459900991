"""Fits of constants: known ones are found again, outliers and unseen shapes have no say, residuals by hand."""

import numpy as np
import pytest

from hwmodels.calibration.fit import (
    MAX_ROWS,
    Constants,
    Parameter,
    Rows,
    Times,
    band_of,
    cross_fit,
    fit,
    fold_of_shapes,
    inside_others,
    residuals_of,
)
from scenarios.errors import CalibrationError

SIZES = np.geomspace(1e3, 1e9, 60)
FIXED = Parameter(name="fixed_s", start=2e-6, low=1e-7, high=1e-4)
RATE = Parameter(name="bytes_per_s", start=1e12, low=1e10, high=1e14)
PARAMETERS = (FIXED, RATE)
TRUE = {"fixed_s": 5e-6, "bytes_per_s": 3e12}
EVERY = np.arange(len(SIZES))


def line(constants: Constants, rows: Rows) -> Times:
    """A law of two constants: fixed time and bytes."""
    return constants["fixed_s"] + SIZES[rows] / constants["bytes_per_s"]


class TestFit:
    def test_known_constants_are_found_again(self) -> None:
        found, cost = fit(line, line(TRUE, EVERY), PARAMETERS, EVERY)
        assert found == pytest.approx(TRUE, rel=0.01)
        assert cost < 1e-4

    def test_a_twentieth_of_outliers_has_little_say(self) -> None:
        measured_s = line(TRUE, EVERY)
        measured_s[[7, 30, 55]] *= 5
        found, _ = fit(line, measured_s, PARAMETERS, EVERY)
        assert found == pytest.approx(TRUE, rel=0.02)
        # Plain least squares of logs would move by about 5 % * log 5 = 8 % where all rows decide alike.
        logs = np.log(measured_s / line(TRUE, EVERY))
        assert logs.mean() > 0.07

    def test_rows_that_are_not_chosen_have_no_say(self) -> None:
        measured_s = line(TRUE, EVERY)
        measured_s[1::2] *= 100
        found, _ = fit(line, measured_s, PARAMETERS, EVERY[::2])
        assert found == pytest.approx(TRUE, rel=0.01)

    def test_constants_that_no_row_fixes_stay_at_their_start(self) -> None:
        def law(constants: Constants, rows: Rows) -> Times:
            return line(constants, rows) + 0 * constants["unused_s"]

        unused = Parameter(name="unused_s", start=3e-6, low=1e-9, high=1e-3)
        found, _ = fit(law, line(TRUE, EVERY), (*PARAMETERS, unused), EVERY)
        assert found["unused_s"] == pytest.approx(3e-6, rel=1e-6)
        # Rows of more than 200 us say next to nothing of the fixed time: it stays near 2 us, not 5.
        large = EVERY[-3:]
        only_large, _ = fit(line, line(TRUE, EVERY), PARAMETERS, large)
        assert only_large["fixed_s"] == pytest.approx(2e-6, rel=0.1)
        assert only_large["bytes_per_s"] == pytest.approx(3e12, rel=0.02)

    def test_constants_stay_between_their_bounds(self) -> None:
        slow = Parameter(name="bytes_per_s", start=5e13, low=1e10, high=2e12)  # a start beyond the bounds, too
        found, _ = fit(line, line(TRUE, EVERY), (FIXED, slow), EVERY)
        assert found["bytes_per_s"] == pytest.approx(2e12, rel=1e-6)

    def test_rows_too_few_are_an_error(self) -> None:
        with pytest.raises(CalibrationError, match="1 rows cannot fix 2 constants; measure more shapes"):
            fit(line, line(TRUE, EVERY), PARAMETERS, EVERY[:1])

    def test_of_many_rows_some_evenly_spread_are_looked_at(self) -> None:
        seen: list[int] = []

        def law(constants: Constants, rows: Rows) -> Times:
            seen.append(len(rows))
            return np.full(len(rows), constants["fixed_s"])

        measured_s = np.where(np.arange(5 * MAX_ROWS) % 2 == 0, 4e-6, 6e-6)
        found, _ = fit(law, measured_s, (FIXED,), np.arange(5 * MAX_ROWS))
        assert set(seen) == {MAX_ROWS}
        assert 4e-6 < found["fixed_s"] < 6e-6


class TestHeldOut:
    SHAPES = np.repeat(np.arange(12), 5)

    def test_no_prediction_rests_on_the_rows_of_its_shape(self) -> None:
        rng = np.random.default_rng(0)
        measured_s = line(TRUE, EVERY) * rng.lognormal(0, 0.05, len(EVERY))
        plain = cross_fit(line, measured_s, PARAMETERS, self.SHAPES)
        for shape in range(12):
            corrupt = np.where(shape == self.SHAPES, 50 * measured_s, measured_s)
            other = cross_fit(line, corrupt, PARAMETERS, self.SHAPES)
            own_fold = plain.fold == plain.fold[shape == self.SHAPES][0]
            assert (other.held_out_s[own_fold] == plain.held_out_s[own_fold]).all()
            assert not np.allclose(other.held_out_s[~own_fold], plain.held_out_s[~own_fold], rtol=1e-4)
            assert other.constants != plain.constants

    def test_rows_that_only_judge_are_predicted_but_not_fitted(self) -> None:
        measured_s = line(TRUE, EVERY)
        fitting = EVERY % 3 != 0
        corrupt = np.where(fitting, measured_s, 7 * measured_s)
        found = cross_fit(line, corrupt, PARAMETERS, self.SHAPES, fitting)
        assert found.constants == pytest.approx(TRUE, rel=0.01)
        assert found.held_out_s == pytest.approx(measured_s, rel=0.01)

    def test_shapes_take_turns(self) -> None:
        assert fold_of_shapes(np.array([30, 10, 30, 20, 70, 50, 60, 10])).tolist() == [2, 0, 2, 1, 0, 3, 4, 0]
        assert fold_of_shapes(np.array([5, 5, 9])).tolist() == [0, 0, 1]  # as many folds as shapes
        assert fold_of_shapes(np.array([1, 2, 3, 4]), folds=2).tolist() == [0, 1, 0, 1]
        with pytest.raises(CalibrationError, match="all rows have one shape; nothing can be left out"):
            fold_of_shapes(np.array([4, 4, 4]))


class TestResiduals:
    def test_by_hand(self) -> None:
        # predicted / measured 1.25, 1, 0.8, 2: errors 25, 0, 20 and 100 %.
        found = residuals_of(np.array([1.25, 1.0, 0.8, 2.0]), np.ones(4))
        assert found.n == 4
        assert found.mean_ape == pytest.approx(1.45 / 4)
        assert found.median_ape == pytest.approx(0.225)
        assert found.p90_ape == pytest.approx(0.25 + 0.7 * 0.75)  # at rank 2.7 of 0, 0.2, 0.25, 1
        assert found.bias == pytest.approx(0.125)
        assert found.coverage_80 is None
        # measured / predicted 0.5, 0.8, 1, 1.25; ranks 0.5 and 4.5 of 1 to 4 lie beyond the ends.
        assert (found.low, found.high) == (0.5, 1.25)

    def test_the_band_of_nine_ratios_is_their_extremes_and_of_nineteen_the_second_ones(self) -> None:
        # Ranks p (n + 1): 0.1 * 10 = 1 and 9 of nine; 0.1 * 20 = 2 and 18 of nineteen; 1.1 and 9.9 of ten.
        assert band_of(np.arange(1.0, 10.0)) == pytest.approx((1, 9))
        assert band_of(np.arange(1.0, 20.0)[::-1]) == pytest.approx((2, 18))
        assert band_of(np.arange(1.0, 11.0)) == pytest.approx((1.1, 9.9))

    def test_a_row_is_judged_by_the_band_of_the_other_folds(self) -> None:
        # Nine rows of fold 1 make the band 1 to 9 of fold 0, and three rows of fold 0 that of fold 1: 0 to 9.5.
        ratios = np.array([0.0, 5.0, 9.5, *np.arange(1.0, 10.0)])
        fold = np.array([0] * 3 + [1] * 9)
        assert inside_others(ratios, fold).tolist() == [False, True, False] + [True] * 9
        # Rows that make no band are judged all the same: those of fold 1, ten times as large, by that of fold 0. Fold 0
        # has no other to judge by, so all twelve rows do, at ranks 1.3 and 11.7: 0 + 0.3 * 5 = 1.5 to 87.
        pooled = np.array([True] * 3 + [False] * 9)
        wide = inside_others(np.where(fold == 1, 10 * ratios, ratios), fold, pooled)
        assert wide.tolist() == [False, True, True] + [False] * 9

    @pytest.mark.parametrize("n", [19, 100, 2000])
    def test_bands_of_lognormal_noise_cover_four_fifths(self, n: int) -> None:
        rng = np.random.default_rng(1)
        covered = []
        for _ in range(20_000 // n):
            ratios = rng.lognormal(0.1, 0.3, n)
            covered.append(inside_others(ratios, np.arange(n) % 5).mean())
        # 20,000 rows: a standard error of 0.003; between few rows of a skewed tail a straight line is a little wide.
        assert np.mean(covered) == pytest.approx(0.8, abs=0.01 if n > 50 else 0.025)

    def test_coverage_is_stated_where_folds_are(self) -> None:
        rng = np.random.default_rng(2)
        predicted_s = rng.lognormal(0, 0.2, 500)
        fold = np.arange(500) % 5
        found = residuals_of(predicted_s, np.ones(500), fold)
        assert found.coverage_80 == pytest.approx(inside_others(1 / predicted_s, fold).mean())
        assert found.low == pytest.approx(np.exp(-0.2 * 1.2816), rel=0.05)  # the 10 % quantile of a normal: -1.2816
        assert found.high == pytest.approx(np.exp(0.2 * 1.2816), rel=0.05)
