"""Mutations of valid files, chosen by their names: of texts, arrays, archives, or of plain bytes."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path, PurePath
from random import Random

from tests.fuzz.archives import mutate_npy, mutate_npz, mutate_parquet, mutate_safetensors, mutate_zip, npy_header
from tests.fuzz.texts import mutate_bytes, mutate_json_lines, mutate_lines, mutate_tree_text

Mutation = Callable[[bytes, Random], bytes]


def mutated(data: bytes, name: str, rng: Random) -> bytes:
    """`data`, the content of a file of this name, with one to three mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kinds = (*_codecs(name), mutate_bytes)
        chosen = kinds[0] if rng.random() < 0.6 else rng.choice(kinds)
        try:
            data = chosen(data, rng)
        except Exception:  # an earlier mutation left nothing that this one can take apart
            data = mutate_bytes(data, rng)
    return data


def _codecs(name: str) -> tuple[Mutation, ...]:
    """Mutations that know what is inside a file of this name, the one that goes deepest first."""
    suffix = PurePath(name).suffix
    by_suffix: dict[str, tuple[Mutation, ...]] = {
        ".yaml": (mutate_tree_text, mutate_lines),
        ".yml": (mutate_tree_text, mutate_lines),
        ".json": (mutate_tree_text,),
        ".jsonl": (mutate_json_lines, mutate_lines),
        ".csv": (mutate_lines,),
        ".txt": (mutate_lines,),
        ".npy": (mutate_npy, npy_header),
        ".npz": (mutate_npz, mutate_zip),
        ".pt": (mutate_zip,),
        ".safetensors": (mutate_safetensors,),
        ".parquet": (mutate_parquet,),
    }
    if suffix == ".gz":
        return (_inside_gzip(PurePath(name).stem),)
    return by_suffix.get(suffix, ())


def _inside_gzip(inner: str) -> Mutation:
    return lambda data, rng: gzip.compress(mutated(gzip.decompress(data), inner, rng), 1)


def files_of(folder: Path) -> list[Path]:
    """The files below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
