"""The scenario format for editors, as JSON Schema 2020-12."""

from __future__ import annotations

import copy
from typing import Any

from scenarios.specs import ScenarioSpec


def scenario_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file: keys, types, defaults, names of solvers and policies.

    Entries of `compare` axes may leave out keys that the scenario's own section gives; a placement entry stands alone.
    """
    schema = ScenarioSpec.model_json_schema()
    definitions = schema["$defs"]
    for axis, entries in definitions["CompareSpec"]["properties"].items():
        if axis != "placement":
            entries["items"] = {"$ref": _partial(definitions, entries["items"]["$ref"])}
    schema |= {"title": "moesim scenario", "description": "One scenario: model, cluster, workload, plans to compare."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _partial(definitions: dict[str, Any], reference: str) -> str:
    """Reference to a copy of a definition in which no key is required."""
    name = reference.rpartition("/")[2]
    entry = copy.deepcopy(definitions[name])
    entry.pop("required", None)
    definitions[f"{name}Entry"] = entry | {"title": f"{name}Entry"}
    return f"#/$defs/{name}Entry"
