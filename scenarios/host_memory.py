"""Memory of the machine that simulates: work that cannot fit is refused before it starts."""

from __future__ import annotations

import os

from scenarios.errors import MoesimError


def check_host_memory(needed_bytes: float, what: str, remedy: str) -> None:
    """Raise MoesimError where `what` ("a trace of 9 tokens takes") needs more memory than this machine has."""
    physical = physical_bytes()
    if physical is not None and needed_bytes > physical:
        raise MoesimError(
            f"{what} about {min(needed_bytes, 1e300) / 2**30:,.0f} GiB of memory, and this machine has "
            f"{physical / 2**30:,.0f} GiB; {remedy}"
        )


def physical_bytes() -> int | None:
    """Bytes of physical memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system has these
        return None
