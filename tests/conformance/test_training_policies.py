"""Every order of gradients under every overlap that trains: works, data, lanes, and three executors that agree."""

from collections import Counter
from itertools import pairwise, product
from typing import get_args

import networkx as nx
import numpy as np
import pytest

from scenarios.schedule_specs import TRAINED, GradientOrder
from scenarios.training_specs import TrainingSpec
from sim.laws import LAWS
from sim.policies import POLICIES, TRAINING
from sim.policies.gradients import FILL, ORDERS
from sim.policies.training import OVERLAPS
from sim.program import BackwardLayer, OpList, Step, Work, compile_program
from sim.training import SUMS, Pieces, training_step
from tests.conformance.test_policies import flows_of, works_of
from tests.oracles.random_steps import CHUNKS, make_step, price_case
from tests.oracles.textbook import simulate

PLAIN, SHARED, DENSE, PACKED = (False, False), (False, True), (True, False), (False, True, 0, 1)
MODELS: dict[str, list[tuple[int, ...]]] = {
    "one layer": [PLAIN],
    "several layers": [PLAIN, SHARED, PLAIN],
    "dense layers": [DENSE, SHARED, DENSE],
    "packed tokens": [PACKED, DENSE],
}
SPECS = {
    "kept": TrainingSpec(),
    "computed again": TrainingSpec(recompute="full"),
    "divided": TrainingSpec(zero=1, recompute="selective"),
    "weights divided": TrainingSpec(zero=3, recompute="full"),
}
PLANS = [(overlap, order) for overlap, order in TRAINING]
CASES = [(model, spec, chunks) for model, spec in product(MODELS, SPECS) for chunks in (1, 3)]


def pieces_of(n_layers: int, n_pieces: int = 2) -> Pieces:
    """Sums of every layer but the second, in two pieces (that of the first layer's experts in three)."""
    layers = [layer for layer in range(n_layers) if layer != 1]
    keys = [(kind, layer) for kind in ("reduce", "reduce.experts") for layer in layers]
    return dict.fromkeys([*keys, ("reduce", -1), ("reduce.head", -1)], n_pieces) | {("reduce.experts", 0): 3}


def step_of(overlap: str, model: str, spec: str, chunks: int, *, collectives: bool = True) -> Step:
    forward = make_step(overlap, MODELS[model], chunks if chunks in CHUNKS[overlap] else 1, collectives=collectives)
    return training_step(forward, pieces_of(len(forward.layers)), SPECS[spec])


def compiled(plan: tuple[str, str], step: Step) -> OpList:
    return compile_program(TRAINING[plan], step)


def sums_of(layer: BackwardLayer) -> list[Work]:
    experts = layer.experts if layer.works.chunks else ()
    return [*experts, *layer.others]


def test_names_match_the_scenario() -> None:
    assert set(TRAINED) == set(OVERLAPS) <= set(POLICIES)
    assert set(get_args(GradientOrder)) == set(ORDERS)
    assert set(TRAINING) == set(product(TRAINED, get_args(GradientOrder)))


@pytest.mark.parametrize("plan", PLANS)
def test_every_work_is_done_exactly_once(plan: tuple[str, str]) -> None:
    for model, spec, chunks in CASES:
        step = step_of(plan[0], model, spec, chunks)
        training = step.training
        assert training is not None
        issued = Counter(op.work for op in compiled(plan, step).ops if op.work.kind != FILL)
        layers = [*step.layers, *(one.works for one in training.layers)]
        layers += [one.again for one in training.layers if one.again is not None]
        works = [work for layer in layers for work in (*works_of(layer), layer.weights) if work is not None]
        works += [step.head, training.head, training.update]
        works += [training.refresh] if training.refresh is not None else []
        sums = [work for one in training.layers for work in sums_of(one)]
        works += [*sums, *training.head_sums, *training.embedding_sums]
        assert issued == Counter(works)


def back_flows(step: Step) -> list[tuple[Work, Work]]:
    """(earlier, later) of a training step, written as data: gradients go through every layer in reverse."""
    training = step.training
    assert training is not None
    flows = [*flows_of(step), (step.head, training.head)]
    source = [training.head]
    for one in training.layers:
        works = one.works
        after, before = list(reversed(works.after_combine)), list(reversed(works.before_dispatch))
        spine = [work for work in (*before, works.gate, works.mlp, works.gather, works.attention) if work is not None]
        flows += pairwise(spine)
        flows += [(start, (after or [c.dispatch for c in works.chunks] or spine)[0]) for start in source]
        flows += pairwise(after)
        for chunk in works.chunks:
            flows += pairwise([*after[-1:], chunk.dispatch, chunk.experts, chunk.combine, spine[0]])
            flows += [(chunk.experts, piece) for piece in one.experts]
        if works.shared is not None:
            flows += [(works.shared, spine[0])]
        if one.again is not None:
            flows += [(work, spine[-1]) for work in works_of(one.again)]
        if works.weights is not None:
            flows += [(works.weights, works.attention)]
        flows += [(work, piece) for piece in one.others for work in (*spine, works.shared) if work is not None]
        flows += [(piece, training.update) for piece in sums_of(one)]
        last = works.attention if works.scatter is None else works.scatter
        source = [last]
    flows += [(training.head, piece) for piece in training.head_sums]
    flows += [(piece, training.update) for piece in (*training.head_sums, *training.embedding_sums)]
    flows += [(layer.weights, layer.attention) for layer in step.layers if layer.weights is not None]
    return flows + ([(training.update, training.refresh)] if training.refresh is not None else [])


@pytest.mark.parametrize("plan", PLANS)
def test_works_follow_the_data_that_they_need(plan: tuple[str, str]) -> None:
    for model, spec, chunks in CASES:
        step = step_of(plan[0], model, spec, chunks)
        ops = compiled(plan, step).ops
        graph = nx.DiGraph([(ops[dep].work, op.work) for op in ops for dep in op.after])
        graph.add_nodes_from(op.work for op in ops)
        graph.add_edges_from(pairwise(op.work for op in ops if not op.is_exchange))
        sums = {work for one in step.training.layers for work in one.experts if not one.works.chunks}  # type: ignore[union-attr]
        flows = [flow for flow in back_flows(step) if not sums & set(flow)]
        assert [flow for flow in flows if not nx.has_path(graph, *flow)] == []


def on_port(plan: tuple[str, str], **step: object) -> list[str]:
    """Kinds of works on the ports, in order."""
    built = step_of(plan[0], collectives=False, **{"model": "several layers", "spec": "kept", "chunks": 3} | step)  # type: ignore[arg-type]
    return [op.work.kind for op in compiled(plan, built).ops if op.is_exchange]


@pytest.mark.parametrize("overlap", TRAINED)
def test_sums_after_the_backward_pass_come_last(overlap: str) -> None:
    kinds = on_port((overlap, "after"))
    n_sums = sum(kind in SUMS for kind in kinds)
    assert n_sums > 0
    assert all(kind in SUMS for kind in kinds[-n_sums:])


@pytest.mark.parametrize("overlap", TRAINED)
def test_overlapped_sums_never_wait_for_tokens_that_are_not_ready(overlap: str) -> None:
    """All of a layer's sums stand before the dispatch of the layer below."""
    step = step_of(overlap, "several layers", "kept", 3, collectives=False)
    works = [op.work for op in compiled((overlap, "overlapped"), step).ops if op.is_exchange]
    for layer in (2, 1):
        sums = [place for place, work in enumerate(works) if work.kind in SUMS and work.layer == layer]
        below = [i for i, w in enumerate(works) if (w.kind, w.layer) == ("dispatch.backward", layer - 1)]
        assert not sums or max(sums) < min(below)


@pytest.mark.parametrize("overlap", TRAINED)
def test_with_priority_one_piece_at_most_stands_between_two_exchanges_of_tokens(overlap: str) -> None:
    kinds = on_port((overlap, "priority"))
    last = max(place for place, kind in enumerate(kinds) if kind not in SUMS)
    between = [(one in SUMS) + (other in SUMS) for one, other in pairwise(kinds[: last + 1])]
    assert max(between) == 1, "two pieces in a row"
    assert between.count(1) >= 2, "no piece is hidden"


@pytest.mark.parametrize("overlap", TRAINED)
def test_with_priority_a_piece_was_ready_before_the_computation_beside_which_it_stands(overlap: str) -> None:
    """What a piece comes after is no later on the compute lane than what the exchange before it comes after."""
    ops = compiled((overlap, "priority"), step_of(overlap, "several layers", "kept", 3, collectives=False)).ops
    ports = [op for op in ops if op.is_exchange]
    tokens = max(place for place, op in enumerate(ports) if op.work.kind not in SUMS)
    for before, op in pairwise(ports[: tokens + 1]):
        if op.work.kind in SUMS:
            assert max(op.after) <= max(before.after)


@pytest.mark.parametrize("plan", PLANS)
def test_executors_agree(plan: tuple[str, str]) -> None:
    for seed, (model, spec) in enumerate(zip(MODELS, SPECS, strict=True)):
        law = list(LAWS)[seed % len(LAWS)]
        assert_executors_agree(plan, law, step_of(plan[0], model, spec, 1 + seed % 3), seed)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("plan", PLANS)
def test_executors_agree_on_many_steps(plan: tuple[str, str], law: str) -> None:
    for seed, (model, spec, chunks) in enumerate(CASES):
        assert_executors_agree(plan, law, step_of(plan[0], model, spec, chunks), 100 + seed)


def assert_executors_agree(plan: tuple[str, str], law: str, step: Step, seed: int) -> None:
    op_list = compiled(plan, step)
    case = price_case(op_list, 2 + 2 * (seed % 2), law, np.random.default_rng(seed), 2)
    end_s, send_end_s = simulate(op_list.ops, case.durations, case.start_s, law)
    for finished in (case.vector(), case.events()):
        np.testing.assert_allclose(finished.end_s, end_s, rtol=1e-9)
        np.testing.assert_allclose(finished.send_end_s, send_end_s, rtol=1e-9)
