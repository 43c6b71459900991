"""Suite `steps`: published times per token of serving engines against simulated steps, nothing fitted on them.

Host time of a step is unknown and taken as 0; routing is made up by the shipped knobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.score import Label, Score, score
from hwmodels.validation.step_rows import PLACES, StepRow, find_step_rows, read_step_rows
from sim.tensor_parallel_step import Engine, Layout, step_s

ENGINES = {
    ("h100_sxm", "trtllm"): Engine(node="h100-sxm-8", kernels=("h100-trtllm", "h100-vllm"), all_reduce="trtllm"),
    ("h100_sxm", "vllm"): Engine(node="h100-sxm-8", kernels=("h100-vllm",), all_reduce="vllm-graph"),
    ("h200_sxm", "trtllm"): Engine(node="h200-sxm-8", kernels=("h200-trtllm", "h200-vllm"), all_reduce="trtllm"),
    ("h200_sxm", "vllm"): Engine(node="h200-sxm-8", kernels=("h200-vllm",), all_reduce="vllm-graph"),
    ("h200_sxm", "sglang"): Engine(
        node="h200-sxm-8", kernels=("h200-sglang", "h200-trtllm", "h200-vllm"), all_reduce="sglang-graph"
    ),
}
"""(system, engine) of a row -> what is simulated. No table has TensorRT-LLM's grouped-query attention or SGLang's dense
products: other engines' kernels on the same device stand in; not vLLM's fp8_block products, which hold host time."""
FEW_REQUESTS = 4  # time to the first token is judged up to here: hardly any queue, no batch of prefills


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One row with its predictions [s].

    decode_s   a step of all requests, half of their answers written.
    tpot_s     the same with the prefills that a request waits for while it writes its answer.
    prefill_s  one prompt alone.
    """

    row: StepRow
    decode_s: float
    tpot_s: float
    prefill_s: float


def predict_row(row: StepRow) -> Predicted:
    """Predictions of one row.

    Each of the other `batch` - 1 requests is replaced once while a request writes its osl tokens, so that many of its
    steps carry a prompt. Such a step is priced as the prefill of prompt and batch together:

        tpot = decode + (batch - 1) / osl max(prefill(isl + batch) - decode, 0)
    """
    engine, layout = ENGINES[row.system, row.engine], Layout(tp=row.tp, moe_tp=row.moe_tp, moe_ep=row.moe_ep)

    def prefill_s(tokens: int) -> float:
        shared_out = -(-tokens // row.tp) * row.tp
        return step_s(row.model, engine, layout, "prefill", shared_out, (row.isl + 1) // 2)

    decode_s = step_s(row.model, engine, layout, "decode", row.batch, row.isl + row.osl // 2)
    longer_s = max(prefill_s(row.isl + row.batch) - decode_s, 0.0)
    return Predicted(
        row=row,
        decode_s=decode_s,
        tpot_s=decode_s + (row.batch - 1) / row.osl * longer_s,
        prefill_s=prefill_s(row.isl),
    )


def steps(folder: Path, progress: Progress) -> list[Judged]:
    """Errors by system, model and engine, and over all rows. Raises TablesMissing where there are no rows."""
    found: list[Predicted] = []
    rows = read_step_rows(folder).rows
    for number, row in enumerate(rows):
        progress(row.group, number / len(rows))
        found.append(predict_row(row))
    groups = sorted({one.row.group for one in found})
    scores = [part for group in groups for part in _scores(group, [one for one in found if one.row.group == group])]
    scores += _scores("all", found) if len(groups) > 1 else []
    return [judged("steps", one) for one in scores]


def steps_absent(folder: Path) -> list[str]:
    """What the suite would judge if the folder held it."""
    return [] if find_step_rows(folder) is not None else [f"published step times ({' or '.join(PLACES)})"]


def steps_left_out(folder: Path) -> dict[str, int]:
    """Rows that are not predicted, by reason; none where the file is absent."""
    return read_step_rows(folder).left_out if find_step_rows(folder) is not None else {}


def _scores(group: str, found: Iterable[Predicted]) -> list[Score]:
    every = list(found)
    first = [one for one in every if one.row.batch <= FEW_REQUESTS]
    engines = {ENGINES[one.row.system, one.row.engine] for one in every}
    label = ("", group, *_hardware(engines))
    scores = [
        _score("tpot", label, [(one.tpot_s, one.row.tpot_s) for one in every]),
        _score("tpot of decode alone", label, [(one.decode_s, one.row.tpot_s) for one in every]),
    ]
    if first:
        name = f"ttft to {FEW_REQUESTS} requests"
        scores.append(_score(name, label, [(one.prefill_s, one.row.ttft_s) for one in first]))
    return scores


def _hardware(engines: set[Engine]) -> tuple[str, str]:
    """Node card and kernel cards of one engine, or "several"."""
    if len(engines) != 1:
        return "several", "several"
    (engine,) = engines
    return engine.node, ", ".join(engine.kernels)


def _score(name: str, label: Label, pairs: list[tuple[float, float]]) -> Score:
    predicted_s, measured_s = np.array(pairs).T
    return score(name, "card", label, predicted_s, measured_s)
