"""Suite `runs`: whole runs of a real decoder, predicted from kernels and recorded routing; no time of a run is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.ship_measured import MEASURED
from hwmodels.library import list_cards
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.score import Score, score
from scenarios.errors import TraceError
from sim.card_times import card_times, stretched_times
from sim.part_times import read_parts
from sim.recorded_runs import RecordedKind, RecordedRun, kinds_in, read_hand_over_s, read_kind
from sim.run_prediction import PassTimes, predicted_run_s, predicted_service, uses_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One quantity of one run: predicted [s], with a band, and measured by repeat."""

    run: RecordedRun
    predicted_s: float
    low_s: float
    high_s: float
    repeats_s: NDArray[np.float64]

    @property
    def measured_s(self) -> float:
        """Median of the repeats [s]."""
        return float(np.median(self.repeats_s))

    @property
    def spread_s(self) -> float:
        """From the fastest to the slowest repeat [s]."""
        return float(np.ptp(self.repeats_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricer:
    """Where times of parts come from: the device's calibrated card, or parts profiled in passes of other sizes.

    low, median and high are those of a model by name: with the bands of all laws, or the spread of the profile.
    """

    name: str
    constants: str
    one_side: bool
    of: Callable[[RecordedRun], tuple[PassTimes, PassTimes, PassTimes]]


def by_card(folder: Path, dtype: str) -> Pricer:
    """Times by the laws of the device's card, its sharing and the measured hand-over to a side stream."""
    node, hand_over_s = node_of(folder.name), read_hand_over_s(folder)

    def of(run: RecordedRun) -> tuple[PassTimes, PassTimes, PassTimes]:
        times = card_times(node, run.seen.shape.card, folder / "sharing.csv", hand_over_s)
        return times, stretched_times(times, "low"), stretched_times(times, "high")

    return Pricer(name=f"{folder.name} by card", constants=node, one_side=dtype == "fp32", of=of)


def by_parts(folder: Path, dtype: str) -> Pricer:
    """Times by the parts that were profiled in passes of other sizes; between their quantiles lie four in five."""
    tables = tuple(read_parts(folder, quantile) for quantile in ("median_s", "p10_s", "p90_s"))

    def of(run: RecordedRun) -> tuple[PassTimes, PassTimes, PassTimes]:
        median, low, high = (table[run.seen.settings["model"]] for table in tables)
        return median, low, high

    return Pricer(name=f"{folder.name} by parts", constants="profiled parts", one_side=dtype == "fp32", of=of)


def runs(folder: Path, progress: Progress) -> list[Judged]:
    """Errors by device and kind, hits and rankings of the shipped runs, or of the folder's own where it holds any."""
    rows: list[Judged] = []
    for place in run_folders(folder):
        rows += judge_folder(place, progress)
    return rows


def run_folders(folder: Path) -> list[Path]:
    """Folders that hold runs: the given one, else those of the shipped measurements."""
    if kinds_in(folder):
        return [folder]
    return [place for place in sorted(MEASURED.glob("*")) if kinds_in(place)]


def judge_folder(folder: Path, progress: Progress) -> list[Judged]:
    """All rows of one device. Raises TraceError where simulated hits differ from the recorded ones."""
    rows: list[Judged] = []
    names = kinds_in(folder)
    for number, (make, name) in enumerate(product((by_card, by_parts), names)):
        progress(f"{folder.name} {name}", number / (2 * len(names)))
        kind = read_kind(folder, name)
        pricer = make(folder, kind.dtype)
        label = ("", pricer.name, folder.name, pricer.constants)
        for quantity, found in predictions(kind, pricer).items():
            rows.append(judged("runs", _score(f"{quantity} {kind.dtype}", found, label)))
            ranked = None if name == "steps" else ranking(found)
            if ranked is not None:
                rows.append(judged("runs", _ranking_score(f"ranking of {quantity}", ranked, label)))
    return rows


def node_of(device: str) -> str:
    """Name of the node card with one device of this name. Raises TraceError where there is none."""
    for node in list_cards().nodes:
        if node.device == device and node.n_devices.value == 1:
            return node.name
    raise TraceError(f"no node card has one {device}; calibrate the kernels of the device that the runs are of")


def predictions(kind: RecordedKind, pricer: Pricer) -> dict[str, list[Predicted]]:
    """Predictions by quantity: of a kind its total time; of serving also time per token and latency."""
    found: dict[str, list[Predicted]] = {}
    for run in kind.runs:
        if kind.kind == "serving":
            for quantity, one in _served(run, pricer):
                found.setdefault(quantity, []).append(one)
            continue
        check_cache(run)
        low_high = [predicted_run_s(run.seen, times, one_side=pricer.one_side) for times in pricer.of(run)]
        quantity = f"{kind.kind} {run.seen.settings['phase']}" if kind.kind == "steps" else kind.kind
        if run.seen.settings.get("backend") == "grouped":
            quantity += " grouped"
        found.setdefault(quantity, []).append(_predicted(run, low_high, run.run_s))
    return found


def check_cache(run: RecordedRun) -> None:
    """Raise TraceError where simulated hits or misses differ from the recorded ones, which nothing may."""
    if "hits" not in run.measured:
        return
    uses = uses_of(run.seen)
    for name, counted in (("hits", "n_hits"), ("misses", "n_misses")):
        simulated = np.array([[getattr(layer, counted) for layer in one] for one in uses])
        wrong = np.argwhere(simulated != run.measured[name])
        if len(wrong):
            step, layer = wrong[0].tolist()
            raise TraceError(
                f"{run.seen.name}: pass {step}, layer {layer}: {simulated[step, layer]} {name} simulated, "
                f"{run.measured[name][step, layer]} recorded"
            )


def ranking(found: Sequence[Predicted]) -> tuple[int, int] | None:
    """(pairs ranked rightly, pairs) of runs that differ in their policy alone, and by more than their repeats do."""
    right = pairs = 0
    for one, other in combinations(found, 2):
        difference_s = one.measured_s - other.measured_s
        if _rival(one) != _rival(other) or abs(difference_s) <= max(one.spread_s, other.spread_s):
            continue
        pairs += 1
        right += (one.predicted_s - other.predicted_s) * difference_s > 0
    return (right, pairs) if pairs else None


POLICY = ("n_slots", "prefetch", "copy_from_tokens", "overlapped", "max_batch")
"""Settings that a user chooses; runs that agree in all others and in their requests are compared."""


def _rival(one: Predicted) -> tuple[object, ...]:
    seen = one.run.seen
    settings = tuple(sorted((key, str(value)) for key, value in seen.settings.items() if key not in POLICY))
    return settings, seen.arrays["token_offsets"].tobytes()


def _served(run: RecordedRun, pricer: Pricer) -> Iterator[tuple[str, Predicted]]:
    served = [predicted_service(run.seen, times) for times in pricer.of(run)]
    arrival_s, answers = run.seen.arrays["arrival_s"], run.seen.arrays["answer_tokens"]
    done_s, first_s = run.measured["done_s"], run.measured["first_token_s"]
    tpot_s = (done_s - first_s) / np.maximum(answers - 1, 1)
    yield "serving total", _predicted(run, [one.total_s for one in served], done_s.max(axis=1))
    yield "serving tpot", _predicted(run, [float(one.tpot_s.mean()) for one in served], tpot_s.mean(axis=1))
    latency_s = (done_s - arrival_s).mean(axis=1)
    yield "serving latency", _predicted(run, [float(one.latency_s.mean()) for one in served], latency_s)


def _predicted(run: RecordedRun, low_high: Sequence[float], repeats_s: NDArray[np.float64]) -> Predicted:
    median_s, low_s, high_s = low_high
    return Predicted(run=run, predicted_s=median_s, low_s=low_s, high_s=high_s, repeats_s=np.asarray(repeats_s))


def _score(name: str, found: Sequence[Predicted], label: tuple[str, str, str, str]) -> Score:
    measured_s = np.array([one.measured_s for one in found])
    inside = np.array([one.low_s <= one.measured_s <= one.high_s for one in found])
    return score(name, "card", label, np.array([one.predicted_s for one in found]), measured_s, inside)


def _ranking_score(name: str, ranked: tuple[int, int], label: tuple[str, str, str, str]) -> Score:
    """Wrong pairs as errors of one: the mean is the share that is ranked wrongly."""
    right, pairs = ranked
    wrong = np.r_[np.ones(right), np.full(pairs - right, 2.0)]
    return score(name, "card", label, wrong, np.ones(pairs))


def run_points() -> Iterator[tuple[str, NDArray[np.str_], NDArray[np.float64], NDArray[np.float64]]]:
    """(title, model of each run, measured [s], predicted [s]) of every quantity of the shipped runs, by parts."""
    for folder in run_folders(Path()):
        for name in kinds_in(folder):
            kind = read_kind(folder, name)
            pricer = by_parts(folder, kind.dtype)
            for quantity, found in predictions(kind, pricer).items():
                measured_s, predicted_s = np.array([(one.measured_s, one.predicted_s) for one in found]).T
                models = np.array([str(one.run.seen.settings["model"]) for one in found])
                yield f"runs: {quantity} ({folder.name})", models, measured_s, predicted_s
