"""`capture kernels`: timings of kernels."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Time kernels, launches and copies of this machine's device."
MINUTES = 6.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="Default: a CUDA GPU where there is one."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the tables.")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help=f"Time limit; default {MINUTES:g}.")
    parser.add_argument(
        "--passes",
        type=int,
        default=1,
        metavar="N",
        help="Times that every point is measured; more are added to what DIR holds.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="FAMILY",
        default=None,
        help="gemm, moe, attention, small, copies, sharing, host; default: all.",
    )


def run(options: argparse.Namespace) -> None:
    """Measure into tables; raises MoesimError where there is no such device or family."""
    from traces.capture.devices import chosen_device
    from traces.capture.kernels.command import capture_kernels

    capture_kernels(chosen_device(options.device), options.out, (options.minutes * 60, options.passes), options.only)
