"""Draws training.png from training-log.csv, both beside this file: `python docs/images/draw.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
}
SMOOTH_STEPS = 10


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of SMOOTH_STEPS neighbours; shorter at the ends."""
    ones = np.ones(SMOOTH_STEPS)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def main() -> None:
    """Loss and balance by tokens, raw and smoothed."""
    log = np.genfromtxt(HERE / "training-log.csv", delimiter=",", names=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, column in ((left, "loss_nats"), (right, "load_imbalance")):
            axes.plot(log["tokens"] / 1e6, log[column], color="#9db4cf", lw=0.6)
            axes.plot(log["tokens"] / 1e6, smooth(log[column]), color="#4477aa", lw=1.4)
            axes.set_xlabel("tokens (millions)")
        left.set_ylabel("training loss (nats per token)")
        right.set_ylabel("fullest over mean expert")
        right.set_ylim(bottom=0)
        figure.savefig(HERE / "training.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
