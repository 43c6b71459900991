"""What a table of communication timings asks of one law: rows, constants to fit, and the law that predicts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Constants, CrossFit, Parameter, Rows, Times, cross_fit, fit
from hwmodels.fitted import Fitted
from scenarios.errors import HardwareError

CardKind = Literal["collectives", "exchanges", "copies"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProblem:
    """Rows of one operation that one block of constants is to predict.

    kind, link, subject  the card: its list, link card, and library, kernel or "" for copies.
    part        the block in the card, e.g. "all-gather 8" or "dispatch".
    measured_s  float64[row]
    shapes      int64[row]: rows of one shape share a number and are left out together.
    sizes       int64[row]: another such numbering, by numbers of tokens; None where shapes are sizes.
    starts      sets of parameters to start from; the best fit counts.
    make        constants -> block, whose source the calibration fills in.
    time_s      (block, rows) -> predicted seconds, float64[row].
    left_out    rows of the table that the law does not claim, by reason.
    """

    kind: CardKind
    link: str
    subject: str
    part: str
    measured_s: Times
    shapes: NDArray[np.int64]
    starts: tuple[tuple[Parameter, ...], ...]
    make: Callable[[Constants], Fitted]
    time_s: Callable[[Any, Rows], Times]
    link_bytes_per_s: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    sizes: NDArray[np.int64] | None = None

    @property
    def card(self) -> str:
        """Name of the card that holds the block."""
        return f"{self.link} {self.subject}".strip()

    @property
    def name(self) -> str:
        """The operation with its library or kernel."""
        return f"{self.subject} {self.part}".strip()

    def law(self, constants: Constants, rows: Rows) -> Times:
        """Predicted seconds of these rows under some constants."""
        return self.time_s(self.make(constants), rows)

    def cross_fit(self, groups: NDArray[np.int64] | None = None) -> CrossFit:
        """Constants of all rows, and predictions of every row by constants fitted without its group (its shape)."""
        return cross_fit(self.law, self.measured_s, self._best_start(), self.shapes if groups is None else groups)

    def _best_start(self) -> Sequence[Parameter]:
        if len(self.starts) == 1:
            return self.starts[0]
        rows = np.arange(len(self.measured_s))
        errors = [fit(self.law, self.measured_s, start, rows)[1] for start in self.starts]
        return self.starts[int(np.argmin(errors))]


def start(**bounds: tuple[float, float, float]) -> tuple[Parameter, ...]:
    """Parameters from `name=(start, low, high)`."""
    return tuple(Parameter(name=name, start=s, low=low, high=high) for name, (s, low, high) in bounds.items())


def numbers_of(values: Sequence[Any]) -> NDArray[np.int64]:
    """A number for each distinct entry, int64[row], in the order of the sorted entries."""
    order = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([order[value] for value in values], dtype=np.int64)


LINK_OF_DEVICE = {
    "NVIDIA A100-SXM4-80GB": "nvlink-3",
    "NVIDIA H100 80GB HBM3": "nvlink-4",
    "NVIDIA H100": "nvlink-4",
    "NVIDIA H200": "nvlink-4",
    "NVIDIA B200": "nvlink-5",
    "NVIDIA GB200": "nvlink-5-nvl72",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "pcie-5-peer",
}
"""Link card of the devices that tables name."""


Meaning = TypeVar("Meaning")


def meant(table: Mapping[str, Meaning], word: str, column: str) -> Meaning:
    """What a word of a column means. Raises HardwareError where it means nothing here."""
    if word not in table:
        raise HardwareError(f"column {column}: '{word[:40]}' is none of {', '.join(table)}")
    return table[word]


def link_of_device(device: str) -> str:
    """Link card between devices of this kind. Raises HardwareError where none is known."""
    if device not in LINK_OF_DEVICE:
        known = ", ".join(LINK_OF_DEVICE)
        raise HardwareError(
            f"no link card is known for device '{device[:80]}'; name in the column one of the same link: {known}"
        )
    return LINK_OF_DEVICE[device]
