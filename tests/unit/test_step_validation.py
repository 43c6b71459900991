"""Predictions of published steps: the parts they are made of, on a small engine's row."""

from dataclasses import replace

import pytest

from hwmodels.cluster import build_cluster
from hwmodels.library import find_kernels
from hwmodels.validation.step_rows import ServedModel, StepRow
from scenarios.cluster_specs import ClusterSpec
from sim import step_validation
from sim.step_validation import ENGINES, predict_row
from sim.tensor_parallel_step import Layout, step_s, with_kernels

ROW = StepRow(
    model=ServedModel(card="qwen3-30b-a3b"),
    system="h200_sxm",
    engine="vllm",
    version="0",
    isl=96,
    osl=16,
    batch=4,
    tp=2,
    moe_tp=2,
    moe_ep=1,
    ttft_s=0.1,
    tpot_s=0.01,
)


def test_tokens_wait_for_the_prefills_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {("decode", 4, 104): 10.0, ("prefill", 100, 48): 18.0, ("prefill", 96, 48): 17.0}
    monkeypatch.setattr(
        step_validation, "step_s", lambda _m, _e, _l, phase, tokens, context: steps[phase, tokens, context]
    )
    found = predict_row(ROW)
    # Three others are replaced within 16 steps; each replacement makes one step 8 longer.
    assert (found.decode_s, found.tpot_s, found.prefill_s) == (10.0, 10.0 + 3 / 16 * 8.0, 17.0)


def test_one_request_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_validation, "step_s", lambda *_: 5.0)
    assert predict_row(replace(ROW, batch=1, tp=1, moe_tp=1)).tpot_s == 5.0


@pytest.mark.slow
def test_a_step_grows_with_its_batch_and_context_and_is_the_same_again() -> None:
    engine, layout = ENGINES["h200_sxm", "vllm"], Layout(tp=2, moe_tp=2, moe_ep=1)
    times = [step_s(ROW.model, engine, layout, "decode", *size) for size in ((4, 128), (64, 128), (64, 8192))]
    assert 1e-3 < times[0] < times[1] < times[2] < 50e-3
    step_s.cache_clear()
    assert step_s(ROW.model, engine, layout, "decode", 4, 128) == times[0]


@pytest.mark.slow
def test_all_reduces_cost_time() -> None:
    # Two all-reduces in each of 48 layers; NCCL's take at least 5 us longer than those of a CUDA graph at this size.
    engine, layout = ENGINES["h200_sxm", "vllm"], Layout(tp=2, moe_tp=1, moe_ep=2)
    own = step_s(ROW.model, engine, layout, "decode", 4, 128)
    nccl = step_s(ROW.model, replace(engine, all_reduce="nccl"), layout, "decode", 4, 128)
    assert own < nccl
    assert nccl - own < 48 * 2 * 20e-6


def test_named_cards_come_before_their_bases() -> None:
    # SGLang's card has no dense products and rests on TensorRT-LLM's, alone as before others.
    engine = ENGINES["h200_sxm", "sglang"]
    kernels = with_kernels(build_cluster(ClusterSpec(node=engine.node)), engine.kernels).device.kernels
    assert [card.name for card in kernels.cards] == [
        *("h200-sglang", "h200-trtllm", "h200-vllm"),
        *("h200-sglang-launch", "datasheet-only", "h200-vllm-launch"),
    ]
    assert kernels.gemm("fp8_block") == find_kernels("h200-trtllm").gemm("fp8_block")
    assert kernels.gemm("bf16") == find_kernels("h200-trtllm").gemm("bf16") != find_kernels("h200-vllm").gemm("bf16")
    assert kernels.gemm("bf16") == find_kernels("h200-sglang").gemm("bf16")
    assert kernels.moe("bf16") == find_kernels("h200-sglang").moe("bf16")
    assert kernels.launch() == find_kernels("h200-sglang").launch()
