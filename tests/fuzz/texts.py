"""Mutations of bytes, trees (YAML, JSON), lines and cells."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import yaml

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 32767, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, -1e308, 5e-324,
    float("inf"), float("nan"), "", " ", "x", "nan", "1e400", "0x10", "1:30", "on", "900 GB/s", "-3 us", "1e-40 s",
    "9" * 400, "1" * 5000, "\0", "\ud800", "é\u202e", "../../../../etc/passwd", "/dev/zero", "/proc/self/mem", "~/x",
    "a" * 70_000, "a.b.c", "{{7*7}}", "<script>", "__import__('os').mkdir('executed')", [], {}, [[]], [None], [0] * 300,
    {"": None}, {"x": {"x": {"x": 1}}}, "[1, 2]", "%s%s%n", "-", "=",
)  # fmt: skip
TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\n\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b":",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"#",
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"<<: ",
    b"---\n",
    b"%YAML 9\n",
    b"? ",
    b"|",
    b">",
    b"@",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"(" * 300,
    b"-" * 300,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"null",
    b"PK\x05\x06",
    b"PK\x01\x02",
    b"\x93NUMPY",
    b"cos\nmkdir\n(S'executed'\ntR.",
    b"\x80\x04",
    b"\xff" * 8,
    b"\x00" * 64,
    b"\x7f\xff\xff\xff",
)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Bits flipped, stretches cut, repeated, moved or truncated, tokens put in, numbers overwritten."""
    content = bytearray(data)
    first, second = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    near = min(second, first + rng.randrange(1, 40))
    match rng.randrange(8):
        case 0 if content:
            for _ in range(rng.randrange(1, 5)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 1:
            del content[first:near]
        case 2:
            content[first:first] = content[first:near] * rng.choice((1, 2, 50))
        case 3:
            content[second:second] = content[first:near]
        case 4:
            del content[rng.choice((first, len(content) - rng.randrange(min(len(content), 30) + 1))) :]
        case 5:
            n_bytes = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2 ** (8 * n_bytes) - 1, 2 ** (8 * n_bytes - 1), rng.getrandbits(8 * n_bytes)))
            content[first : first + n_bytes] = number.to_bytes(n_bytes, rng.choice(("little", "big")))
        case 6:
            content[first:near] = rng.choice(TOKENS)
        case _:
            content[first:first] = rng.choice(TOKENS)
    return bytes(content)


def mutate_tree_text(data: bytes, rng: Random) -> bytes:
    """A YAML or JSON text with a mutated tree, written as JSON, which is YAML, too."""
    text = data.decode()
    tree = json.loads(text) if text.lstrip()[:1] in "[{" else yaml.load(text, yaml.CSafeLoader)
    return json.dumps(mutate_tree(tree, rng)).encode()


def mutate_json_lines(data: bytes, rng: Random) -> bytes:
    """JSON lines with one mutated object."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate_tree_text(lines[at], rng)
    return b"\n".join(lines)


def mutate_tree(tree: Any, rng: Random) -> Any:
    """The tree with one node replaced, deleted, renamed, repeated, scaled, wrapped, or swapped with another."""
    box = {"": copy.deepcopy(tree)}
    nodes = list(_nodes(box))
    holder, key = rng.choice(nodes)
    value = holder[key]
    match rng.randrange(8):
        case 0 | 1:
            holder[key] = rng.choice(EXTREMES)
        case 2:
            other, place = rng.choice(nodes)
            holder[key] = copy.deepcopy(other[place])
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[str(rng.choice((f"{key}s", key[:-1], rng.choice(EXTREMES), rng.choice(nodes)[1])))] = holder.pop(key)
        case 5:
            holder[key] = value * rng.choice((2, 40)) if isinstance(value, (list, str)) else [value] * 3
        case 6:
            holder[key] = _scaled(value, rng)
        case _:
            for _ in range(rng.choice((1, 1, 5, 60))):
                holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
    return box.get("", {})


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _nodes(value)


def _scaled(value: Any, rng: Random) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return rng.choice((-value, value + 1, value - 1, value * 2, value * 10**9, value / 3, str(value), value * 1000))
    return mutate_bytes(str(value).encode(), rng).decode("utf-8", "replace")


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Lines deleted, repeated, swapped; a cell of one made extreme, deleted, repeated or swapped with another."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines[at:at] = [lines[other]] * rng.choice((1, 3, 100))
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = mutate_bytes(lines[at], rng)
        case _:
            separator = next((mark for mark in (b"\t", b",", b": ", b" ") if mark in lines[at]), b",")
            cells = lines[at].split(separator)
            place = rng.randrange(len(cells))
            cells[place : place + rng.randrange(2)] = [
                rng.choice(
                    (str(rng.choice(EXTREMES)).encode("utf-8", "replace"), rng.choice(cells), b"-" + cells[place])
                )
            ] * rng.choice((0, 1, 1, 1, 2))
            lines[at] = separator.join(cells)
    return b"\n".join(lines)
