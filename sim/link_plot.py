"""The machine with what a plan makes its links carry: every port a line, coloured by the time that it is busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from sim.figure import Figure
from sim.plot_data import Panel, device_ticks
from sim.port_loads import DIRECTIONS, PortLoads
from sim.wording import decimals, time_unit

_INK, _BOX = "#444444", "#eef1f5"
_DEVICE_Y, _REACH, _BAR = 0.0, 1.0, 0.34
"""Middle of the row of devices, length of a link, height of the bars that stand for switches and the network."""


def draw_links(panels: Sequence[Panel], width_in: float, title: Callable[[Axes, Panel, str], None]) -> Figure:
    """One panel a plan: devices in the middle, the fabric of each node above, the network between nodes below.

    Every link is two lines, left what its device sends, right what it receives, on one colour scale of busy time.
    """
    loads = [panel.result.port_loads for panel in panels]
    unit, length_s = time_unit(float(load.busy_s.max(initial=0.0)) for load in loads)
    norm = _scale(np.concatenate([load.busy_s.ravel() for load in loads]) / length_s)
    height_in = sum(1.05 if len(load.links) == 1 else 1.6 for load in loads) + 0.45
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    heights = [len(load.links) + 0.6 for load in loads]
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel, load in zip(grid, panels, loads, strict=True):
        _draw(axes, load, panel.result.devices_per_node, norm, length_s)
        title(axes, panel, _busiest(load, length_s, unit))
    grid[-1].set_xlabel("device; of each link, sent left and received right")
    colors = ScalarMappable(norm=norm, cmap=_cmap())
    bar = figure.colorbar(colors, ax=list(grid), label=f"busy per step ({unit})", aspect=22, pad=0.015, shrink=0.9)
    bar.ax.spines["outline"].set_visible(False)
    return figure


def _scale(busy: NDArray[np.float64]) -> Normalize:
    """Colours from zero only where the least busy port is below half of the busiest, as in the matrix of devices."""
    least, most = float(busy.min()), float(busy.max())
    return Normalize(least if least > 0.5 * most else 0.0, most or 1.0)


def _draw(axes: Axes, load: PortLoads, devices_per_node: int, norm: Normalize, length_s: float) -> None:
    n_devices = load.busy_s.shape[2]
    devices = np.arange(n_devices)
    width_pt = float(np.clip(150 / n_devices, 0.6, 7.0))
    for link, way in zip(range(len(load.links)), (1, -1), strict=False):
        for direction, shift in zip(range(len(DIRECTIONS)), (-0.18, 0.18), strict=True):
            start, end = _DEVICE_Y + way * 0.2, _DEVICE_Y + way * _REACH
            lines = [[(device + shift, start), (device + shift, end)] for device in devices]
            drawn = LineCollection(lines, cmap=_cmap(), norm=norm, linewidths=width_pt, capstyle="butt")
            drawn.set_array(load.busy_s[link, direction] / length_s)
            axes.add_collection(drawn, autolim=False)
    for node in range(n_devices // devices_per_node):
        left = node * devices_per_node - 0.42
        name = f"node {node}: {load.links[0]}" if devices_per_node >= n_devices / 8 else str(node)
        _bar(axes, left, devices_per_node - 0.16, _DEVICE_Y + _REACH, name)
    if len(load.links) > 1:
        _bar(axes, -0.42, n_devices - 0.16, _DEVICE_Y - _REACH - _BAR, f"between nodes: {load.links[1]}")
    axes.scatter(
        devices, np.zeros(n_devices), marker="s", s=float(np.clip(900 / n_devices, 2, 50)), color=_INK, zorder=3
    )
    below = -_REACH - _BAR - 0.05 if len(load.links) > 1 else -0.25
    axes.set(xlim=(-0.7, n_devices - 0.3), ylim=(below, _REACH + _BAR + 0.05))
    axes.set_xticks(device_ticks(n_devices, 16))
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _bar(axes: Axes, left: float, width: float, bottom: float, name: str) -> None:
    axes.add_patch(Rectangle((left, bottom), width, _BAR, facecolor=_BOX, edgecolor=_INK, linewidth=0.5))
    axes.text(left + width / 2, bottom + _BAR / 2, name, ha="center", va="center", fontsize=7, color=_INK)


def _busiest(load: PortLoads, length_s: float, unit: str) -> str:
    """The port that is busy longest, in words."""
    link, direction, device = (int(i) for i in np.unravel_index(load.busy_s.argmax(), load.busy_s.shape))
    value = load.busy_s[link, direction, device] / length_s
    verb = "sending" if DIRECTIONS[direction] == "send" else "receiving"
    return f"busiest: device {device} {verb} on {load.links[link]}, {value:.{decimals(value, 3)}f} {unit}"


def _cmap() -> mpl.colors.Colormap:
    return mpl.colormaps["YlOrRd"]
