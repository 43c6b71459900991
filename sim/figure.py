"""Figures in one style, whoever draws them last: a file, or a notebook that shows them as they are saved."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib as mpl
import matplotlib.figure
from matplotlib.backend_bases import RendererBase

WIDTH_IN = 7.2
"""Text width of a two-column paper, which the report shares."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.1,
    "legend.handleheight": 0.9,
    "legend.columnspacing": 1.2,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "moesim",
    "svg.fonttype": "path",
    "text.parse_math": False,
}
NOTEBOOK_DPI = 100


class Figure(matplotlib.figure.Figure):
    """A figure that keeps the common style when it is drawn, and that notebooks show by itself."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw in the common style: ticks come into being here, long after the figure was made."""
        with mpl.rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """PNG with the width that a notebook gives it [px of a screen]."""
        return png_bytes(self, NOTEBOOK_DPI), {"width": round(self.get_figwidth() * NOTEBOOK_DPI)}


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    return _saved(figure, format="svg", dpi=200, metadata={"Date": None})


def png_bytes(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    target = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A plan's name may hold letters that the font lacks; the tables show them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, **options)
    return target.getvalue()
