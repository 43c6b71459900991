"""`capture runs`: every kind of run on a device, written kind by kind so that a time-out loses little."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scenarios.errors import ScenarioError
from scenarios.files import check_folder
from traces.capture.runs.bench import Bench
from traces.capture.runs.kinds import KINDS, has_grouped
from traces.capture.runs.neighbours import beside, hand_over
from traces.capture.runs.parts import Part, Profile, attended, grouped, write_parts
from traces.capture.runs.record import write_kind
from traces.capture.streams import open_lanes, two_cores

REPEATS = 5
PARTS = "parts"


def capture_runs(device: str, out: Path, kinds: Sequence[str], repeats: int = REPEATS) -> list[Path]:
    """Run the kinds on a device ("cpu", "cuda") and write `runs-KIND.json` and `.npz` to `out`; paths of the JSON files.

    Raises ScenarioError for unknown kinds or devices, MoesimError where `out` cannot be written.
    """
    unknown = [kind for kind in kinds if kind not in (*KINDS, PARTS)]
    if unknown:
        raise ScenarioError(f"kind '{unknown[0]}' is not known; choose among {PARTS}, {', '.join(KINDS)}")
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    cores = two_cores() if device == "cpu" else None
    with open_lanes(device, cores) as lanes, torch.inference_mode():
        bench = Bench(lanes=lanes, repeats=repeats)
        for kind in kinds:
            begin = time.perf_counter()
            if kind == PARTS:
                write_parts(measure_parts(bench), out / f"runs-{PARTS}.csv")
                print(f"{kind}: {time.perf_counter() - begin:.0f} s", flush=True)
                continue
            cases = list(KINDS[kind](bench))
            taken_s = time.perf_counter() - begin
            write_kind(kind, cases, bench.shapes, provenance(device, kind, repeats, taken_s), out)
            print(f"{kind}: {len(cases)} cases in {taken_s:.0f} s", flush=True)
    return [out / (f"runs-{PARTS}.csv" if kind == PARTS else f"runs-{kind}.json") for kind in kinds]


def measure_parts(bench: Bench) -> list[Part]:
    """Parts of the passes of all models, alone and beside the side stream."""
    parts: list[Part] = []
    for name in bench.shapes:
        model = bench.model(name, "own")
        profile = Profile(bench, model)
        for size in attended():
            profile.watch(size)
        parts += profile.parts(name)
        if has_grouped(bench):
            parts += grouped(bench, model, name)
        parts += [*beside(bench, model, name), *hand_over(bench, model, name)]
    return parts


def provenance(device: str, kind: str, repeats: int, taken_s: float) -> Mapping[str, Any]:
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
        "taken_s": round(taken_s, 1),
    }


def _processor() -> str:
    """Name of the processor, as Linux states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
