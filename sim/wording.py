"""Numbers and answers as people read them: one unit a column, equal decimals, no `-0.0`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scenarios.yaml_source import printable
from sim.result import RunResult, Table

_TIME_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_BYTE_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
GIB = 2**30


def time_unit(times_s: Iterable[float]) -> tuple[str, float]:
    """Unit that suits the longest of `times_s`, and its length in seconds."""
    return _unit(times_s, _TIME_UNITS)


def byte_unit(amounts_bytes: Iterable[float]) -> tuple[str, float]:
    """Decimal unit that suits the largest of `amounts_bytes`, and its size in bytes."""
    return _unit(amounts_bytes, _BYTE_UNITS)


def _unit(values: Iterable[float], units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    largest = max(values, default=0.0)
    return next((unit for unit in units if largest >= unit[1]), units[-1])


def decimals(largest: float, digits: int = 4) -> int:
    """Decimals that show `largest` with `digits` digits."""
    return max(0, digits - 1 - math.floor(math.log10(largest))) if largest > 0 else 0


def shown_time(time_s: float) -> str:
    """Time with unit and four digits: `4.439 ms`."""
    unit, length_s = time_unit([time_s])
    value = time_s / length_s
    return f"{value:,.{decimals(value)}f} {unit}"


def shown_bytes(amount_bytes: float) -> str:
    """Amount with decimal unit and three digits: `435 MB`."""
    unit, size = byte_unit([amount_bytes])
    value = amount_bytes / size
    return f"{value:,.{decimals(value, 3)}f} {unit}"


def shown_percent(fraction: float, *, signed: bool = False, places: int = 1) -> str:
    """Fraction in percent with one decimal, or so many: `12.5%`, or signed `+12.5%`."""
    percent = round(100 * fraction, places) + 0.0
    return f"{percent:+.{places}f}%" if signed else f"{percent:.{places}f}%"


def shown_rate(per_s: float) -> str:
    """Rate with thousands separated: `115,338`; four digits where it is small."""
    return f"{per_s:,.{min(decimals(per_s), 6)}f}"


def shown_name(name: str) -> str:
    """Plan name on one line, control characters spelled out."""
    return printable(" ".join(name.split()))


def shown_gain(table: Table, result: RunResult) -> str:
    """Gain in throughput over the first plan; `-` for that plan itself."""
    return "-" if result.name == table.first else shown_percent(table.gain(result), signed=True)


def baseline(table: Table) -> RunResult:
    """The first plan of the scenario, which gains are over."""
    return next(result for result in table.results if result.name == table.first)


def question(tables: Sequence[Table]) -> str:
    """What a run or comparison asked, in one sentence."""
    table = tables[0]
    served = table.results[0].served is not None
    if len(table.results) == 1:
        return "What do requests see under this load?" if served else "How long does a step take, and why?"
    plans = [result.plan for result in table.results]
    varied = [part for part in plans[0] if part in _SECTIONS and any(p.get(part) != plans[0][part] for p in plans)]
    differ = f", which differ in {' and '.join(varied)}," if varied else ""
    wanted = {"tokens_per_s": "the most tokens/s", "goodput_tokens_per_s": "the most tokens/s within the limits"}
    return f"Which of {len(plans)} plans{differ} brings {wanted.get(table.ranked_by, 'the shortest latency')}?"


_SECTIONS = ("placement", "schedule", "parallel", "memory", "training", "serving", "cluster")


def answer(table: Table) -> str:
    """What the comparison found, in one sentence without a full stop."""
    best, first = table.results[0], baseline(table)
    rate = f"{shown_rate(best.metrics['tokens_per_s'])} tokens/s"
    if best.served is not None:
        return _answer_of_load(table)
    if len(table.results) == 1:
        return f"{shown_name(best.name)}: {shown_time(best.metrics['step_time_s'])} per step, {rate} ({table.title})"
    if best is first:
        lead = table.lead(best, table.results[1])
        second = shown_name(table.results[1].name)
        return f"{shown_name(best.name)}, the baseline, is fastest: {second} takes {_longer(lead)} ({table.title})"
    return (
        f"{shown_name(best.name)} is fastest: {shown_percent(table.gain(best), signed=True)} tokens/s over "
        f"{shown_name(first.name)} ({table.title})"
    )


def _answer_of_load(table: Table) -> str:
    """What requests see under the best plan, and how far it leads."""
    best = table.results[0]
    first_token, rate = shown_time(best.metrics["ttft_s.mean"]), shown_rate(best.metrics["tokens_per_s"])
    seen = f"{first_token} to the first token, {rate} tokens/s"
    if len(table.results) == 1:
        return f"{shown_name(best.name)}: {seen} ({table.title})"
    lead = shown_percent(table.lead(best, table.results[1]), signed=True)
    return f"{shown_name(best.name)} is best, {lead} over {shown_name(table.results[1].name)}: {seen} ({table.title})"


def _longer(lead: float) -> str:
    return f"{shown_percent(lead)} longer per token" if round(lead, 3) > 0 else "as long"
