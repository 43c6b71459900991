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
from traces.capture.runs.kinds import KINDS
from traces.capture.runs.record import write_kind
from traces.capture.streams import open_lanes, two_cores

REPEATS = 5


def capture_runs(device: str, out: Path, kinds: Sequence[str], repeats: int = REPEATS) -> list[Path]:
    """Run the kinds on a device ("cpu", "cuda") and write `runs-KIND.json` and `.npz` to `out`; paths of the JSON files.

    Raises ScenarioError for unknown kinds or devices, MoesimError where `out` cannot be written.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ScenarioError(f"kind '{unknown[0]}' is not known; choose among {', '.join(KINDS)}")
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    cores = two_cores() if device == "cpu" else None
    with open_lanes(device, cores) as lanes, torch.inference_mode():
        bench = Bench(lanes=lanes, repeats=repeats)
        for kind in kinds:
            begin = time.perf_counter()
            cases = list(KINDS[kind](bench))
            taken_s = time.perf_counter() - begin
            write_kind(kind, cases, bench.shapes, provenance(device, kind, repeats, taken_s), out)
            print(f"{kind}: {len(cases)} cases in {taken_s:.0f} s", flush=True)
    return [out / f"runs-{kind}.json" for kind in kinds]


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
