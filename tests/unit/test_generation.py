"""Offline generation with streamed weights: hand numbers, closed forms, what does not fit, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodels.cluster import build_cluster
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.specs import ScenarioSpec
from scenarios.workload_specs import GenerateSpec
from sim.bound.offload import passes_per_cached_token, streamed_tokens_per_s
from sim.result import RunResult
from sim.run import run
from sim.session import Plan, Session
from sim.stream.measures import all_passes_s
from sim.stream.memory import checked_memory
from sim.stream.passes import mixed_pass, prompt_pass, sampled_passes
from sim.stream.prices import page_bytes, ways_of

BASE: dict[str, Any] = {
    "name": "generation",
    "model": {"card": "mixtral-8x7b", "n_layers": 4},
    "cluster": {"node": "l4-1"},
    "workload": {
        "synthetic": {"tokens": 1024, "sequence_tokens": 64, "skew": 0, "sequence_skew": 0},
        "tokens_per_device": 64,
        "generate": {"prompt_tokens": 77, "new_tokens": 32},
        "steps": 2,
        "split": {"fit": 0, "evaluate": 1},
    },
    "memory": {"stream": {}},
    "schedule": {"overlap": "cgopipe", "chunks": 4},
}
EXPERT_BYTES = 3 * 4096 * 14336 * 2


def spec_of(**changes: Any) -> ScenarioSpec:
    """The base with some keys of its sections replaced; a value that is no dict replaces the section."""
    data = {name: dict(part) if isinstance(part, dict) else part for name, part in BASE.items()}
    for name, part in changes.items():
        merged = isinstance(part, dict) and name not in ("model", "serving")
        data[name] = {**data[name], **part} if merged else part
    return ScenarioSpec.model_validate(data)


def result_of(**changes: Any) -> RunResult:
    return run(spec_of(**changes), Path(), "0").tables[0].results[0]


def made(spec: ScenarioSpec) -> tuple[Session, Any, Any, Any]:
    session = Session(spec, Path())
    plan = Plan.of(spec)
    setting = session.setting(plan.cluster, plan.parallel, spec.workload)
    placement = session.plan_of(setting, plan).placement
    return session, setting, plan, placement


class TestPasses:
    def test_samples_hold_the_first_and_the_last_pass_once(self) -> None:
        assert sampled_passes(GenerateSpec(prompt_tokens=9, new_tokens=32), 3).tolist() == [1, 16, 31]
        assert sampled_passes(GenerateSpec(prompt_tokens=9, new_tokens=3), 8).tolist() == [1, 2]

    def test_passes_between_samples_are_on_a_line(self) -> None:
        generate = GenerateSpec(prompt_tokens=9, new_tokens=6)
        assert all_passes_s(np.array([1, 5]), np.array([1.0, 3.0]), generate).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]

    def test_a_prompt_pass_attends_to_every_token_before(self) -> None:
        session, setting, plan, placement = made(spec_of())
        one = prompt_pass(setting, session.reduction(setting, placement, plan.schedule), spec_of().workload.generate)
        assert one.setting.batches.contexts.sum() == 64 * 77 * 78 // 2
        assert one.prompts.sum() == 64 and not one.decoding.any()
        routed = one.reduction.slot_tokens.sum(axis=(1, 2))
        assert routed.tolist() == [64 * 77 * 2] * 4

    def test_a_mixed_pass_holds_requests_of_all_ages(self) -> None:
        """64 requests, answers of 32: two are new, with 77 tokens each; the others have had 1 to 31 tokens."""
        session, setting, plan, placement = made(spec_of(schedule={"overlap": "vslpipe", "chunks": 2}))
        one = mixed_pass(setting, session.reduction(setting, placement, plan.schedule), spec_of().workload.generate)
        assert len(one.decoding) == 2 * 77 + 62
        assert one.decoding.sum() == 62 and one.prompts.sum() == 2
        assert one.setting.batches.contexts[..., one.decoding].sum() == 2 * sum(77 + age for age in range(1, 32))


class TestPrices:
    def test_pages_are_a_layers_experts(self) -> None:
        model, spec = Session(spec_of(), Path()).model, spec_of(memory={"stream": {"held": 0.25}}).memory.stream
        assert spec is not None
        assert page_bytes(model, spec, 8.0 * EXPERT_BYTES, 4) == {"page": 0.75 * 8 * EXPERT_BYTES / 4}
        whole = page_bytes(model, spec.model_copy(update={"weights": "layers", "held": 0.0}), 8.0 * EXPERT_BYTES)
        assert whole["page"] == 8 * EXPERT_BYTES
        assert whole["attention page"] == 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024)

    def test_copies_and_attention_share_the_memory_of_the_host(self) -> None:
        """A40 of MoE-Lens: attention alone reaches all 150 GB/s; copies both ways take 19.5 GB/s each of them."""
        spec = spec_of(cluster={"node": "a40-1"})
        _, setting, _, _ = made(spec)
        ways = ways_of(setting, host_attention=True)
        assert ways.to_device == ways.to_host == pytest.approx(19.5e9, rel=1e-3)
        assert ways.attention == pytest.approx(150e9 - 2 * 19.5e9, rel=1e-3)

    def test_a_share_of_the_peak_slows_products_alone(self) -> None:
        whole, half = (build_cluster(ClusterSpec(node="l4-1", sustained_frac=frac)).device for frac in (None, 0.5))
        assert half.peak_flop_per_s("bf16") == whole.peak_flop_per_s("bf16") / 2
        assert half.memory_bytes_per_s == whole.memory_bytes_per_s


class TestTimes:
    def test_the_example_of_moe_lightning_is_simulated(self) -> None:
        """HRM: 4.957 s a pass of 32 layers. Rooflines as kernels, 17.18 GB/s, 0.0559 of the experts held."""
        result = result_of(
            cluster={"node": "l4-1", "kernels": "ideal"},
            workload={"tokens_per_device": 14 * 324},
            memory={"stream": {"held": 0.055884688}},
            schedule={"chunks": 14},
        )
        assert result.metrics["step_time_s"] * 8 == pytest.approx(4.957, rel=0.02)
        assert result.metrics["busy_frac.to-device"] == pytest.approx(1.0, abs=0.01)
        assert result.metrics["busy_frac.compute"] < 0.95

    def test_moe_lens_reaches_its_closed_form_where_the_link_binds(self) -> None:
        """T = PME x cached tokens / delta, with the bytes that stream; the simulation never beats it."""
        generate, requests = GenerateSpec(prompt_tokens=98, new_tokens=64), 1024
        result = result_of(
            cluster={"node": "a40-1"},
            workload={"tokens_per_device": requests, "generate": generate.model_dump()},
            memory={"stream": {"weights": "layers"}},
            schedule={"overlap": "vslpipe", "chunks": 2},
        )
        layer = 8 * EXPERT_BYTES + 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
        all_tokens_per_s = streamed_tokens_per_s(
            weight_bytes=4 * layer,
            link_bytes_per_s=19.488e9,
            cached_tokens=requests * (98 + 32),
            pme=passes_per_cached_token(98, 64),
            compute_tokens_per_s=1e9,
        )
        generated = all_tokens_per_s * 64 / (98 + 64)
        assert 0.96 * generated <= result.metrics["tokens_per_s"] <= generated

    def test_tokens_are_those_of_answers_over_prefill_and_decode(self) -> None:
        metrics = result_of().metrics
        assert metrics["tokens_per_s"] == pytest.approx(64 * 32 / (metrics["prefill_s"] + metrics["decode_s"]))
        assert metrics["decode_s"] == pytest.approx(31 * metrics["step_time_s"])

    @pytest.mark.parametrize("overlap", ["cgopipe", "flexgen", "flexgen-cpu"])
    def test_two_sampled_contexts_are_off_by_less_than_half_a_percent(self, overlap: str) -> None:
        few, many = (
            result_of(
                schedule={"overlap": overlap},
                workload={"generate": {"prompt_tokens": 77, "new_tokens": 256}, "steps": steps},
            ).metrics["decode_s"]
            for steps in (2, 17)
        )
        assert few == pytest.approx(many, rel=0.005)

    @pytest.mark.parametrize("overlap", ["cgopipe", "fastdecode", "flexgen", "vslpipe"])
    def test_both_executors_give_the_same_times(self, overlap: str) -> None:
        chunks = {"chunks": 2} if overlap == "vslpipe" else {}
        vector, event = (
            result_of(schedule={"overlap": overlap, "executor": executor, **chunks}) for executor in ("vector", "event")
        )
        for name in ("prefill_s", "decode_s", "busy_frac.to-device"):
            assert event.metrics[name] == pytest.approx(vector.metrics[name], rel=1e-9)

    def test_attention_of_a_slower_host_takes_longer(self) -> None:
        fast, slow = (
            result_of(workload={"tokens_per_device": 2048}, memory={"stream": {"host_frac": frac}}).metrics
            for frac in (1.0, 0.02)
        )
        assert slow["busy_frac.host"] * slow["step_time_s"] > 40 * fast["busy_frac.host"] * fast["step_time_s"]
        assert slow["step_time_s"] > fast["step_time_s"]


MODELS: dict[str, dict[str, Any]] = {
    "dense layer and latent attention": {"card": "deepseek-v2-lite", "n_layers": 3},
    "windows": {"card": "gpt-oss-20b", "n_layers": 2},
}


@pytest.mark.parametrize("weights", ["experts", "layers"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("overlap", ["cgopipe", "flexgen", "vslpipe"])
def test_models_of_other_shapes_are_generated(overlap: str, model: dict[str, Any], weights: str) -> None:
    chunks = 2 if overlap == "vslpipe" else 4
    result = result_of(
        model=model, schedule={"overlap": overlap, "chunks": chunks}, memory={"stream": {"weights": weights}}
    )
    assert np.isfinite(result.metrics["tokens_per_s"]) and result.metrics["tokens_per_s"] > 0


class TestMemory:
    def test_a_device_holds_two_layers_and_what_it_keeps(self) -> None:
        """4 layers of 8 experts, a quarter held: 1 layer, and 2 x 3/4 on their way; activations of 16 x 77 tokens."""
        _, setting, plan, placement = made(spec_of(memory={"stream": {"held": 0.25}}))
        memory = checked_memory(setting, placement, plan)
        assert memory.expert_bytes.tolist() == [pytest.approx(8 * EXPERT_BYTES * 2.5)]
        assert memory.kv_bytes == 0
        assert memory.working_bytes == 16 * 77 * 2 * (4096 + 3 * 14336) * 2

    def test_microbatches_that_do_not_fit_name_their_lever(self) -> None:
        with pytest.raises(MemoryInfeasible, match=r"activations .* smaller microbatches"):
            result_of(schedule={"microbatch": 4096, "chunks": 1})

    def test_a_cache_beyond_the_hosts_memory_is_infeasible(self) -> None:
        with pytest.raises(MemoryInfeasible, match=r"cache of .* short by .* fewer requests"):
            result_of(workload={"generate": {"prompt_tokens": 200_000, "new_tokens": 32}})

    def test_a_search_leaves_out_what_does_not_fit(self) -> None:
        search = [{"overlap": "cgopipe", "microbatch": [16, 4096], "chunks": [2, 4]}]
        found = result_of(schedule={"search": search})
        tried = found.plan["search"]["tried"]
        fitting = [one for one in tried if "infeasible" not in one]
        assert [one["name"] for one in fitting] == ["cgopipe 2 x 16", "cgopipe 4 x 16"]
        assert len(tried) == 4
        best = max(fitting, key=lambda one: float(one["tokens_per_s"]))
        assert found.metrics["tokens_per_s"] == pytest.approx(best["tokens_per_s"])
        with pytest.raises(MemoryInfeasible):
            result_of(schedule={"search": [{"overlap": "cgopipe", "microbatch": 4096, "chunks": 2}]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": {"stream": None}}, "need memory.stream"),
        ({"schedule": {"overlap": "none"}}, "weights stream under cgopipe"),
        ({"workload": {"generate": None}}, "need workload.generate"),
        ({"schedule": {"overlap": "ring"}}, "schedules of its own"),
        ({"workload": {"generate": None, "phase": "train"}, "schedule": {"overlap": "ring"}}, "do not stream"),
        ({"serving": {"requests": {"requests_per_s": 1.0}}}, "generates for all requests at once"),
        ({"cluster": {"node": "t4-4"}}, "4 devices, and streamed generation is of one"),
        ({"memory": {"stream": {"slots": 3}}}, "leave slots out"),
        ({"schedule": {"overlap": "cgopipe", "launch": "eager"}}, "launches are not counted"),
        ({"schedule": {"overlap": "cgopipe", "layer_overhead": "1 ms"}}, "not known to cgopipe"),
        ({"cluster": {"node": "h800-8", "devices_per_node": 1}}, "no host whose memory"),
        (
            {"schedule": {"overlap": "ring"}, "workload": {"generate": None}, "memory": {"stream": {"slots": 4}}},
            "fewer than all 4 MoE layers",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        result_of(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": {"stream": {}, "offload": {"share": 0.5}}}, "give one of them"),
        ({"schedule": {"overlap": "vslpipe", "chunks": 3}}, "2 groups of requests, not 3"),
        ({"schedule": {"overlap": "none", "microbatch": 8}}, "microbatch is an option of"),
        ({"workload": {"generate": {"prompt_tokens": 5, "new_tokens": 1}}}, "greater than 1"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**changes)


class TestRing:
    def test_a_ring_holds_its_slots_and_hides_short_copies(self) -> None:
        base: dict[str, Any] = {"workload": {"generate": None, "phase": "prefill", "tokens_per_device": 20480}}
        ring = {"memory": {"stream": {"slots": 2}}, "schedule": {"overlap": "ring"}}
        slow = {"cluster": {"node": "l4-1", "host_bandwidth": "1 GB/s"}}
        resident = result_of(**base, memory={"stream": None, "reserve": 0.0}, schedule={"overlap": "none"})
        hidden, shown = result_of(**base, **ring), result_of(**base, **ring, **slow)
        assert hidden.metrics["memory_bytes.peak"] < 0.7 * resident.metrics["memory_bytes.peak"]
        assert hidden.metrics["step_time_s"] == pytest.approx(resident.metrics["step_time_s"], rel=1e-6)
        link_s = 4 * 8 * EXPERT_BYTES / (1e9 * 0.537)
        assert shown.metrics["step_time_s"] == pytest.approx(link_s, rel=0.05)
