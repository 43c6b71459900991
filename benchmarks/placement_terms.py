"""Which term of the time model denies `auto` its gain over EPLB: the same cells with terms taken away.

`python -m benchmarks.placement_terms [TRACE MODEL]`, by default on moesim's own trace. Plans are solved anew in each
world, on half of the requests, and judged on the other half by the same world. Takes ten minutes or more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import moesim
from hwmodels.library import find_kernels, find_link
from scenarios.catalog import find_model

CELLS = tuple(
    (nodes, phase, tokens) for nodes in (1, 2) for phase, tokens in (("decode", 32), ("decode", 64), ("prefill", 256))
)
"""Nodes, phase, tokens a device; eight devices."""
WORLDS: dict[str, dict[str, object]] = {
    "as measured": {},
    "links without latency": {"cards": "cards.yaml"},
    "experts without launches": {"kernels": "kernels.yaml"},
    "neither": {"cards": "cards.yaml", "kernels": "kernels.yaml"},
    "neither, kernels at the roofline": {"cards": "cards.yaml", "kernels": "ideal"},
}
LINKS = ("nvlink-4", "ndr-ib")


def write_cards(folder: Path, dtype: str) -> None:
    """Links of H200 nodes, and their kernel of experts in `dtype`, as shipped, but for the fixed times, which are 0."""
    source = {"source": "as shipped, without its fixed times", "kind": "assumed"}
    links = [
        {
            "name": link.name,
            "kind": link.kind,
            "bytes_per_s": source | {"value": f"{link.bytes_per_s.value / 1e9!r} GB/s"},
            "latency_s": source | {"value": "0 s"},
            "efficiency": source | {"value": link.efficiency.value},
        }
        for link in map(find_link, LINKS)
    ]
    experts = find_kernels("h200-vllm").moe(dtype).model_dump(mode="json", exclude_none=True) | source
    experts = {key: f"{value!r} s" if key.endswith("_s") else value for key, value in experts.items()}
    without = {"name": "without-launches", "base": "h200-vllm", "moe": {dtype: experts | {"fixed_s": "0 s"}}}
    (folder / "cards.yaml").write_text(json.dumps({"links": links}))
    (folder / "kernels.yaml").write_text(json.dumps({"kernels": [without]}))


def over_eplb(trace: str, model: str, folder: Path, cell: tuple[int, str, int], world: str) -> tuple[float, float]:
    """Held-out MoE time of `auto` over that of EPLB with a spare slot a rank, and the share that no plan changes."""
    nodes, phase, tokens = cell
    scenario = {
        "name": world,
        "model": model,
        "cluster": {"node": "h200-sxm-8", "nodes": nodes, "devices_per_node": 8 // nodes, **WORLDS[world]},
        "workload": {
            "trace": trace,
            "phase": phase,
            "tokens_per_device": tokens,
            "steps": 64 if phase == "decode" else 16,
        },
        "placement": {"solver": "auto"},
    }
    placed = moesim.place(moesim.load(scenario, folder=folder))
    (held,) = (part for part in placed.as_json()["placement"]["judgement"]["parts"] if part["name"] == "held out")
    return held["over_eplb"], held["fixed_frac"]


def rows(trace: str, model: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """World, and what `over_eplb` says of each cell."""
    card = find_model(model, Path())
    with tempfile.TemporaryDirectory() as name:
        write_cards(Path(name), card.expert_dtype or card.weight_dtype)
        for world in WORLDS:
            yield world, [over_eplb(trace, model, Path(name), cell, world) for cell in CELLS]


def main(trace: str = "moesim-20m-decode", model: str = "moesim-20m-v2-lite-widths") -> None:
    """Print a row a world: each cell, the geometric mean, and the mean share that no plan changes."""
    table = Table("time model", *(f"{n} x {8 // n}, {phase} {tokens}" for n, phase, tokens in CELLS), "mean", "fixed")
    for world, cells in rows(trace if not Path(trace).exists() else str(Path(trace).absolute()), model):
        ratios, fixed = np.array(cells).T
        mean = float(np.exp(np.log(ratios).mean()))
        table.add_row(world, *(f"{ratio:.3f}" for ratio in ratios), f"{mean:.3f}", f"{fixed.mean():.2f}")
        print(world, [round(float(ratio), 3) for ratio in ratios], round(mean, 3), file=sys.stderr, flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
