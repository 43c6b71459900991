"""Entry points: valid inputs, what reads them, and how many inputs they get. `ENTRIES` lists them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

from moesim.stored import diff
from placement.formats import FORMATS
from scenarios.catalog import find_model
from tests.cli.command import CARD, SCENARIO
from tests.conformance.trace_fixtures import FIXTURES
from tests.fuzz.corpus import (
    Seed,
    axis,
    bound,
    calibrate,
    cards,
    expression,
    import_seed,
    kernels,
    lawful_rows,
    library,
    link_rows,
    load,
    one_file,
    paper,
    place,
    plan_seed,
    quantity,
    run,
    scenario_for,
    set_option,
    sweep_seed,
    table_bytes,
    timings_seeds,
    trace_seed,
    validate,
    words,
)
from tests.unit.huggingface_configs import CONFIGS
from tests.unit.test_requests import AZURE, BURST, MOONCAKE, PLAIN
from tests.unit.test_result_file import EARLY
from traces.requests import read_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry point: seeds write valid files to a folder and return what reads them.

    named   what is refused names the file (texts of the command line are no files).
    weight  inputs of a campaign, relative to the others: what is slow gets fewer.
    works   it simulates what it reads: a large scenario may take long, or more memory than there is, and is told so.
    """

    seeds: tuple[Seed, ...]
    named: bool = True
    weight: float = 1.0
    works: bool = False


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
        seeds=tuple(scenario_for(text, load) for text in (*SMALL, TRAINING, SERVED, *library("examples/*.yaml"))),
        weight=3,
    ),
    "set": Entry(
        seeds=tuple(
            set_option(option)
            for option in (
                "cluster.nodes=4",
                "compare.placement.1={solver: eplb, redundant: 8}",
                "model=tiny-moe.yaml",
                "workload.synthetic.skew=0.5",
                "schedule.exchange={law: fifo, dedup: none}",
                "memory.reserve=0.2",
            )
        ),
        named=False,
        weight=4,
    ),
    "model card": Entry(
        seeds=tuple(
            one_file("card.yaml", text, lambda path: find_model(path.name, path.parent))
            for text in (CARD, *library("models/*.yaml")[::4])
        ),
        weight=3,
    ),
    "config.json": Entry(
        seeds=tuple(
            one_file("config.json", json.dumps(config), lambda path: find_model(path.name, path.parent))
            for config in CONFIGS.values()
        ),
        weight=4,
    ),
    "hardware cards": Entry(seeds=tuple(one_file("cards.yaml", text, cards) for text in library("hardware/*.yaml"))),
    "kernel card": Entry(
        seeds=tuple(one_file("kernels.yaml", text, kernels) for text in library("hardware/kernels*.yaml"))
    ),
    "paper": Entry(seeds=tuple(one_file("paper.yaml", text, paper) for text in library("papers/*.yaml"))),
    "expression": Entry(
        seeds=(
            words("step_time_s(linear) / step_time_s(chunked)", expression),
            words("min(a(b), 2 * -c.d(e))", expression),
        ),
        named=False,
        weight=3,
    ),
    "quantity": Entry(
        seeds=tuple(words(text, quantity) for text in ("900 GB/s", "1.5e-3 us", "33.7 %", "-.5 GiB", "25 kUSD")),
        named=False,
        weight=3,
    ),
    "axis": Entry(
        seeds=(words("cluster.nodes=1,2,4", axis), words("a.b=[1, 2],'x, y',{c: d}", axis)), named=False, weight=3
    ),
    "trace": Entry(seeds=(trace_seed(weights=False), trace_seed(weights=True)), weight=3),
    "requests": Entry(
        seeds=tuple(
            one_file(name, gzip.compress(text.encode()) if name.endswith(".gz") else text, read_requests)
            for text, suffix in ((AZURE, ".csv"), (MOONCAKE, ".jsonl"), (BURST, ".csv"), (PLAIN, ".csv"))
            for name in (f"requests{suffix}", f"requests{suffix}.gz")
        ),
        weight=5,
    ),
    "validate": Entry(seeds=timings_seeds(validate), weight=2),
    "calibrate": Entry(
        seeds=(
            *timings_seeds(calibrate),
            *(one_file("links.csv", table_bytes(rows, ".csv"), calibrate) for rows in link_rows()),
            one_file("gemm.csv", table_bytes(lawful_rows(), ".csv"), calibrate),
        ),
        weight=1,
    ),
    "result": Entry(
        seeds=(one_file("result.json", EARLY.read_bytes(), lambda path: repr(diff(path, EARLY))),), weight=2
    ),
    "sweep": Entry(seeds=(sweep_seed,), weight=3, named=False),
    "run": Entry(
        seeds=tuple(scenario_for(text, run) for text in (*SMALL, TRAINING)), named=False, works=True, weight=0.5
    ),
    "place": Entry(seeds=tuple(scenario_for(text, place) for text in SMALL[:2]), named=False, works=True, weight=0.2),
    "bound": Entry(seeds=tuple(scenario_for(text, bound) for text in SMALL[:4]), named=False, works=True, weight=0.2),
    **{f"import {format}": Entry(seeds=(import_seed(format),), weight=1.5) for format in FIXTURES},
    **{
        f"plan {format}{suffix}": Entry(seeds=(plan_seed(format, suffix),), weight=1.5)
        for format, known in FORMATS.items()
        for suffix in known.suffixes
    },
}
