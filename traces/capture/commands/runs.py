"""`capture runs`: whole runs, recorded."""

from __future__ import annotations

import argparse

from scenarios.errors import MoesimError

HELP = "Time whole runs: steps, offload, overlap, hybrid, serving."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    del parser


def run(options: argparse.Namespace) -> None:
    """Not written yet: raises MoesimError."""
    raise MoesimError(f"capture {options.command} is not written yet")
