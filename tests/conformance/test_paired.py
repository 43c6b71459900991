"""A forward pass beside a backward pass: all works once, data before use, executors that agree, and its closed form."""

from collections import Counter
from functools import partial
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from scenarios.errors import DeadlockError
from scenarios.training_specs import TrainingSpec
from sim.durations import Duration, ExchangeTime
from sim.policies.paired import paired
from sim.program import OpList, Step, compile_program
from sim.training import part_of_step, training_step
from sim.vector import execute
from tests.conformance.test_policies import works_of
from tests.conformance.test_training_policies import DENSE, MODELS, PACKED, PLAIN, SHARED, back_flows
from tests.oracles.random_steps import make_step, price_case
from tests.oracles.textbook import simulate

SPECS = (TrainingSpec(), TrainingSpec(recompute="full"))
PAIRS = [(kinds, kinds) for kinds in MODELS.values()] + [
    ([PLAIN, SHARED], [DENSE, PACKED, PLAIN]),
    ([PLAIN] * 3, [DENSE]),
]


def compiled(pair: tuple[list, list], spec: TrainingSpec, *, collectives: bool = True) -> tuple[OpList, Step, Step]:
    ahead, back = (training_step(make_step("none", kinds, 1, collectives=collectives), {}, spec) for kinds in pair)
    return compile_program(partial(paired, back=back), ahead), ahead, back


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.recompute)
@pytest.mark.parametrize("pair", PAIRS)
def test_both_passes_are_done_once(pair: tuple[list, list], spec: TrainingSpec) -> None:
    op_list, ahead, back = compiled(pair, spec)
    assert back.training is not None
    layers = [*ahead.layers, *(one.works for one in back.training.layers)]
    layers += [one.again for one in back.training.layers if one.again is not None]
    works = [work for layer in layers for work in works_of(layer)] + [ahead.head, back.training.head]
    assert Counter(op.work for op in op_list.ops) == Counter(works)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.recompute)
@pytest.mark.parametrize("pair", PAIRS)
def test_each_pass_follows_its_own_data(pair: tuple[list, list], spec: TrainingSpec) -> None:
    op_list, ahead, back = compiled(pair, spec)
    ops = op_list.ops
    graph = nx.DiGraph([(ops[dep].work, op.work) for op in ops for dep in op.after])
    graph.add_nodes_from(op.work for op in ops)
    graph.add_edges_from(pairwise(op.work for op in ops if not op.is_exchange))
    issued = set(graph)
    flows = [(one, two) for one, two in back_flows(back) if part_of_step(one.kind) == part_of_step(two.kind) == 1]
    flows += [(one, two) for one, two in back_flows(ahead) if part_of_step(one.kind) == part_of_step(two.kind) == 0]
    assert [flow for flow in flows if set(flow) <= issued and not nx.has_path(graph, *flow)] == []
    for op in ops:  # and waits for nothing of the other pass
        assert {part_of_step(ops[dep].work.kind) for dep in op.after} <= {part_of_step(op.work.kind)}


@pytest.mark.parametrize("law", ["port", "fifo", "maxmin"])
@pytest.mark.parametrize("pair", PAIRS)
def test_executors_agree(pair: tuple[list, list], law: str) -> None:
    op_list, _, _ = compiled(pair, SPECS[len(pair[0]) % 2])
    case = price_case(op_list, 4, law, np.random.default_rng(len(op_list.ops)), 2)
    end_s, _ = simulate(op_list.ops, case.durations, case.start_s, law)
    for finished in (case.vector(), case.events()):
        np.testing.assert_allclose(finished.end_s, end_s, rtol=1e-9)


@pytest.mark.parametrize("exchange_s", [0.0, 0.5, 1.0, 50.0])
def test_a_pair_takes_what_it_computes_while_exchanges_are_shorter(exchange_s: float) -> None:
    """L layers of attention and gate 1, experts 2, backwards 2 and 4: exchanges of up to 1 s are hidden, all of them;
    where they bind, the ports of a pair carry four a layer."""
    op_list, ahead, _ = compiled(([PLAIN] * 3, [PLAIN] * 3), SPECS[0], collectives=False)
    times = {"attention": 0.75, "gate": 0.25, "experts": 2.0, "head": 0.5}

    def duration(kind: str) -> Duration:
        plain = kind.removesuffix(".backward")
        if plain in times:
            return np.full(2, times[plain] * (2 if plain != kind else 1))
        port_s = np.full(2, exchange_s)
        return ExchangeTime(send_s=port_s, receive_s=port_s, group_size=2)

    step_s = execute(op_list, [duration(op.work.kind) for op in op_list.ops]).end_s.max()
    computing_s = len(ahead.layers) * (1 + 2 + 2 + 4) + 1.5
    if exchange_s <= 1.0:
        assert step_s == pytest.approx(computing_s)
    assert step_s >= max(computing_s, 4 * len(ahead.layers) * exchange_s)


def test_a_step_without_a_backward_pass_has_no_pair() -> None:
    step = make_step("none", [PLAIN], 1, collectives=False)
    with pytest.raises(DeadlockError, match="without a backward pass"):
        compile_program(partial(paired, back=step), step)
