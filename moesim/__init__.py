"""Simulator and performance model of Mixture-of-Experts systems: `load` a scenario, then `run`, `compare`, `bound` it.

Names come from `moesim.api` and `scenarios.errors` when they are first used, so that the import costs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.api import (
        BoundResult,
        ComparisonResult,
        DifferenceResult,
        PlacementResult,
        ReproductionResult,
        Scenario,
        StoredResult,
        SweepResult,
        TraceResult,
        Workers,
        bound,
        compare,
        diff,
        load,
        place,
        read,
        reproduce,
        run,
        serve,
        sweep,
        trace,
    )
    from scenarios.errors import (
        BudgetInfeasible,
        CalibrationError,
        DeadlockError,
        HardwareError,
        MemoryInfeasible,
        MoesimError,
        PlacementError,
        PlacementInfeasible,
        ScenarioError,
        TraceError,
    )

__version__ = "0.1.0"
__all__ = [
    "BoundResult",
    "BudgetInfeasible",
    "CalibrationError",
    "ComparisonResult",
    "DeadlockError",
    "DifferenceResult",
    "HardwareError",
    "MemoryInfeasible",
    "MoesimError",
    "PlacementError",
    "PlacementInfeasible",
    "PlacementResult",
    "ReproductionResult",
    "Scenario",
    "ScenarioError",
    "StoredResult",
    "SweepResult",
    "TraceError",
    "TraceResult",
    "Workers",
    "__version__",
    "bound",
    "compare",
    "diff",
    "load",
    "place",
    "read",
    "reproduce",
    "run",
    "serve",
    "sweep",
    "trace",
]

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
        from scenarios import errors

        return getattr(errors if hasattr(errors, name) else api, name)
    raise AttributeError(f"module 'moesim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__  # what a notebook completes


_claim_packages()
