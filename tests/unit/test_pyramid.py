"""Layers with different numbers of experts (PR-MoE): routes, memory and places, against counts by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import ScenarioError, TraceError
from scenarios.models import ModelCard
from scenarios.specs import MemorySpec
from scenarios.workload_specs import WorkloadSpec
from sim.memory import device_memory
from sim.setting import Setting, make_setting, open_trace
from tests.small import even_placement, measured, tiny_model, trace_of
from traces.routes import spaced

PYRAMID: dict[str, Any] = {"n_layers": 3, "n_experts": 16, "experts_by_layer": (8, 8, 16), "top_k": 1}


def setting_of(model: ModelCard, **fields: Any) -> Setting:
    synthetic = {"tokens": 4096, "sequence_tokens": 64, "skew": 0, "sequence_skew": 0}
    workload = WorkloadSpec.model_validate(
        {"synthetic": synthetic, "tokens_per_device": 64, "steps": 4, "context_tokens": 64} | fields
    )
    return make_setting(
        model=model,
        cluster=ClusterSpec(node="h200-sxm-8"),
        parallel=ParallelSpec(),
        workload=workload,
        trace=open_trace(workload, model, Path()),
        seed=0,
    )


def test_experts_of_a_small_layer_spread_over_all_ranks() -> None:
    trace = trace_of([[[0, 3, 7]], [[0, 3, 7]], [[0, 3, 15]]], 16)
    assert spaced(trace, (8, 8, 16)).ids.tolist() == [[[0, 6, 14]], [[0, 6, 14]], [[0, 3, 15]]]
    with pytest.raises(TraceError, match="8 experts, and the trace names number 9"):
        spaced(trace_of([[[9]]], 16), (8,))


@pytest.mark.parametrize("top_k", [1, 2])
def test_every_rank_gets_its_share_in_every_layer(top_k: int) -> None:
    setting = setting_of(tiny_model(**PYRAMID | {"top_k": top_k}))
    assert (setting.trace.ids[:2] % 2 == 0).all()
    assert len(np.unique(setting.trace.ids[0])) == 8
    assert len(np.unique(setting.trace.ids[2])) == 16
    placement = even_placement(setting.model, 8)
    result = measured(setting, placement)
    assert result.reduction.slot_tokens.sum() == 3 * 4 * 8 * 64 * top_k
    assert result.metrics["load_imbalance"] < 1.5
    assert result.metrics["load_imbalance.fit"] < 1.3


def test_numbers_that_a_layer_lacks_take_no_memory() -> None:
    setting = setting_of(tiny_model(**PYRAMID))
    memory = device_memory(setting, even_placement(setting.model, 8), MemorySpec())
    assert (memory.expert_bytes == 4 * setting.model.expert_bytes).all()  # 1 + 1 + 2 experts on each rank


def test_parameters_are_those_of_the_experts_that_there_are() -> None:
    pyramid, full = tiny_model(**PYRAMID), tiny_model(n_layers=3, n_experts=16, top_k=1)
    assert full.total_parameters - pyramid.total_parameters == 16 * (pyramid.expert_parameters + pyramid.hidden_size)
    router = 16 * pyramid.hidden_size
    assert full.active_parameters - pyramid.active_parameters == router


@pytest.mark.parametrize(
    ("counts", "text"),
    [((8, 16), "2 numbers for 3"), ((6, 8, 16), "6 experts"), ((8, 8, 8), "8 experts"), ((1, 8, 16), "1 experts")],
)
def test_pyramids_that_do_not_fit_are_refused(counts: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny_model(**PYRAMID | {"experts_by_layer": counts, "top_k": 2})


def test_a_capacity_of_different_layers_is_refused() -> None:
    with pytest.raises(ScenarioError, match="experts_by_layer"):
        setting_of(tiny_model(**PYRAMID), routing={"capacity_factor": 1.0})
