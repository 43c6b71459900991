"""A figure of the routing of several models side by side: load, reuse, affinity, domains, segments, caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scenarios.files import whole_file
from sim.figure import STYLE, WIDTH_IN, Figure, png_bytes
from traces.profile import Profile

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
CHANCE = (0, (1, 2))


def routing_figure(profiles: Sequence[Profile]) -> Figure:
    """Six panels, a colour a trace; dotted lines are what chance gives."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.9), layout="constrained")
        panels = figure.subplots(2, 3).flat
        titles = (
            "fullest over mean expert",
            "share of experts kept",
            "affinity of layers (bit)",
            "domain in an expert (bit)",
            "SRP",
            "LRU hits",
        )
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title)
            axes.grid(True)
        panels = figure.axes
        for color, one in zip(COLORS, profiles, strict=False):
            _draw(panels, one, color)
        for axes in panels[:4]:
            axes.set_xlabel("MoE layer, first to last")
            axes.set_xlim(0, 1)
            axes.set_ylim(bottom=0)
        panels[4].set_xscale("log", base=2)
        windows = sorted({window for one in profiles for window in one.srp})
        panels[4].set_xticks(windows, [str(window) for window in windows])
        panels[4].minorticks_off()
        panels[4].set_ylim(0, 1)
        panels[4].set_xlabel("window (tokens)")
        panels[5].set(xlim=(0, 1), ylim=(0, 1), xlabel="experts held, share of a layer")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(2, len(names)))
    return figure


def write_routing_figure(profiles: Sequence[Profile], path: Path) -> None:
    """The figure as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(png_bytes(routing_figure(profiles)))


def _draw(panels: Sequence[Axes], one: Profile, color: str) -> None:
    label = f"{one.name} ({one.n_layers} layers, top {one.top_k} of {one.n_experts})"
    _by_depth(panels[0], one.imbalance, color, label)
    _by_depth(panels[1], one.reuse, color)
    panels[1].axhline(one.uniform_reuse, color=color, ls=CHANCE, lw=1)
    _by_depth(panels[2], one.affinity_bits, color)
    if one.domain_bits is not None and one.shuffled_bits is not None:
        _by_depth(panels[3], one.domain_bits, color)
        panels[3].axhline(float(one.shuffled_bits.mean()), color=color, ls=CHANCE, lw=1)
    panels[4].plot(list(one.srp), list(one.srp.values()), "o-", ms=3, lw=1.2, color=color)
    held = np.arange(1, len(one.lru_hit_frac) + 1) / one.n_experts
    panels[5].plot(held, one.lru_hit_frac, lw=1.2, color=color)


def _by_depth(axes: Axes, values: NDArray[np.float64], color: str, label: str | None = None) -> None:
    depth = np.linspace(0, 1, len(values)) if len(values) > 1 else np.full(len(values), 0.5)
    axes.plot(depth, values, "o-", ms=2.5, lw=1.2, color=color, label=label)
