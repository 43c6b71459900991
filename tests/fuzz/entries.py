"""Where files come in: for each entry point valid files, and what reads them. `ENTRIES` lists them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from placement.formats import FORMATS, format_of, import_plan
from scenarios.catalog import find_model, library_path
from scenarios.loader import load_scenario
from scenarios.published import read_published
from scenarios.units import UNITS, parse_quantity
from tests.cli.command import CARD, SCENARIO
from tests.conformance.test_plan_formats import DENSE_FIRST, published, without_replicas, written
from tests.conformance.trace_fixtures import FIXTURES
from tests.devices import h200
from tests.small import random_trace, tiny_model
from tests.timings import attention_rows, gemm_rows, mla_rows, moe_rows, timings, with_times
from tests.unit.huggingface_configs import CONFIGS
from tests.unit.test_requests import AZURE, BURST, MOONCAKE, PLAIN
from traces.formats import import_trace
from traces.requests import read_requests
from traces.storage import load_trace, save_trace

Reader = Callable[[], object]
TEXT = "text"
"""File that stands for words of the command line."""
SCENARIO_FILE = "scenario.yaml"
Seed = Callable[[Path], Reader]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry point: seeds write valid files to a folder and return what reads them.

    named   what is refused names the file (texts of the command line are no files).
    weight  inputs of a campaign, relative to the others: what is slow gets fewer.
    """

    seeds: tuple[Seed, ...]
    named: bool = True
    weight: float = 1.0


def _file(name: str, content: str | bytes, read: Callable[[Path], object]) -> Seed:
    """A seed of one file."""

    def seed(folder: Path) -> Reader:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return lambda: read(path)

    return seed


def _text(text: str, read: Callable[[str], object]) -> Seed:
    """A seed of a text as the command line brings it: bytes that are no UTF-8 become surrogates."""
    return _file(TEXT, text, lambda path: read(os.fsdecode(path.read_bytes())))


def _scenario(text: str, use: Callable[[Path], object]) -> Seed:
    """A seed of a scenario with its model card beside it."""

    def seed(folder: Path) -> Reader:
        (folder / "tiny-moe.yaml").write_text(CARD)
        (folder / SCENARIO_FILE).write_text(text)
        return lambda: use(folder / SCENARIO_FILE)

    return seed


def _load(path: Path) -> object:
    from moesim import api

    return api.load(path)


def _quietly(work: Callable[[], object]) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        work()


def _run(path: Path) -> None:
    from moesim import api

    api.run(api.load(path))


def _place(path: Path) -> None:
    from moesim import api, placing

    loaded = api.load(path)
    _quietly(lambda: placing.show(loaded, placing.with_plan(loaded, None), placing.Targets(), quiet=True))


def _bound(path: Path) -> None:
    from moesim import api, bounding

    _quietly(lambda: bounding.show(api.load(path), None, None, quiet=True))


def _set(option: str) -> None:
    load_scenario(Path(SCENARIO_FILE), [option])


def _set_seed(option: str) -> Seed:
    def seed(folder: Path) -> Reader:
        read = _text(option, _set)(folder)
        (folder.parent / SCENARIO_FILE).write_text(SCENARIO)
        return read

    return seed


def _paper(path: Path) -> None:
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


def _expression(text: str) -> None:
    from sim.reproduce.expressions import evaluate

    evaluate(text, lambda metric, case: 1.5)


def _quantity(text: str) -> None:
    """Text of a quantity in every dimension; a ValueError becomes a line of the scenario's problems."""
    for dimension in UNITS:
        try:
            parse_quantity(text, dimension)
            read_published(text)
        except ValueError:
            continue


def _axis(text: str) -> None:
    from sim.sweep.points import parse_axis, points_of

    points_of([parse_axis(text)], [], 3, 0)


def _cards(path: Path) -> None:
    from hwmodels.library import cards_with

    cards_with(path)


def _kernels(path: Path) -> None:
    from hwmodels.library import find_kernels

    find_kernels(str(path))


def _trace_seed(weights: bool) -> Seed:
    def seed(folder: Path) -> Reader:
        from dataclasses import replace

        import numpy as np

        from traces.stats import summarise

        trace = random_trace(tiny_model())
        if weights:
            shares = np.full(trace.ids.shape, 0.5, np.float16)
            trace = replace(trace, weights=shares, labels=tuple(f"domain{n % 3}" for n in range(trace.n_sequences)))
        save_trace(trace, folder / "trace.npz")
        return lambda: summarise(load_trace(folder / "trace.npz"))

    return seed


def _import_seed(format: str) -> Seed:
    def seed(folder: Path) -> Reader:
        made = FIXTURES[format](folder)
        return lambda: import_trace(format, made.path, made.options)

    return seed


def _plan_seed(format: str, suffix: str) -> Seed:
    content = without_replicas() if format == "exflow" else published()

    def seed(folder: Path) -> Reader:
        path = written(content, format, folder, suffix)
        return lambda: (import_plan(path, content.deployment), format_of(path))

    return seed


def _table_bytes(rows: Iterable[Mapping[str, Any]], suffix: str) -> bytes:
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


def _timings_seeds(read: Callable[[Path], object]) -> tuple[Seed, ...]:
    return tuple(
        _file(f"table{suffix}", _table_bytes(rows()[:40], suffix), read)
        for rows in ROWS.values()
        for suffix in (".csv", ".csv.gz", ".parquet")
    )


def _link_rows() -> Iterable[list[dict[str, Any]]]:
    """A table of each family of communication, with numbers that rise."""
    from hwmodels.calibration.links import FAMILIES

    words = {"nccl_dtype": "half", "allreduce_dtype": "bfloat16", "op_name": "all_reduce", "device": "NVIDIA H200",
             "comm_backend": "nccl", "phase": "dispatch", "kernel_source": "toy", "moe_dtype": "bfloat16",
             "direction": "h2d", "method": "async"}  # fmt: skip
    for needed, _ in FAMILIES.values():
        yield [{name: words.get(name, 2 ** (n % 12) + 1) for name in sorted(needed)} for n in range(24)]


def _lawful_rows() -> list[dict[str, Any]]:
    """Products that take what a law says, so that it can be fitted."""
    rows = [row for row in gemm_rows() if (row["n"], row["k"]) in ((4096, 4096), (256, 7168), (14336, 4096))]
    return [{**row, "latency": 1e3 * t} for row, t in zip(rows, with_times(timings(rows), h200()).measured_s, strict=True)]


def _validate(path: Path) -> None:
    from moesim import validating

    _quietly(lambda: validating.show_table("kernels", path, "h200-sxm", "h200-vllm", None, None, None))


def _calibrate(path: Path) -> None:
    from moesim import calibrating
    from hwmodels.calibration.links import is_link_table
    from hwmodels.validation.timings import read_columns

    card = None if is_link_table(read_columns(path)) else "h200-sxm"
    _quietly(lambda: calibrating.show([path], card, None, None, None, None))


def _sweep_seed(folder: Path) -> Reader:
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


def _library(pattern: str) -> list[str]:
    return [path.read_text() for path in sorted(library_path().glob(pattern))]


SERVED = SCENARIO.replace("schedule:", "serving:\n  requests: {file: requests.csv}\nschedule:")
VARIANTS = {
    "serving": "serving:\n  requests: {requests_per_s: 2000, n: 20, input_tokens: 20, output_tokens: 5}\n"
    "  token_budget: 64\n  max_requests: 16\n  slo: {ttft: 50 ms, tpot: 4 ms}\n",
    "offload": "memory: {offload: {share: 0.5, evict: lru, prefetch: {by: learned, width: 2}}}\n",
    "budget": "budget: {money: 1 MUSD, power: 60 kW, catalogue: [{node: h200-sxm-8, price: 320 kUSD, power: 10 kW}]}\n",
    "prices": "prices: {device: 25 kUSD, lifetime: 4 a, energy: 0.1 USD/kWh}\nseed: 3\n",
    "chunked": "parallel: {attention: {dp: 4, tp: 2}, experts: {ep: 4, tp: 2}}\nmemory: {context_tokens: 100}\n",
}
SMALL = (SCENARIO, *(SCENARIO + text for text in VARIANTS.values()))
TRAINING = SCENARIO.replace("tokens_per_device: 8", "tokens_per_device: 8\n  phase: train") + "training: {zero: 1}\n"

ENTRIES: dict[str, Entry] = {
    "scenario": Entry(
        seeds=tuple(_scenario(text, _load) for text in (*SMALL, TRAINING, SERVED, *_library("examples/*.yaml"))), weight=3
    ),
    "set": Entry(
        seeds=tuple(
            _set_seed(option)
            for option in ("cluster.nodes=4", "compare.placement.1={solver: eplb, redundant: 8}", "model=tiny-moe.yaml",
                           "workload.synthetic.skew=0.5", "schedule.exchange={law: fifo, dedup: none}", "memory.reserve=0.2")
        ),
        named=False,
        weight=4,
    ),
    "model card": Entry(
        seeds=tuple(
            _file("card.yaml", text, lambda path: find_model(path.name, path.parent))
            for text in (CARD, *_library("models/*.yaml")[::4])
        ),
        weight=3,
    ),
    "config.json": Entry(
        seeds=tuple(
            _file("config.json", json.dumps(config), lambda path: find_model(path.name, path.parent))
            for config in CONFIGS.values()
        ),
        weight=4,
    ),
    "hardware cards": Entry(seeds=tuple(_file("cards.yaml", text, _cards) for text in _library("hardware/*.yaml"))),
    "kernel card": Entry(
        seeds=tuple(_file("kernels.yaml", text, _kernels) for text in _library("hardware/kernels*.yaml"))
    ),
    "paper": Entry(seeds=tuple(_file("paper.yaml", text, _paper) for text in _library("papers/*.yaml"))),
    "expression": Entry(
        seeds=(_text("step_time_s(linear) / step_time_s(chunked)", _expression), _text("min(a(b), 2 * -c.d(e))", _expression)),
        named=False,
        weight=3,
    ),
    "quantity": Entry(
        seeds=tuple(_text(text, _quantity) for text in ("900 GB/s", "1.5e-3 us", "33.7 %", "-.5 GiB", "25 kUSD")),
        named=False,
        weight=3,
    ),
    "axis": Entry(
        seeds=(_text("cluster.nodes=1,2,4", _axis), _text("a.b=[1, 2],'x, y',{c: d}", _axis)), named=False, weight=3
    ),
    "trace": Entry(seeds=(_trace_seed(weights=False), _trace_seed(weights=True)), weight=3),
    "requests": Entry(
        seeds=tuple(
            _file(name, gzip.compress(text.encode()) if name.endswith(".gz") else text, read_requests)
            for text, suffix in ((AZURE, ".csv"), (MOONCAKE, ".jsonl"), (BURST, ".csv"), (PLAIN, ".csv"))
            for name in (f"requests{suffix}", f"requests{suffix}.gz")
        ),
        weight=5,
    ),
    "validate": Entry(seeds=_timings_seeds(_validate), weight=2),
    "calibrate": Entry(
        seeds=(
            *_timings_seeds(_calibrate),
            *(_file("links.csv", _table_bytes(rows, ".csv"), _calibrate) for rows in _link_rows()),
            _file("gemm.csv", _table_bytes(_lawful_rows(), ".csv"), _calibrate),
        ),
        weight=1,
    ),
    "sweep": Entry(seeds=(_sweep_seed,), weight=3, named=False),
    "run": Entry(seeds=tuple(_scenario(text, _run) for text in (*SMALL, TRAINING)), named=False, weight=0.5),
    "place": Entry(seeds=tuple(_scenario(text, _place) for text in SMALL[:2]), named=False, weight=0.2),
    "bound": Entry(seeds=tuple(_scenario(text, _bound) for text in SMALL[:4]), named=False, weight=0.2),
    **{f"import {format}": Entry(seeds=(_import_seed(format),), weight=1.5) for format in FIXTURES},
    **{
        f"plan {format}{suffix}": Entry(seeds=(_plan_seed(format, suffix),), weight=1.5)
        for format, known in FORMATS.items()
        for suffix in known.suffixes
    },
}
