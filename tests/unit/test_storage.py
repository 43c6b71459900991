"""Traces on disk: the round trip is exact, ids are mapped, and damage of any kind is a TraceError."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import MoesimError, TraceError
from traces.routing import Provenance, RoutingTrace
from traces.storage import load_trace, read_arrays, save_trace


def make_trace(
    *, n_tokens: int = 50, n_experts: int = 16, weights: bool = True, variable_k: bool = False
) -> RoutingTrace:
    rng = np.random.default_rng(7)
    choices = rng.random((3, n_tokens, n_experts)).argsort(axis=2)[:, :, :2].transpose(0, 2, 1)
    dtype = np.uint16 if n_experts > 256 else np.uint8
    ids: Any = np.ascontiguousarray(choices, dtype=dtype)
    if variable_k:
        ids[0, 1, 0] = np.iinfo(dtype).max
    return RoutingTrace(
        ids=ids,
        n_experts=n_experts,
        offsets=np.array([0, 20, n_tokens]),
        positions=np.arange(n_tokens, dtype=np.int32),
        moe_layers=(1, 2, 5),
        phase="decode",
        provenance=Provenance(
            model="tiny", source="made here", kind="synthetic", licence="CC0", notes=("ein Ä", "two")
        ),
        weights=rng.random(ids.shape).astype(np.float16) if weights else None,
        labels=("chat", "code"),
        weight_ordered=True,
        variable_k=variable_k,
    )


def assert_equal(left: RoutingTrace, right: RoutingTrace) -> None:
    for name in ("ids", "offsets", "positions", "weights"):
        a, b = getattr(left, name), getattr(right, name)
        if a is None or b is None:
            assert a is b
        else:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    for name in ("n_experts", "moe_layers", "phase", "provenance", "labels", "weight_ordered", "variable_k"):
        assert getattr(left, name) == getattr(right, name)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("n_experts", "variable_k"), [(16, False), (300, False), (16, True), (300, True)])
def test_round_trip(n_experts: int, variable_k: bool, weights: bool, tmp_path: Path) -> None:
    trace = make_trace(n_experts=n_experts, variable_k=variable_k, weights=weights)
    save_trace(trace, tmp_path / "t.npz")
    assert_equal(load_trace(tmp_path / "t.npz"), trace)
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_large_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    trace = make_trace(n_tokens=40_000)
    save_trace(trace, tmp_path / "t.npz")
    loaded = load_trace(tmp_path / "t.npz")
    assert isinstance(loaded.ids, np.memmap)
    assert isinstance(loaded.weights, np.memmap)
    assert not loaded.ids.flags.writeable
    assert_equal(loaded, trace)


def test_numpy_reads_the_file_too(tmp_path: Path) -> None:
    trace = make_trace()
    save_trace(trace, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as arrays:
        np.testing.assert_array_equal(arrays["ids"], trace.ids)


@pytest.mark.parametrize("n_tokens", [50, 40_000])
@pytest.mark.parametrize("tenths", range(10))
def test_truncated_files_are_refused(tenths: int, n_tokens: int, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save_trace(make_trace(n_tokens=n_tokens), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * tenths // 10])
    with pytest.raises(TraceError, match=r"t\.npz"):
        load_trace(path)


def test_corrupt_bytes_raise_nothing_but_trace_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save_trace(make_trace(), path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(bytes(changed))
        try:
            load_trace(path)
        except TraceError:
            refused += 1
    assert refused > 100  # small arrays carry a checksum


def _rewrite(path: Path, **changes: Any) -> None:
    """Replace arrays of a saved trace; `meta` is given as a dictionary of changed keys."""
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes()) | changes.pop("meta", {})
    arrays = arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)} | changes
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": {"format": "other-2"}}, "not a moesim trace"),
        ({"meta": {"n_experts": "many"}}, "misstates"),
        ({"meta": {"n_experts": 4}}, "out of range"),
        ({"meta": {"moe_layers": [1]}}, "layer numbers"),
        ({"meta": {"provenance": {}}}, "notes"),
        ({"offsets": np.array([0, 60])}, "offsets"),
        ({"offsets": np.array(3)}, "offsets|misstates"),
        ({"positions": np.arange(3)}, "positions"),
        ({"weights": np.zeros((1, 1, 1), np.float16)}, "weights"),
        ({"ids": np.zeros((3, 2, 50), np.int64)}, "uint8 or uint16"),
    ],
)
def test_inconsistent_files_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save_trace(make_trace(), path)
    _rewrite(path, **changes)
    with pytest.raises(TraceError, match=message):
        load_trace(path)


def test_object_arrays_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save_trace(make_trace(), path)
    _rewrite(path, ids=np.array([1, "x"], dtype=object))
    with pytest.raises(TraceError, match="Python objects"):
        load_trace(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such trace file"):
        load_trace(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TraceError, match="not a readable trace"):
        load_trace(tmp_path / "text.npz")
    np.savez(tmp_path / "plain.npz", ids=np.zeros(3))
    with pytest.raises(TraceError, match="not a moesim trace"):
        load_trace(tmp_path / "plain.npz")
    with pytest.raises(TraceError):
        load_trace(tmp_path)


def test_header_and_size_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9999999999), }".ljust(117) + "\n"
        archive.writestr("ids.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"abc")
    with pytest.raises(TraceError, match="says shape"):
        read_arrays(path)


def test_compressed_arrays_have_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "t.npz", ids=np.zeros(10_000, np.uint8))
    assert read_arrays(tmp_path / "t.npz")["ids"].shape == (10_000,)
    monkeypatch.setattr("scenarios.reading.MAX_INFLATED_BYTES", 10_000)
    with pytest.raises(TraceError, match="inflates to 10128 bytes"):
        read_arrays(tmp_path / "t.npz")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.npz"
    old = make_trace()
    save_trace(old, path)

    def fail(stream: Any, **_: Any) -> None:
        stream.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        save_trace(replace(old, phase="prefill"), path)
    monkeypatch.undo()
    assert_equal(load_trace(path), old)
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


def test_a_folder_that_does_not_exist_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match="cannot be written"):
        save_trace(make_trace(), tmp_path / "absent" / "t.npz")
