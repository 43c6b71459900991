"""The errors a user can meet. One root, positional arguments only (SimPy rebuilds exceptions from `args`)."""

from __future__ import annotations


class MoesimError(Exception):
    """Root of all errors that are the user's to mend; the command prints it without a traceback."""

    exit_code = 2


class ScenarioError(MoesimError):
    """A scenario, card or option is wrong; the message names file, line, path and remedy."""


class TraceError(MoesimError):
    """A routing or request trace is unreadable, inconsistent or does not match the model."""


class HardwareError(MoesimError):
    """A hardware card lacks a number that was asked of it, or a topology is inconsistent."""


class CalibrationError(MoesimError):
    """Timings cannot fix the constants that were asked of them."""


class PlacementError(MoesimError):
    """A placement is malformed or does not belong to this model and cluster."""


class PlacementInfeasible(MoesimError):
    """No placement exists: slots, replicas or memory fall short; says by how much and which lever helps."""

    exit_code = 3


class MemoryInfeasible(MoesimError):
    """Weights, replicas and KV cache do not fit; says what is short by how much and which lever helps."""

    exit_code = 3


class BudgetInfeasible(MoesimError):
    """No machine that a budget pays for can hold the model; says which is the cheapest that does."""

    exit_code = 3


class DeadlockError(MoesimError):
    """A stream program can never finish; says which operation waits for which."""
