"""The commands of capture: `moesim capture ...`, or `python -m traces.capture ...` on a machine with torch alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from scenarios.errors import MoesimError

REMEDIES = {
    "torch": "pip install 'moesim[capture]'",
    "transformers": "pip install 'moesim[capture]'",
}


class Command(Protocol):
    """What a module of a command holds; it imports torch within `run` alone, so that help needs none."""

    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""

    def run(self, options: argparse.Namespace) -> None:
        """Do the work; prints what was written. Raises MoesimError for what is the user's to mend."""


COMMANDS = {
    "train": "traces.capture.commands.train",
    "hf": "traces.capture.commands.hf",
    "kernels": "traces.capture.commands.kernels",
    "runs": "traces.capture.commands.runs",
    "all": "traces.capture.commands.everything",
}


def main(arguments: Sequence[str], program: str) -> None:
    """Run the command that `arguments` name. Exits with code 2 for wrong options, 0 after help.

    Raises MoesimError, also where torch or transformers are missing.
    """
    options = parser_of(program).parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in REMEDIES:
            raise
        raise MoesimError(
            f"`{program} {options.command}` needs {name}, which is not installed; {REMEDIES[name]}"
        ) from None


def parser_of(program: str) -> argparse.ArgumentParser:
    """Parser of all commands; `run` of its result is the chosen one's."""
    parser = argparse.ArgumentParser(
        prog=program, description="Record routing and kernel timings from a torch model on a GPU or CPU."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = cast(Command, import_module(module))
        own = commands.add_parser(name, help=command.HELP, description=command.HELP)
        own.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        command.add_options(own)
        own.set_defaults(run=command.run)
    return parser
