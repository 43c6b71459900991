"""Scenarios made from the schema: sections that are right one by one, and may make no sense together."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import yaml

from hwmodels.library import list_cards
from scenarios.catalog import list_traces
from scenarios.schema import scenario_schema

INTEGERS = (0, 1, 2, 3, 4, 7, 8, 16, 64, 100, 1000, 10**6, 10**9, 2**53)
NUMBERS = (0.0, 1e-9, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 1.5, 2.0, 10.0, 1e3, 1e9, 1e300)


@cache
def _schema() -> dict[str, Any]:
    return scenario_schema()


@cache
def _words() -> dict[str, list[str]]:
    """Texts that mean something, by the keys that hold them."""
    cards = list_cards()
    return {
        "node": [card.name for card in cards.nodes if (card.n_devices.value <= 16)],
        "device": [card.name for card in cards.devices],
        "host": [card.name for card in cards.hosts],
        "kernels": [card.name for card in cards.kernels],
        "trace": [name for name, _ in list_traces()],
        "model": ["tiny-moe.yaml", "olmoe-1b-7b", "deepseek-v2-lite"],
    }


def grafted(data: bytes, rng: Random) -> bytes:
    """A scenario with one to three of its keys, or keys that it lacks, set to values that the schema allows."""
    scenario = yaml.load(data.decode(), yaml.CSafeLoader)
    for _ in range(rng.choice((1, 1, 2, 3))):
        here, schema = scenario, _schema()
        while True:
            schema = _resolved(schema, rng)
            key = rng.choice(list(schema["properties"]))
            below = schema["properties"][key]
            if not isinstance(here.get(key), dict) or "properties" not in _resolved(below, rng) or rng.random() < 0.2:
                here[key] = value_of(below, key, rng)
                break
            here, schema = here[key], below
    return json.dumps(scenario).encode()


def value_of(schema: dict[str, Any], key: str, rng: Random) -> Any:
    """A value that fits a schema; `key` is the last name on the way to it."""
    schema = _resolved(schema, rng)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "object":
            return _object(schema, rng)
        case "array":
            parts = schema.get("prefixItems")
            n = rng.choice((schema.get("minItems", 0), 1, 2))
            return [value_of(one, key, rng) for one in parts or [schema.get("items", {})] * n]
        case "boolean":
            return rng.random() < 0.5
        case "integer" | "number" as kind:
            return _within(schema, INTEGERS if kind == "integer" else NUMBERS, rng)
        case "string" if "examples" in schema:
            number, _, unit = schema["examples"][0].partition(" ")
            return f"{rng.choice((number, '1', '0.001', '1e6', '1e-12', '1e15'))} {unit}"
        case "string":
            return rng.choice([*_words().get(key, ()), f"any {key}"])
    return None


def _resolved(schema: dict[str, Any], rng: Random) -> dict[str, Any]:
    """The schema behind references, one of its alternatives."""
    while "$ref" in schema or "anyOf" in schema or "oneOf" in schema:
        if "$ref" in schema:
            schema = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
        else:
            alternatives = schema.get("anyOf") or schema["oneOf"]
            schema = rng.choice([one for one in alternatives if one.get("type") != "null"] or alternatives)
    return schema


def _object(schema: dict[str, Any], rng: Random) -> dict[str, Any]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    chosen = [name for name in properties if name in required or rng.random() < 2 / len(properties)]
    return {name: value_of(properties[name], name, rng) for name in chosen}


def _within(schema: dict[str, Any], numbers: tuple[float, ...], rng: Random) -> float:
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1))
    most = schema.get("maximum", schema.get("exclusiveMaximum", float("inf")))
    allowed = [n for n in numbers if least <= n <= most and n != schema.get("exclusiveMinimum")]
    usual = [n for n in allowed if n <= 64]
    return rng.choice(usual if usual and rng.random() < 0.9 else allowed or [least])
