"""Every importer through the same suite: the known routing comes back, and nothing but TraceError on damaged files."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import TraceError
from tests.conformance import trace_fixtures as tiny
from tests.conformance.trace_fixtures import FIXTURES, IDS, N_EXPERTS, Written
from tests.shared import shared_file
from traces.counts import ExpertCounts
from traces.formats import IMPORTERS, import_trace
from traces.recording import ImportOptions
from traces.routing import RoutingTrace
from traces.storage import load_trace, save_trace

TORCH = ("sglang-stat", "sglang-per-pass", "sglang-per-token")
HEAVY = (*TORCH, "flame-parquet")  # importing torch or pyarrow alone takes longer than 0.25 s
FORMATS = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in IMPORTERS]
N_MUTATIONS = 50


def read(format: str, written: Written, **changes: Any) -> RoutingTrace | ExpertCounts:
    return import_trace(format, written.path, replace(written.options, **changes))


def trace_of(format: str, written: Written, **changes: Any) -> RoutingTrace:
    trace = read(format, written, **changes)
    assert isinstance(trace, RoutingTrace)
    return trace


def test_every_format_has_a_fixture() -> None:
    assert set(FIXTURES) == set(IMPORTERS)


@pytest.mark.parametrize("format", FORMATS)
def test_known_routing_comes_back(format: str, tmp_path: Path) -> None:
    written = FIXTURES[format](tmp_path)
    result = read(format, written)
    assert result.moe_layers == written.moe_layers
    assert result.n_experts == N_EXPERTS
    if isinstance(result, ExpertCounts):
        np.testing.assert_array_equal(result.counts, written.expected)
        assert result.per_expert().sum() == written.expected.sum()
        return
    np.testing.assert_array_equal(result.ids, written.expected)
    np.testing.assert_array_equal(result.offsets, written.offsets)
    assert not result.variable_k
    save_trace(result, tmp_path / "saved.npz")
    np.testing.assert_array_equal(load_trace(tmp_path / "saved.npz").ids, written.expected)


@pytest.mark.parametrize("format", FORMATS)
def test_every_check_is_reported(format: str, tmp_path: Path) -> None:
    result = read(format, FIXTURES[format](tmp_path))
    notes = " | ".join(result.provenance.notes)
    for_traces = ("slot map", "dense layers", "padded k", "warm-up rows", "truncated tokens", "de-interleaving",
                  "fused shared experts", "physical ids", "repeated experts", "interleaving", "duplicated layers",
                  "duplicate sequences", "unsorted ids", "request identity")  # fmt: skip
    expected = for_traces if isinstance(result, RoutingTrace) else ("dense layers", "idle steps")
    assert [check for check in expected if f"{check}: " not in notes] == []
    assert all("[count " in note for note in result.provenance.notes)


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(len(data), size=int(rng.integers(1, 4))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(int(i) for i in rng.integers(len(data), size=2))
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(int(i) for i in rng.integers(len(data), size=2))
    return data[:end] + data[start:]


def _substitute(data: bytes, rng: np.random.Generator) -> bytes:
    digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()] or [0]
    at = digits[int(rng.integers(len(digits)))]
    words = (
        b"null",
        b"-7",
        b"1e400",
        b'"x"',
        b"[]",
        b"{}",
        b"99999999999999999999",
        b"NaN",
        b"true",
        b"0.5",
        b",",
        b"",
    )
    return data[:at] + words[int(rng.integers(len(words)))] + data[at + 1 :]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_truncate, _flip, _cut, _repeat, _substitute)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_raise_nothing_but_trace_errors(format: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sorted(IMPORTERS).index(format))
    written = FIXTURES[format](tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    originals = {path: path.read_bytes() for path in files}
    refused = 0
    for number in range(N_MUTATIONS):
        path = files[int(rng.integers(len(files)))]
        path.write_bytes(MUTATIONS[number % len(MUTATIONS)](originals[path], rng))
        try:
            read(format, written)
        except TraceError as error:
            refused += 1
            assert str(written.path) in str(error)
        path.write_bytes(originals[path])
    assert refused >= N_MUTATIONS // 4  # the mutations do reach the reader


@pytest.mark.parametrize("format", FORMATS)
def test_missing_and_empty_files_are_refused(format: str, tmp_path: Path) -> None:
    written = FIXTURES[format](tmp_path)
    with pytest.raises(TraceError, match="no such file"):
        import_trace(format, tmp_path / "absent", written.options)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(b"")
    with pytest.raises(TraceError):
        read(format, written)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(TraceError):
        import_trace(format, tmp_path, written.options)


def test_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="did you mean 'vllm-hook'"):
        import_trace("vllm-hok", tmp_path, ImportOptions())


@pytest.mark.parametrize("format", ["exflow", "speculative-moe", "moe-balance", "moe-beyond", "vllm-routed-experts"])
def test_the_number_of_experts_is_never_guessed(format: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="--experts"):
        read(format, FIXTURES[format](tmp_path), n_experts=None)


def test_a_wrong_number_of_experts_is_refused(tmp_path: Path) -> None:
    written = tiny.write_vllm_hook(tmp_path)
    with pytest.raises(TraceError, match="--experts says 9, but the file holds 8"):
        read("vllm-hook", written, n_experts=9)


def test_ids_beyond_the_experts_ask_for_the_slot_map(tmp_path: Path) -> None:
    written = tiny.write_speculative_moe(tmp_path)
    with pytest.raises(TraceError, match="--physical-to-logical"):
        read("speculative-moe", written, n_experts=6)


def test_slot_map_option(tmp_path: Path) -> None:
    written = tiny.write_speculative_moe(tmp_path)
    swapped = np.arange(N_EXPERTS)[::-1]
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": [swapped.tolist()] * 3}))
    trace = trace_of("speculative-moe", written, physical_to_logical=tmp_path / "map.json")
    np.testing.assert_array_equal(trace.ids, N_EXPERTS - 1 - IDS.transpose(1, 2, 0))
    assert any(note.startswith("slot map: 8 slots were mapped to 8 experts") for note in trace.provenance.notes)


def test_vllm_hook_warmup_rows_go_only_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "routes.jsonl"
    path.write_text("\n".join(tiny.hook_lines(warmup=300)))
    trace = import_trace("vllm-hook", path, ImportOptions())
    assert isinstance(trace, RoutingTrace)
    np.testing.assert_array_equal(trace.ids, IDS.transpose(1, 2, 0))
    assert "warm-up rows: 900 of 936 rows" in " | ".join(trace.provenance.notes)  # 300 tokens in 3 layers
    kept = import_trace("vllm-hook", path, ImportOptions(keep_warmup=True))
    assert isinstance(kept, RoutingTrace)
    assert kept.n_tokens == 312
    assert "kept as asked" in " | ".join(kept.provenance.notes)


def test_truncated_tokens_are_dropped_and_counted(tmp_path: Path) -> None:
    written = tiny.write_speculative_moe(tmp_path)
    lines = written.path.read_text().splitlines()
    written.path.write_text("\n".join(lines[:5] + lines[6:-1]))  # token 1 and the last token lose their layer 2
    trace = trace_of("speculative-moe", written)
    np.testing.assert_array_equal(trace.ids, np.delete(IDS, [1, 11], axis=0).transpose(1, 2, 0))
    assert trace.offsets.tolist() == [0, 6, 10]
    assert "truncated tokens: 2 of 12 tokens" in " | ".join(trace.provenance.notes)


def test_dense_and_padded_parts_are_noted(tmp_path: Path) -> None:
    trace = trace_of("vllm-routed-experts", tiny.write_vllm_routed_experts(tmp_path))
    assert "dense layers: 1 of 4 layers were left out as dense: 0" in " | ".join(trace.provenance.notes)


@pytest.mark.slow  # imports torch
def test_sglang_padding_and_identity_are_noted(tmp_path: Path) -> None:
    trace = trace_of("sglang-per-token", tiny.write_sglang_per_token(tmp_path))
    notes = " | ".join(trace.provenance.notes)
    assert "padded k: 6 of 8 places" in notes
    assert "only unions and loads per step are valid" in notes
    assert trace.phase == "prefill"
    assert trace.positions.tolist() == list(range(12))


@pytest.mark.slow  # imports torch
def test_sglang_ranks_that_record_the_same_count_once(tmp_path: Path) -> None:
    written = tiny.write_sglang_per_token(tmp_path)
    shutil.copy(tmp_path / "expert_distribution_recorder_1_1.pt", tmp_path / "expert_distribution_recorder_1_2.pt")
    trace = trace_of("sglang-per-token", written)
    np.testing.assert_array_equal(trace.ids, written.expected)
    assert "repeated ranks: 1 ranks recorded what another did" in " | ".join(trace.provenance.notes)


@pytest.mark.slow  # imports torch
def test_sglang_without_slot_map_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "expert_distribution_recorder_1_0.pt"
    torch.save({"records": []}, path)
    with pytest.raises(TraceError, match="last_physical_to_logical_map"):
        import_trace("sglang-per-token", path, ImportOptions())


@pytest.mark.slow  # imports torch
def test_torch_pickles_are_not_executed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"logical_count": Payload()}, tmp_path / "stat.pt")
    with pytest.raises(TraceError, match=r"torch\.save"):
        import_trace("sglang-stat", tmp_path / "stat.pt", ImportOptions())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("format", "module", "extra"),
    [("sglang-stat", "torch", "capture"), ("flame-parquet", "pyarrow.parquet", "tables")],
)
def test_missing_libraries_name_the_extra(
    format: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "samples").mkdir()
    (tmp_path / "actives" / "iter_1").mkdir(parents=True)
    (tmp_path / "samples" / "000.parquet").touch()
    (tmp_path / "x.pt").touch()
    path = tmp_path if format == "flame-parquet" else tmp_path / "x.pt"
    with pytest.raises(TraceError, match=rf"moesim\[{extra}\]"):
        import_trace(format, path, ImportOptions())


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    with pytest.raises(TraceError, match="no pickled objects"):
        import_trace("exflow", tmp_path / "x.npy", ImportOptions(n_experts=4))
    with (tmp_path / "y.npz").open("wb") as stream:
        np.savez(stream, routed_experts=np.array([1, "x"], dtype=object))
    with pytest.raises(TraceError, match="objects"):
        import_trace("moe-balance", tmp_path / "y.npz", ImportOptions(n_experts=4))


def test_moe_balance_lines(tmp_path: Path) -> None:
    lines = [
        {"layer": layer, "batch_id": s, "topk_experts": ids[:, layer].tolist()}
        for s, ids in enumerate(tiny.SEQUENCES)
        for layer in range(3)
    ]
    (tmp_path / "trace.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    trace = import_trace("moe-balance", tmp_path / "trace.jsonl", ImportOptions(n_experts=N_EXPERTS))
    assert isinstance(trace, RoutingTrace)
    np.testing.assert_array_equal(trace.ids, IDS.transpose(1, 2, 0))
    assert "engine steps" in " | ".join(trace.provenance.notes)


def test_sglang_openai_answers(tmp_path: Path) -> None:
    text = base64.b64encode(np.ascontiguousarray(tiny.SEQUENCES[0], dtype=np.int32).tobytes()).decode()
    answer = {"choices": [{"sgl_ext": {"routed_experts": text}}], "usage": {"total_tokens": 10}}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    options = ImportOptions(n_experts=N_EXPERTS, n_layers=3, top_k=2)
    trace = import_trace("sglang-routed-experts", tmp_path / "answer.json", options)
    assert isinstance(trace, RoutingTrace)
    assert trace.positions.tolist() == [2, 3, 4, 5, 6, 7, 8]  # 10 tokens, the last is never routed, 7 were returned
    with pytest.raises(TraceError, match="--layers"):
        import_trace("sglang-routed-experts", tmp_path / "answer.json", replace(options, n_layers=None))


def test_fused_shared_experts_are_refused(tmp_path: Path) -> None:
    fused = np.concatenate([IDS, np.full((12, 3, 1), N_EXPERTS)], axis=2)
    path = tmp_path / "routes.jsonl"
    path.write_text("\n".join(tiny.hook_lines(fused)).replace("[0.75, 0.25]", "[0.5, 0.25, 0.25]"))
    with pytest.raises(TraceError, match="shared-expert fusion"):
        import_trace("vllm-hook", path, ImportOptions())


def test_duplicated_layers_are_reported(tmp_path: Path) -> None:
    copied = IDS[:, [0, 1, 0]]
    path = tmp_path / "routes.jsonl"
    path.write_text("\n".join(tiny.hook_lines(copied)))
    trace = import_trace("vllm-hook", path, ImportOptions())
    assert isinstance(trace, RoutingTrace)
    assert trace.n_layers == 3
    assert "duplicated layers: layers 2 repeat earlier layers" in " | ".join(trace.provenance.notes)
    chosen = import_trace("vllm-hook", path, ImportOptions(moe_layers=(0, 1)))
    assert chosen.moe_layers == (0, 1)


def test_json_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(TraceError, match="not valid JSON"):
        import_trace("vllm-routed-experts", tmp_path / "x.json", ImportOptions(n_experts=4))


def test_rows_that_claim_many_layers_do_not_fill_memory(tmp_path: Path) -> None:
    rows = [
        json.dumps({"type": "route", "req_id": 0, "token_idx": i, "layer": i, "topk_ids": [0]}) for i in range(1000)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with pytest.raises(TraceError, match="most tokens lack most layers"):
        import_trace("vllm-hook", tmp_path / "x.jsonl", ImportOptions(n_experts=4))


@pytest.mark.slow
def test_gptoss_fingerprints() -> None:
    """703 records (702 unique) of 30..511 tokens, counted in the source; gpt-oss-20b has 24 layers, top-4 of 32."""
    folder = shared_file("data/traces/gptoss20b_fingerprint")
    start_s = time.perf_counter()
    trace = import_trace("gptoss-fingerprint", folder, ImportOptions(model="gpt-oss-20b"))
    assert isinstance(trace, RoutingTrace)
    assert time.perf_counter() - start_s < 5  # about 0.5 s where nothing else runs
    assert (trace.n_sequences, trace.n_tokens, trace.n_layers, trace.top_k) == (703, 215_438, 24, 4)
    assert (trace.n_experts, trace.phase, trace.weight_ordered) == (32, "decode", True)
    lengths = np.diff(trace.offsets)
    assert (lengths.min(), lengths.max()) == (30, 511)
    assert len(set(trace.labels)) == 11
    assert trace.positions[0] == 101  # prompt length of the first record
    assert "duplicate sequences: 702 of 703 sequences are distinct" in " | ".join(trace.provenance.notes)


def test_flame_sample_and_its_interleaved_rows(tmp_path: Path) -> None:
    """The sample of 8 sequences x 256 tokens, put back into Megatron's row order, is refused and can be restored."""
    sample = shared_file("data/traces/flame_moe_290m_sample/ids_probs_deinterleaved.npz")
    layers = tuple(range(2, 10))
    trace = import_trace("flame-npz", sample, ImportOptions(model="FLAME-MoE-290M", moe_layers=layers))
    assert isinstance(trace, RoutingTrace)
    assert (trace.n_sequences, trace.n_tokens, trace.n_layers, trace.top_k) == (8, 2048, 8, 6)
    ids = trace.ids.transpose(2, 0, 1)
    raw = ids.reshape(8, 256, 8, 6).transpose(1, 0, 2, 3).reshape(2048, 8, 6)
    np.savez(tmp_path / "raw.npz", ids=raw, offsets=[0, 2048])
    with pytest.raises(TraceError, match=r"is 0\.213 at lag 8 but 0\.106 at lag 1.*--deinterleave 8"):
        import_trace("flame-npz", tmp_path / "raw.npz", ImportOptions())
    restored = import_trace("flame-npz", tmp_path / "raw.npz", ImportOptions(deinterleave=8))
    assert isinstance(restored, RoutingTrace)
    np.testing.assert_array_equal(restored.ids, trace.ids)
    np.testing.assert_array_equal(restored.positions, trace.positions)
    np.testing.assert_array_equal(restored.offsets, trace.offsets)
