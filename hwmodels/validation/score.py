"""How far predictions are off: absolute percentage errors, their bias, and the rows left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.predict import Predicted, predict
from hwmodels.validation.timings import Timings, read_timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Errors of one group of rows; fractions of the measured time. `bias` is the median of predicted/measured - 1."""

    name: str
    table: str
    card: str
    kernels: str
    n: int
    mean_ape: float
    median_ape: float
    p90_ape: float
    bias: float

    def as_json(self, limit: float | None) -> dict[str, object]:
        """One entry of `suites`; a limit is on the median error. No card states an error band yet."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"coverage_80": None, "limit": limit, "ok": self.meets(limit)}

    def meets(self, limit: float | None) -> bool:
        """Whether the median error is within the limit, if there is one."""
        return limit is None or self.median_ape <= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores of one table, and what was left out for which reason."""

    timings: Timings
    predicted: Predicted
    scores: tuple[Score, ...]


def validate_table(path: Path, card: str) -> Validation:
    """The device card's kernel laws against a table of timings, one score a data type and kind of row.

    Raises HardwareError where the table or the card cannot be read.
    """
    device_card = find_device(card)
    device = Device(card=device_card, constants=find_kernels(device_card.kernels).constants)
    timings = read_timings(path)
    predicted = predict(timings, device)
    claimed = np.isfinite(predicted.seconds)
    names = [str(name) for name in np.unique(predicted.group[claimed])]
    scores = tuple(_score(timings, predicted, claimed & (predicted.group == name), name, device) for name in names)
    return Validation(timings=timings, predicted=predicted, scores=scores)


def _score(timings: Timings, predicted: Predicted, rows: NDArray[np.bool_], name: str, device: Device) -> Score:
    ratio = predicted.seconds[rows] / timings.measured_s[rows] - 1
    error = np.abs(ratio)
    return Score(
        name=f"{timings.family} {name}",
        table=timings.path.name,
        card=device.card.name,
        kernels=device.card.kernels,
        n=int(rows.sum()),
        mean_ape=float(error.mean()),
        median_ape=float(np.median(error)),
        p90_ape=float(np.quantile(error, 0.9)),
        bias=float(np.median(ratio)),
    )
