"""Programmes through PuLP: which solver runs, what is proved, and what a user reads where none is installed."""

import math
import shutil

import numpy as np
import pulp
import pytest
from scipy.sparse import csr_array

from placement import programmes
from placement.linear import LinearProgramme, solve_linear
from placement.programmes import binaries, engine_name, solve_programme, total, values_of, weighted_sum
from scenarios.errors import PlacementError


def knapsack(sense: int, n: int = 12) -> tuple[pulp.LpProblem, np.ndarray]:
    programme = pulp.LpProblem("knapsack", sense)
    x = binaries(programme, "x", (n,))
    weights = np.arange(n) + 3.0
    programme += weighted_sum(x, weights * (1 if sense == pulp.LpMaximize else -1)), "worth"
    programme += weighted_sum(x, weights) <= 31.5, "limit"
    return programme, x


def without_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulp.HiGHS, "available", lambda _self: False)


@pytest.mark.parametrize("engine", ["HiGHS", "CBC"])
@pytest.mark.parametrize(("sense", "best"), [(pulp.LpMaximize, 31.0), (pulp.LpMinimize, -31.0)])
def test_both_engines_prove_the_optimum(monkeypatch: pytest.MonkeyPatch, engine: str, sense: int, best: float) -> None:
    if engine == "CBC":
        without_highs(monkeypatch)
        if programmes._cbc_path() is None:
            pytest.skip("CBC is not installed")
    programme, x = knapsack(sense)
    relaxed = solve_programme(programme, time_limit_s=10, relaxed=True)
    found = solve_programme(programme, time_limit_s=10, start={"x_0": 1.0})
    assert (found.engine, found.status, found.found) == (engine, "optimal", True)
    assert found.objective == pytest.approx(best)
    assert found.bound == pytest.approx(best, rel=1e-4)
    assert relaxed.bound == pytest.approx(31.5 * math.copysign(1, best))
    assert (values_of(x) @ (np.arange(12) + 3.0)) == pytest.approx(31)


@pytest.mark.parametrize("engine", ["HiGHS", "CBC"])
def test_infeasible_is_said_and_no_value_is_found(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if engine == "CBC":
        without_highs(monkeypatch)
        if programmes._cbc_path() is None:
            pytest.skip("CBC is not installed")
    programme, x = knapsack(pulp.LpMinimize)
    programme += total(x) >= 9, "many"
    found = solve_programme(programme, time_limit_s=10)
    assert (found.status, found.found) == ("infeasible", False)
    assert math.isnan(found.objective)


@pytest.mark.parametrize("engine", ["HiGHS", "CBC"])
def test_a_stopped_search_still_bounds(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    if engine == "CBC":
        without_highs(monkeypatch)
        if programmes._cbc_path() is None:
            pytest.skip("CBC is not installed")
    programme, _ = knapsack(pulp.LpMaximize)
    found = solve_programme(programme, time_limit_s=1e-6)
    assert found.status in ("optimal", "time limit")
    assert found.bound >= 31 - 1e-6


def test_neither_solver_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    without_highs(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(pulp.apis.coin_api, "pulp_cbc_path", None)
    with pytest.raises(PlacementError, match="pip install 'highspy"):
        engine_name()
    with pytest.raises(PlacementError, match="choose a solver without a programme"):
        solve_programme(knapsack(pulp.LpMinimize)[0], time_limit_s=1)


def test_a_time_limit_must_be_positive() -> None:
    with pytest.raises(PlacementError, match=r"is 0 s; give a positive number"):
        solve_programme(knapsack(pulp.LpMinimize)[0], time_limit_s=0)


def test_a_linear_bound_is_recomputed_from_duals() -> None:
    # min -x - 2y, x + y <= 1, x = 0.25: y = 0.75, value -1.75.
    programme = LinearProgramme(
        cost=np.array([-1.0, -2.0]),
        at_most=csr_array([[1.0, 1.0]]),
        limit=np.array([1.0]),
        equal=csr_array([[1.0, 0.0]]),
        level=np.array([0.25]),
        lower=np.zeros(2),
        upper=np.ones(2),
    )
    solution, bound = solve_linear(programme)
    assert solution.tolist() == pytest.approx([0.25, 0.75])
    assert bound == pytest.approx(-1.75)
