"""Simulator and performance model of Mixture-of-Experts systems: `load` a scenario, `run` or `compare` its plans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.api import compare, load, run

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "run"]

_PACKAGES = ("scenarios", "traces", "hwmodels", "placement", "sim")


def _claim_packages() -> None:
    """Put the folder that holds the packages first on the search path: `_app` in a wheel, the root in a checkout.

    Raises ImportError where a foreign package of one of their names is imported already.
    """
    here = Path(__file__).resolve().parent
    home = here / "_app" if (here / "_app").is_dir() else here.parent
    for name in _PACKAGES:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (origin is None or Path(origin).resolve().parent != home / name):
            raise ImportError(
                f"moesim has a package '{name}' of its own, but {origin or 'another one'} is imported already; "
                f"use moesim in a process that does not import that one"
            )
    if sys.path[:1] != [str(home)]:
        sys.path.insert(0, str(home))


def __getattr__(name: str) -> Any:
    if name in __all__:
        from moesim import api  # late: `import moesim` must not wait for numpy

        return getattr(api, name)
    raise AttributeError(f"module 'moesim' has no attribute '{name}'")


_claim_packages()
