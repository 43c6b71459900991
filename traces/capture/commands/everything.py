"""`capture all`: routing, kernels and runs in one go."""

from __future__ import annotations

import argparse

from scenarios.errors import MoesimError

HELP = "Routing, kernels and whole runs of this machine's device, in one go."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    del parser


def run(options: argparse.Namespace) -> None:
    """Not written yet: raises MoesimError."""
    raise MoesimError(f"capture {options.command} is not written yet")
