"""Writes the cards of devices that `moesim capture` measured, from the tables in hwmodels/measured/<device>.

python -m hwmodels.calibration.ship_measured
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from hwmodels.calibration.calibrate import rounded
from hwmodels.calibration.card import Calibration, block_as_written, calibrate
from hwmodels.calibration.fit import FOLDS, residuals_of
from hwmodels.calibration.small import (
    VECTOR_TOKENS,
    SmallProblem,
    choice_problem,
    copy_problem,
    eager_kernel_s,
    host_problem,
    launch_problem,
    read_bytes_per_s,
)
from hwmodels.cards import CardSet
from hwmodels.devices import Device
from hwmodels.kernels import BLOCKS, KernelCard, Kernels
from hwmodels.library import LIBRARY
from hwmodels.validation.timings import read_columns, read_timings
from scenarios.files import write_text

MEASURED = Path(__file__).resolve().parents[1] / "measured"
FAMILIES = ("moe", "gemm", "attention")
Card = dict[str, Any]
ROOT_4_OF_2 = 2**0.25
"""Both fractions of a host kernel at this many times a rate give just that rate on one core (`hwmodels.host`)."""


def ship(folder: Path) -> str:
    """The YAML of all cards of the CPU whose tables lie in `folder`: a core as the device, another one as its host."""
    name, origin = folder.name, _origin(folder)
    card = device_card(folder, origin)
    device = Device(
        card=CardSet.model_validate({"devices": [card]}).devices[0], kernels=Kernels(cards=(KernelCard(name="none"),))
    )
    tables = {f"{family}.csv": read_timings(folder / f"{family}.csv") for family in FAMILIES}
    calibration = calibrate(tables, device, f"{name}-torch", base="datasheet-only", origin=origin)
    link = _link(folder, name, origin)
    cards = {
        "devices": [card],
        "links": [link],
        "hosts": [_host(folder, card)],
        "nodes": [_node(name)],
        "kernels": [_kernels(calibration, folder, device, origin)],
        "cpu_kernels": [_cpu_kernels(folder, card, origin)],
        "copies": [_copies(folder, name, link, origin)],
    }
    CardSet.model_validate(cards)
    text = yaml.dump(cards, Dumper=_Plain, sort_keys=False, width=120, default_flow_style=None)
    return f"# Written by `python -m hwmodels.calibration.ship_measured` from hwmodels/measured/{name}.\n{text}"


class _Plain(yaml.SafeDumper):
    """Writes equal values out each time, since the loader knows no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def device_card(folder: Path, origin: str) -> Card:
    """The device: peak and bandwidth as measured."""
    gemm, facts = read_timings(folder / "gemm.csv"), _facts(folder)
    rates = 2.0 * gemm.ints("m") * gemm.ints("n") * gemm.ints("k") / gemm.measured_s
    return {
        "name": folder.name,
        "kind": "cpu",
        "memory_bytes": _sourced("16 GiB", "share of a virtual machine's memory; no run comes near it", "assumed"),
        "memory_bytes_per_s": _sourced(_rate(read_bytes_per_s(folder), "B/s"), f"copies.csv, reading, of {origin}"),
        "peak_flop_per_s": {
            "fp32": _sourced(_rate(float(rates.max()), "FLOP/s"), f"gemm.csv, fastest row, of {origin}")
        },
        "n_sms": _sourced(1, f"{facts['scheduling']}, {origin}"),
        "l2_bytes": _sourced(
            f"{int(facts['cache_bytes']) >> 20} MiB", "last cache, as the system states it", "datasheet"
        ),
        "kernels": f"{folder.name}-torch",
        "note": f"One core of {facts['device']}, torch {facts['torch']}; docs/background/measurements.md",
    }


def _kernels(calibration: Calibration, folder: Path, device: Device, origin: str) -> Card:
    entry: Card = {"name": calibration.card.name, "base": calibration.card.base}
    for block in BLOCKS:
        if constants := getattr(calibration.card, block):
            entry[block] = {dtype: block_as_written(fitted) for dtype, fitted in constants.items()}
    launch = _fitted(launch_problem(folder, device.memory_bytes_per_s), origin)
    residuals = launch["residuals"]
    band = {"low": residuals["low"], "high": residuals["high"], "source": "norm and activation, shapes left out"}
    eager = {"eager_kernel_s": _time(eager_kernel_s(folder)), "graph_s": "0 s", "device_band": band}
    entry["launch"] = launch | eager
    entry["choice"] = _fitted(choice_problem(folder), origin)
    entry["note"] = (
        "There are no graphs on a CPU; eager_kernel_s is a call through torch, which its times hold already."
    )
    return entry


def _link(folder: Path, name: str, origin: str) -> Card:
    """Copies within the memory: the rate of the largest, without a share of latency."""
    copies = read_columns(folder / "copies.csv")
    alone = (copies["direction"] == "to-device") & (copies["under"] == "none")
    size, ms = (copies[column][alone].astype(float) for column in ("bytes", "latency"))
    largest = int(size.argmax())
    return {
        "name": f"{name}-memory",
        "kind": "memory",
        "bytes_per_s": _sourced(
            _rate(float(size[largest] / ms[largest]) * 1e3, "B/s"), f"copies.csv, 16 MiB, of {origin}"
        ),
        "latency_s": _sourced(_time(float(ms[size.argmin()]) * 1e-3), f"copies.csv, 16 KiB, of {origin}"),
        "efficiency": _sourced(1.0, "the rate is that of large copies", "derived"),
    }


def _copies(folder: Path, name: str, link: Card, origin: str) -> Card:
    rate = CardSet.model_validate({"links": [link]}).links[0].bytes_per_s.value
    law = _fitted(copy_problem(folder, rate, "pageable"), origin, units=False)
    laws = [law | {"direction": way, "method": "copy-engine", "host_memory": "pageable"} for way in DIRECTIONS]
    both = _sourced(0.5, "one core copies either way, one after the other", "derived")
    return {"name": f"{name}-memory", "link": f"{name}-memory", "laws": laws, "both_ways_frac": both}


DIRECTIONS = ("to-device", "to-host")


def _host(folder: Path, device: Card) -> Card:
    """The other core as the host of the first: the same memory, the same peak."""
    return {
        "name": f"{folder.name}-host",
        "n_sockets": _sourced(1, "one socket, as the system states it", "datasheet"),
        "cores": _sourced(1, "the core beside the device", "derived"),
        "dram_channels": _sourced(1, "not known of a virtual machine", "assumed"),
        "dram_bytes_per_s": device["memory_bytes_per_s"],
        "dram_bytes": device["memory_bytes"],
        "peak_flop_per_s": device["peak_flop_per_s"],
        "kernels": f"{folder.name}-host",
    }


def _cpu_kernels(folder: Path, device: Card, origin: str) -> Card:
    problem, peak = host_problem(folder), CardSet.model_validate({"devices": [device]}).devices[0].peak_flop_per_s
    found = problem.cross_fit(2)
    values, flop_per_s = found.constants, peak["fp32"].value
    kernels = {
        kernel: {
            "core_frac": _digits(ROOT_4_OF_2 * values[f"{kernel}_flop_per_s"] / flop_per_s),
            "host_frac": _digits(ROOT_4_OF_2 * values[f"{kernel}_flop_per_s"] / flop_per_s),
            "expert_tokens": _digits(values[f"{kernel}_extra"]),
        }
        for kernel in ("vector", "packed")
    }
    residuals = rounded(residuals_of(found.held_out_s, problem.measured_s, found.fold))
    return {
        "name": f"{folder.name}-host",
        "constants": {
            "source": f"fitted on {problem.table} of {origin}",
            "kind": "measured",
            "residuals": residuals.model_dump(exclude_none=True),
            "call_s": "0 s",
            "memory_frac": 1.0,
            "core_bytes_per_s": device["memory_bytes_per_s"]["value"],
            "vector_tokens": VECTOR_TOKENS,
            **kernels,
        },
    }


def _node(name: str) -> Card:
    return {
        "name": f"{name}-1",
        "device": name,
        "n_devices": _sourced(1, "one core as the device", "derived"),
        "intra_link": f"{name}-memory",
        "host": f"{name}-host",
        "host_link": f"{name}-memory",
    }


def _fitted(problem: SmallProblem, origin: str, *, units: bool = True) -> Card:
    """Constants of a problem as a card writes them, with their errors on unseen shapes; times with or without units."""
    found = problem.cross_fit(FOLDS)
    residuals = rounded(residuals_of(found.held_out_s, problem.measured_s, found.fold))
    constants = {name: _time(v) if units and name.endswith("_s") else _digits(v) for name, v in found.constants.items()}
    source = {"source": f"fitted on {problem.table} of {origin}", "kind": "measured"}
    return {**constants, **source, "residuals": residuals.model_dump(exclude_none=True)}


def _facts(folder: Path) -> Card:
    """Provenance of the products, which stands for the others."""
    return dict(json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["gemm"])


def _origin(folder: Path) -> str:
    facts = _facts(folder)
    return f"`moesim capture kernels` on {facts['device']}, {str(facts['date']).split()[0]}"


def _sourced(value: object, source: str, kind: str = "measured") -> Card:
    return {"value": value, "source": source, "kind": kind}


def _rate(value: float, unit: str) -> str:
    return f"{value / 1e9:.4g} G{unit}"


def _time(value: float) -> str:
    return f"{value * 1e6:.4g} us"


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    for place in sorted(path for path in MEASURED.iterdir() if path.is_dir()):
        target = LIBRARY / f"measured-{place.name}.yaml"
        write_text(ship(place), target)
        print(target)
