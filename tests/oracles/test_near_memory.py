"""PIM units beside their device: vector, event and textbook agree on the policy, and units wait where they must."""

from dataclasses import replace

import numpy as np
import pytest

from sim.laws import LAWS
from sim.policies.near_memory import near_memory
from sim.program import OpList, Step, Units, Work, compile_program
from tests.oracles.random_steps import make_step, price_case
from tests.oracles.test_executors import assert_agree


def random_step(rng: np.random.Generator, *, beside: bool) -> Step:
    """Dense and MoE layers, with attention on the units or without."""
    kinds = [tuple(rng.random(2) < (0.25, 0.5)) for _ in range(int(rng.integers(1, 5)))]
    step = make_step("two-batch-decode", kinds, 1, collectives=bool(rng.random() < 0.5))
    decodes = rng.random() < 0.7
    layers = []
    for layer in step.layers:
        number = layer.attention.layer
        units = Units(
            output=Work("output", number),
            core=Work("pim core", number) if decodes else None,
            experts=Work("pim experts", number) if layer.chunks else None,
            beside=beside,
        )
        layers.append(replace(layer, units=units))
    return replace(step, layers=tuple(layers))


def ops_of(step: Step) -> OpList:
    return compile_program(near_memory, step)


@pytest.mark.parametrize("law", LAWS)
def test_executors_agree_on_steps_with_pim_units(law: str) -> None:
    for seed in range(12):
        rng = np.random.default_rng([seed, *law.encode()])
        step = random_step(rng, beside=bool(seed % 2))
        case = price_case(ops_of(step), int(rng.integers(1, 4)), law, rng, 1)
        assert_agree(case, f"near memory {law} {seed}")


@pytest.mark.parametrize("beside", [False, True])
def test_units_and_device_work_at_a_time_only_where_the_memory_serves_both(beside: bool) -> None:
    met = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        case = price_case(ops_of(random_step(rng, beside=beside)), 1, "port", rng, 1)
        end_s = case.vector().end_s[:, 0]
        spans = {"compute": list[tuple[float, float]](), "pim": list[tuple[float, float]]()}
        for index, (op, duration) in enumerate(zip(case.op_list.ops, case.durations, strict=True)):
            if isinstance(duration, np.ndarray) and duration[0] > 0:
                spans[op.lanes[0]].append((end_s[index] - duration[0], end_s[index]))
        together = [(a, b) for a in spans["compute"] for b in spans["pim"] if max(a[0], b[0]) < min(a[1], b[1]) - 1e-9]
        if not beside:
            assert not together
        else:
            met += len(together)
    assert (met > 0) == beside


def test_every_work_is_issued_once_after_what_it_needs() -> None:
    for seed in range(40):
        step = random_step(np.random.default_rng(seed), beside=bool(seed % 2))
        ops = ops_of(step).ops
        index = {op.work: place for place, op in enumerate(ops)}
        assert len(index) == len(ops)
        ancestors = [set[int]() for _ in ops]
        for place, op in enumerate(ops):
            ancestors[place] = set(op.after).union(*(ancestors[dep] for dep in op.after))
        for layer in step.layers:
            units = layer.units
            assert units is not None and layer.projections is not None
            for work in (layer.attention, units.core):
                if work is not None:
                    assert index[layer.projections] in ancestors[index[work]]
                    assert index[work] in ancestors[index[units.output]]
            if layer.chunks and units.experts is not None and layer.gate is not None:
                chunk = layer.chunks[0]
                assert index[chunk.dispatch] in ancestors[index[units.experts]]
                assert {index[units.experts], index[chunk.experts]} < ancestors[index[chunk.combine]]
                assert index[units.output] in ancestors[index[layer.gate]]
