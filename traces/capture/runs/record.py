"""What a run leaves behind: one JSON and one npz for each kind of run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import TraceError
from scenarios.files import whole_file, write_text
from traces.capture.config import MoeConfig

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One case of a kind: its settings, the measured total time of every repeat [s], and arrays.

    `settings` and `seen` are what the simulator may see; `measured` what it must predict (times and cache hits).
    `others_frac` is the share of a core that other processes took meanwhile.
    """

    name: str
    settings: Mapping[str, Any]
    run_s: Sequence[float]
    seen: Arrays = field(default_factory=dict)
    measured: Arrays = field(default_factory=dict)
    others_frac: float = 0.0


def write_kind(
    kind: str, cases: Sequence[Recorded], shapes: Mapping[str, MoeConfig], provenance: Mapping[str, Any], folder: Path
) -> None:
    """Write `runs-KIND.json` and `runs-KIND.npz`; arrays are named CASE/seen/NAME and CASE/measured/NAME.

    Cases of other models that the files hold already stay. Raises TraceError where the files are not such records.
    """
    path, models = folder / f"runs-{kind}.json", {str(case.settings["model"]) for case in cases}
    entries, arrays = _of_others(path, models)
    for case in cases:
        run_s = [round(seconds, 9) for seconds in case.run_s]
        entry = {"name": case.name, "settings": dict(case.settings), "run_s": run_s, "others_frac": case.others_frac}
        entries.append(entry)
        for part, group in (("seen", case.seen), ("measured", case.measured)):
            arrays |= {f"{case.name}/{part}/{name}": array for name, array in group.items()}
    sizes = {name: asdict(one) for name, one in shapes.items()}
    text = json.dumps({"kind": kind, "models": sizes, **provenance, "cases": entries}, indent=1)
    with whole_file(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_text(text + "\n", path)


def _of_others(path: Path, models: set[str]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Entries and arrays of a record less those of these models; nothing where there is no record."""
    if not path.is_file():
        return [], {}
    try:
        entries = [one for one in json.loads(path.read_text())["cases"] if one["settings"]["model"] not in models]
        kept = {one["name"] for one in entries}
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name.partition("/")[0] in kept}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: not a record of runs ({error}); delete it or choose another folder") from None
    return entries, arrays
