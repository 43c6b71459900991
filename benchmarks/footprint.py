"""Memory of a replay from a large trace on disk, and the start-up of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from benchmarks.cases import N_EXPERTS, N_LAYERS, TOP_K
from benchmarks.machine import Row
from traces.storage import FORMAT

REPLAY = """
import json, resource, sys
from pathlib import Path
import numpy as np
from benchmarks.cases import nodes_of_eight, spread
from placement.reduction import reduce_trace
from traces.batches import compose_batches
from traces.storage import load_trace
trace = load_trace(Path(sys.argv[1]), check_ids=False)
rng = np.random.default_rng(0)
shape = (16, 32, 128)
sequences = np.arange(trace.n_sequences)
batches = compose_batches(trace, sequences, phase="decode", shape=shape, context_tokens=None, rng=rng)
reduction = reduce_trace(trace, batches.tokens, spread(32), nodes_of_eight(32))
assert reduction.slot_tokens.sum() == 16 * 32 * 128 * trace.n_layers * trace.top_k
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
IMPORT = """
import json, sys, time
started = time.process_time()
import moesim, moesim.api
heavy = sorted({"numba", "pandas", "torch", "matplotlib", "pyarrow"} & set(sys.modules))
print(json.dumps([time.process_time() - started, heavy]))
"""


def footprint_rows(n_tokens: int = 10_000_000) -> list[Row]:
    """Peak resident memory of a replay from a trace of `n_tokens` x 58 layers x top-8 (4.6 GB), and import time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.npz"
        write_large_trace(path, n_tokens)
        resident = float(_python(REPLAY, str(path)))
    seconds, heavy = json.loads(_python(IMPORT))
    if heavy:
        raise SystemExit(f"import moesim.api loads {', '.join(heavy)}")
    return [
        Row(
            goal="replay of a 10 M token trace",
            unit="GiB resident",
            target=1,
            measured=resident / 2**30,
            scales=False,
            at_most=True,
        ),
        Row(goal="import of the whole interface", unit="CPU s", target=0.5, measured=seconds, at_most=True),
    ]


def write_large_trace(path: Path, n_tokens: int) -> None:
    """A trace whose ids repeat a block of 10,000 tokens, written without holding it."""
    block = np.random.default_rng(0).integers(0, N_EXPERTS, (TOP_K, 10_000), dtype=np.uint8)
    meta = {
        "format": FORMAT,
        "n_experts": N_EXPERTS,
        "moe_layers": list(range(3, 3 + N_LAYERS)),
        "phase": "decode",
        "labels": [],
        "weight_ordered": False,
        "variable_k": False,
        "provenance": {"model": "deepseek-v3", "source": "benchmark", "kind": "synthetic", "licence": "-", "notes": []},
    }
    small = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "offsets": np.arange(0, n_tokens + 1, 1000),
        "positions": (np.arange(n_tokens) % 1000).astype(np.int32),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                npy.write_array(stream, array)
        with archive.open("ids.npy", "w", force_zip64=True) as stream:
            _write_ids(stream, block, n_tokens)


def _write_ids(stream: IO[bytes], block: np.ndarray, n_tokens: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (N_LAYERS, TOP_K, n_tokens)}
    npy.write_array_header_1_0(stream, header)
    for layer in range(N_LAYERS):
        for k in range(TOP_K):
            stream.write(np.roll(block[k], layer).tobytes() * (n_tokens // block.shape[1]))


def _python(code: str, *arguments: str) -> str:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=root).stdout
