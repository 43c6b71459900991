"""`moesim bound`: tables, files, purchases against brute force, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.cli.command import SCENARIO
from tests.cli.conftest import Command

BUDGET = """\
budget:
  money: 1 MUSD
  power: 30 kW
  catalogue:
    - {node: h200-sxm-8, price: 310 kUSD, power: 10 kW, most: 2}
    - {node: a100-80-8, price: 130 kUSD, power: 7 kW}
"""


@pytest.fixture
def scenario(folder: Path) -> Path:
    path = folder / "buy.yaml"
    path.write_text(SCENARIO.partition("compare:")[0] + BUDGET)
    return path


@pytest.mark.slow
def test_bound_shows_resources_levers_batches_and_the_gap(moesim: Command, folder: Path) -> None:
    done = moesim("bound", "tiny.yaml", "--json", "b.json", "--out", "out").succeeded()
    for text in ("device time", "memory bandwidth", "more on every device", "other batches", "of the bound"):
        assert text in done.out
    assert {"b.json", "out/bound.json", "out/bound-batch.png", "out/bound-context.png"} <= done.files
    content = json.loads((folder / "b.json").read_text())
    assert content["simulated"]["tokens_per_s"] <= content["bound"]["tokens_per_s"]
    rows = {row["name"]: row for row in content["bound"]["resources"]}
    assert min(row["tokens_per_s"] for row in rows.values()) == content["bound"]["tokens_per_s"]
    assert rows[content["bound"]["binding"]]["used_frac"] == pytest.approx(1)


@pytest.mark.slow
def test_the_best_purchase_is_that_of_brute_force(moesim: Command, folder: Path, scenario: Path) -> None:
    done = moesim("bound", scenario.name, "--json", "b.json", "--out", "out").succeeded()
    assert "Best: " in done.out
    assert "out/bound-budget.png" in done.files
    content = json.loads((folder / "b.json").read_text())
    rates = {group["group"]: group["tokens_per_s"] for group in content["groups"]}
    assert all(group["tokens_per_s"] <= group["bound_tokens_per_s"] for group in content["groups"])
    fits = [
        (n * rates["h200-sxm-8"] + m * rates["a100-80-8"], 310e3 * n + 130e3 * m)
        for n, m in itertools.product(range(3), range(8))
        if 310e3 * n + 130e3 * m <= 1e6 and 10e3 * n + 7e3 * m <= 30e3
    ]
    assert content["purchase"]["tokens_per_s"] == pytest.approx(max(rate for rate, _ in fits))
    for purchase in content["front"]:
        cheaper = [rate for rate, price in fits if price <= purchase["price_usd"]]
        assert purchase["tokens_per_s"] == pytest.approx(max(cheaper))
    prices = [purchase["price_usd"] for purchase in content["front"]]
    assert prices == sorted(set(prices))


@pytest.mark.slow
def test_a_budget_below_the_cheapest_machine_is_infeasible(moesim: Command, scenario: Path) -> None:
    done = moesim("bound", scenario.name, "--set", "budget.money=100 kUSD")
    done.refused(3, "100,000 USD buys no machine", "a100-80-8 for 130,000 USD")
    done = moesim("bound", scenario.name, "--set", "budget.power=5 kW")
    done.refused(3, "buys no machine", "7,000 W")


def test_bad_budgets_are_refused_at_their_line(moesim: Command, scenario: Path) -> None:
    scenario.write_text(scenario.read_text().replace(", power: 7 kW", ""))
    moesim("bound", scenario.name).refused(2, "buy.yaml:", "the budget limits power: give power for a100-80-8")
    scenario.write_text(scenario.read_text().replace("310 kUSD", "310"))
    moesim("bound", scenario.name).refused(2, "310 has no unit")


def test_a_model_that_no_node_holds_names_what_is_short(moesim: Command, scenario: Path) -> None:
    options = ["--set", "memory.requests_per_device=2000000", "--set", "memory.context_tokens=1000000"]
    moesim("bound", scenario.name, *options).refused(3, "short by")


@pytest.mark.slow
def test_bounds_of_a_plan_from_a_file_are_those_of_the_solver_that_wrote_it(moesim: Command, folder: Path) -> None:
    moesim("place", "tiny.yaml", "--set", "placement.solver=greedy", "--export", "moesim", "plan.json").succeeded()
    moesim("bound", "tiny.yaml", "--set", "placement.solver=greedy", "--json", "solved.json").succeeded()
    moesim("bound", "tiny.yaml", "--set", "placement={file: plan.json}", "--json", "read.json").succeeded()
    solved, read = (json.loads((folder / name).read_text()) for name in ("solved.json", "read.json"))
    assert read["bound"] == solved["bound"]
    assert read["batches"] == solved["batches"]


@pytest.mark.slow
def test_cells_of_the_grid_are_bounds_of_their_own_scenarios(moesim: Command, folder: Path) -> None:
    """The grid changes contexts of one batch; a scenario of its own says as much, and that it does not fit as well."""
    changes = ["--set", "workload.steps=4", "--set", "workload.tokens_per_device=16"]
    moesim("bound", "tiny.yaml", *changes, "--json", "b.json").succeeded()
    cells = json.loads((folder / "b.json").read_text())["grid"]
    found = {(cell["tokens_per_device"], cell["context_tokens"]): cell for cell in cells}
    assert all(cell["fits"] for cell in cells if cell["context_tokens"] == 512)
    for context in (512, 131_072):
        cell = found[16, context]
        done = moesim("bound", "tiny.yaml", *changes, "--set", f"workload.context_tokens={context}", "--json", "c.json")
        assert cell["fits"] == (done.code == 0)
        if cell["fits"]:
            alone = json.loads((folder / "c.json").read_text())["bound"]
            assert cell["tokens_per_s"] == pytest.approx(alone["tokens_per_s"], rel=1e-9)
            assert cell["binding"].startswith(alone["binding"])


@pytest.mark.slow
def test_bounds_of_offloaded_experts_have_rows_of_the_host(moesim: Command) -> None:
    done = moesim("bound", "examples/offload", "--set", "workload.steps=32", "--json", "-").succeeded()
    content = json.loads(done.out)
    rows = {row["name"]: row for row in content["bound"]["resources"]}
    assert {"host link", "host memory bandwidth", "host cores"} < rows.keys()
    assert content["simulated"]["tokens_per_s"] <= content["bound"]["tokens_per_s"]
    spent = sum(row["tokens_per_s_per_unit"] * row["capacity"] for row in rows.values())
    assert spent == pytest.approx(content["bound"]["tokens_per_s"])
    assert next(one for one in content["levers"] if one["name"] == "memory for experts")["tokens_per_s_per_unit"] > 0
