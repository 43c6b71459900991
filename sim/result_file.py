"""Result files read back: checked, brought up to the present schema, and set beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scenarios.errors import MoesimError
from scenarios.reading import plain_json, regular
from sim.result import SCHEMA

Document = dict[str, Any]
MAX_BYTES = 1 << 28
"""Of a file; one of a thousand plans has 4 MiB."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class StoredPlan(_Part):
    """One plan of a result file; see `sim.result.RunResult`."""

    workload: Document
    gain: float
    name: str
    plan: Document
    metrics: dict[str, float]
    breakdown_s: dict[str, float]


class StoredLeftOut(_Part):
    """A plan that did not fit."""

    workload: Document
    name: str
    infeasible: str


class StoredConstant(_Part):
    """A number that the results rest on."""

    name: str
    value: str
    kind: str
    source: str


class ResultFile(_Part):
    """What `run`, `compare` and `place` write; plans of one workload follow each other, the best first."""

    moesim: str
    number: int = Field(alias="schema")
    scenario: str
    results: list[StoredPlan] = Field(min_length=1)
    left_out: list[StoredLeftOut] = []
    notes: list[str] = []
    constants: list[StoredConstant] = []
    provenance: Document = {}

    @property
    def tables(self) -> list[list[StoredPlan]]:
        """The plans of each workload, in the order of the file, the best first."""
        workloads: list[Document] = []
        for one in self.results:
            if one.workload not in workloads:
                workloads.append(one.workload)
        return [[one for one in self.results if one.workload == workload] for workload in workloads]


def _first_schema(document: Document) -> Document:
    """Files had no number once, and named their traces by the workload's word for them."""
    provenance = dict(document.get("provenance") or {})
    digests = provenance.pop("trace_layer_0", {})
    provenance["traces"] = [{"source": source, "layer_0": digest} for source, digest in dict(digests).items()]
    return document | {"provenance": provenance}


MIGRATIONS: dict[int, Callable[[Document], Document]] = {0: _first_schema}
"""What brings a file of a schema to the next one."""


def read_result(path: Path) -> tuple[ResultFile, Document]:
    """The result of a file, or of the folder of `--out`, and all that stands there, both in the present schema.

    Raises MoesimError where it is no result file, or one of a later moesim.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        if regular(file).stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        document = plain_json(file.read_bytes())
        if not isinstance(document, dict) or not {"moesim", "results"} <= set(document):
            raise ValueError("it has no `moesim` and `results`")
        document = migrated(document)
        return ResultFile.model_validate(document), document
    except OSError as error:
        raise MoesimError(
            f"{file}: cannot be read ({error.strerror}); give a result.json or a folder of --out"
        ) from None
    except ValidationError as error:
        where, first = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise MoesimError(f"{file}: {where}: {first}; this is no result file of run, compare or place") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise MoesimError(f"{file}: {error}; give what run, compare or place wrote by --json or --out") from None


def migrated(document: Document) -> Document:
    """The document in the present schema. Raises ValueError where its own is a later one, or none."""
    number = document.get("schema", 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"its schema is {number!r}, not a number")
    if number > SCHEMA:
        raise ValueError(
            f"moesim {document['moesim']} wrote it with schema {number}, and this one reads up to {SCHEMA}"
        )
    for step in range(number, SCHEMA):
        document = MIGRATIONS[step](document)
    return document | {"schema": SCHEMA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A metric of one plan in two results."""

    workload: int
    plan: str
    metric: str
    before: float
    after: float

    @property
    def change_frac(self) -> float:
        """After over before, less one; infinite where there was nothing before."""
        if self.before == self.after:
            return 0.0
        return self.after / self.before - 1 if self.before else float("inf")


def changes(before: ResultFile, after: ResultFile) -> Iterator[Changed]:
    """Every metric that both results have of a plan of the same name, workload by workload in their order."""
    for number, (ours, theirs) in enumerate(zip(before.tables, after.tables, strict=False)):
        named = {plan.name: plan.metrics for plan in theirs}
        for plan in ours:
            for metric in plan.metrics.keys() & named.get(plan.name, {}).keys():
                values = plan.metrics[metric], named[plan.name][metric]
                yield Changed(workload=number, plan=plan.name, metric=metric, before=values[0], after=values[1])


def unmatched(one: ResultFile, other: ResultFile) -> list[str]:
    """Plans of a result that the other lacks, by workload and name."""
    there = [{plan.name for plan in table} for table in other.tables]
    missing = []
    for number, table in enumerate(one.tables):
        names = there[number] if number < len(there) else set()
        missing += [f"{plan.name} (workload {number + 1})" for plan in table if plan.name not in names]
    return missing


def other_workloads(before: ResultFile, after: ResultFile) -> list[str]:
    """What differs of workloads that are set beside each other, in words; keys that one version lacks do not count."""
    found = []
    for number, (ours, theirs) in enumerate(zip(before.tables, after.tables, strict=False), start=1):
        one, other = dict(_leaves(ours[0].workload)), dict(_leaves(theirs[0].workload))
        keys = [key for key in one if key in other and one[key] != other[key]]
        found += [f"{key} of workload {number} ({one[key]} before, {other[key]} after)" for key in keys]
    return found


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def other_constants(before: ResultFile, after: ResultFile) -> list[str]:
    """Names of constants that only one result rests on, or both with other values."""
    return sorted({name for name, _ in _values(before) ^ _values(after)})


def _values(result: ResultFile) -> set[tuple[str, str]]:
    return {(constant.name, constant.value) for constant in result.constants}
