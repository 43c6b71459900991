"""`moesim capture`: record routing and timings from models that run in torch."""

from __future__ import annotations

import typer

PROGRAM = "moesim capture"
# Options are declared once, by traces/capture/commands, which must work without typer, too.
SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def capture(context: typer.Context) -> None:
    """Record routing and kernel timings from a torch model on a GPU or CPU; see `moesim capture --help`."""
    from traces.capture.commands import main

    main(context.args, PROGRAM)
