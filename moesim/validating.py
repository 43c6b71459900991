"""What `moesim validate` shows: one table of timings, or suites of them."""

from __future__ import annotations

import json as encoder
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from hwmodels.calibration.shipped import kernel_card_for
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.accepted import Limits
from hwmodels.validation.beside import TablesMissing
from hwmodels.validation.goals import Judged, Verdict, exceeded, stated
from hwmodels.validation.layers import layers, layers_absent
from hwmodels.validation.score import Score, Validation, validate_table
from hwmodels.validation.suites import SUITES as KERNEL_SUITES
from hwmodels.validation.suites import missing_tables
from hwmodels.validation.tables import tables_folder
from hwmodels.validation.timings import read_timings
from scenarios.errors import HardwareError, ScenarioError
from scenarios.explain import did_you_mean
from scenarios.files import write_or_print, write_text
from sim.published_steps import published
from sim.run_validation import run_points, runs
from sim.step_validation import steps, steps_absent, steps_left_out

SUITES = KERNEL_SUITES | {"layers": layers, "steps": steps, "published": published, "runs": runs}
WITHOUT_TABLES = ("published", "measured", "runs")
ABSENT = {"layers": layers_absent, "steps": steps_absent}
"""What a suite could not judge in a folder, for suites that judge what is there."""
LIMIT_MISSED = 1


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
        print("\n".join(_table_lines(validation, judged, limit)))
        for reason, count in validation.left_out.items():
            print(f"left out: {count:,} rows, {reason}")
    _write(judged, [validation], json, out)
    return 0 if all(row.verdict.ok for row in judged) else LIMIT_MISSED


def show_suites(suite: str, tables: Path | None, json: str | None, out: Path | None) -> int:
    """Judge the shipped cards by one suite, or by all; 1 where a limit is missed, else 0.

    Raises ScenarioError for an unknown suite, HardwareError where the tables are missing.
    """
    if suite != "all" and suite not in SUITES:
        raise ScenarioError(f"there is no suite '{suite}'{did_you_mean(suite, list(SUITES))}; all, {', '.join(SUITES)}")
    folder = Path() if tables is None and suite in WITHOUT_TABLES else tables_folder(tables)
    judged: list[Judged] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name in SUITES if suite == "all" else [suite]:
            task = bar.add_task(name, total=1.0)
            try:
                judged += SUITES[name](folder, partial(_advance, bar, task))
            except TablesMissing:
                if suite != "all":
                    raise
            bar.remove_task(task)
    if not judged:
        raise HardwareError(f"{folder}: holds no table of the suite {suite}; see `moesim validate --help`")
    if json != "-":
        for name in dict.fromkeys(row.suite for row in judged):
            print("\n".join(_suite_lines(name, [row for row in judged if row.suite == name])))
        _print_causes(judged)
        if any(row.suite in ("kernels", "skew") for row in judged) and (missing := missing_tables(folder)):
            print(f"left out, not in {folder}: {', '.join(missing)}")
        _print_absent(SUITES if suite == "all" else [suite], folder)
    _write(judged, [], json, out)
    return 0 if all(row.verdict.ok for row in judged) else LIMIT_MISSED


def _print_absent(names: Collection[str], folder: Path) -> None:
    """What the folder lacks of each suite, and how many rows of engines are not predicted, by reason."""
    for name in names:
        if name in ABSENT and (absent := ABSENT[name](folder)):
            print(f"{name}: left out, not in {folder}: {', '.join(absent)}")
    if "steps" in names:
        for reason, count in steps_left_out(folder).items():
            print(f"steps: left out {count:,} rows, {reason}")


def _advance(bar: Progress, task: TaskID, what: str, share: float) -> None:
    bar.update(task, description=what, completed=share)


def _held_to(score: Score, limits: Limits | None) -> Verdict:
    ok = limits is None or not exceeded(limits, score)
    return Verdict(goal=limits, limit=limits, cause="", reached=ok, ok=ok)


def _as_json(row: Judged) -> dict[str, object]:
    """One entry of `suites`: name, errors, and what they are held to; `limit` is that on the median."""
    limit, goal = row.verdict.limit, row.verdict.goal
    return asdict(row.score) | {
        "suite": row.suite,
        "limit": None if limit is None else limit.median_ape,
        "limits": None if limit is None else stated(limit),
        "goal": None if goal is None else stated(goal),
        "cause": row.verdict.cause or None,
        "ok": row.verdict.ok,
    }


def _write(judged: Sequence[Judged], validations: Sequence[Validation], json: str | None, out: Path | None) -> None:
    text = encoder.dumps({"suites": [_as_json(row) for row in judged]}, indent=2) + "\n"
    if json is not None:
        write_or_print(text, json)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _plot(judged, validations, out)
        write_text(text, out / "validation.json")


def _plot(judged: Sequence[Judged], validations: Sequence[Validation], out: Path) -> None:
    from sim.validation_plots import ErrorRow, Points, write_accuracy, write_overview

    if any(row.suite == "runs" for row in judged):
        write_accuracy([Points(title=t, kinds=k, measured_s=m, predicted_s=p) for t, k, m, p in run_points()], out)
    points = [
        Points(
            title=f"{one.name} on {validation.card}, constants {validation.constants}",
            kinds=one.kinds,
            measured_s=one.measured_s,
            predicted_s=one.predicted_s,
        )
        for validation in validations
        for one in validation.predictions
    ]
    write_accuracy(points, out)
    for suite in dict.fromkeys(row.suite for row in judged if not validations):
        rows = [row for row in judged if row.suite == suite]
        shown = [
            ErrorRow(
                name=f"{row.score.table}: {row.score.name}",
                median=row.score.median_ape,
                mean=row.score.mean_ape,
                p90=row.score.p90_ape,
                goal=None if row.verdict.goal is None else row.verdict.goal.median_ape,
            )
            for row in rows
        ]
        write_overview(shown, f"suite {suite}", out / f"errors-{suite}.png")


def _table_lines(validation: Validation, judged: Sequence[Judged], limit: float | None) -> Iterator[str]:
    """Errors by kernel and kind of row: with the card's constants, and refitted without the shape that is judged."""
    yield f"{validation.table} on {validation.card}, constants {validation.constants}; errors in %"
    yield _line("", "n", "card", "unseen shapes", "bias", "band", "" if limit is None else f"limit {limit:.0%}")
    unseen = {(row.score.kernel, row.score.name): row for row in judged if row.score.part == "unseen shapes"}
    heading = ""
    for row in judged:
        score = row.score
        if score.part == "unseen shapes":
            continue
        if score.kernel != heading:
            heading = score.kernel
            yield heading
        refitted = unseen.get((score.kernel, score.name))
        ok = row.verdict.ok and (refitted is None or refitted.verdict.ok)
        verdict = "" if limit is None else "ok" if ok else "missed"
        other = "-" if refitted is None else _three(refitted.score)
        yield _errors(score, _three(score), other, score if refitted is None else refitted.score, verdict)
    yield "mean/median/90th percentile; bias and share of rows in the 80 % band: of unseen shapes where there are any"


def _suite_lines(name: str, rows: Sequence[Judged]) -> Iterator[str]:
    """Rows of one suite under the tables and constants that they are of."""
    yield f"suite {name}; errors and goals in %"
    yield _line("", "n", "mean/median/p90", "goal", "bias", "band", "")
    heading = ""
    for row in rows:
        score = row.score
        judged_as = score.table + _by(score)
        if judged_as != heading:
            heading = judged_as
            yield heading
        yield _errors(score, _three(score), _shown_goal(row.verdict), score, _shown_verdict(row.verdict))


def _by(score: Score) -> str:
    """Whose constants predicted, where it was not those refitted without the shape that is judged."""
    if score.part == "unseen shapes":
        return ""
    return ", each row by the others" if score.part == "unseen rows" else f" by {score.constants}"


def _errors(score: Score, first: str, second: str, judged: Score, verdict: str) -> str:
    covered = "-" if judged.coverage_80 is None else f"{judged.coverage_80:.0%}"
    return _line(f"  {score.name}", f"{score.n:,}", first, second, f"{100 * judged.bias:+.1f}", covered, verdict)


def _line(*cells: str) -> str:
    """Seven cells; of 79 characters together where the first has up to 31."""
    widths = (7, 16, 13, 6, 5)
    numbers = "".join(f" {cell:>{width - 1}}" for cell, width in zip(cells[1:6], widths, strict=True))
    return f"{cells[0]:<31}{numbers}  {cells[6]}".rstrip()


def _three(score: Score) -> str:
    """Mean, median and 90th percentile in per cent: `5.4/3.5/11.5`."""
    return "/".join(f"{100 * value:.1f}" for value in (score.mean_ape, score.median_ape, score.p90_ape))


def _shown_goal(verdict: Verdict) -> str:
    """Goals in per cent in the order of the errors: `6/2.5/14`, a dash where one has none."""
    if verdict.goal is None:
        return ""
    goals = (verdict.goal.mean_ape, verdict.goal.median_ape, verdict.goal.p90_ape)
    return "/".join("-" if goal is None else f"{100 * goal:g}" for goal in goals)


def _shown_verdict(verdict: Verdict) -> str:
    if verdict.goal is None:
        return ""
    return "ok" if verdict.reached else "accepted" if verdict.ok else "missed"


def _print_causes(judged: Sequence[Judged]) -> None:
    """Why goals were not reached, each reason once with the rows that it explains."""
    causes: dict[str, list[str]] = {}
    for row in judged:
        if row.verdict.cause:
            causes.setdefault(row.verdict.cause, []).append(f"{row.score.table} {row.score.name}")
    for cause, rows in causes.items():
        print(f"accepted: {', '.join(rows)}: {cause}")
