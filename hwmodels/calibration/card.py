"""A kernel card made of solved problems, and its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import yaml

from hwmodels.calibration.calibrate import Solved, digest, main_kernels, problems_of, solve
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.kernels import BLOCKS, KernelCard
from hwmodels.validation.timings import Timings
from scenarios.errors import CalibrationError
from scenarios.models import DType

LARGEST_MEDIAN = 0.25
DTYPES = get_args(DType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What tables of one engine on one device gave.

    card      the kernel card.
    solved    problems in the card; left_out counts the rows of all tables that are in none, by reason.
    unsolved  "moe int4: reason" of problems that no constants came of.
    """

    card: KernelCard
    solved: tuple[Solved, ...]
    left_out: dict[str, int]
    unsolved: tuple[str, ...]


def calibrate(
    tables: Mapping[str, Timings], device: Device, name: str, *, base: str | None = None, origin: str = ""
) -> Calibration:
    """Constants and residuals of all tables (by their names) on a device, as a card that rests on the card `base`.

    Of several kernels for one data type the one with most rows is taken, and of several tables the last; constants that
    are off by more than `LARGEST_MEDIAN` in the median are left out. `origin` says where the tables come from.
    Raises CalibrationError where no table gives constants.
    """
    best: dict[tuple[str, str], Solved] = {}
    left_out: dict[str, int] = {}
    unsolved: list[str] = []
    for table, timings in tables.items():
        problems, reasons = problems_of(timings, device)
        for problem in main_kernels(problems, timings, reasons):
            what = f"{problem.block} {problem.dtype} ({timings.source[problem.rows[0]]})"
            try:
                solved = solve(problem, f"fitted on {table}" + (f" of {origin}" if origin else ""), digest(timings))
            except CalibrationError as error:
                unsolved.append(f"{what}: {error}")
                continue
            if solved.residuals.median_ape > LARGEST_MEDIAN:
                unsolved.append(f"{what}: the law is off by {solved.residuals.median_ape:.0%} in the median")
                continue
            best[problem.block, problem.dtype] = solved
        for reason, count in zip(*np.unique(reasons[reasons != ""], return_counts=True), strict=True):
            left_out[str(reason)] = left_out.get(str(reason), 0) + int(count)
    if not best:
        raise CalibrationError(
            f"no constants came of {', '.join(tables)}: {'; '.join(unsolved) or 'no row is claimed'}"
        )
    ordered = sorted(best, key=lambda key: (BLOCKS.index(key[0]), DTYPES.index(key[1])))
    blocks = {block: {key[1]: best[key].constants for key in ordered if key[0] == block} for block in BLOCKS}
    return Calibration(
        card=KernelCard.model_validate({"name": name, "base": base, **blocks}),
        solved=tuple(best[key] for key in ordered),
        left_out=left_out,
        unsolved=tuple(unsolved),
    )


def card_yaml(card: KernelCard) -> str:
    """The card as a YAML file of hardware cards."""
    entry: dict[str, object] = {"name": card.name}
    if card.base is not None:
        entry["base"] = card.base
    for block in BLOCKS:
        if constants := getattr(card, block):
            entry[block] = {dtype: block_as_written(fitted) for dtype, fitted in constants.items()}
    text = yaml.safe_dump({"kernels": [entry]}, sort_keys=False, width=120, default_flow_style=None)
    return f"# Written by `moesim calibrate`; residuals are of model shapes that were left out.\n{text}"


def block_as_written(fitted: Fitted) -> dict[str, object]:
    """Fields as the loader reads them: times with units, nothing that is a default."""
    values = fitted.model_dump(mode="json", exclude_defaults=True)
    return {name: f"{v * 1e6:.4g} us" if name.endswith("_s") else v for name, v in values.items()}
