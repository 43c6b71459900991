"""Constants of a law that were determined together: one source, one kind, and how far held-out rows were off."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field, model_validator

from scenarios.sources import Source, Spec

Law = TypeVar("Law", bound="Fitted")


class Residuals(Spec):
    """Errors on rows that no constant was fitted on; fractions of the measured time.

    low, high    measured over predicted time: its 10 % and 90 % quantiles, the ends of the stated 80 % band.
    bias         median of predicted over measured, minus one.
    coverage_80  share of rows inside a band that was made without their shape; none where that was not tried.
    """

    n: int = Field(gt=0, description="rows judged")
    mean_ape: float = Field(ge=0)
    median_ape: float = Field(ge=0)
    p90_ape: float = Field(ge=0)
    bias: float
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    coverage_80: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Residuals:
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}")
        return self


class Band(Spec):
    """An 80 % band that was not measured: measured over predicted time is thought to lie between `low` and `high`."""

    low: float = Field(gt=0, le=1)
    high: float = Field(ge=1)
    source: str = Field(min_length=3)


class Fitted(Source):
    """Base of the constants of one law for one data type; a subclass holds the numbers.

    fitted_on  tables by file name and digest of their times.
    residuals  what a calibration measured; band: what is assumed where nothing was measured. One of them is needed for
               predictions to carry an error band.
    """

    fitted_on: tuple[str, ...] = ()
    residuals: Residuals | None = None
    band: Band | None = None

    @property
    def states_error(self) -> bool:
        """Whether a band was measured or assumed."""
        return self.residuals is not None or self.band is not None

    @property
    def low_high(self) -> tuple[float, float]:
        """Ends of the 80 % band of measured over predicted time; (1, 1) where none is stated."""
        stated = self.residuals or self.band
        return (stated.low, stated.high) if stated is not None else (1.0, 1.0)


RATES = ("_frac", "_per_flop", "_bytes_per_s")


def stretched(constants: Law, factor: float) -> Law:
    """Constants under which every time is `factor` times as long: fixed times times it, rates over it.

    All laws are of first degree in their times and the inverse of their rates, so that this is exact.
    """
    changed: dict[str, object] = {}
    for name in type(constants).model_fields:
        value = getattr(constants, name)
        if isinstance(value, float) and name.endswith("_s") and not name.endswith(RATES):
            changed[name] = value * factor
        elif isinstance(value, float) and name.endswith(RATES):
            changed[name] = value / factor
    return constants.model_copy(update=changed)
