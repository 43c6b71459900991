"""`capture runs`: whole runs, recorded."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Time whole runs: steps, offload, overlap, hybrid, serving."
KINDS = ("parts", "neighbours", "steps", "offload", "hybrid", "overlap", "serving")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="What to run on (default: cpu).")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for runs-KIND.json and .npz.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--models", nargs="+", default=(), metavar="MODEL", help="Models (default: all of the device).")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="Repeats of each case (default: 5).")


def run(options: argparse.Namespace) -> None:
    """Run and record; prints what was written."""
    from traces.capture.runs.capture import capture_runs

    for path in capture_runs(options.device, options.out, options.kinds, options.models, options.repeats):
        print(path)
