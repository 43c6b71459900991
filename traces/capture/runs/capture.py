"""`capture runs`: every kind of run on a device, written kind by kind so that a time-out loses little."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from scenarios.errors import ScenarioError
from scenarios.files import check_folder
from traces.capture.decoder import Decoder
from traces.capture.runs.bench import Bench
from traces.capture.runs.kinds import KINDS
from traces.capture.runs.neighbours import beside, hand_over
from traces.capture.runs.parts import Part, Profile, attended, write_parts
from traces.capture.runs.record import write_kind
from traces.capture.streams import open_lanes, two_cores

REPEATS = 5


def capture_runs(
    device: str, out: Path, kinds: Sequence[str], models: Sequence[str] = (), repeats: int = REPEATS
) -> list[Path]:
    """Run the kinds on a device ("cpu", "cuda"); paths of the files in `out`.

    `runs-KIND.json` and `.npz` of runs, `runs-parts.csv` and `runs-neighbours.csv` of parts; they are written after
    each model (default: all), and keep what they hold of other models. Raises ScenarioError for unknown kinds, models
    or devices, MoesimError where `out` cannot be written.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    cores = two_cores() if device == "cpu" else None
    paths: dict[Path, None] = {}
    with open_lanes(device, cores) as lanes, torch.inference_mode():
        bench = Bench(lanes=lanes, repeats=repeats)
        check_names("kind", kinds, (*TABLES, *KINDS))
        check_names("model", models, bench.shapes)
        for name, kind in product(models or bench.shapes, kinds):
            begin = time.perf_counter()
            if kind in TABLES:
                path = out / f"runs-{kind}.csv"
                write_parts(TABLES[kind](bench, bench.model(name, "own"), name), path)
            else:
                path = out / f"runs-{kind}.json"
                cases = list(KINDS[kind](bench, name))
                write_kind(kind, cases, bench.shapes, provenance(device, kind, repeats), out)
            paths[path] = None
            print(f"{name} {kind}: {time.perf_counter() - begin:.0f} s", flush=True)
    return list(paths)


def check_names(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Raise ScenarioError for the first name that is not known."""
    for name in names:
        if name not in known:
            raise ScenarioError(f"{what} '{name}' is not known; choose among {', '.join(known)}")


def parts_of(bench: Bench, model: Decoder, name: str) -> list[Part]:
    """Parts of the passes of a model, with the loop back end."""
    profile = Profile(bench, model)
    for size in attended():
        profile.watch(size)
    return profile.parts(name)


def neighbours_of(bench: Bench, model: Decoder, name: str) -> list[Part]:
    """Parts beside the side stream, and that stream's work."""
    return [*beside(bench, model, name), *hand_over(bench, model, name)]


TABLES = {"parts": parts_of, "neighbours": neighbours_of}


def provenance(device: str, kind: str, repeats: int) -> Mapping[str, Any]:
    """What was run, on what, when and how."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "dtype": "bf16" if cuda else "fp32",
        "lanes": {"compute": "current stream", "copies": "stream", "host": "thread"}
        if cuda
        else {"compute": "one core", "copies": "another core", "host": "that other core"},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "date": time.strftime("%Y-%m-%d"),
        "command": f"moesim capture runs --device {device} --kinds {kind} --repeats {repeats}",
        "repeats": repeats,
    }


def _processor() -> str:
    """Name of the processor, as Linux states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
