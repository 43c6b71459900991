"""Suite `measured`: laws on the tables that `moesim capture` made and that are shipped; needs no public tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwmodels.calibration.calibrate import main_kernels, problems_of, solve
from hwmodels.calibration.fit import Times, inside_others
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.ship_measured import FAMILIES, MEASURED
from hwmodels.calibration.small import SmallProblem, choice_problem, copy_problem, host_problem, launch_problem
from hwmodels.devices import Device
from hwmodels.library import find_copies, find_device, find_kernels
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.score import Part, Score, inside_band, score
from hwmodels.validation.timings import read_timings

HALVES = 2
OTHER_HALF: Part = "unseen shapes"


def measured(folder: Path, progress: Progress) -> list[Judged]:
    """Every measured device: its shipped card, and either half of the shapes by constants of the other half."""
    del folder
    places = sorted(path for path in MEASURED.iterdir() if path.is_dir())
    rows: list[Judged] = []
    for number, place in enumerate(places):
        progress(place.name, number / len(places))
        rows += [judged("measured", one) for one in scores_of(place)]
    return rows


def scores_of(place: Path) -> Iterator[Score]:
    """Scores of one device by the tables in its folder."""
    card = find_device(place.name)
    device = Device(card=card, kernels=find_kernels(card.kernels))
    for family in FAMILIES:
        timings = read_timings(place / f"{family}.csv")
        problems, reasons = problems_of(timings, device)
        for problem in main_kernels(problems, timings, reasons):
            yield from _of_kernel(problem, (f"{family}.csv", device))
    link = find_copies(f"{place.name}-memory")
    small = [launch_problem(place, device.memory_bytes_per_s), choice_problem(place), host_problem(place)]
    if link is not None:
        small.append(copy_problem(place, device.memory_bytes_per_s, "pageable"))
    for one in small:
        yield _of_small(one, device)


def _of_kernel(problem: Problem, what: tuple[str, Device]) -> Iterator[Score]:
    """The card's constants, which saw all shapes, and those of the other half."""
    table, device = what
    label = ("", f"{device.card.name} {table}", device.card.name, device.kernels.name)
    name, constants = f"{problem.block} {problem.dtype}", device.kernels.find(problem.block, problem.dtype)
    predicted_s = problem.law(constants, np.arange(len(problem.rows)))
    inside = inside_band(predicted_s, problem.measured_s, constants)
    yield score(name, "card", label, predicted_s, problem.measured_s, inside)
    solved = solve(problem, "refitted", "", HALVES)
    covered = inside_others(problem.measured_s / solved.held_out_s, solved.fold)
    yield score(name, OTHER_HALF, label, solved.held_out_s, problem.measured_s, covered)


def _of_small(problem: SmallProblem, device: Device) -> Score:
    label = ("", f"{device.card.name} {problem.table}", device.card.name, device.kernels.name)
    found = problem.cross_fit(HALVES)
    ratios: Times = problem.measured_s / found.held_out_s
    covered = inside_others(ratios, found.fold)
    return score(problem.name, OTHER_HALF, label, found.held_out_s, problem.measured_s, covered)
