"""Tiny files of every routing format, all holding the same routing. Written by the tests, read by the importers."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from traces.recording import ImportOptions

N_EXPERTS, N_LAYERS, TOP_K = 8, 3, 2
LENGTHS = (7, 5)
N_TOKENS = sum(LENGTHS)


def _known_ids() -> NDArray[np.int64]:
    """ids [token, layer, k]: the second expert is 1 to 6 places after the first, so the two always differ."""
    token, layer = np.meshgrid(np.arange(N_TOKENS), np.arange(N_LAYERS), indexing="ij")
    first = (3 * token + 5 * layer + token // 4) % N_EXPERTS
    return np.stack([first, (first + 1 + (token * (layer + 1)) % 6) % N_EXPERTS], axis=2)


IDS = _known_ids()
WEIGHTS = np.stack([np.full(IDS.shape[:2], 0.75), np.full(IDS.shape[:2], 0.25)], axis=2)
OFFSETS = np.array([0, 7, 12])
SEQUENCES = [IDS[0:7], IDS[7:12]]
COUNTS = np.stack(
    [[np.bincount(s[:, layer].ravel(), minlength=N_EXPERTS) for layer in range(N_LAYERS)] for s in SEQUENCES]
)


@dataclass(frozen=True)
class Written:
    """What a fixture wrote, how to import it, and what must come out: ids [layer, k, token] or counts."""

    path: Path
    options: ImportOptions
    expected: NDArray[Any]
    offsets: NDArray[np.int64] | None = None
    moe_layers: tuple[int, ...] = (0, 1, 2)


def _trace(path: Path, expected: NDArray[Any] | None = None, **known: Any) -> Written:
    offsets = known.pop("offsets", OFFSETS)
    layers = known.pop("moe_layers", (0, 1, 2))
    ids = IDS.transpose(1, 2, 0) if expected is None else expected
    return Written(path, ImportOptions(model="tiny", **known), ids, offsets, layers)


def write_gptoss_fingerprint(folder: Path) -> Written:
    np.savez_compressed(folder / "ids.npz", ids=IDS.astype(np.uint8), offsets=OFFSETS)
    records = [{"dataset": f"set{r}", "n_routed": n, "first_pos": 100 + r} for r, n in enumerate(LENGTHS)]
    (folder / "records.json").write_text(json.dumps(records))
    return _trace(folder, n_experts=N_EXPERTS)


def write_gptoss_json(folder: Path) -> Written:
    data = []
    for ids in SEQUENCES:
        layers = [
            {
                f"layer_{j}": {"selected_experts": e.tolist(), "selected_probs": [0.75, 0.25]}
                for j, e in enumerate(token)
            }
            for token in ids
        ]
        data.append({f"token_{100 + t}": token for t, token in enumerate(layers)})
    file = folder / "some_set" / "True_False_examples.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"full_text": ["", ""], "generated_only": ["", ""], "router_data": data}))
    return _trace(folder, n_experts=N_EXPERTS)


def write_flame_npz(folder: Path) -> Written:
    path = folder / "flame.npz"
    np.savez(path, ids=IDS.astype(np.uint8), probs=WEIGHTS.astype(np.float16), offsets=OFFSETS)
    return _trace(path, n_experts=N_EXPERTS, moe_layers=(0, 1, 2))


def write_flame_parquet(folder: Path) -> Written:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = IDS.reshape(2, 6, N_LAYERS, TOP_K).transpose(1, 0, 2, 3).reshape(IDS.shape)  # two sequences of six alternate
    (folder / "samples").mkdir()
    iteration = folder / "actives" / "iter_0007"
    iteration.mkdir(parents=True)
    table = pyarrow.table({"token_id": pyarrow.array(range(N_TOKENS), pyarrow.int32())})
    parquet.write_table(table, folder / "samples" / "000.parquet")
    for layer in range(N_LAYERS):
        indices = pyarrow.array(rows[:, layer].tolist(), pyarrow.list_(pyarrow.int16()))
        scores = pyarrow.array([[np.float16(0.75), np.float16(0.25)]] * N_TOKENS, pyarrow.list_(pyarrow.float16()))
        path = iteration / f"layer_{layer + 2:02}.parquet"
        parquet.write_table(pyarrow.table({"scores": scores, "indices": indices}), path)
    offsets = np.array([0, 6, 12])
    return _trace(folder, n_experts=N_EXPERTS, deinterleave=2, offsets=offsets, moe_layers=(2, 3, 4))


def _physical() -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Slot ids [hidden layer, token, 8] with a dense layer 0 and padding, and the map [hidden layer, slot]."""
    slots = np.stack([np.roll(np.append(np.arange(N_EXPERTS), [0, 1]), shift) for shift in range(N_LAYERS + 1)])
    first_slot = np.array([[np.flatnonzero(row == e)[0] for e in range(N_EXPERTS)] for row in slots])
    padded = np.full((N_LAYERS + 1, N_TOKENS, 8), -1, dtype=np.int32)
    for layer in range(N_LAYERS):
        padded[layer + 1, :, :TOP_K] = first_slot[layer + 1][IDS[:, layer]]
    return padded, slots


def write_sglang_stat(folder: Path) -> Written:
    torch = pytest.importorskip("torch")
    counts = np.zeros((4, N_LAYERS + 1, N_EXPERTS), dtype=np.int32)
    counts[1:3, 1:] = COUNTS
    path = folder / "expert_distribution_recorder_1.pt"
    torch.save({"rank": 0, "logical_count": torch.tensor(counts)}, path)
    return Written(path, ImportOptions(model="tiny"), COUNTS, None, (1, 2, 3))


def write_sglang_per_pass(folder: Path) -> Written:
    torch = pytest.importorskip("torch")
    padded, slots = _physical()
    for rank in range(2):
        records = []
        for step, (start, end) in enumerate(((0, 7), (7, 12))):
            counts = np.zeros(slots.shape, dtype=np.int32)
            for layer in range(1, N_LAYERS + 1):
                mine = padded[layer, start:end, rank]  # rank r counts the r-th expert of every token
                counts[layer] = np.bincount(mine, minlength=slots.shape[1])
            records.append({"forward_pass_id": 40 + step, "rank": rank, "gatherer_key": "primary",
                            "global_physical_count": torch.tensor(counts)})  # fmt: skip
        dump = {"records": records, "last_physical_to_logical_map": torch.tensor(slots)}
        torch.save(dump, folder / f"expert_distribution_recorder_1_{rank}.pt")
    return Written(folder, ImportOptions(model="tiny"), COUNTS, None, (1, 2, 3))


def write_sglang_per_token(folder: Path) -> Written:
    torch = pytest.importorskip("torch")
    padded, slots = _physical()
    cuts = (
        ((0, 4), (7, 9)),
        ((4, 7), (9, 12)),
    )  # rank 0 runs tokens 0-3 in pass 40 and 7-8 in pass 41, rank 1 the rest
    for rank, (first, second) in enumerate(cuts):
        records = [
            {"forward_pass_id": 40 + step, "rank": rank, "gatherer_key": "primary", "forward_mode": 1,
             "input_ids": list(range(start, end)), "positions": list(range(start, end)),
             "extend_seq_lens": [end - start], "topk_ids_of_layer": torch.tensor(padded[:, start:end]),
             "misc_objects": []}
            for step, (start, end) in enumerate((first, second))
        ]  # fmt: skip
        dump = {"records": records, "last_physical_to_logical_map": torch.tensor(slots)}
        torch.save(dump, folder / f"expert_distribution_recorder_1_{rank}.pt")
    return _trace(folder, moe_layers=(1, 2, 3))


def _all_hidden(ids: NDArray[Any], dummy: int) -> NDArray[np.int32]:
    """ids with a dense layer 0 filled with `dummy`, int32 [token, hidden layer, k]."""
    dense = np.full((len(ids), 1, TOP_K), dummy)
    return np.ascontiguousarray(np.concatenate([dense, ids], axis=1), dtype=np.int32)


def write_sglang_routed_experts(folder: Path) -> Written:
    path = folder / "responses.jsonl"
    lines = []
    for ids in SEQUENCES:
        text = base64.b64encode(_all_hidden(ids, -1).tobytes()).decode()
        meta = {"prompt_tokens": 3, "completion_tokens": len(ids) - 2, "routed_experts": text}
        lines.append(json.dumps({"text": "", "meta_info": meta}))
    path.write_text("\n".join(lines))
    return _trace(path, n_experts=N_EXPERTS, n_layers=N_LAYERS + 1, top_k=TOP_K, moe_layers=(1, 2, 3))


def write_vllm_routed_experts(folder: Path) -> Written:
    choices = []
    for ids in SEQUENCES:
        buffer = io.BytesIO()
        np.save(buffer, _all_hidden(ids, 0))
        choices.append({"index": 0, "routed_experts": base64.b64encode(buffer.getvalue()).decode()})
    path = folder / "response.json"
    path.write_text(json.dumps({"id": "x", "choices": choices}))
    return _trace(path, n_experts=N_EXPERTS, moe_layers=(1, 2, 3))


def hook_lines(ids: NDArray[Any] = IDS, *, warmup: int = 0) -> list[str]:
    meta = {"type": "meta", "model_id": "tiny", "layers_logged": [0, 1, 2], "top_k": TOP_K, "num_experts": N_EXPERTS}
    rows = [
        {
            "type": "route",
            "req_id": "r0",
            "token_idx": t,
            "layer": layer,
            "topk_ids": [4, 2],
            "topk_weights": [0.5, 0.5],
        }
        for t in range(warmup)
        for layer in range(N_LAYERS)
    ]
    for t, token in enumerate(ids):
        request, place = (0, t) if t < LENGTHS[0] else (1, t - LENGTHS[0])
        rows += [
            {"type": "route", "req_id": f"r{request}", "token_idx": place, "layer": layer, "topk_ids": experts.tolist(),
             "topk_weights": [0.75, 0.25]}
            for layer, experts in enumerate(token)
        ]  # fmt: skip
    return [json.dumps(row) for row in [meta, *rows]]


def write_vllm_hook(folder: Path) -> Written:
    path = folder / "moe_routes.jsonl"
    path.write_text("\n".join(hook_lines()) + "\n")
    return _trace(path)


def save_safetensors(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in arrays.items():
        dtype = {"int64": "I64", "int32": "I32"}[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(body), len(body) + array.nbytes]}
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _write_trtllm(folder: Path) -> None:
    meta = {"num_experts": N_EXPERTS, "num_experts_per_token": TOP_K}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    cuts = (((0, 4), (7, 9)), ((4, 7), (9, 12)))
    for rank, steps in enumerate(cuts):
        raw = {
            f"{100 + step}_{layer + 3}": np.ascontiguousarray(IDS[start:end, layer], dtype=np.int32)
            for step, (start, end) in enumerate(steps)
            for layer in range(N_LAYERS)
        }
        counted = {key: np.bincount(ids.ravel(), minlength=N_EXPERTS) for key, ids in raw.items()}
        save_safetensors(folder / f"rank{rank}.safetensors", counted)
        save_safetensors(folder / f"rank{rank}_raw.safetensors", raw)


def write_trtllm_statistics(folder: Path) -> Written:
    _write_trtllm(folder)
    return Written(folder, ImportOptions(model="tiny"), COUNTS, None, (3, 4, 5))


def write_trtllm_raw(folder: Path) -> Written:
    _write_trtllm(folder)
    return _trace(folder, moe_layers=(3, 4, 5))


def write_exflow(folder: Path) -> Written:
    path = folder / "routing.npy"
    np.save(path, IDS[:, :, 0].astype(np.int32))
    top1 = IDS.transpose(1, 2, 0)[:, :1]
    return _trace(path, top1, n_experts=N_EXPERTS, offsets=np.array([0, 12]))


def write_moe_infinity(folder: Path) -> Written:
    path = folder / "eam.npy"
    np.save(path, np.concatenate([COUNTS, np.zeros_like(COUNTS)]).astype(np.float32))  # capacity 4, two in use
    return Written(path, ImportOptions(model="tiny"), COUNTS)


def write_moe_beyond(folder: Path) -> Written:
    for number, ids in enumerate(SEQUENCES):
        with (folder / f"prompt_{9 + number}_data.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["Layer ID", "Batch Number", "Token", "Activated Expert IDs"])
            for layer in range(N_LAYERS):
                writer.writerows([[layer + 1, 0, f"tok,{t}", e[layer].tolist()] for t, e in enumerate(ids)])
    return _trace(folder, n_experts=N_EXPERTS, moe_layers=(1, 2, 3))


def write_dynande(folder: Path) -> Written:
    for layer in range(N_LAYERS):
        gates = np.zeros((N_TOKENS, N_EXPERTS))
        np.put_along_axis(gates, IDS[:, layer], WEIGHTS[:, layer], axis=1)
        lines = ["layer_id,token_id," + ",".join(f"expert_{e}" for e in range(N_EXPERTS))]
        lines += [f"{layer + 2},{t}," + ",".join(str(g) for g in row) for t, row in enumerate(gates)]
        (folder / f"Layer_{layer + 2}").mkdir()
        (folder / f"Layer_{layer + 2}" / "12tokens.csv").write_text("\n".join(lines) + "\n")
    return _trace(folder, offsets=np.array([0, 12]), moe_layers=(2, 3, 4))


def write_esft(folder: Path) -> Written:
    (folder / "rank_0").mkdir()
    for layer in range(N_LAYERS):
        lines = [
            "\t".join(map(str, ids[:, layer].ravel())) + "\t\t" + "\t".join(["0.75", "0.25"] * len(ids))
            for ids in SEQUENCES
        ]
        (folder / "rank_0" / f"expert_weights_{layer + 1}.txt").write_text("\n".join(lines) + "\n")
    return _trace(folder, n_experts=N_EXPERTS, top_k=TOP_K, moe_layers=(1, 2, 3))


def write_speculative_moe(folder: Path) -> Written:
    path = folder / "routing_data.jsonl"
    lines = [
        json.dumps({"dataset": "gsm8k", "problem_id": s, "layer": layer, "token_idx": t, "experts": e[layer].tolist(),
                    "gating_probs": [0.75, 0.25]})
        for s, ids in enumerate(SEQUENCES)
        for t, e in enumerate(ids)
        for layer in range(N_LAYERS)
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    return _trace(path, n_experts=N_EXPERTS)


def write_moe_balance(folder: Path) -> Written:
    for s, ids in enumerate(SEQUENCES):
        prompt, output = np.arange(3), np.arange(len(ids) - 3)
        np.savez(folder / f"request_{s}.npz", request_id=s, prompt_token_ids=prompt, output_token_ids=output,
                 routed_experts=ids.astype(np.int16))  # fmt: skip
    return _trace(folder, n_experts=N_EXPERTS)


FIXTURES: dict[str, Callable[[Path], Written]] = {
    "dynande": write_dynande,
    "esft": write_esft,
    "exflow": write_exflow,
    "flame-npz": write_flame_npz,
    "flame-parquet": write_flame_parquet,
    "gptoss-fingerprint": write_gptoss_fingerprint,
    "gptoss-json": write_gptoss_json,
    "moe-balance": write_moe_balance,
    "moe-beyond": write_moe_beyond,
    "moe-infinity": write_moe_infinity,
    "sglang-per-pass": write_sglang_per_pass,
    "sglang-per-token": write_sglang_per_token,
    "sglang-routed-experts": write_sglang_routed_experts,
    "sglang-stat": write_sglang_stat,
    "speculative-moe": write_speculative_moe,
    "trtllm-raw": write_trtllm_raw,
    "trtllm-statistics": write_trtllm_statistics,
    "vllm-hook": write_vllm_hook,
    "vllm-routed-experts": write_vllm_routed_experts,
}
