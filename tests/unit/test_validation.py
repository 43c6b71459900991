"""Kernel laws against tables of timings: rebuilt counts, readers, scores."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hwmodels.validation.predict import predict

from hwmodels.attention import assumed_constants, attention_decode_s, attention_prefill_s, head_shape
from hwmodels.calibration.attention import attention_problems, judged
from hwmodels.devices import Device
from hwmodels.gqa import DecodeConstants, gqa_prefill_s
from hwmodels.library import find_device, find_kernels
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from hwmodels.validation.counts import balanced_counts, expert_counts, level_out, power_law_counts
from hwmodels.validation.score import validate_table
from hwmodels.validation.timings import read_timings
from scenarios.errors import HardwareError
from scenarios.models import GroupedQueryAttention, LatentAttention
from tests.shared import shared_file

MOE = {
    "moe_dtype": "bfloat16",
    "num_tokens": 64,
    "hidden_size": 4096,
    "inter_size": 1536,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "balanced",
    "kernel_source": "toy",
    "latency": 0.5,
}


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def h200() -> Device:
    card = find_device("h200-sxm")
    return Device(card=card, constants=find_kernels(card.kernels).constants)


def test_balanced_counts_by_hand() -> None:
    # E 8, K 2: stride 4. T 5: token t goes to t mod 8 and t + 4 mod 8: 0 4, 1 5, 2 6, 3 7, 4 0
    assert balanced_counts(5, 2, 8).tolist() == [2, 1, 1, 1, 2, 1, 1, 1]
    # T 2 < 4: first choices 0 and floor(4 / 2) = 2, second ones 4 and 6
    assert balanced_counts(2, 2, 8).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert (balanced_counts(4096, 8, 256) == 128).all()


def test_power_law_counts_keep_all_tokens_and_no_expert_has_more_than_there_are() -> None:
    rng = np.random.default_rng(0)
    for n_tokens, top_k, n_experts in ((1, 8, 128), (16, 8, 128), (4096, 8, 128), (3, 2, 4)):
        counts = power_law_counts(n_tokens, top_k, n_experts, 1.01, rng)
        assert counts.sum() == n_tokens * top_k
        assert counts.min() >= 0
        assert counts.max() <= n_tokens
    assert power_law_counts(4096, 8, 128, 1.01, rng).max() > 3 * 4096 * 8 / 128


def test_the_remainder_goes_to_the_emptiest_and_comes_from_the_fullest() -> None:
    counts = np.array([0, 5, 9, 0])
    level_out(counts, 5, 9)
    assert counts.tolist() == [3, 5, 9, 2]
    level_out(counts, -6, 9)
    assert counts.tolist() == [3, 4, 4, 2]
    level_out(counts, 100, 5)
    assert counts.tolist() == [5, 5, 5, 5]


def test_rank_0_of_expert_parallel_rows_is_the_fullest() -> None:
    every = expert_counts("power_law_1.2", 512, 4, 64, 1).sum(axis=1)
    local = expert_counts("power_law_1.2", 512, 4, 64, 8)
    assert every.tolist() == [2048] * 5
    assert local.shape == (5, 8)
    assert (local.sum(axis=1) >= 2048 / 8).all()


def test_a_row_is_predicted_by_the_law_on_its_rebuilt_counts(tmp_path: Path) -> None:
    timings = read_timings(write_csv(tmp_path / "moe.csv", [MOE, MOE | {"num_tokens": 4096, "moe_tp_size": 2}]))
    predicted = predict(timings, h200()).seconds
    for second, n_tokens, inter in zip(predicted, (64, 4096), (1536, 768), strict=True):
        shape = ExpertShape(
            hidden_size=4096, intermediate_size=inter, gated=True, weight_dtype="bf16", activation_dtype="bf16"
        )
        counts = np.full(128, n_tokens * 8 // 128)
        assert second == pytest.approx(float(grouped_gemm_moe_s(counts, shape, h200(), n_tokens)))


def test_rows_that_nothing_is_claimed_of_are_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [
        MOE,
        MOE | {"moe_ep_size": 8},
        MOE | {"distribution": "uniform"},
        MOE | {"hidden_size": 1024, "inter_size": 2688},
        MOE | {"moe_dtype": "nvfp4"},
        MOE | {"num_tokens": 1, "hidden_size": 1024, "inter_size": 512},
    ]
    validation = validate_table(write_csv(tmp_path / "moe.csv", rows), "h200-sxm")
    assert [score.n for score in validation.scores] == [1]
    assert sorted(validation.predicted.left_out.values()) == [1] * 5


def test_scores_by_hand(tmp_path: Path) -> None:
    exact_ms = float(predict(read_timings(write_csv(tmp_path / "a.csv", [MOE])), h200()).seconds[0]) * 1e3
    rows = [MOE | {"latency": exact_ms / factor} for factor in (1.0, 1.1, 0.8)]  # +0 %, +10 %, -20 %
    (score,) = validate_table(write_csv(tmp_path / "b.csv", rows), "h200-sxm").scores
    assert (score.name, score.n) == ("moe bfloat16 balanced", 3)
    assert score.mean_ape == pytest.approx(0.1)
    assert score.median_ape == pytest.approx(0.1)
    assert score.p90_ape == pytest.approx(0.18)
    assert score.bias == pytest.approx(0.0, abs=1e-12)
    assert score.meets(0.11)
    assert not score.meets(0.09)
    assert json.loads(json.dumps(score.as_json(0.09)))["ok"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "fit no family"),
        ("gemm_dtype,m,n,k,latency\nbfloat16,1,1,1,0\n", "row 0 has latency 0.0"),
        ("gemm_dtype,m,n,k,latency\nbfloat16,1,1,1,nan\n", "row 0 has latency nan"),
        ("gemm_dtype,m,n,k,latency\nbfloat16,1,1,1,fast\n", "column latency must hold numbers"),
        ("gemm_dtype,m,n,k,latency\nbfloat16,1.5,1,1,1\n", "column m must hold whole numbers"),
        ("gemm_dtype,m,n,k,latency\nbfloat16,1,1\n", ":2 has another number of cells"),
        ("gemm_dtype,m,n,k,latency\n", "no rows"),
        ("", "fit no family"),
    ],
)
def test_bad_tables_are_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(HardwareError, match=message):
        validate_table(path, "h200-sxm")


def test_files_that_are_no_tables_are_explained(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no such table"):
        read_timings(tmp_path / "absent.csv")
    with pytest.raises(HardwareError, match="is one of"):
        read_timings(tmp_path / "table.xlsx")
    (tmp_path / "torn.csv.gz").write_bytes(b"\x1f\x8b\x08broken")
    with pytest.raises(HardwareError, match="not a readable CSV"):
        read_timings(tmp_path / "torn.csv.gz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "card", "name", "median", "p90"),
    [  # measured with the assumed constants of `analytic-assumed`, plus a tenth; calibration is to lower them
        ("h200_sxm/moe/trtllm_1.3.0rc20", "h200-sxm", "moe bfloat16 balanced", 0.035, 0.165),
        ("h200_sxm/moe/trtllm_1.3.0rc20", "h200-sxm", "moe bfloat16 skewed", 0.05, 0.18),
        ("h200_sxm/moe/vllm_0.24.0", "h200-sxm", "moe bfloat16 skewed", 0.055, 0.19),
        ("h200_sxm/gemm/vllm_0.24.0", "h200-sxm", "gemm bfloat16", 0.11, 0.34),
    ],
)
def test_laws_against_measured_kernels(table: str, card: str, name: str, median: float, p90: float) -> None:
    pytest.importorskip("pyarrow")
    validation = validate_table(shared_file(f"data/kernels/{table}.parquet"), card)
    score = next(score for score in validation.scores if score.name == name)
    assert score.n > 1000
    assert score.median_ape < median
    assert score.p90_ape < p90


ATTENTION = {
    "batch_size": 2,
    "isl": 1,
    "step": 999,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "window_size": 0,
    "kv_cache_dtype": "bfloat16",
    "kernel_source": "toy",
    "latency": 0.05,
}
MLA = {name: ATTENTION[name] for name in ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency")}
MLA |= {"mla_dtype": "bfloat16", "kernel_source": "toy"}


def test_attention_rows_are_predicted_by_the_laws_of_layers(tmp_path: Path) -> None:
    window = {"window_size": 128}
    rows = [
        ATTENTION,
        ATTENTION | window,
        ATTENTION | {"step": 0, "isl": 1000},
        ATTENTION | {"step": 0, "isl": 1000} | window,
        ATTENTION | {"step": 100} | window,
    ]
    predicted = predict(read_timings(write_csv(tmp_path / "attention.csv", rows)), h200())
    constants = assumed_constants(h200())
    plain = GroupedQueryAttention(n_heads=32, n_kv_heads=8, head_dim=128)
    narrow = plain.model_copy(update={"window_tokens": 128})
    clipped = 128 * 129 // 2 + 872 * 128
    expected = [
        attention_decode_s(2, 2000, plain, 1, "bf16", h200(), constants),
        attention_decode_s(2, 256, narrow, 1, "bf16", h200(), constants),
        attention_prefill_s(2000, 2 * 500_500, plain, 1, "bf16", h200(), constants),
        gqa_prefill_s(2, 2000, 2 * clipped, head_shape(narrow, 1), "bf16", h200(), constants.prefill),
        attention_decode_s(2, 202, narrow, 1, "bf16", h200(), constants),
    ]
    assert predicted.seconds == pytest.approx(np.array(expected))
    assert set(predicted.group.tolist()) == {"decode bfloat16", "prefill bfloat16"}


def test_mla_rows_are_predicted_and_whole_modules_left_out(tmp_path: Path) -> None:
    attention = LatentAttention(
        kind="mla", n_heads=32, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    table = write_csv(tmp_path / "mla.csv", [MLA, MLA | {"kv_cache_dtype": "fp8"}])
    constants = assumed_constants(h200())
    expected = [attention_decode_s(2, 2000, attention, 1, dtype, h200(), constants) for dtype in ("bf16", "fp8")]
    assert predict(read_timings(table), h200()).seconds == pytest.approx(np.array(expected))
    module = write_csv(tmp_path / "module.csv", [MLA | {"gemm_type": "bfloat16"}])
    assert predict(read_timings(module), h200()).left_out == {"whole module with its projections": 1}


def test_attention_rows_of_another_kind_are_left_out(tmp_path: Path) -> None:
    prompt = {"step": 0, "isl": 16_384}
    rows = [
        ATTENTION | {"step": 0},
        ATTENTION | {"isl": 100},
        ATTENTION | prompt | {"window_size": 8192, "kernel_source": "fa3"},
        ATTENTION | prompt | {"window_size": 8192},
    ]
    predicted = predict(read_timings(write_csv(tmp_path / "attention.csv", rows)), h200())
    assert np.isfinite(predicted.seconds).tolist() == [False, False, False, True]
    assert sorted(predicted.left_out) == [
        "attention within chunks, not behind a sliding window",
        "chunk of a prompt that has a past",
        "prefill of one token",
    ]


def test_attention_tables_become_one_problem_a_kernel(tmp_path: Path) -> None:
    rows = [
        ATTENTION | {"step": step, "num_heads": heads, "window_size": window, "kernel_source": source}
        for step in range(1, 51)
        for heads in (8, 32)
        for window in (0, 16)
        for source in ("fa3", "toy")
    ]
    rows += [ATTENTION | {"step": 0, "isl": 100}] * 10
    timings = read_timings(write_csv(tmp_path / "attention.csv", rows))
    problems = attention_problems(timings, h200())
    assert [(p.block, p.dtype, len(p.rows), set(p.kinds.tolist())) for p in problems] == [
        ("decode", "bf16", 200, {"full", "windowed"})
    ] * 2
    assert [set(timings.source[p.rows].tolist()) for p in problems] == [{"fa3"}, {"toy"}]
    assert [p.options.get("max_splits") for p in problems] == [128, None]
    for problem in problems:
        assert len(np.unique(problem.shapes)) == 2
        start = {parameter.name: parameter.start for parameter in problem.parameters}
        assert problem.law(start, np.arange(5)).shape == (5,)
    # what the law itself predicts is fitted without error
    exact = replace(problem, measured_s=problem.law(start, np.arange(200)))
    constants, residuals, _ = judged(exact)
    assert residuals.mean_ape < 1e-3
    assert isinstance(constants, DecodeConstants)
