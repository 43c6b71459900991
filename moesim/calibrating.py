"""What `moesim calibrate` shows and writes."""

from __future__ import annotations

import json as encoder
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hwmodels.calibration.calibrate import Solved
from hwmodels.calibration.card import Calibration, calibrate, card_yaml
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.timings import read_timings
from scenarios.files import check_file, whole_file


def show(
    tables: Sequence[Path], card: str, name: str | None, base: str | None, out: Path | None, json: str | None
) -> None:
    """Fit the constants of a device card to tables of timings; print the residuals and write the kernel card."""
    device_card = find_device(card)
    rests_on = base or device_card.kernels
    device = Device(card=device_card, kernels=find_kernels(rests_on, Path()))
    for target in (out, None if json in (None, "-") else Path(json)):
        if target is not None:
            check_file(target)
    timings = {path.name: read_timings(path) for path in tables}
    calibration = calibrate(timings, device, name or f"{card}-calibrated", base=rests_on)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(card_yaml(calibration.card))
    _write_json(calibration, json)
    if json != "-":
        _print(calibration, out)


def _print(calibration: Calibration, out: Path | None) -> None:
    console = Console()
    console.print(_residuals_table(calibration))
    for text in calibration.unsolved:
        console.print(f"not in the card: {text}", highlight=False)
    for reason, count in calibration.left_out.items():
        console.print(f"left out: {count:,} rows, {reason}", highlight=False)
    if out is None:
        console.print("--out FILE writes the card; a scenario uses it with cluster: {kernels: FILE}", highlight=False)
    else:
        console.print(f"Kernel card: {out} (in a scenario, cluster: {{kernels: {out}}})", highlight=False)


def _residuals_table(calibration: Calibration) -> Table:
    title = f"{calibration.card.name}: errors on shapes that no constant was fitted on"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("operation")
    for name in ("rows", "shapes", "mean", "median", "p90", "bias", "80 % band", "in band"):
        table.add_column(name, justify="right")
    for solved in calibration.solved:
        found = solved.residuals
        errors = [f"{value:.1%}" for value in (found.mean_ape, found.median_ape, found.p90_ape)]
        table.add_row(
            f"{solved.problem.block} {solved.problem.dtype}",
            f"{found.n:,}",
            str(len(np.unique(solved.problem.shapes))),
            *errors,
            f"{found.bias:+.1%}",
            f"{found.low:.2f} to {found.high:.2f}",
            "-" if found.coverage_80 is None else f"{found.coverage_80:.0%}",
        )
    return table


def _write_json(calibration: Calibration, json: str | None) -> None:
    if json is None:
        return
    content: dict[str, object] = {"card": calibration.card.model_dump(mode="json", exclude_defaults=True)}
    content["residuals"] = [_as_json(solved) for solved in calibration.solved]
    content["left_out"] = calibration.left_out
    text = encoder.dumps(content, indent=2) + "\n"
    if json == "-":
        print(text, end="", flush=True)
        return
    with whole_file(Path(json)) as temporary:
        temporary.write_text(text)


def _as_json(solved: Solved) -> dict[str, object]:
    return {"block": solved.problem.block, "dtype": solved.problem.dtype, **solved.residuals.model_dump()}
