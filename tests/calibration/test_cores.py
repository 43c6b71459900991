"""Constants of cores that a fit finds again in tables made of the law, and the shipped tables of a real core."""

import numpy as np
import pytest

from hwmodels.calibration.calibrate import problems_of, solve
from hwmodels.calibration.moe_rows import counts_of_rows
from hwmodels.calibration.ship_measured import MEASURED, ship
from hwmodels.library import LIBRARY
from hwmodels.validation.measured import scores_of
from scenarios.errors import HardwareError
from tests.timings import timings, with_times
from tests.unit.test_cores import CORE

LAYERS = ((512, 512, 32, 4), (384, 640, 16, 2), (256, 256, 8, 2), (1024, 512, 16, 4), (256, 1536, 8, 2))


def moe_rows():
    rng = np.random.default_rng(0)
    for hidden, inner, experts, top_k in LAYERS:
        for tokens in (1, 2, 4, 16, 64, 256, 1024):
            counts = rng.multinomial(tokens * top_k, np.full(experts, 1 / experts))
            yield {
                "moe_dtype": "float32", "num_tokens": tokens, "hidden_size": hidden, "inter_size": inner,
                "topk": top_k, "num_experts": experts, "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "uniform",
                "kernel_source": "torch_loop", "weights": "rotating", "expert_tokens": " ".join(map(str, counts)),
            }  # fmt: skip


def gemm_rows():
    for n, k in ((512, 512), (1024, 512), (4096, 512), (384, 640), (32, 512), (768, 1536)):
        for m in (1, 2, 3, 4, 8, 16, 64, 256, 1024):
            yield {"gemm_dtype": "float32", "m": m, "n": n, "k": k, "weights": "rotating"}


def attention_rows():
    for heads, kv_heads, dim in ((8, 4, 64), (16, 8, 64), (4, 2, 128), (12, 4, 32), (8, 8, 64), (6, 2, 96)):
        for requests, length, past in ((1, 1, 15), (4, 1, 127), (32, 1, 511), (64, 1, 63), (1, 64, 0), (2, 512, 0)):
            yield {
                "batch_size": requests, "isl": length, "step": past, "num_heads": heads,
                "num_key_value_heads": kv_heads, "head_dim": dim, "kv_cache_dtype": "float32",
            }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rows", [moe_rows, gemm_rows, attention_rows])
def test_a_fit_finds_the_law_again(rows):
    table = with_times(timings(rows()), CORE)
    problems, _ = problems_of(table, CORE)
    assert len(problems) == (2 if rows is attention_rows else 1)
    for problem in problems:
        solved = solve(problem, "made", "made")
        assert solved.residuals.mean_ape < 0.01
        known = CORE.kernels.find(problem.block, "fp32")
        assert solved.constants.law == known.law
        if problem.block in ("moe", "gemm"):
            assert solved.constants.vector_rows == known.vector_rows


def test_given_tokens_of_experts_count_and_are_checked():
    rows = list(moe_rows())
    for row, counts in zip(rows, counts_of_rows(timings(rows)), strict=True):
        assert counts.tolist() == [list(map(int, row["expert_tokens"].split()))]
    wrong = rows[0] | {"expert_tokens": " ".join(["1"] * 32)}
    with pytest.raises(HardwareError, match="sum to 32, not to 1 x 4"):
        list(counts_of_rows(timings([wrong])))
    for words in ("1 2", " ".join(["\u00b2"] * 32)):  # a digit to Python, but no number
        with pytest.raises(HardwareError, match="must be 32 whole numbers"):
            list(counts_of_rows(timings([rows[0] | {"expert_tokens": words}])))


def test_repeated_weights_are_left_out():
    rows = [row | {"weights": "repeated"} for row in gemm_rows()]
    problems, reasons = problems_of(timings(rows), CORE)
    assert problems == []
    assert set(reasons.tolist()) == {"weights repeated on purpose: read from the cache"}


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(MEASURED.glob("*/")), ids=lambda path: path.name)
def test_either_half_of_the_shapes_predicts_the_other(place):
    kernels = {score.name: score for score in scores_of(place) if score.part == "unseen shapes"}
    for name in ("moe fp32", "gemm fp32", "prefill fp32"):
        assert kernels[name].mean_ape <= 0.10, name


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(MEASURED.glob("*/")), ids=lambda path: path.name)
def test_the_shipped_card_is_that_of_the_shipped_tables(place):
    assert ship(place) == (LIBRARY / f"measured-{place.name}.yaml").read_text()
