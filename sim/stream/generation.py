"""Offline generation of all requests: passes whose weights stream, priced, executed and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.stream_specs import GENERATING, MIXED, STREAMING, StreamSpec
from scenarios.workload_specs import GenerateSpec
from sim.durations import Duration, Seconds, scaled
from sim.execution import executed
from sim.metrics import Execution
from sim.policies import PROMPTS, STREAMS
from sim.pricing import Prices
from sim.program import OpList, Policy, compile_program
from sim.session import Plan
from sim.setting import Setting
from sim.stream.measures import all_passes_s
from sim.stream.passes import Pass, decode_passes, mixed_pass, prompt_pass, sampled_passes
from sim.stream.prices import pass_prices, ways_of
from sim.stream.works import PassShape, generating_step

Variants = Sequence[Mapping[str, float]]
"""Factors of kinds of work; kinds that are not named stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedPass:
    """A pass with its program and prices."""

    setting: Setting
    schedule: ScheduleSpec
    op_list: OpList
    prices: Prices

    def executed(self) -> Execution:
        """The pass, executed."""
        return executed(self.op_list, self.prices, self.schedule)

    def times_s(self, variants: Variants) -> Seconds:
        """Times with some kinds of work longer or shorter, float64[variant, step]: all variants in one execution."""

        def stacked(kind: str, duration: Duration) -> Duration:
            return np.concatenate([scaled(duration, factors.get(kind, 1.0)) for factors in variants])

        times_s = executed(self.op_list, self.prices.changed(stacked), self.schedule).step_times_s
        return times_s.reshape(len(variants), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The passes of all requests: `steps` decode, or hold prompts as well; `prefill` is a pass of its own."""

    generate: GenerateSpec
    steps: PricedPass
    prefill: PricedPass | None
    overhead_s: float

    def times_s(self, variants: Variants = ({},)) -> tuple[Seconds, Seconds]:
        """Time of the prefill, float64[variant], and of every other pass, float64[variant, pass], the host's included.

        Passes that hold prompts and decoding requests are alike: as many as an answer has tokens renew all requests.
        """
        sampled_s = self.steps.times_s(variants) + self.overhead_s
        if self.prefill is None:
            return np.zeros(len(variants)), np.repeat(sampled_s, self.generate.new_tokens, axis=-1)
        prefill_s = self.prefill.times_s(variants)[:, 0] + self.overhead_s
        sampled = sampled_passes(self.generate, self.steps.setting.batches.n_steps)
        return prefill_s, np.stack([all_passes_s(sampled, one, self.generate) for one in sampled_s])


def generation_of(setting: Setting, placement: Placement, reduction: Reduction, plan: Plan) -> Generation:
    """The passes of a plan that generates. Raises ScenarioError where plan and setting do not fit."""
    stream, generate = plan.memory.stream, setting.workload.generate
    if stream is None or generate is None:
        raise ScenarioError("generation needs memory.stream and workload.generate")
    overlap = plan.schedule.overlap

    def priced(one: Pass, policies: Mapping[str, Policy], *, decodes: bool, prompts: bool) -> PricedPass:
        shape = PassShape(overlap=overlap, n_parts=plan.schedule.chunks, spec=stream, decodes=decodes, prompts=prompts)
        ways = ways_of(one.setting, host_attention=shape.on_host)
        prices = pass_prices(one, placement, plan.schedule.exchange, stream, ways, shape.n_pages)
        op_list = compile_program(policies[overlap], generating_step(one.setting.model, shape))
        return PricedPass(setting=one.setting, schedule=plan.schedule, op_list=op_list, prices=prices)

    if overlap in MIXED:
        steps = priced(mixed_pass(setting, reduction, generate), STREAMS, decodes=True, prompts=True)
        prefill = None
    else:
        steps = priced(decode_passes(setting, reduction, generate), STREAMS, decodes=True, prompts=False)
        prefill = priced(prompt_pass(setting, reduction, generate), PROMPTS, decodes=False, prompts=True)
    return Generation(generate=generate, steps=steps, prefill=prefill, overhead_s=plan.schedule.step_overhead)


def check_streams(setting: Setting, plan: Plan) -> None:
    """Raise ScenarioError where schedule, memory and workload do not belong together."""
    overlap, stream, generate = plan.schedule.overlap, plan.memory.stream, setting.workload.generate
    if (stream is None) != (overlap not in STREAMING):
        names = ", ".join(sorted(STREAMING))
        raise ScenarioError(
            f"schedule.overlap {overlap} and memory.stream: weights stream under {names}, and these need memory.stream"
        )
    if (generate is None) != (overlap not in GENERATING):
        names = ", ".join(sorted(GENERATING))
        raise ScenarioError(
            f"schedule.overlap {overlap} and workload.generate: offline generation has schedules of its own ({names}), "
            "and these need workload.generate: {prompt_tokens: 77, new_tokens: 32}"
        )
    if stream is None:
        return
    if setting.trains:
        raise ScenarioError("memory.stream: weights of a training step do not stream; leave it out")
    if plan.schedule.launch != "graph":
        raise ScenarioError(f"schedule.launch {plan.schedule.launch}: launches are not counted where weights stream")
    if generate is not None and plan.schedule.layer_overhead:
        raise ScenarioError(f"schedule.layer_overhead: not known to {overlap}; use schedule.step_overhead")
    if generate is not None and setting.cluster.n_devices > 1:
        raise ScenarioError(
            f"workload.generate: {setting.cluster.n_devices} devices, and streamed generation is of one; set "
            "cluster.nodes: 1 and devices_per_node: 1"
        )
    _check_slots(setting, overlap, stream)


def _check_slots(setting: Setting, overlap: str, stream: StreamSpec) -> None:
    n_moe = len(setting.model.moe_layers)
    if overlap in GENERATING and stream.slots != 2:
        raise ScenarioError(f"memory.stream.slots: {overlap} has 2, not {stream.slots}; leave slots out")
    if overlap == "ring" and (stream.slots >= n_moe or stream.weights != "experts"):
        raise ScenarioError(
            f"memory.stream: a ring holds the experts of fewer than all {n_moe} MoE layers, not weights: "
            f"{stream.weights} in {stream.slots} slots"
        )
