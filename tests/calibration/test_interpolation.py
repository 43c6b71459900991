"""Public tables named by a kernel card: exact on their rows; half of a table predicts the other half (limits fail)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwmodels.calibration.calibrate import main_kernels, problems_of
from hwmodels.cluster import build_cluster
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from hwmodels.validation.counts import balanced_counts
from hwmodels.validation.goals import verdict
from hwmodels.validation.interpolation import table_scores
from hwmodels.validation.timings import read_timings
from scenarios.cluster_specs import ClusterSpec
from tests.shared import shared_file

pytest.importorskip("pyarrow")

KERNELS = "data/kernels/h200_sxm"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "card"),
    [
        ("moe/vllm_0.24.0", "h200-vllm"),
        ("gemm/trtllm_1.3.0rc20", "h200-trtllm"),
        ("attention/vllm_0.24.0_generation", "h200-vllm"),
        ("attention/vllm_0.24.0_context", "h200-vllm"),
        ("mla/sglang_0.5.14_generation_mla_perf", "h200-sglang"),
    ],
)
def test_half_a_table_predicts_the_other_half_better_than_the_law(table: str, card: str):
    device = Device(card=find_device("h200-sxm"), kernels=find_kernels(card))
    scores = table_scores(read_timings(shared_file(f"{KERNELS}/{table}.parquet")), device, f"h200_sxm {table}")
    assert scores
    for interpolated, law in zip(scores[::2], scores[1::2], strict=True):
        assert interpolated.n == law.n > 50
        assert interpolated.median_ape < 0.8 * law.median_ape, interpolated
        if not {"int4", "mxfp4"} & set(interpolated.name.split()) and "gemm fp8_block" not in interpolated.name:
            assert verdict("interpolation", interpolated).reached, interpolated


@pytest.mark.slow
def test_experts_of_a_public_table_take_their_measured_times(tmp_path: Path):
    path = shared_file(f"{KERNELS}/moe/vllm_0.24.0.parquet")
    card = tmp_path / "card.yaml"
    card.write_text(f"kernels:\n- name: mine\n  base: h200-vllm\n  tables: {{moe: {path}}}\n")
    device = build_cluster(ClusterSpec(node="h200-sxm-8", kernels=str(card))).device
    timings = read_timings(path)
    problems, reasons = problems_of(timings, device)
    problem = next(p for p in main_kernels(problems, timings, reasons) if p.dtype == "bf16")
    rows = timings.rows(problem.rows)
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    tokens, hidden, inter, top_k, experts, tp, ep = (rows.ints(name) for name in names)
    alone = (rows.texts("distribution") == "balanced") & (tp == 1) & (ep == 1)
    model = np.stack([hidden, inter, top_k, experts], axis=1)
    chosen = np.flatnonzero(alone & (model == model[np.flatnonzero(alone)[0]]).all(axis=1))
    first = chosen[0]
    shape = ExpertShape(
        hidden_size=int(hidden[first]), intermediate_size=int(inter[first]), gated=True, weight_dtype="bf16"
    )
    counts = [balanced_counts(int(n), int(top_k[first]), int(experts[first])) for n in tokens[chosen]]
    found = grouped_gemm_moe_s(np.stack(counts), shape, device, tokens[chosen], tokens[chosen])
    assert found == pytest.approx(rows.measured_s[chosen], rel=1e-9)
