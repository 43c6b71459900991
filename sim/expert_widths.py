"""From the `bits` of a scenario to the widths that its experts are simulated with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.widths import ExpertWidths, Width
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.budget_specs import BitsSpec, WidthSpec
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, DType, ModelCard
from sim.bound.demand import demands, slot_visits
from sim.expert_budgets import choose_bits
from sim.setting import Setting

NARROW: tuple[tuple[float, DType], ...] = ((4.0, "int4"), (8.0, "int8"))
"""Weight-only data types, by the most bits that each holds."""


def with_widths(setting: Setting, spec: BitsSpec, seed: int, base: Path) -> Setting:
    """The setting whose experts are stored in the widths of `spec`: its table, or what `choose_bits` chooses.

    Raises ScenarioError where the table does not fit the model, names bits outside the widths, or prunes experts.
    """
    table, known = bits_table(setting, spec, seed, base), [width.bits for width in spec.widths]
    outside = np.setdiff1d(table, known)
    if len(outside):
        raise ScenarioError(
            f"bits.file: {spec.file} names {outside[0]:g} bits, which is not among widths {known}; add that width"
        )
    index = np.argmax(table[:, :, None] == np.array(known), axis=-1)
    if (np.array([width.bits * width.bytes for width in spec.widths])[index] == 0).any():
        raise ScenarioError(
            "bits: a width of 0 bits or bytes prunes experts, and a simulation must know where their tokens go: give "
            "workload.routing.mask with prune: true, and widths above 0"
        )
    widths = tuple(_width(width, setting.model) for width in spec.widths)
    return replace(setting, widths=ExpertWidths(widths=widths, index=index))


def bits_table(setting: Setting, spec: BitsSpec, seed: int, base: Path) -> NDArray[np.float64]:
    """Bits of every expert, float64[MoE layer, expert]; raises ScenarioError where a table has another shape."""
    shape = len(setting.model.moe_layers), setting.model.n_experts
    if spec.mean_bits is not None:
        return choose_bits(setting, spec, seed)[0].bits
    if spec.uniform is not None:
        return np.full(shape, spec.uniform)
    if spec.by_layer is not None:
        if len(spec.by_layer) != shape[0]:
            raise ScenarioError(f"bits.by_layer: {len(spec.by_layer)} numbers for {shape[0]} MoE layers")
        return np.repeat(np.array(spec.by_layer)[:, None], shape[1], axis=1)
    name, rows = ("by_expert", spec.by_expert) if spec.file is None else ("file", _read(base / spec.file))
    if len(rows or ()) != shape[0] or any(len(row) != shape[1] for row in rows or ()):
        raise ScenarioError(
            f"bits.{name}: {setting.model.name} has {shape[0]} MoE layers of {shape[1]} experts, and the table "
            f"{len(rows or ())} rows of {sorted({len(row) for row in rows or ()})}; give bits for each expert"
        )
    return np.array(rows, np.float64)


def _read(path: Path) -> list[list[float]]:
    """Rows of a file: a list of lists, or the bits of a result of `moesim place`."""
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ScenarioError(f"bits.file: {path}: {error}") from None
    if isinstance(content, dict):
        content = content.get("placement", {}).get("bits", {}).get("bits")
    rows: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(row, list) and all(isinstance(bits, int | float) for bits in row) for row in rows):
        raise ScenarioError(
            f"bits.file: {path} is neither bits [MoE layer][expert] nor a result of `moesim place --json` with bits"
        )
    return rows


def _width(spec: WidthSpec, model: ModelCard) -> Width:
    own: DType = model.expert_dtype or model.weight_dtype
    value_bytes = spec.bytes * BYTES_PER_VALUE[own]
    narrow = (dtype for most, dtype in NARROW if spec.bits <= most)
    lawful: DType = own if spec.bytes == 1 else next(narrow, model.activation_dtype)
    dtype = spec.kernel.dtype or lawful
    if spec.kernel.time_frac is not None and spec.kernel.time_frac * BYTES_PER_VALUE[dtype] < value_bytes:
        raise ScenarioError(
            f"bits: kernel.time_frac {spec.kernel.time_frac:g} of {dtype} would read {value_bytes:g} bytes a weight in "
            f"less than their share of {BYTES_PER_VALUE[dtype]:g}; raise time_frac, or leave it to the law"
        )
    return Width(
        bits=spec.bits,
        value_bytes=value_bytes,
        dtype=dtype,
        time_frac=spec.kernel.time_frac,
        source=spec.kernel.source or "",
    )


def width_metrics(setting: Setting, placement: Placement, reduction: Reduction) -> dict[str, float]:
    """Mean bits of a weight of the experts, and bytes of weights that a step reads; nothing without widths."""
    if setting.widths is None:
        return {}
    asked = demands(setting, slot_visits(placement, reduction, setting.widths))
    read_bytes = sum(demand.read_bytes for demand in asked if demand.kind != "attention")
    return {"bits_per_expert_weight": setting.widths.mean_bits, "weight_read_bytes": read_bytes}
