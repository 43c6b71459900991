"""What a run leaves behind: one JSON and one npz for each kind of run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
    """Write `runs-KIND.json` and `runs-KIND.npz`; arrays are named CASE/seen/NAME and CASE/measured/NAME."""
    entries = [
        {
            "name": case.name,
            "settings": dict(case.settings),
            "run_s": [round(seconds, 9) for seconds in case.run_s],
            "others_frac": case.others_frac,
        }
        for case in cases
    ]
    text = json.dumps(
        {"kind": kind, "models": {name: asdict(one) for name, one in shapes.items()}, **provenance, "cases": entries},
        indent=1,
    )
    arrays = {
        f"{case.name}/{part}/{name}": array
        for case in cases
        for part, group in (("seen", case.seen), ("measured", case.measured))
        for name, array in group.items()
    }
    with whole_file(folder / f"runs-{kind}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_text(text + "\n", folder / f"runs-{kind}.json")
