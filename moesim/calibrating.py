"""What `moesim calibrate` shows and writes."""

from __future__ import annotations

import json as encoder
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hwmodels.calibration.calibrate import Solved
from hwmodels.calibration.card import Calibration, calibrate, card_yaml
from hwmodels.calibration.links import cards_of, cards_yaml, fitted_links, is_link_table
from hwmodels.devices import Device
from hwmodels.fitted import Residuals
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.timings import read_columns, read_timings
from scenarios.errors import HardwareError
from scenarios.files import check_file, write_or_print, write_text


def show(
    tables: Sequence[Path], card: str | None, name: str | None, base: str | None, out: Path | None, json: str | None
) -> None:
    """Fit laws to tables of timings, of kernels or of links; print the residuals and write the cards."""
    for target in (out, None if json in (None, "-") else Path(json)):
        if target is not None:
            check_file(target)
    of_links = [is_link_table(read_columns(path)) for path in tables]
    if any(of_links):
        if not all(of_links) or card or name or base:
            raise HardwareError("tables of links make cards of their own: leave kernels, --card, --name and --base out")
        _show_links(tables, out, json)
        return
    if card is None:
        raise HardwareError("timings of kernels need the device: --card CARD; see `moesim list hardware`")
    device_card = find_device(card)
    rests_on = base or device_card.kernels
    device = Device(card=device_card, kernels=find_kernels(rests_on, Path()))
    timings = {path.name: read_timings(path) for path in tables}
    calibration = calibrate(timings, device, name or f"{card}-calibrated", base=rests_on)
    if out is not None:
        write_text(card_yaml(calibration.card), out)
    content: dict[str, object] = {"card": calibration.card.model_dump(mode="json", exclude_defaults=True)}
    content["residuals"] = [_as_json(solved) for solved in calibration.solved]
    _write_json(content | {"left_out": calibration.left_out}, json)
    if json != "-":
        _print(calibration, out)


def _show_links(tables: Sequence[Path], out: Path | None, json: str | None) -> None:
    fitted = [one for path in tables for one in fitted_links(path)]
    cards = cards_of(fitted)
    if out is not None:
        write_text(cards_yaml(cards), out)
    residuals = [
        {"card": problem.card, "operation": problem.part, **block.residuals.model_dump()}
        for problem, block in fitted
        if block.residuals is not None
    ]
    _write_json({"cards": cards.model_dump(mode="json", exclude_defaults=True), "residuals": residuals}, json)
    if json == "-":
        return
    console = Console()
    table = _table("errors on messages that no constant was fitted on", "rows")
    for problem, block in fitted:
        if block.residuals is not None:
            table.add_row(f"{problem.card} {problem.part}", f"{block.residuals.n:,}", *_errors(block.residuals))
    console.print(table)
    for reason, count in sum((Counter(problem.left_out) for problem, _ in fitted), Counter[str]()).items():
        console.print(f"left out: {count:,} rows, {reason}", highlight=False)
    _print_target(console, "Cards", out, "cards")


def _print(calibration: Calibration, out: Path | None) -> None:
    console = Console()
    console.print(_residuals_table(calibration))
    for text in calibration.unsolved:
        console.print(f"not in the card: {text}", highlight=False)
    for reason, count in calibration.left_out.items():
        console.print(f"left out: {count:,} rows, {reason}", highlight=False)
    _print_target(console, "Kernel card", out, "kernels")


def _print_target(console: Console, what: str, out: Path | None, key: str) -> None:
    """Where the file went, and which key of a scenario's cluster takes it."""
    if out is None:
        console.print(f"--out FILE writes the file; a scenario uses it with cluster: {{{key}: FILE}}", highlight=False)
    else:
        console.print(f"{what}: {out} (in a scenario, cluster: {{{key}: {out}}})", highlight=False)


def _residuals_table(calibration: Calibration) -> Table:
    table = _table(f"{calibration.card.name}: errors on shapes that no constant was fitted on", "rows", "shapes")
    for solved in calibration.solved:
        table.add_row(
            f"{solved.problem.block} {solved.problem.dtype}",
            f"{solved.residuals.n:,}",
            str(len(np.unique(solved.problem.shapes))),
            *_errors(solved.residuals),
        )
    return table


def _table(title: str, *counts: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column("operation")
    for name in (*counts, "mean", "median", "p90", "bias", "80 % band", "in band"):
        table.add_column(name, justify="right")
    return table


def _errors(found: Residuals) -> tuple[str, ...]:
    return (
        *(f"{value:.1%}" for value in (found.mean_ape, found.median_ape, found.p90_ape)),
        f"{found.bias:+.1%}",
        f"{found.low:.2f} to {found.high:.2f}",
        "-" if found.coverage_80 is None else f"{found.coverage_80:.0%}",
    )


def _write_json(content: dict[str, object], json: str | None) -> None:
    if json is not None:
        write_or_print(encoder.dumps(content, indent=2) + "\n", json)


def _as_json(solved: Solved) -> dict[str, object]:
    return {"block": solved.problem.block, "dtype": solved.problem.dtype, **solved.residuals.model_dump()}
