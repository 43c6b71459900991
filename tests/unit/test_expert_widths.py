"""Experts stored in several widths: times, bytes and copies, each against plain loops over experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from placement.moe_time import expert_times_s, tokens_by_rank
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec
from scenarios.specs import ScenarioSpec
from sim.kernel_pricing import machine_of
from sim.result import RunResult
from sim.run import run
from sim.session import Plan, Session, reduced
from sim.setting import Setting

WIDTHS: list[dict[str, Any]] = [
    {"bits": 16, "bytes": 1},
    {"bits": 3, "bytes": 0.2, "error": 0.05},
    {"bits": 1, "bytes": 0.07, "error": 0.6, "kernel": {"dtype": "bf16", "time_frac": 0.8, "source": "a test"}},
]
BYTES = {16: 2.0, 3: 0.4, 1: 0.14}
EXPERT = 3 * 2048 * 1024  # weights of an expert of olmoe-1b-7b
LAYERS, EXPERTS = 2, 64
MIXED = np.random.default_rng(0).choice([16, 3, 1], (LAYERS, EXPERTS)).tolist()


def scenario(bits: dict[str, Any] | None, **fields: Any) -> ScenarioSpec:
    """Two layers of OLMoE on two GPUs."""
    given = {
        "name": "widths",
        "model": {"card": "olmoe-1b-7b", "n_layers": LAYERS},
        "cluster": {"node": "rtx-4090-4", "devices_per_node": 2},
        "workload": {"synthetic": {"tokens": 512, "sequence_tokens": 64}, "tokens_per_device": 4, "steps": 3},
        "bits": None if bits is None else {"widths": WIDTHS, **bits},
    }
    return ScenarioSpec.model_validate(given | fields)


def result_of(bits: dict[str, Any] | None, **fields: Any) -> RunResult:
    return run(scenario(bits, **fields), Path(), "test").tables[0].results[0]


def setting_of(bits: dict[str, Any], base: Path = Path()) -> tuple[Session, Setting]:
    spec = scenario(bits)
    session = Session(spec, base)
    return session, session.setting(spec.cluster, spec.parallel, spec.workload, bits=spec.bits)


def test_every_width_is_a_call_of_its_own() -> None:
    """The law of int4 with the bytes of 3 bits; where one was measured, a share of that of bf16."""
    session, setting = setting_of({"by_expert": MIXED})
    plan = Plan.of(session.spec)
    placement = session.plan_of(setting, plan).placement
    reduction = reduced(setting, placement, plan.schedule)
    got = expert_times_s(machine_of(setting, ExchangeSpec()), placement, reduction)
    tokens, device = tokens_by_rank(placement, reduction.slot_tokens), setting.cluster.device
    plain = expert_shape(setting.model)
    laws = {
        16: (plain, 1.0),
        3: (type(plain)(**{**_fields(plain), "weight_dtype": "int4", "value_bytes": 0.4}), 1.0),
        1: (plain, 0.8),
    }
    for layer, step, rank in np.ndindex(got.shape):
        here = tokens[layer, step, rank]
        of_place = np.array(MIXED[layer])[rank * 32 : rank * 32 + 32]
        want = 0.0
        for bits, (shape, factor) in laws.items():
            own = here[of_place == bits]
            summed = reduction.summed_tokens[layer, step, rank]
            share = np.count_nonzero(own) / max(np.count_nonzero(here), 1)
            want += factor * float(grouped_gemm_moe_s(own, shape, device, summed * share, summed))
        assert got[layer, step, rank] == pytest.approx(want, rel=1e-12)


def _fields(shape: Any) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def test_memory_holds_the_bytes_of_every_expert() -> None:
    plain, mixed, whole = (result_of(bits) for bits in (None, {"by_expert": MIXED}, {"uniform": 16}))
    assert plain.metrics.items() <= whole.metrics.items()
    assert mixed.metrics["weight_read_bytes"] < whole.metrics["weight_read_bytes"]
    saved = [sum(2.0 - BYTES[bits] for row in MIXED for bits in row[first : first + 32]) for first in (0, 32)]
    peaks = plain.metrics["memory_bytes.peak"] - EXPERT * np.array(saved)
    assert mixed.metrics["memory_bytes.peak"] == pytest.approx(max(peaks), rel=1e-12)
    assert mixed.plan["bits"]["by_expert"] == tuple(map(tuple, MIXED))


@pytest.mark.parametrize("miss", ["load", "balanced"])
def test_copies_carry_the_bytes_of_their_experts(miss: str) -> None:
    """One GPU, slots for all but a few: what is copied is what the replay says, in bytes of each; events agree."""
    one = {"cluster": {"node": "rtx-4090-4", "devices_per_node": 1}}
    memory = {"offload": {"slots": 24, "miss": miss, "prefetch": {"by": "last", "width": 2}}}
    got = result_of({"by_expert": MIXED}, memory=memory, **one)
    by_layer = [result_of({"uniform": bits}, memory=memory, **one).metrics for bits in (16, 1)]
    assert by_layer[1]["copied_bytes"] == pytest.approx(by_layer[1]["experts_copied"] * EXPERT * 0.14)
    assert got.metrics["copied_bytes"] / EXPERT < 2.0 * got.metrics["experts_copied"]
    if miss == "load":  # the same experts whatever their widths
        assert got.metrics["experts_copied"] == by_layer[0]["experts_copied"] == by_layer[1]["experts_copied"]
        assert by_layer[1]["copied_bytes"] < got.metrics["copied_bytes"] < by_layer[0]["copied_bytes"]
        assert by_layer[1]["exposed_copy_s"] < got.metrics["exposed_copy_s"] < by_layer[0]["exposed_copy_s"]
    events = result_of({"by_expert": MIXED}, memory=memory, schedule={"executor": "event"}, **one)
    assert events.metrics["step_time_s"] == pytest.approx(got.metrics["step_time_s"], rel=1e-9)


def test_streamed_layers_have_the_bytes_of_their_widths() -> None:
    """The copy engine of a ring is busy for the bytes of both layers, each in its own width, and two latencies."""
    stream = {"memory": {"stream": {"slots": 1}}, "schedule": {"overlap": "ring"}}
    one = {"cluster": {"node": "rtx-4090-4", "devices_per_node": 1}}
    both, first, last = (result_of({"by_layer": bits}, **stream, **one) for bits in ([16, 3], [16, 16], [3, 3]))

    def copied_s(result: RunResult) -> float:
        return result.metrics["busy_frac.to-device"] * result.metrics["step_time_s"]

    assert copied_s(both) == pytest.approx((copied_s(first) + copied_s(last)) / 2, rel=1e-9)
    assert copied_s(both) < 0.7 * copied_s(first)


def test_a_chosen_table_is_one_of_a_file(tmp_path: Path) -> None:
    """MC-MoE's programme inside a simulation gives the bits of `choose_bits`, and a file with them the same times."""
    chosen = {"mean_bits": 2.5, "each": [1, 3]}
    _, setting = setting_of(chosen)
    assert setting.widths is not None
    table = np.array([16.0, 3.0, 1.0])[setting.widths.index]
    assert table.mean() <= 2.5
    assert ((table == 3).any(axis=1) & (table == 1).any(axis=1)).all()
    (tmp_path / "bits.json").write_text(json.dumps({"placement": {"bits": {"bits": table.tolist()}}}))
    spec = scenario({"file": "bits.json"})
    read = run(spec, tmp_path, "test").tables[0].results[0]
    assert read.metrics == result_of(chosen).metrics


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ({"uniform": 4}, "uniform names 4 bits, which is not among widths"),
        ({"by_layer": [16, 2]}, "by_layer names 2 bits"),
        ({"by_layer": [16]}, "1 numbers for 2 MoE layers"),
        ({"by_expert": [[16]] * 2}, r"2 MoE layers of 64 experts, and the table 2 rows of \[1\]"),
        ({"file": "none.json"}, "No such file"),
        ({"uniform": 0, "widths": [{"bits": 0, "bytes": 0}]}, "prune: true"),
        ({"uniform": 3, "mean_bits": 2}, "give one of .*, not mean_bits, uniform"),
        ({}, "give one of mean_bits"),
        ({"uniform": 1, "widths": [{"bits": 1, "bytes": 0.1, "kernel": {"time_frac": 0.5}}]}, "give its source"),
        (
            {
                "uniform": 1,
                "widths": [
                    {"bits": 1, "bytes": 0.1, "kernel": {"dtype": "bf16", "time_frac": 0.01, "source": "a test"}}
                ],
            },
            "in less than their share",
        ),
    ],
)
def test_tables_that_cannot_be_are_refused(bits: dict[str, Any], text: str) -> None:
    with pytest.raises((ScenarioError, ValidationError), match=text):
        result_of(bits)
