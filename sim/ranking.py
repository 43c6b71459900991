"""The plans of one workload as a ranked table: the best first, those that do not fit left out."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.specs import ScenarioSpec
from sim.describe import notes, table_title
from sim.result import LeftOut, RunResult, Table, is_cost
from sim.setting import Setting

RANKED_BY = ("goodput_tokens_per_s", "e2e_s.mean", "tokens_per_s")
"""Metrics that plans are ranked by, the first that all of them have."""


def ranked_table(spec: ScenarioSpec, setting: Setting, tried: Sequence[RunResult | LeftOut]) -> Table:
    """Plans of one workload, ranked. Raises MemoryInfeasible where none of several fits."""
    results = [one for one in tried if isinstance(one, RunResult)]
    left_out = tuple(one for one in tried if isinstance(one, LeftOut))
    names = [one.name for one in tried]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScenarioError(f"compare: several plans are called {', '.join(twice)}; give them a `name:`")
    if not results:
        raise MemoryInfeasible(f"none of {len(left_out)} plans fits; {left_out[0].name}: {left_out[0].reason}")
    ranked_by = next(name for name in RANKED_BY if all(name in result.metrics for result in results))
    sign = 1 if is_cost(ranked_by) else -1
    said = (note for result in results for note in result.notes)
    return Table(
        title=table_title(setting.workload, spec),
        workload=setting.workload.model_dump(exclude_none=True),
        results=tuple(sorted(results, key=lambda result: sign * result.metrics[ranked_by])),
        ranked_by=ranked_by,
        first=results[0].name,
        moe_layers=setting.model.moe_layers,
        notes=tuple(dict.fromkeys((*notes(setting), *said, *(one.sentence() for one in left_out)))),
        left_out=left_out,
    )
