"""Valid inputs of every entry point, and what reads them. A seed writes files to a folder and returns their reader."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from placement.formats import format_of, import_plan
from scenarios.catalog import library_path
from scenarios.loader import load_scenario
from scenarios.published import read_published
from scenarios.units import UNITS, parse_quantity
from tests.cli.command import CARD, SCENARIO
from tests.conformance.test_plan_formats import published, without_replicas, written
from tests.conformance.trace_fixtures import FIXTURES
from tests.devices import h200
from tests.small import random_trace, tiny_model
from tests.timings import attention_rows, gemm_rows, mla_rows, moe_rows, timings, with_times
from traces.formats import import_trace
from traces.stats import summarise
from traces.storage import load_trace, save_trace

Reader = Callable[[], object]
Seed = Callable[[Path], Reader]
TEXT = "text"
"""File that stands for words of the command line."""
SCENARIO_FILE = "scenario.yaml"


def one_file(name: str, content: str | bytes, read: Callable[[Path], object]) -> Seed:
    """A seed of one file."""

    def seed(folder: Path) -> Reader:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return lambda: read(path)

    return seed


def words(text: str, read: Callable[[str], object]) -> Seed:
    """A seed of a text as the command line brings it: bytes that are no UTF-8 become surrogates."""
    return one_file(TEXT, text, lambda path: read(os.fsdecode(path.read_bytes())))


def scenario_for(text: str, use: Callable[[Path], object]) -> Seed:
    """A seed of a scenario with its model card beside it."""

    def seed(folder: Path) -> Reader:
        (folder / "tiny-moe.yaml").write_text(CARD)
        (folder / SCENARIO_FILE).write_text(text)
        return lambda: use(folder / SCENARIO_FILE)

    return seed


def load(path: Path) -> object:
    from moesim import api

    return api.load(path)


def _quietly(work: Callable[[], object]) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        work()


def run(path: Path) -> None:
    from moesim import api

    api.run(api.load(path))


def place(path: Path) -> None:
    from moesim import api

    api.place(api.load(path))


def bound(path: Path) -> None:
    from moesim import api

    api.bound(api.load(path))


def _set(option: str) -> None:
    load_scenario(Path(SCENARIO_FILE), [option])


def set_option(option: str) -> Seed:
    def seed(folder: Path) -> Reader:
        read = words(option, _set)(folder)
        (folder.parent / SCENARIO_FILE).write_text(SCENARIO)
        return read

    return seed


def paper(path: Path) -> None:
    """What `moesim reproduce` does with a file, but for the simulations: every metric is 1.5."""
    from sim.reproduce.claims import reproduced

    with mock.patch("sim.reproduce.claims.Cases", _Cases):
        reproduced(path, "fuzz")


class _Cases:
    """Stands for the cases of a paper."""

    def __init__(self, *_: object) -> None: ...

    def fit(self) -> None: ...

    def metric(self, *_: object) -> float:
        return 1.5

    def fits_of(self, _: object) -> list[object]:
        return []

    def constants(self) -> tuple[object, ...]:
        return ()


def expression(text: str) -> None:
    from sim.reproduce.expressions import evaluate

    evaluate(text, lambda *_: 1.5)


def quantity(text: str) -> None:
    """Text of a quantity in every dimension; a ValueError becomes a line of the scenario's problems."""
    for dimension in UNITS:
        try:
            parse_quantity(text, dimension)
            read_published(text)
        except ValueError:
            continue


def axis(text: str) -> None:
    from sim.sweep.points import parse_axis, points_of

    points_of([parse_axis(text)], [], 3, 0)


def cards(path: Path) -> None:
    from hwmodels.library import cards_with

    cards_with(path)


def kernels(path: Path) -> None:
    from hwmodels.library import find_kernels

    find_kernels(str(path))


def trace_seed(weights: bool) -> Seed:
    def seed(folder: Path) -> Reader:
        trace = random_trace(tiny_model())
        if weights:
            shares = np.full(trace.ids.shape, 0.5, np.float16)
            trace = replace(trace, weights=shares, labels=tuple(f"domain{n % 3}" for n in range(trace.n_sequences)))
        save_trace(trace, folder / "trace.npz")
        return lambda: summarise(load_trace(folder / "trace.npz"))

    return seed


def import_seed(format: str) -> Seed:
    def seed(folder: Path) -> Reader:
        made = FIXTURES[format](folder)
        return lambda: import_trace(format, made.path, made.options)

    return seed


def plan_seed(format: str, suffix: str) -> Seed:
    content = without_replicas() if format == "exflow" else published()

    def seed(folder: Path) -> Reader:
        path = written(content, format, folder, suffix)
        return lambda: (import_plan(path, content.deployment), format_of(path))

    return seed


def table_bytes(rows: Iterable[Mapping[str, Any]], suffix: str) -> bytes:
    listed = [{"latency": 0.01 * (n + 1), **row} for n, row in enumerate(rows)]
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(listed), stream)
        return stream.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, listed[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return gzip.compress(text.getvalue().encode()) if suffix.endswith(".gz") else text.getvalue().encode()


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "moe": moe_rows, "gemm": gemm_rows, "attention": attention_rows, "mla": mla_rows,
}  # fmt: skip


def timings_seeds(read: Callable[[Path], object]) -> tuple[Seed, ...]:
    return tuple(
        one_file(f"table{suffix}", table_bytes(rows()[:40], suffix), read)
        for rows in ROWS.values()
        for suffix in (".csv", ".csv.gz", ".parquet")
    )


def link_rows() -> Iterable[list[dict[str, Any]]]:
    """A table of each family of communication, with numbers that rise."""
    from hwmodels.calibration.links import FAMILIES

    words = {"nccl_dtype": "half", "allreduce_dtype": "bfloat16", "op_name": "all_reduce", "device": "NVIDIA H200",
             "comm_backend": "nccl", "phase": "dispatch", "kernel_source": "toy", "moe_dtype": "bfloat16",
             "direction": "h2d", "method": "async"}  # fmt: skip
    for needed, _ in FAMILIES.values():
        yield [{name: words.get(name, 2 ** (n % 12) + 1) for name in sorted(needed)} for n in range(24)]


def lawful_rows() -> list[dict[str, Any]]:
    """Products that take what a law says, so that it can be fitted."""
    rows = [row for row in gemm_rows() if (row["n"], row["k"]) in ((4096, 4096), (256, 7168), (14336, 4096))]
    return [
        {**row, "latency": 1e3 * t} for row, t in zip(rows, with_times(timings(rows), h200()).measured_s, strict=True)
    ]


def validate(path: Path) -> None:
    from moesim import validating

    _quietly(lambda: validating.show_table("kernels", path, "h200-sxm", "h200-vllm", None, None, None))


def calibrate(path: Path) -> None:
    from hwmodels.calibration.links import is_link_table
    from hwmodels.validation.timings import read_columns
    from moesim import calibrating

    card = None if is_link_table(read_columns(path)) else "h200-sxm"
    _quietly(lambda: calibrating.show([path], card, None, None, None, None))


def sweep_seed(folder: Path) -> Reader:
    from sim.sweep import findings, store

    metrics = {"tokens_per_s": 9.5, "step_time_s": 0.25, "tokens_per_s_per_device": 4.0, "tpot_s.mean": 0.1}
    for n in range(3):
        point = {"cluster.nodes": str(n + 1), "workload.steps": "2"}
        parts = {"plan": "eplb", "metrics": metrics, "breakdown_s": {"experts": 0.1}}
        store.save(folder, {"key": str(n), "point": point, **parts})

    def read() -> None:
        found = [known for n in range(3) if (known := store.load(folder, str(n))) is not None]
        results = [known | {"point": {"cluster.nodes": "1", "workload.steps": "2"}} for known in found]
        findings.csv_text(results)
        findings.front(results)
        for metric in ("tokens_per_s", "step_time_s"):
            findings.ranked(results, metric)
            findings.effects(results, metric)

    return read


def library(pattern: str) -> list[str]:
    return [path.read_text() for path in sorted(library_path().glob(pattern))]
