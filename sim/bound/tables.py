"""What `moesim bound` shows: rows of resources, levers, batches, purchases; and the same as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import rich.box
import rich.table
from rich.text import Text

from sim.bound.bound import Bound
from sim.bound.bounds import Bounds
from sim.bound.purchase import Choice, Group, Purchase
from sim.bound.resources import Resource
from sim.wording import shown_percent, shown_rate, shown_time

SHOWN_PURCHASES = 12
SHOWN_OF_ROWS = ("per token", "capacity", "bound", "busy", "10 % more brings")
UNIT_SCALES = (
    ("P", 1e15),
    ("T", 1e12),
    ("G", 1e9),
    ("M", 1e6),
    ("k", 1e3),
    ("", 1.0),
    ("m", 1e-3),
    ("µ", 1e-6),
    ("n", 1e-9),
)


def shown_amount(value: float, unit: str) -> str:
    """Amount with a decimal prefix and three digits: `94.7 MB`."""
    prefix, scale = next((pair for pair in UNIT_SCALES if abs(value) >= pair[1]), UNIT_SCALES[-1])
    return f"{value / scale:.3g} {prefix}{unit}"


def resource_table(bounds: Bounds) -> rich.table.Table:
    """The resources of the scenario's batch, the binding one first."""
    table = _table(f"{bounds.scenario}: {_batch(bounds)}", "resource", right=SHOWN_OF_ROWS)
    table.add_column("holds for")
    at = bounds.at
    for row in sorted(at.rows, key=lambda row: row.tokens_per_s):
        table.add_row(
            row.name,
            shown_amount(row.demand_per_token, "s" if row.unit == "s" else row.unit),
            f"{row.capacity:g} devices" if row.unit == "s" else f"{shown_amount(row.capacity, row.unit)}/s",
            shown_rate(row.tokens_per_s) if row.demand_per_token else "",
            shown_percent(at.used_frac(row)),
            _shown_price(at, row),
            row.holds,
            style="bold" if row is at.binding else "",
        )
    return table


def _shown_price(bound: Bound, row: Resource) -> str:
    """Growth of the bound by a tenth more of the row's capacity, at its shadow price."""
    gain = 0.1 * row.capacity * bound.price(row) / bound.tokens_per_s
    return shown_percent(gain) if gain > 1e-6 else ""


def lever_table(bounds: Bounds) -> rich.table.Table:
    """What more of each number of the hardware would bring."""
    right = ("now", "tokens/s per unit more", "10 % more brings")
    table = _table("more on every device", "number", right=right)
    for lever in bounds.levers:
        gain = lever.tenth_more_tokens_per_s / bounds.at.tokens_per_s
        now = f"{lever.now:,.4g} {lever.unit}"
        table.add_row(lever.name, now, shown_rate(lever.per_unit) if lever.per_unit else "0", shown_percent(gain))
    if bounds.memory_tokens_per_s_per_gib is not None:
        memory = bounds.setting.cluster.device.card.memory_bytes.value / 2**30
        price = shown_rate(bounds.memory_tokens_per_s_per_gib)
        table.add_row(f"memory, at {bounds.largest} tokens", f"{memory:,.4g} GiB", price, "")
    return table


def batch_table(bounds: Bounds) -> rich.table.Table:
    """The bound over the batch."""
    table = _table("other batches", "tokens per device", right=("bound [tokens/s]", "binds"))
    for bound in bounds.batches:
        full = " (memory is full)" if bound.tokens_per_device == bounds.largest else ""
        table.add_row(f"{bound.tokens_per_device:,}{full}", shown_rate(bound.tokens_per_s), bound.binding.name)
    return table


def gap_lines(bounds: Bounds) -> list[str]:
    """What stands between the simulated plan and the bound, by cause [s of a step]."""
    metrics, (n_parts, floor_s) = bounds.simulated.metrics, bounds.cut
    n_tokens = bounds.at.tokens_per_device * bounds.setting.cluster.n_devices
    n_tokens = int(metrics.get("requests", n_tokens))
    step_s, bound_s = n_tokens / metrics["tokens_per_s"], n_tokens / bounds.at.tokens_per_s
    share = shown_percent(metrics["tokens_per_s"] / bounds.at.tokens_per_s)
    reached = (
        f"{bounds.simulated.name}, simulated: {shown_rate(metrics['tokens_per_s'])} tokens/s, {share} of the bound; "
        f"{shown_time(step_s)} a step against {shown_time(bound_s)}"
    )
    if "slots_frac" in metrics:
        lanes = {"the device": "compute", "the copy engine": "to-device", "the host": "host"}
        busy = ", ".join(f"{who} {shown_percent(metrics[f'busy_frac.{lane}'])}" for who, lane in lanes.items())
        return [f"{reached}. Busy: {busy}; the rest is waiting for each other."]
    if "requests" in metrics:
        return [f"{reached}{_gap_of_generation(bounds)}"]
    computing_s = metrics["busy_frac.compute"] * (step_s - bounds.simulated.breakdown_s.get("host", 0.0))
    parts = {
        "tiles, waves and uneven experts": computing_s - floor_s,
        "own transfers not hidden": bounds.simulated.breakdown_s["transfer"],
        "waiting for other devices": bounds.simulated.breakdown_s["waiting"],
        "host between steps": bounds.simulated.breakdown_s.get("host", 0.0),
        f"kernels of {n_parts} microbatches" if n_parts > 1 else "transfers above computing": floor_s - bound_s,
    }
    named = ", ".join(f"{what} {shown_time(time_s)}" for what, time_s in parts.items() if abs(time_s) > 0.001 * step_s)
    return [f"{reached}: {named}."]


LANES = {
    "device time": "compute",
    "link to the device": "to-device",
    "link to the host": "to-host",
    "host cores": "host",
}
"""Lanes of generation by the rows that they are the resources of."""


def _gap_of_generation(bounds: Bounds) -> str:
    """What stands between a pass and its bound: of the binding lane its own work, and its waiting for others."""
    metrics, lane = bounds.simulated.metrics, LANES.get(bounds.at.binding.name)
    busy = ", ".join(f"{name} {shown_percent(metrics[f'busy_frac.{one}'])}" for name, one in LANES.items())
    if metrics["prefill_s"] > 0 or lane is None:
        prefill = f", prefill {shown_time(metrics['prefill_s'])} before {shown_time(metrics['decode_s'])} of decode"
        return f"{prefill}. Busy in decode: {busy}; the rest is waiting for each other."
    step_s = metrics["step_time_s"]
    own_s, bound_s = metrics[f"busy_frac.{lane}"] * step_s, metrics["requests"] / bounds.at.tokens_per_s
    return (
        f": work of the {bounds.at.binding.name} above its bound {shown_time(own_s - bound_s)}, and waiting for others "
        f"{shown_time(step_s - own_s)}. Busy: {busy}."
    )


def purchase_table(choice: Choice) -> rich.table.Table:
    """The Pareto front, the best purchase last; of a long front every n-th."""
    title = f"what the money buys ({choice.ranked_by} tokens/s)"
    table = _table(title, "purchase", right=("price [USD]", "tokens/s", "tokens/s per kUSD"))
    every = -(-len(choice.front) // SHOWN_PURCHASES)
    for purchase in choice.front[::-1][::every][::-1]:
        per_kusd = purchase.tokens_per_s / purchase.price_usd * 1e3
        bold = "bold" if purchase.name == choice.best.name else ""
        cells = (f"{purchase.price_usd:,.0f}", shown_rate(purchase.tokens_per_s), shown_rate(per_kusd))
        table.add_row(Text(purchase.name, overflow="fold"), *cells, style=bold)
    return table


def group_table(choice: Choice) -> rich.table.Table:
    """Every kind of group on offer, the cheapest throughput first."""
    right = ("tokens per device", "simulated", "bound", "reached", "USD per token/s", "binds")
    table = _table("nodes on offer, each at its best batch", "group", right=right)
    for group in sorted(choice.groups, key=lambda group: group.price_usd / group.tokens_per_s):
        table.add_row(
            group.name,
            f"{group.bound.tokens_per_device:,}",
            shown_rate(group.simulated_tokens_per_s),
            shown_rate(group.bound.tokens_per_s),
            shown_percent(group.simulated_tokens_per_s / group.bound.tokens_per_s),
            shown_rate(group.price_usd / group.tokens_per_s),
            group.bound.binding.name,
        )
    return table


def purchase_lines(choice: Choice) -> list[str]:
    """The winner in words, and what was left out."""
    best = choice.best
    limits = ", ".join(best.limits) or "the nodes on offer"
    lines = [f"Best: {best.name} for {best.price_usd:,.0f} USD; what stops more: {limits}."]
    return lines + [f"Left out: {reason}" for reason in choice.left_out]


def as_json(bounds: Bounds, choice: Choice | None, version: str) -> dict[str, Any]:
    """The result file of `moesim bound`; docs/reference/nomenclature.md has the names."""
    content: dict[str, Any] = {
        "moesim": version,
        "scenario": bounds.scenario,
        "bound": _bound_json(bounds.at),
        "simulated": bounds.simulated.metrics,
        "levers": [
            {
                "name": lever.name,
                "unit": lever.unit,
                "now": lever.now,
                "tokens_per_s_per_unit": lever.per_unit,
                "tokens_per_s_of_tenth_more": lever.tenth_more_tokens_per_s,
            }
            for lever in bounds.levers
        ],
        "batches": [_bound_json(bound) for bound in bounds.batches],
        "largest_tokens_per_device": bounds.largest,
        "tokens_per_s_per_gib": bounds.memory_tokens_per_s_per_gib,
        "grid": [asdict(cell) for cell in bounds.grid],
    }
    if choice is not None:
        content["purchase"] = _purchase_json(choice.best)
        content["front"] = [_purchase_json(purchase) for purchase in choice.front]
        content["left_out"] = list(choice.left_out)
        content["ranked_by"] = choice.ranked_by
        content["groups"] = [_group_json(group) for group in choice.groups]
    return content


def _bound_json(bound: Bound) -> dict[str, Any]:
    return {
        "tokens_per_device": bound.tokens_per_device,
        "tokens_per_s": bound.tokens_per_s,
        "binding": bound.binding.name,
        "tokens_per_s_of_any_plan": None if bound.any_plan is None else bound.any_plan.tokens_per_s,
        "resources": [_resource_json(bound, row) for row in bound.rows],
    }


def _resource_json(bound: Bound, row: Resource) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "unit": row.unit,
        "demand_per_token": row.demand_per_token,
        "capacity": row.capacity,
        "tokens_per_s": row.tokens_per_s if row.demand_per_token else None,
        "used_frac": bound.used_frac(row),
        "tokens_per_s_per_unit": bound.price(row),
        "holds": row.holds,
        "detail": row.detail,
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "price_usd": group.price_usd,
        "tokens_per_device": group.bound.tokens_per_device,
        "tokens_per_s": group.simulated_tokens_per_s,
        "bound_tokens_per_s": group.bound.tokens_per_s,
        "binding": group.bound.binding.name,
    }


def _purchase_json(purchase: Purchase) -> dict[str, Any]:
    return {
        "counts": {group.name: count for group, count in purchase.counts},
        "price_usd": purchase.price_usd,
        "tokens_per_s": purchase.tokens_per_s,
        "limits": list(purchase.limits),
    }


def _batch(bounds: Bounds) -> str:
    workload = bounds.setting.workload
    return f"{workload.phase}, {workload.tokens_per_device} tokens per device on {bounds.setting.cluster.name}"


def _table(title: str, first: str, right: tuple[str, ...]) -> rich.table.Table:
    table = rich.table.Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column(Text(first))
    for name in right:
        table.add_column(Text(name), justify="right")
    return table
