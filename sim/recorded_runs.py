"""Recorded runs of a device, as `moesim capture runs` writes them: what a prediction may see, and what was measured."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import ScenarioError, TraceError
from scenarios.models import DType, ModelCard
from traces.capture.cards import model_card
from traces.capture.config import MoeConfig

KINDS = ("steps", "offload", "hybrid", "overlap", "serving")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the decoder of a run that decisions need, and its card for prices."""

    n_layers: int
    n_experts: int
    shared: bool
    card: ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a prediction may see of a run: settings, routing, contexts, arrivals; `traces.capture.runs` says how."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    shape: Shape
    arrays: Arrays

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of every expert, int64 [pass, layer, expert]."""
        ids, offsets = self.arrays["ids"], self.arrays["token_offsets"]
        return tokens_of_experts(ids, offsets, self.shape.n_experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One case: what may be seen, times of all repeats `run_s` [s], and the measured arrays."""

    seen: Seen
    run_s: NDArray[np.float64]
    measured: Arrays
    others_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedKind:
    """All cases of a kind on a device, by models in `dtype`."""

    kind: str
    device: str
    dtype: str
    runs: tuple[RecordedRun, ...]


def read_kind(folder: Path, kind: str) -> RecordedKind:
    """The runs of a kind. Raises TraceError where a file is missing or does not hold what it should."""
    path = folder / f"runs-{kind}.json"
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        shapes = {name: _shape(name, entry, text["dtype"], text["command"]) for name, entry in text["models"].items()}
        runs = tuple(_run(kind, entry, shapes, arrays) for entry in text["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: not a record of runs ({error}); write it with `moesim capture runs`") from None
    return RecordedKind(kind=kind, device=text["device"], dtype=text["dtype"], runs=runs)


def read_hand_over_s(folder: Path) -> float:
    """Time from giving an idle side stream work until it is known to be done, beside the work [s].

    Raises TraceError where the folder's table of neighbours lacks it.
    """
    path = folder / "runs-neighbours.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return float(
                np.median([float(row["median_s"]) for row in csv.DictReader(file) if row["part"] == "hand-over"])
            )
    except (OSError, KeyError, ValueError) as error:
        raise TraceError(f"{path}: holds no hand-over ({error}); write it with `moesim capture runs`") from None


def kinds_in(folder: Path) -> list[str]:
    """Kinds that the folder has records of."""
    return [kind for kind in KINDS if (folder / f"runs-{kind}.json").is_file()]


def tokens_of_experts(ids: NDArray[Any], offsets: NDArray[Any], n_experts: int) -> NDArray[np.int64]:
    """Tokens of every expert, int64 [pass, layer, expert], of ids [layer, k, token] in passes by their offsets."""
    n_layers = len(ids)
    counts = np.zeros((len(offsets) - 1, n_layers, n_experts), np.int64)
    for number, (start, end) in enumerate(itertools.pairwise(offsets)):
        for layer in range(n_layers):
            counts[number, layer] = np.bincount(ids[layer, :, start:end].ravel(), minlength=n_experts)
    return counts


def _shape(name: str, entry: Mapping[str, Any], dtype: DType, source: str) -> Shape:
    return Shape(
        n_layers=entry["n_layers"],
        n_experts=entry["n_experts"],
        shared=entry["shared_intermediate_size"] > 0,
        card=model_card(MoeConfig(**entry), name, dtype, source),
    )


def _run(kind: str, entry: Mapping[str, Any], shapes: Mapping[str, Shape], arrays: Arrays) -> RecordedRun:
    name, settings = entry["name"], entry["settings"]

    def group(part: str) -> dict[str, NDArray[Any]]:
        head = f"{name}/{part}/"
        found = {key.removeprefix(head): array for key, array in arrays.items() if key.startswith(head)}
        for array in found.values():
            array.setflags(write=False)
        return found

    shape = shapes[settings["model"]]
    seen = Seen(kind=kind, name=name, settings=settings, shape=shape, arrays=group("seen"))
    if int(seen.arrays["ids"].max()) >= shape.n_experts or len(seen.arrays["ids"]) != shape.n_layers:
        raise ScenarioError(f"{name}: its routing does not fit {shape.n_layers} layers of {shape.n_experts} experts")
    return RecordedRun(
        seen=seen, run_s=np.array(entry["run_s"]), measured=group("measured"), others_frac=entry["others_frac"]
    )


def predicted_experts(seen: Seen) -> Sequence[Sequence[Sequence[int]]] | None:
    """Experts that a prefetch expected, [pass][layer - 1]; None where nothing was prefetched."""
    if "predicted" not in seen.arrays:
        return None
    ids, offsets = seen.arrays["predicted"], seen.arrays["token_offsets"]
    return [[np.unique(layer[:, start:end]).tolist() for layer in ids] for start, end in itertools.pairwise(offsets)]
