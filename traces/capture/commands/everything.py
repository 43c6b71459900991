"""`capture all`: routing, kernels and runs in one go."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scenarios.errors import MoesimError
from scenarios.files import check_folder, whole_file, write_text

HELP = "Routing, kernels and whole runs of this machine's device, in one go: one archive each, and a summary."
MINUTES = 9.0
SHARES = {"kernels": 0.45, "runs": 0.3, "train": 0.25}
"""Parts in their order, and what each may take of the time that is left when it begins, over those still to come."""
LARGEST_BYTES = 16 << 20
LEFT_OUT = (".pt", ".part")  # checkpoints, and files that were not finished
PACKAGES = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What became of a part: exit code (None: cut off by its time limit), seconds, archive and size, last words."""

    name: str
    exit_code: int | None
    seconds: float
    archive: str
    bytes: int
    message: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="[cuda]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the archives")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help=f"time for all parts [{MINUTES:g}]")
    parser.add_argument(
        "--corpus",
        action="append",
        default=[],
        metavar="DOMAIN=PATH",
        help="texts to train a router on, as for `train`; without them no routing is recorded",
    )


def run(options: argparse.Namespace) -> None:
    """Run every part as a process of its own, so that none takes the others along; pack what each wrote.

    Raises MoesimError where a part failed, after all have run.
    """
    check_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in SHARES if name != "train" or options.corpus]
    until, parts = time.monotonic() + 60 * options.minutes, []
    for place, name in enumerate(names):
        share = SHARES[name] / sum(SHARES[later] for later in names[place:])
        parts.append(_run_part(name, options, (until - time.monotonic()) * share))
        print(f"{name}: exit code {parts[-1].exit_code}, {parts[-1].seconds:.0f} s, {parts[-1].archive}", flush=True)
        write_text(json.dumps([asdict(part) for part in parts], indent=2) + "\n", options.out / "summary.json")
    failed = [f"{part.name}: {part.message or 'cut off by its time limit'}" for part in parts if part.exit_code != 0]
    if failed:
        raise MoesimError(f"some parts are not complete; what they wrote is in {options.out}: {'; '.join(failed)}")


def arguments_of(name: str, device: str, folder: Path, corpus: Sequence[str], seconds: float) -> list[str]:
    """Command line of a part that writes into `folder`."""
    common = [name, "--device", device, "--out", str(folder)]
    if name == "kernels":
        # The rest of its share is for imports and the point that is under way when time is up.
        return [*common, "--minutes", f"{0.85 * seconds / 60:.3f}"]
    if name == "train":
        recipe = ["--recipe", "gpu-large"] if device == "cuda" else []
        return [*common, *recipe, *(word for text in corpus for word in ("--corpus", text))]
    return [*common, "--repeats", "3"]


def _run_part(name: str, options: argparse.Namespace, seconds: float) -> Part:
    folder = options.out / name
    words = arguments_of(name, options.device, folder, options.corpus, seconds)
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "traces.capture", *words],
            env=os.environ | {"PYTHONPATH": str(PACKAGES)},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        code, said = done.returncode, done.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        code, said = None, []
    archive = options.out / f"{name}.zip"
    size = pack(folder, archive)
    return Part(
        name=name,
        exit_code=code,
        seconds=round(time.monotonic() - started, 1),
        archive=archive.name,
        bytes=size,
        message=" ".join([*said, *([f"{archive.name} exceeds 16 MiB"] if size > LARGEST_BYTES else [])]),
    )


def pack(folder: Path, archive: Path) -> int:
    """Pack the finished files of a folder, checkpoints left out; returns the archive's bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in LEFT_OUT)
    with whole_file(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in files:
            stream.write(path, path.relative_to(folder))
    return archive.stat().st_size
