"""A served run of vLLM: 300 requests, Qwen3-30B-A3B, two RTX PRO 6000 (DP2, EP2), predicted from kernels and links.

Measured: LLMServingSim (MIT), commit 5daddb2, bench/examples/RTXPRO6000/Qwen3-30B-A3B-Instruct-2507:
vllm/requests.jsonl (time of the last token) and column vLLM of validation/summary.txt. vLLM 0.19.0, max_num_seqs 128 a
rank, budget 2048.
"""

from pathlib import Path

import pytest

from scenarios.specs import ScenarioSpec
from sim.run import run
from tests.shared import shared_file

MEASURED_S = {
    "tpot_s.p50": (48.9e-3, 0.08),
    "tpot_s.p90": (52.2e-3, 0.10),
    "tpot_s.p99": (53.3e-3, 0.10),
    "e2e_s.p50": (31.46, 0.08),
    "e2e_s.p99": (43.90, 0.08),
    "ttft_s.mean": (1.086, 0.30),
    "ttft_s.p50": (0.1388, 0.35),
    "ttft_s.p90": (5.183, 0.30),
    "ttft_s.p99": (9.588, 0.25),
}
"""Metric -> measured, and the largest error that is let pass."""
TOTAL_S = 64.02


@pytest.mark.slow
def test_a_run_of_vllm_is_predicted() -> None:
    requests = shared_file("data/llmservingsim/RTXPRO6000_Qwen3-30B-A3B/workload.csv")
    spec = {
        "name": "vLLM",
        "model": "qwen3-30b-a3b",
        "cluster": {"node": "rtx-pro-6000-8", "devices_per_node": 2},
        "workload": {"synthetic": {"tokens": 16384}},
        "schedule": {"launch": "eager", "exchange": {"algorithm": "all-gather"}},
        "serving": {"requests": {"file": str(requests)}, "token_budget": 2048, "max_requests": 128},
    }
    metrics = run(ScenarioSpec.model_validate(spec), Path(), "test").tables[0].results[0].metrics
    assert 300 / metrics["requests_per_s"] == pytest.approx(TOTAL_S, rel=0.05)
    for name, (measured_s, limit) in MEASURED_S.items():
        assert metrics[name] == pytest.approx(measured_s, rel=limit), name
