"""What `moesim validate` shows: one table of timings, or suites of them."""

from __future__ import annotations

import json as encoder
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hwmodels.calibration.shipped import kernel_card_for
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.beside import TablesMissing
from hwmodels.validation.goals import Limits, Verdict
from hwmodels.validation.layers import layers, layers_absent
from hwmodels.validation.score import Score, Validation, validate_table
from hwmodels.validation.suites import SUITES as KERNEL_SUITES
from hwmodels.validation.suites import Judged
from hwmodels.validation.tables import tables_folder
from hwmodels.validation.timings import read_timings
from scenarios.errors import ScenarioError
from scenarios.explain import did_you_mean
from scenarios.files import whole_file
from sim.published_steps import published
from sim.step_validation import steps, steps_absent, steps_left_out

SUITES = KERNEL_SUITES | {"layers": layers, "steps": steps, "published": published}
ABSENT = {"layers": layers_absent, "steps": steps_absent}
"""What a suite could not judge in a folder, for suites that judge what is there."""
LIMIT_MISSED = 1
METRICS = {"mean_ape": "mean", "median_ape": "median", "p90_ape": "p90"}


def show_table(
    suite: str, table: Path, card: str, kernels: str | None, limit: float | None, json: str | None, out: Path | None
) -> int:
    """Judge one table; 1 where a median error exceeds `limit`, else 0. Raises ScenarioError for another suite."""
    if suite != "kernels":
        raise ScenarioError(f"--table is judged by the suite kernels, not '{suite}'")
    device_card, timings = find_device(card), read_timings(table)
    chosen = kernels or kernel_card_for(device_card, timings)
    device = Device(card=device_card, kernels=find_kernels(chosen, Path()))
    validation = validate_table(timings, device)
    limits = None if limit is None else Limits(median_ape=limit)
    judged = [Judged(suite=suite, score=score, verdict=_held_to(score, limits)) for score in validation.scores]
    if json != "-":
        console = Console()
        console.print(_one_table(validation, judged, limit))
        for reason, count in validation.left_out.items():
            console.print(f"left out: {count:,} rows, {reason}", highlight=False)
    _write(judged, [validation], json, out)
    return 0 if all(row.verdict.ok for row in judged) else LIMIT_MISSED


def show_suites(suite: str, tables: Path | None, json: str | None, out: Path | None) -> int:
    """Judge the shipped cards by one suite, or by all; 1 where a limit is missed, else 0.

    Raises ScenarioError for an unknown suite, HardwareError where the tables are missing.
    """
    if suite != "all" and suite not in SUITES:
        raise ScenarioError(f"there is no suite '{suite}'{did_you_mean(suite, list(SUITES))}; all, {', '.join(SUITES)}")
    folder = tables_folder(tables)
    judged: list[Judged] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name in SUITES if suite == "all" else [suite]:
            task = bar.add_task(name, total=1.0)
            try:
                judged += SUITES[name](
                    folder, lambda what, share, task=task: bar.update(task, description=what, completed=share)
                )
            except TablesMissing:
                if suite != "all":
                    raise
            bar.remove_task(task)
    if json != "-":
        for name in dict.fromkeys(row.suite for row in judged):
            Console().print(_suite_table(name, [row for row in judged if row.suite == name]))
        _print_causes(judged)
    _print_absent(SUITES if suite == "all" else [suite], folder)
    _write(judged, [], json, out)
    return 0 if all(row.verdict.ok for row in judged) else LIMIT_MISSED


def _held_to(score: Score, limits: Limits | None) -> Verdict:
    ok = limits is None or not limits.exceeded(score)
    return Verdict(goal=limits, limit=limits, cause="", reached=ok, ok=ok)


def _as_json(row: Judged) -> dict[str, object]:
    """One entry of `suites`: name, errors, and what they are held to; `limit` is that on the median."""
    limit, goal = row.verdict.limit, row.verdict.goal
    return asdict(row.score) | {
        "suite": row.suite,
        "limit": None if limit is None else limit.median_ape,
        "limits": None if limit is None else limit.as_json(),
        "goal": None if goal is None else goal.as_json(),
        "cause": row.verdict.cause or None,
        "ok": row.verdict.ok,
    }


def _write(judged: Sequence[Judged], validations: Sequence[Validation], json: str | None, out: Path | None) -> None:
    text = encoder.dumps({"suites": [_as_json(row) for row in judged]}, indent=2) + "\n"
    if json == "-":
        print(text, end="", flush=True)
    elif json is not None:
        with whole_file(Path(json)) as temporary:
            temporary.write_text(text)
    if out is not None:
        from sim.plots import validation_plots

        out.mkdir(parents=True, exist_ok=True)
        validation_plots(validations, out)
        with whole_file(out / "validation.json") as temporary:
            temporary.write_text(text)


def _one_table(validation: Validation, judged: Sequence[Judged], limit: float | None) -> Table:
    title = f"{validation.table} on {validation.card}, constants {validation.constants}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("operation and rows")
    table.add_column("constants of")
    for name in ("rows", "mean", "median", "p90", "bias", "in band", *(["limit"] if limit is not None else [])):
        table.add_column(name, justify="right")
    for row in judged:
        verdict = [] if limit is None else [f"{limit:.0%} " + ("ok" if row.verdict.ok else "missed")]
        source = "the card" if row.score.part == "card" else row.score.part.replace("unseen", "other")
        table.add_row(row.score.name, source, *_errors(row.score), *verdict)
    return table


def _suite_table(name: str, rows: Sequence[Judged]) -> Table:
    table = Table(title=f"suite {name}", title_justify="left", title_style="bold", box=None)
    table.add_column("table")
    table.add_column("operation and rows")
    for column in ("rows", "mean", "median", "p90", "bias", "in band", "goal", ""):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        score = row.score
        judged_as = score.table if score.part != "transfer" else f"{score.table} by {score.constants}"
        table.add_row(judged_as, score.name, *_errors(score), _shown_goal(row.verdict), _shown_verdict(row.verdict))
    return table


def _errors(score: Score) -> tuple[str, ...]:
    errors = [f"{value:.1%}" for value in (score.mean_ape, score.median_ape, score.p90_ape)]
    covered = "-" if score.coverage_80 is None else f"{score.coverage_80:.0%}"
    return f"{score.n:,}", *errors, f"{score.bias:+.1%}", covered


def _shown_goal(verdict: Verdict) -> str:
    if verdict.goal is None:
        return ""
    return " ".join(f"{METRICS[name]} {value:.3g}".replace("0.", ".") for name, value in verdict.goal.as_json().items())


def _shown_verdict(verdict: Verdict) -> str:
    if verdict.goal is None:
        return ""
    return "ok" if verdict.reached else "accepted" if verdict.ok else "missed"


def _print_absent(names: Collection[str], folder: Path) -> None:
    """What the folder lacks of each suite, and which rows are not predicted: to standard error."""
    console = Console(stderr=True, highlight=False)
    for name in names:
        for what in ABSENT[name](folder) if name in ABSENT else []:
            console.print(f"suite {name}: {folder} does not hold {what}; left out", markup=False)
    if "steps" in names:
        for reason, count in steps_left_out(folder).items():
            console.print(f"suite steps: left out {count:,} rows, {reason}", markup=False)


def _print_causes(judged: Sequence[Judged]) -> None:
    """Why goals were not reached, each reason once with the rows that it explains."""
    causes: dict[str, list[str]] = {}
    for row in judged:
        if row.verdict.cause:
            causes.setdefault(row.verdict.cause, []).append(f"{row.score.table} {row.score.name}")
    for cause, rows in causes.items():
        print(f"accepted: {', '.join(rows)}: {cause}")
