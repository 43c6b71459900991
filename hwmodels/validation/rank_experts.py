"""Experts of one rank of a large expert-parallel group: kernel cards on tables of engines that were never fitted.

Tables of aiconfigurator-core 0.12.0 (Apache-2.0). Every row times the fullest rank; the tokens of its experts are drawn
as the collector draws them. Under EPLB only the number of distinct tokens that reach the rank is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Times
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from hwmodels.validation.counts import expert_counts, is_known
from hwmodels.validation.score import Score, score
from hwmodels.validation.tables import Table
from hwmodels.validation.timings import Timings, read_timings

DEVICE = "h200-sxm"
UNIFORM, EPLB = "uniform", "_eplb"
MANY_RANKS = 64  # from here on a rank holds four experts or fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTable:
    """A table of experts of one rank, what its kernels are, and the kernel card of the same engine."""

    table: Table
    name: str
    kernels: str


def _table(engine: str, version: str, table: str) -> Table:
    return Table(system="h200_sxm", family="moe", engine=engine, version=version, table=table)


RANK_TABLES = (
    RankTable(table=_table("sglang", "0.5.10", "wideep_generation_moe"), name="masked", kernels="h200-sglang"),
    RankTable(table=_table("sglang", "0.5.10", "wideep_context_moe"), name="contiguous", kernels="h200-sglang"),
    RankTable(table=_table("trtllm", "1.3.0rc10", "wideep_moe"), name="wide", kernels="h200-trtllm"),
)


def rank_expert_scores(folder: Path, case: RankTable) -> list[Score]:
    """Errors of one table, few and many ranks apart, skewed routing, even routing and EPLB apart."""
    timings = read_timings(case.table.path(folder))
    device = Device(card=find_device(DEVICE), kernels=find_kernels(case.kernels))
    known = np.array([is_known(_distribution(name)) for name in timings.texts("distribution")], dtype=bool)
    timings = timings.rows(known)
    predicted_s = predict_rank_experts(timings, device)
    many = timings.ints("moe_ep_size") >= MANY_RANKS
    routing = np.array([_routing(name) for name in timings.texts("distribution").tolist()])
    label = ("", case.table.name, device.card.name, device.kernels.name)
    scores = []
    for kind in sorted(set(routing.tolist())):
        for ranks, of_ranks in (("EP to 16", ~many), ("EP from 64", many)):
            rows = of_ranks & (routing == kind)
            if rows.any():
                name = f"{case.name} {kind} {ranks}"
                scores.append(score(name, "card", label, predicted_s[rows], timings.measured_s[rows]))
    return scores


def predict_rank_experts(timings: Timings, device: Device) -> Times:
    """Time of the experts of the fullest rank, float64[row] [s]; of several draws the mean."""
    names = ("hidden_size", "inter_size", "num_tokens", "topk", "num_experts", "moe_ep_size")
    columns = [timings.ints(name).tolist() for name in names]
    slots = timings.ints("num_slots" if "num_slots" in timings.columns else "num_experts").tolist()
    reached = timings.ints("rank0_num_tokens" if "rank0_num_tokens" in timings.columns else "num_tokens").tolist()
    distributions, dtypes = timings.texts("distribution").tolist(), timings.texts("moe_dtype").tolist()
    times = np.empty(len(timings))
    for row, (hidden, inter, tokens, top_k, experts, ranks) in enumerate(zip(*columns, strict=True)):
        shape = ExpertShape(hidden_size=hidden, intermediate_size=inter, gated=True, weight_dtype=dtypes[row])
        if distributions[row].endswith(EPLB):
            counts = spread_tokens(reached[row], top_k, ranks, slots[row] // ranks)[None]
        else:
            counts = expert_counts(_distribution(distributions[row]), tokens, top_k, experts, ranks)
        calls = np.full(len(counts), reached[row])
        times[row] = grouped_gemm_moe_s(counts, shape, device, call_tokens=calls).mean()
    return times


def spread_tokens(reached: int, top_k: int, n_ranks: int, n_slots: int) -> NDArray[np.int64]:
    """Tokens of each slot of a rank that `reached` distinct tokens visit, spread evenly: int64[slot].

    A visiting token has (k / R) / (1 - (1 - 1 / R)^k) choices here if its k choices fall on ranks independently.
    """
    choices = (top_k / n_ranks) / (1 - (1 - 1 / n_ranks) ** top_k)
    base, rest = divmod(round(reached * choices), n_slots)
    return np.array([base + (slot < rest) for slot in range(n_slots)], dtype=np.int64)


def _distribution(name: str) -> str:
    """The name by which counts are rebuilt."""
    return "balanced" if name == UNIFORM else name.removesuffix(EPLB)


def _routing(name: str) -> str:
    return "even" if name == UNIFORM else "eplb" if name.endswith(EPLB) else "skewed"
