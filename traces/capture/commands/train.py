"""`capture train`: a real router, trained; its routing by domain."""

from __future__ import annotations

import argparse

from scenarios.errors import MoesimError

HELP = "Train a small MoE model and record its routing by domain."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    del parser


def run(options: argparse.Namespace) -> None:
    """Not written yet: raises MoesimError."""
    raise MoesimError(f"capture {options.command} is not written yet")
