"""Files of a result: the folder of `--out` and its JSON, each file whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.errors import MoesimError
from scenarios.files import whole_file
from sim.report import Picture, render_report
from sim.result import Comparison, Table
from sim.timeline import write_trace

if TYPE_CHECKING:
    from sim.figure import Figure

PAGE_DPI = 150


def write_outputs(comparison: Comparison, folder: Path, drawn: Collection[str] | None = None) -> list[Path]:
    """Paths of report.html, result.json, timeline.json.gz and the plots (.svg, .png), written to `folder`.

    Figures show all plans, or those named in `drawn`.

    The folder is made where it is missing; files of an earlier run are replaced. With several workloads the names of
    plots begin with the number of their table. Raises MoesimError where `folder` is a file or cannot be written.
    """
    plots = folder / "plots"
    _make(folder)
    _make(plots)
    written: list[Path] = []
    pictures: list[list[Picture]] = []
    for number, table in enumerate(comparison.tables, start=1):
        prefix = f"{number}-" if len(comparison.tables) > 1 else ""
        pictures.append([])
        for picture in _drawn(table if drawn is None else table.only(drawn)):
            pictures[-1].append(picture)
            written.append(_write(plots / f"{prefix}{picture.name}.svg", picture.svg))
            written.append(_write(plots / f"{prefix}{picture.name}.png", picture.png))
    timeline = folder / "timeline.json.gz"
    with whole_file(timeline) as temporary:
        write_trace(comparison, temporary)
    return [
        _write(folder / "report.html", render_report(comparison, pictures).encode()),
        _write(folder / "result.json", json_text(comparison).encode()),
        timeline,
        *written,
    ]


def json_text(comparison: Comparison) -> str:
    """The result as indented JSON, as `json_of` writes it."""
    return json_of(comparison.as_json())


def json_of(content: dict[str, Any]) -> str:
    """Indented JSON of a result; raises ValueError where a number is not finite, which JSON cannot hold."""
    return json.dumps(content, indent=2, allow_nan=False, default=_plain) + "\n"


def _plain(value: object) -> object:
    """The Python value of a NumPy one."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a result file")


def write_named(folder: Path, text: tuple[str, str], figures: Mapping[str, Figure]) -> list[Path]:
    """Paths of a text, given as (file name, content), and of figures as PNG, written to `folder`.

    The folder is made where it is missing. Raises MoesimError where it is a file or cannot be written.
    """
    from sim.figure import png_bytes

    _make(folder)
    contents = {text[0]: text[1].encode(), **{f"{name}.png": png_bytes(figure) for name, figure in figures.items()}}
    return [_write(folder / name, content) for name, content in contents.items()]


def drawings(table: Table) -> dict[str, Callable[[Table], Figure]]:
    """The figures that have something to show of a table, by name, in the order of the report."""
    from sim import plots  # matplotlib takes half a second to import
    from sim.offload.plot import slot_lines, slots_figure
    from sim.serving.plot import serving_figure

    figures = {name: plots.FIGURES[name] for name in plots.figure_names(table)}
    if slot_lines(table):
        figures = {"slots": slots_figure, **figures}
    if any(result.served is not None for result in table.results):
        figures = {"serving": serving_figure, **figures}
        del figures["step-distribution"]  # of a step of typical size
    return figures


def _drawn(table: Table) -> Iterator[Picture]:
    from sim.figure import png_bytes, svg_bytes

    for name, draw in drawings(table).items():
        figure = draw(table)
        yield Picture(name=name, svg=svg_bytes(figure), png=png_bytes(figure, PAGE_DPI))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MoesimError(f"{folder}: a file is in the way; give the path of a folder") from None
    except OSError as error:
        raise MoesimError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None


def _write(path: Path, content: bytes) -> Path:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return path
