"""The progress bar of long commands: on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


@contextmanager
def heard(first: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """What hears of work without a known end, shown as a line that begins with `first`; nobody elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


@contextmanager
def progress(first: str, *, quiet: bool) -> Iterator[Say | None]:
    """What hears of progress, shown as a bar that begins with `first`; None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
