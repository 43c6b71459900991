"""Every schedule policy through one suite; one that is named but missing, or the reverse, fails it."""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import get_args

import networkx as nx
import numpy as np
import pytest

from scenarios.catalog import find_model
from scenarios.schedule_specs import MOVING, ResidentName
from sim.events import execute_events
from sim.forward import build_step
from sim.laws import LAWS
from sim.log import begins_s
from sim.policies import APART, MICROBATCHED, POLICIES, SPLIT_ATTENTION, TILED
from sim.program import Layer, OpList, Step, Work, compile_program
from tests.oracles.random_steps import CHUNKS, make_step, price_case

EXCHANGES = {"fetch", "dispatch", "combine", "gather", "scatter"}
PLAIN, SHARED, DENSE = (False, False), (False, True), (True, False)
# name -> (dense, shared experts) of each layer, tensor-parallel attention
MODELS: dict[str, tuple[list[tuple[int, ...]], bool]] = {
    "one layer": ([PLAIN], False),
    "several layers": ([PLAIN] * 3, False),
    "shared experts": ([SHARED] * 2, False),
    "dense first": ([DENSE, SHARED, PLAIN], False),
    "dense last": ([PLAIN, DENSE], False),
    "all dense": ([DENSE] * 2, False),
    "packed tokens": ([(False, False, 0, 1), (False, True, 0, 1), (True, False)], False),
    "shadowed experts": ([(False, True, 1), (True, False), (False, False, 1)], False),
    "pulled experts": ([(False, True, 2), (False, False, 2), (True, False), (False, False, 2)], False),
    "some pulled": ([(False, False, 2), (False, False, 0), (False, False, 2), (False, True, 1)], False),
    "tensor parallel": ([DENSE, SHARED, PLAIN], True),
    "layers run again": ([SHARED, (False, True, 0, 0, 1), DENSE, PLAIN, (False, False, 0, 1, 1)], True),
}
LANES_APART = {
    "gather": ("send-inside", "receive-inside"),
    "scatter": ("send-inside", "receive-inside"),
    "dispatch": ("send", "receive-experts"),
    "experts": ("experts",),
    "combine": ("send-experts", "receive"),
}
"""Where experts have devices of their own, a device's index stands for one device of each pool."""
PLANS = [(policy, chunks) for policy, counts in CHUNKS.items() for chunks in counts]


def step_of(policy: str, model: str, chunks: int) -> Step:
    kinds, tensor_parallel = MODELS[model]
    return make_step(policy, known_to(policy, kinds), chunks, collectives=tensor_parallel)


def known_to(policy: str, kinds: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Kinds of layers without experts that move, where the policy does not know them."""
    return kinds if policy in MOVING else [(*kind[:2], 0, *kind[3:]) for kind in kinds]


@cache
def compiled(policy: str, model: str, chunks: int) -> OpList:
    return compile_program(POLICIES[policy], step_of(policy, model, chunks))


def works_of(layer: Layer) -> list[Work]:
    """All works of a layer, each once."""
    single = [layer.gather, layer.projections, layer.attention, layer.scatter, layer.mlp, layer.gate, layer.shared]
    parts = [work for chunk in layer.chunks for work in (chunk.dispatch, chunk.experts, chunk.down, chunk.combine)]
    around = [*layer.before_dispatch, *layer.after_combine]
    return [work for work in (*single, layer.fetch, layer.local, *parts, *around) if work is not None]


def flows_of(step: Step) -> list[tuple[Work, Work]]:
    """(earlier, later): data that the later work needs, whatever the schedule."""
    if step.others:
        return [flow for microbatch in step.microbatches for flow in flows_of(replace(microbatch, others=()))]
    flows: list[tuple[Work, Work]] = []
    for layer in step.layers:
        spine = [layer.gather, layer.projections, layer.attention, layer.scatter, layer.mlp or layer.gate]
        flows += pairwise(work for work in spine if work is not None)
        if layer.gate is not None:
            flows += [(layer.gate, work) for work in (layer.shared, layer.local) if work is not None]
            if layer.fetch is not None and layer.local is not None:
                flows += [(layer.fetch, layer.local)]
            for chunk in layer.chunks:
                worked = chunk.experts if chunk.down is None else chunk.down
                flows += pairwise((layer.gate, *layer.before_dispatch, chunk.dispatch, chunk.experts))
                flows += pairwise((worked, chunk.combine, *layer.after_combine))
                rows = [layer.local, *(other.experts for other in layer.chunks)]
                flows += [(row, chunk.down) for row in rows if row is not None and chunk.down is not None]
    nexts = [layer.gather or layer.attention or layer.gate for layer in step.layers[1:]] + [step.head]
    for layer, after in zip(step.layers, nexts, strict=True):
        flows += [(work, after) for work in works_of(layer)]
    return flows


def test_names_match_the_scenario() -> None:
    assert set(get_args(ResidentName)) == set(POLICIES) == set(CHUNKS)


@pytest.mark.parametrize(("policy", "chunks"), PLANS)
class TestProgram:
    """Over all MODELS; a failure names the model."""

    def test_every_work_is_done_exactly_once(self, policy: str, chunks: int) -> None:
        for model in MODELS:
            passes = step_of(policy, model, chunks).microbatches
            issued = Counter(op.work for op in compiled(policy, model, chunks).ops)
            works = [work for step in passes for layer in step.layers for work in works_of(layer)]
            assert issued == Counter(works + [step.head for step in passes]), model

    def test_exchanges_and_only_they_are_on_the_ports(self, policy: str, chunks: int) -> None:
        for model in MODELS:
            for op in compiled(policy, model, chunks).ops:
                usual = ("send", "receive") if op.work.kind in EXCHANGES else ("compute",)
                assert op.lanes == (LANES_APART.get(op.work.kind, usual) if policy in APART else usual), model

    def test_operations_wait_for_earlier_ones_only(self, policy: str, chunks: int) -> None:
        for model in MODELS:
            op_list = compiled(policy, model, chunks)
            assert not (op_list.ops[0].after or op_list.waits[0] or op_list.lane_waits[0]), model
            for index, op in enumerate(op_list.ops):
                befores = {*op.after, *op_list.waits[index], *(dep for _, dep in op_list.lane_waits[index])}
                assert all(0 <= before < index for before in befores), model

    def test_works_follow_the_data_that_they_need(self, policy: str, chunks: int) -> None:
        """Path from one to the other in the graph of what an operation comes after, and of the compute lane."""
        for model in MODELS:
            ops = compiled(policy, model, chunks).ops
            graph = nx.DiGraph([(ops[dep].work, op.work) for op in ops for dep in op.after])
            graph.add_nodes_from(op.work for op in ops)
            graph.add_edges_from(pairwise(op.work for op in ops if not op.is_exchange))
            missing = [flow for flow in flows_of(step_of(policy, model, chunks)) if not nx.has_path(graph, *flow)]
            assert missing == [], model

    def test_the_program_depends_on_nothing_but_the_step(self, policy: str, chunks: int) -> None:
        for model in MODELS:
            step = step_of(policy, model, chunks)
            assert compile_program(POLICIES[policy], step) == compiled(policy, model, chunks), model


@pytest.mark.parametrize("attention_tp", [1, 2])
@pytest.mark.parametrize(("policy", "chunks"), PLANS)
def test_every_work_of_a_shipped_model_is_done_exactly_once(policy: str, chunks: int, attention_tp: int) -> None:
    """DeepSeek-V2-Lite: 27 layers, the first of them dense, the others with shared experts."""
    microbatched = policy in MICROBATCHED
    model = find_model("deepseek-v2-lite", Path())
    tiling, halves = TILED.get(policy), policy in SPLIT_ATTENTION
    step = build_step(
        model,
        chunks=chunks,
        attention_tp=attention_tp,
        microbatched=microbatched,
        split_attention=halves,
        tiling=tiling,
    )
    kinds = Counter(op.work.kind for op in compile_program(POLICIES[policy], step).ops)
    tiles = {"rows": 1 + chunks, "columns": 1 + 2 * chunks}
    parts = dict.fromkeys(("dispatch", "combine"), 26 * chunks) | {"experts": 26 * tiles.get(str(tiling), chunks)}
    collectives = dict.fromkeys(("gather", "scatter"), 27) if attention_tp > 1 else {}
    attention = {"projections": 27, "core": 27} if halves else {"attention": 27}
    whole = attention | {"mlp": 1, "gate": 26, "shared": 26, "head": 1} | collectives
    times = chunks if microbatched else 1
    assert kinds == {kind: count * times for kind, count in whole.items()} | parts


def unparted(work: Work) -> Work:
    """The work without the part of the tokens, of which there is one."""
    return replace(work, chunk=-1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("policy", "chunks"), PLANS)
def test_lanes_are_first_in_first_out_and_everything_ends(policy: str, chunks: int, law: str) -> None:
    op_list = compiled(policy, "tensor parallel", chunks)
    case = price_case(op_list, 4, law, np.random.default_rng(chunks), 2)
    durations = case.durations
    finished = execute_events(op_list, durations, law=law)
    ends_s = np.array(finished.end_s)
    assert np.isfinite(ends_s).all()
    assert (ends_s[-1] == ends_s.max(axis=0)).all(), "the head is last on every device"
    begins_at_s = begins_s(op_list, durations, finished)
    for lane in {op.lanes[0] for op in op_list.ops}:
        on_lane = [index for index, op in enumerate(op_list.ops) if op.lanes[0] == lane]
        for before, index in pairwise(on_lane):
            free_s = finished.send_end_s[before]
            assert (begins_at_s[index] >= free_s * (1 - 1e-12)).all()
            assert (ends_s[index] >= ends_s[before]).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("law", ["port", "fifo"])
@pytest.mark.parametrize("policy", [p for p in CHUNKS if p != "none" and 1 in CHUNKS[p] and p not in TILED])
def test_with_one_chunk_overlap_is_never_slower_than_none(policy: str, law: str, model: str) -> None:
    """The same operations in the same order on each lane, with fewer waits; such lanes are monotone."""
    for seed in range(5):
        overlapped = price_case(compiled(policy, model, 1), 4, law, np.random.default_rng(seed), 2)
        prices = dict(zip((unparted(op.work) for op in overlapped.op_list.ops), overlapped.durations, strict=True))
        kinds, tensor_parallel = MODELS[model]
        step = make_step("none", known_to(policy, kinds), 1, collectives=tensor_parallel)
        sequential = compile_program(POLICIES["none"], step)
        plain = price_case(sequential, 4, law, np.random.default_rng(seed), 2)
        plain.durations[:] = [prices[unparted(op.work)] for op in sequential.ops]
        plain.start_s[:] = overlapped.start_s
        faster = np.array([overlapped.vector().end_s[-1], plain.vector().end_s[-1]])
        assert (faster[0] <= faster[1] * (1 + 1e-12)).all()
