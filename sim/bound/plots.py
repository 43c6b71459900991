"""Figures of bounds: what each resource allows over the batch, and what money buys."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

from sim.bound.bounds import Bounds
from sim.bound.purchase import Choice
from sim.figure import STYLE, WIDTH_IN, Figure

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#882255", "#999933")
LABELLED = 6  # purchases of a front up to which each is named


def drawings(bounds: Bounds, choice: Choice | None) -> dict[str, Callable[[], Figure]]:
    """The figures that have something to show, by name."""
    found: dict[str, Callable[[], Figure]] = {"bound-batch": partial(batch_figure, bounds)}
    if bounds.grid:
        found["bound-context"] = partial(context_figure, bounds)
    if choice is not None:
        found["bound-budget"] = partial(budget_figure, choice)
    return found


def batch_figure(bounds: Bounds) -> Figure:
    """Throughput that each resource allows over the tokens of a device; the lowest line is the bound."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
        axes = figure.subplots()
        sizes = [bound.tokens_per_device for bound in bounds.batches]
        for place, (color, row) in enumerate(zip(COLORS, bounds.at.rows, strict=False)):
            rates = [bound.rows[place].tokens_per_s for bound in bounds.batches]
            style = "--" if row.name == "receive ports" else "-"  # mostly on top of the send ports
            axes.plot(sizes, rates, color=color, lw=1.2, ls=style, label=row.name)
        axes.plot(sizes, [bound.tokens_per_s for bound in bounds.batches], color="#222222", lw=2.4, alpha=0.35)
        axes.plot(
            bounds.at.tokens_per_device,
            bounds.simulated.metrics["tokens_per_s"],
            "o",
            color="#222222",
            label=f"{bounds.simulated.name}, simulated",
        )
        if bounds.largest is not None:
            axes.axvline(bounds.largest, color="#888888", lw=0.8, ls=":")
            axes.annotate("memory is full", (bounds.largest, axes.get_ylim()[0]), ha="right", va="bottom", fontsize=7)
        _logarithmic(axes, "tokens per device", "tokens/s of all devices")
        name = textwrap.shorten(bounds.scenario, 60, placeholder="…")
        axes.set_title(f"{name}: bounds over the batch", loc="left", fontsize=8.5, fontweight="bold")
        axes.legend(loc="lower right", fontsize=7)
    return figure


def context_figure(bounds: Bounds) -> Figure:
    """What binds over tokens of a device and context length, with the bound; hatched where memory falls short."""
    names = list(dict.fromkeys(cell.binding for cell in bounds.grid))
    colors = dict(zip(names, COLORS, strict=False))
    sizes = sorted({cell.tokens_per_device for cell in bounds.grid})
    contexts = sorted({cell.context_tokens for cell in bounds.grid})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.8), layout="constrained")
        axes = figure.subplots()
        for cell in bounds.grid:
            x, y = sizes.index(cell.tokens_per_device), contexts.index(cell.context_tokens)
            hatch = None if cell.fits else "////"
            color, alpha = colors[cell.binding], 0.75 if cell.fits else 0.2
            axes.add_patch(Rectangle((x, y), 1, 1, fc=color, ec="white", lw=1.5, alpha=alpha, hatch=hatch))
            axes.text(x + 0.5, y + 0.5, f"{cell.tokens_per_s:,.0f}", ha="center", va="center", fontsize=7)
        axes.set(xlim=(0, len(sizes)), ylim=(0, len(contexts)))
        axes.set_xticks(np.arange(len(sizes)) + 0.5, [f"{size:,}" for size in sizes])
        axes.set_yticks(np.arange(len(contexts)) + 0.5, [f"{context:,}" for context in contexts])
        axes.set_xlabel("tokens per device (hatched: more than its memory holds)")
        axes.set_ylabel("context tokens")
        axes.set_title("What binds, and the bound [tokens/s]", loc="left", fontsize=8.5, fontweight="bold")
        patches = [Patch(color=colors[name], alpha=0.75, label=name) for name in names]
        axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
    return figure


def budget_figure(choice: Choice) -> Figure:
    """The Pareto front: the highest throughput over the money spent; names where there are few purchases."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
        axes = figure.subplots()
        prices = [purchase.price_usd / 1e3 for purchase in choice.front]
        rates = [purchase.tokens_per_s for purchase in choice.front]
        axes.step([*prices, choice.best.money_usd / 1e3], [*rates, rates[-1]], where="post", color="#4477aa")
        axes.plot(prices, rates, "o", ms=4, color="#4477aa")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        for purchase, price, rate in zip(choice.front, prices, rates, strict=True):
            if purchase is choice.front[-1] or len(choice.front) <= LABELLED:
                axes.annotate(
                    purchase.name, (price, rate), xytext=(-5, 3), textcoords="offset points", fontsize=6.5, ha="right"
                )
        axes.set_xlabel("money (kUSD)")
        axes.set_ylabel(f"{choice.ranked_by} tokens/s")
        axes.set_ylim(bottom=0)
        axes.grid(True)
        axes.set_title("What the money buys", loc="left", fontsize=8.5, fontweight="bold")
    return figure


def _logarithmic(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(True)
