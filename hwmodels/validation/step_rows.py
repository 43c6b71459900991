"""Published times of serving engines: time per output token and to the first token, by model, layout and batch.

Rows are those of aiconfigurator's `silicon_sample.csv` (0.12.0, Apache-2.0) or of a selection with the same columns.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from hwmodels.validation.beside import beside, missing
from hwmodels.validation.timings import read_columns
from scenarios.errors import HardwareError
from scenarios.models import DType

PLACES = ("e2e/silicon_e2e_dedup.csv.gz", "silicon_sample.csv")
NEEDED = (
    *("model_path", "system", "backend", "backend_version", "mode", "isl", "osl", "batch_size", "tp_size", "pp_size"),
    *("attention_dp_size", "moe_tp_size", "moe_ep_size", "silicon_ttft_ms", "silicon_tpot_ms"),
)


QUEUED_FRAC = 0.25
"""Largest share of a request's time before its first token; above, requests waited and the batch was smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model card of a checkpoint, and the data type of its dense weights where the card has another."""

    card: str
    weight_dtype: DType | None = None


MODELS = {
    "Qwen/Qwen3-235B-A22B-FP8": ServedModel(card="qwen3-235b-a22b", weight_dtype="fp8_block"),
    "openai/gpt-oss-120b": ServedModel(card="gpt-oss-120b"),
    "deepseek-ai/DeepSeek-V3": ServedModel(card="deepseek-v3"),
    "deepseek-ai/DeepSeek-R1": ServedModel(card="deepseek-v3"),
}
SYSTEMS = {"h100_sxm": "h100-sxm-8", "h200_sxm": "h200-sxm-8"}
ENGINES = ("trtllm", "vllm", "sglang")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One measurement: `batch` requests at a time, on `tp` devices, with prompts of `isl` and answers of `osl` tokens.

    Attention is tensor parallel over all devices; the experts lie on `moe_ep` ranks of `moe_tp` devices.
    """

    model: ServedModel
    system: str
    engine: str
    version: str
    isl: int
    osl: int
    batch: int
    tp: int
    moe_tp: int
    moe_ep: int
    ttft_s: float
    tpot_s: float

    @property
    def group(self) -> str:
        """What rows are pooled by: system, model and engine."""
        return f"{self.system} {self.model.card} {self.engine}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The rows that can be predicted, and how many cannot, by reason."""

    path: Path
    rows: tuple[StepRow, ...]
    left_out: dict[str, int]


def find_step_rows(folder: Path) -> Path | None:
    """The file of published times below or beside a folder of tables, or None."""
    return beside(folder, *PLACES)


def read_step_rows(folder: Path) -> StepRows:
    """The rows of the file below or beside `folder`.

    Raises TablesMissing where there is no file, HardwareError where it lacks columns or holds something else.
    """
    path = find_step_rows(folder)
    if path is None:
        raise missing(folder, f"published step times ({' or '.join(PLACES)})")
    columns = read_columns(path)
    lacking = [name for name in NEEDED if name not in columns]
    if lacking:
        raise HardwareError(f"{path}: lacks columns {', '.join(lacking)}")
    rows: list[StepRow] = []
    known: set[StepRow] = set()
    reasons: Counter[str] = Counter()
    for number in range(len(columns["isl"])):
        cells = {name: str(columns[name][number]) for name in NEEDED}
        reason = why_not(cells)
        row = None if reason else _row(path, number, cells)
        if row is not None and row.ttft_s > QUEUED_FRAC * (row.ttft_s + row.osl * row.tpot_s):
            reason = "requests that waited for a place in the batch"
        elif row is not None and _rounded(row) in known:
            reason = "the same measurement again"
        if row is None or reason:
            reasons[reason] += 1
        else:
            rows.append(row)
            known.add(_rounded(row))
    return StepRows(path=path, rows=tuple(rows), left_out=dict(reasons.most_common()))


def why_not(cells: dict[str, str]) -> str:
    """Why a row is not predicted; empty where it is."""
    if cells["model_path"] not in MODELS:
        return "model without a card, or dense"
    if cells["system"] not in SYSTEMS or cells["backend"] not in ENGINES:
        return "system without measured kernels of the engine"
    if cells["mode"] != "agg":
        return "prefill and decode on devices of their own"
    tp, batch = whole(cells["tp_size"], 1), whole(cells["batch_size"], 0)
    if whole(cells["pp_size"], 1) > 1:
        return "pipeline parallelism"
    if whole(cells["attention_dp_size"], 1) > 1:
        return "attention data parallelism beside tensor parallelism: batch per replica unknown"
    if tp > 8 or tp != whole(cells["moe_tp_size"], 1) * whole(cells["moe_ep_size"], 1):
        return "layout in which experts and attention have other devices, or more than a node"
    if batch < tp or batch % tp:
        return "batch that does not divide over the devices of a tensor-parallel group"
    return ""


def whole(text: str, default: int) -> int:
    """The whole number in a cell; `default` where it is empty."""
    return int(float(text)) if text not in ("", "nan") else default


def _row(path: Path, number: int, cells: dict[str, str]) -> StepRow:
    try:
        ttft_s, tpot_s = (float(cells[f"silicon_{name}_ms"]) * 1e-3 for name in ("ttft", "tpot"))
        isl, osl = whole(cells["isl"], 0), whole(cells["osl"], 0)
    except ValueError as error:
        raise HardwareError(f"{path}: row {number} must hold numbers ({error})") from None
    if not (ttft_s > 0 and tpot_s > 0 and isl > 0 and osl > 0):
        raise HardwareError(f"{path}: row {number} must hold positive times and lengths")
    return StepRow(
        model=MODELS[cells["model_path"]],
        system=cells["system"],
        engine=cells["backend"],
        version=cells["backend_version"],
        isl=isl,
        osl=osl,
        batch=whole(cells["batch_size"], 0),
        tp=whole(cells["tp_size"], 1),
        moe_tp=whole(cells["moe_tp_size"], 1),
        moe_ep=whole(cells["moe_ep_size"], 1),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _rounded(row: StepRow) -> StepRow:
    """The row by which copies are known that were written with other numbers of digits."""
    return replace(row, ttft_s=float(f"{row.ttft_s:.5g}"), tpot_s=float(f"{row.tpot_s:.5g}"))
