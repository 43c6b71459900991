"""Experts in the host's memory: vector, event and textbook agree on the policy, and works wait for what they need."""

from dataclasses import replace

import numpy as np
import pytest

from sim.laws import LAWS
from sim.policies.cached import cached
from sim.program import OpList, Step, Stored, Work, compile_program
from tests.oracles.random_steps import Case, make_step, price_case, varied
from tests.oracles.test_executors import assert_agree

N_LAYERS = 4


def random_step(rng: np.random.Generator) -> Step:
    """Dense and MoE layers, whose experts miss, come ahead, or are left to the host, or not."""
    kinds = [tuple(rng.random(2) < (0.25, 0.5)) for _ in range(int(rng.integers(1, N_LAYERS + 1)))]
    step = make_step("none", kinds, 1, collectives=False)
    ahead, hosted, lead = rng.random() < 0.6, rng.random() < 0.6, int(rng.integers(1, 4))
    lets_pass, drops = ahead and rng.random() < 0.7, rng.random() < 0.5
    layers = []
    for layer in step.layers:
        number = layer.attention.layer
        n_loads, reads = int(rng.integers(0, 4)), rng.random() < 0.4
        stored = Stored(
            resident=Work("resident", number),
            ahead=Work("ahead", number) if ahead else None,
            coming=Work("coming", number) if ahead else None,
            loads=tuple((Work("load", number, p), Work("loaded", number, p)) for p in range(n_loads)),
            reads=tuple(Work("read", number, p) for p in range(n_loads)) if reads else (),
            read_hosted=Work("read hosted", number) if reads and hosted else None,
            read_ahead=Work("read ahead", number) if reads and ahead else None,
            hosted=Work("hosted", number) if hosted and rng.random() < 0.8 else None,
            deferred=Work("deferred", number) if hosted and rng.random() < 0.5 else None,
            astray=(Work("astray", number, 0), Work("astray", number, 1)) if lets_pass else (),
            rest=Work("rest", number) if lets_pass else None,
            drop=(Work("drop", number, 0), Work("drop", number, 1)) if lets_pass and drops else (),
            lead=lead,
        )
        layers.append(layer if layer.gate is None else replace(layer, stored=stored))
    return replace(step, layers=tuple(layers))


def ops_of(step: Step) -> OpList:
    return compile_program(cached, step)


def on_a_grid(case: Case, packet_s: float) -> Case:
    """The case with times that add up without rounding, so that a copy may be asked for just when a packet ends."""
    durations = [varied(duration, lambda times_s: np.round(times_s * 64) / 64) for duration in case.durations]
    return replace(case, durations=durations, start_s=np.round(case.start_s * 64) / 64, packet_s=packet_s)


@pytest.mark.parametrize("law", LAWS)
def test_executors_agree_on_steps_with_offloaded_experts(law: str) -> None:
    for seed in range(12):
        rng = np.random.default_rng([seed, *law.encode()])
        case = price_case(ops_of(random_step(rng)), int(rng.integers(1, 4)), law, rng, 1)
        assert_agree(on_a_grid(case, float(rng.choice([0.25, 0.75, 2.0, np.inf]))), f"cached {law} {seed}")


def test_every_work_is_issued_once_after_what_it_needs() -> None:
    for seed in range(40):
        step = random_step(np.random.default_rng(seed))
        ops = ops_of(step).ops
        index = {op.work: place for place, op in enumerate(ops)}
        assert len(index) == len(ops)
        ancestors = [set[int]() for _ in ops]
        for place, op in enumerate(ops):
            ancestors[place] = set(op.after).union(*(ancestors[dep] for dep in op.after))
        moe = [layer for layer in step.layers if layer.stored is not None]
        for number, layer in enumerate(moe):
            stored, chunk = layer.stored, layer.chunks[0]
            assert stored is not None and layer.gate is not None
            end = ancestors[index[chunk.combine]]
            works = [stored.resident, *(work for pair in stored.loads for work in pair)]
            works += [work for work in (stored.coming, stored.hosted) if work is not None]
            assert all(index[work] in end for work in works)
            for load, worked in stored.loads:
                assert index[load] in ancestors[index[worked]] and index[layer.gate] in ancestors[index[load]]
            if stored.ahead is not None:
                asked_at = number - stored.lead
                gate = moe[asked_at].gate if asked_at >= 0 else None
                assert gate is None or index[gate] in ancestors[index[stored.ahead]]
                needed = index[stored.rest or stored.ahead]
                assert needed in end and stored.coming is not None and needed in ancestors[index[stored.coming]]
                assert ops[needed].rest_of == (index[stored.ahead] if stored.rest is not None else None)
            if stored.deferred is not None:
                later = moe[number + 1].chunks[0].combine if number + 1 < len(moe) else step.head
                assert index[stored.deferred] in ancestors[index[later]]
                assert index[stored.deferred] not in end
