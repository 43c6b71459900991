"""Weights that stream: vector, event and textbook agree, works wait for what they need, closed forms hold."""

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from scenarios.schedule_specs import OverlapName, ResidentName
from scenarios.stream_specs import GENERATING, HOST_ATTENTION, STREAMING, StreamSpec
from sim.durations import Seconds
from sim.laws import LAWS
from sim.policies import POLICIES, PROMPTS, STREAMS
from sim.policies.flexgen import prompts
from sim.program import Layer, OpList, Step, Streamed, Work, compile_program
from sim.stream.works import ringed
from sim.vector import execute
from tests.oracles.random_steps import make_step, price_case
from tests.oracles.test_executors import assert_agree

PIPELINED = sorted(GENERATING)
CHUNKED = {name: (2,) if name == "vslpipe" else (1, 2, 3, 5) for name in PIPELINED}


def streamed(layer: int, part: int, *, host: bool, page: bool, rng: np.random.Generator | None = None) -> Streamed:
    """Works of a microbatch in a layer; with `rng` some of those that may be missing are."""

    def work(kind: str) -> Work | None:
        return None if rng is not None and rng.random() < 0.3 else Work(kind, layer, part)

    before = tuple(one for one in (Work("projections", layer, part), work("prompt")) if one is not None)
    return Streamed(
        early=work("attention page") if page and rng is not None and part == 0 else None,
        page=work("page") if page else None,
        cache=None if host else work("cache"),
        before=before if host else (*before, Work("core", layer, part)),
        queries=work("queries") if host else None,
        attended=Work("core", layer, part) if host else None,
        results=work("results") if host else None,
        after=(Work("output", layer, part), Work("experts", layer, part)),
        store=None if host else work("store"),
    )


def step_of(n_layers: int, n_parts: int, *, host: bool, pages: int, rng: np.random.Generator | None = None) -> Step:
    def microbatch(part: int) -> Step:
        layers = tuple(
            Layer(
                attention=Work("core", layer, part),
                streamed=streamed(layer, part, host=host, page=part < pages, rng=rng),
            )
            for layer in range(n_layers)
        )
        return Step(layers=layers, head=Work("head", -1, part))

    first, *others = (microbatch(part) for part in range(n_parts))
    return replace(first, others=tuple(others))


def random_step(policy: str, rng: np.random.Generator) -> Step:
    n_parts = int(rng.choice(CHUNKED.get(policy, (1, 2, 4))))
    host = policy in HOST_ATTENTION
    pages = int(rng.choice((0, 1, n_parts)))
    return step_of(int(rng.integers(1, 5)), n_parts, host=host, pages=pages, rng=rng)


def random_ring(rng: np.random.Generator) -> Step:
    """Dense and MoE layers with shared experts, gather and scatter or not, and fewer slots than MoE layers."""
    kinds = [(False, False), *(tuple(rng.random(2) < (0.25, 0.5)) for _ in range(int(rng.integers(1, 5))))]
    step = make_step("none", kinds, 1, collectives=bool(rng.random() < 0.3))
    n_moe = sum(layer.gate is not None for layer in step.layers)
    return ringed(step, StreamSpec(slots=int(rng.integers(1, n_moe + 1))))


def test_names_match_the_scenario() -> None:
    assert set(get_args(OverlapName)) == set(get_args(ResidentName)) | set(STREAMS)
    assert set(STREAMS) == set(STREAMING)
    assert not set(STREAMS) & set(POLICIES)
    assert set(PROMPTS) <= set(STREAMS)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("policy", [*PIPELINED, "prompts"])
def test_executors_agree_on_streamed_passes(policy: str, law: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng([seed, *policy.encode(), *law.encode()])
        op_list = compile_program(STREAMS.get(policy, prompts), random_step(policy, rng))
        assert_agree(price_case(op_list, int(rng.integers(1, 3)), law, rng, 1), f"{policy} {law} {seed}")


@pytest.mark.parametrize("law", LAWS)
def test_executors_agree_on_rings(law: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng([seed, *law.encode()])
        op_list = compile_program(STREAMS["ring"], random_ring(rng))
        assert_agree(price_case(op_list, int(rng.integers(1, 4)), law, rng, 1), f"ring {law} {seed}")


@pytest.mark.parametrize("policy", [*PIPELINED, "prompts"])
def test_every_work_is_issued_once_after_what_it_needs(policy: str) -> None:
    for seed in range(25):
        step = random_step(policy, np.random.default_rng([seed, *policy.encode()]))
        ops = compile_program(STREAMS.get(policy, prompts), step).ops
        index = {op.work: place for place, op in enumerate(ops)}
        wanted = {
            work
            for microbatch in step.microbatches
            for layer in microbatch.layers
            if layer.streamed is not None
            for work in flat(layer.streamed)
        } | {microbatch.head for microbatch in step.microbatches}
        assert len(index) == len(ops) and set(index) == wanted
        ancestors = ancestors_of([op.after for op in ops], [op.lanes for op in ops])
        for part, microbatch in enumerate(step.microbatches):
            chain = [chain_of(layer.streamed) for layer in microbatch.layers if layer.streamed is not None]
            flow = [work for works in chain for work in works] + [microbatch.head]
            for earlier, later in pairwise(flow):
                assert index[earlier] in ancestors[index[later]], (policy, seed, part, earlier, later)
            for layer in range(1, len(microbatch.layers)):
                works = microbatch.layers[layer].streamed
                assert works is not None
                assert works.cache is None or index[works.cache] in ancestors[index[works.before[0]]]
                experts = index[Work("experts", layer, part)]
                for page in pages_of(step, layer):
                    assert index[page] in ancestors[experts], (policy, seed, page)


def flat(works: Streamed) -> list[Work]:
    singles = [works.early, works.page, works.cache, works.queries, works.attended, works.results, works.store]
    return [*works.before, *works.after, *(work for work in singles if work is not None)]


def chain_of(works: Streamed) -> list[Work]:
    """Works of a microbatch in a layer, each of which needs the one before; its cache may come earlier."""
    steps = [*works.before, works.queries, works.attended, works.results, *works.after]
    return [work for work in steps if work is not None]


def pages_of(step: Step, layer: int) -> list[Work]:
    found = (microbatch.layers[layer].streamed for microbatch in step.microbatches)
    return [works.page for works in found if works is not None and works.page is not None]


def ancestors_of(after: list[tuple[int, ...]], lanes: list[tuple[str, ...]]) -> list[set[int]]:
    """What ends before each operation begins, by what it comes after and by its lane."""
    found: list[set[int]] = []
    last: dict[str, int] = {}
    for place, deps in enumerate(after):
        before = {*deps, *(last[lane] for lane in lanes[place] if lane in last)}
        found.append(before.union(*(found[dep] for dep in before)))
        last.update(dict.fromkeys(lanes[place], place))
    return found


def pass_s(op_list: OpList, times_s: dict[str, float]) -> float:
    durations: list[Seconds] = [np.array([times_s.get(op.work.kind, 0.0)]) for op in op_list.ops]
    return float(execute(op_list, durations).end_s.max())


N_LAYERS, N_PARTS = 32, 14


@pytest.mark.parametrize("bound", ["page", "core", "experts"])
def test_a_pass_of_cgopipe_takes_as_long_as_its_busiest_lane(bound: str) -> None:
    """HRM: T = max(link, host, device) of a layer, times the layers; what is left over is filling the pipeline once."""
    times_s = {"page": 0.3, "core": 0.4, "experts": 0.5, "projections": 0.05, "queries": 0.02, "results": 0.02}
    times_s |= {bound: 1.0}
    op_list = compile_program(STREAMS["cgopipe"], step_of(N_LAYERS, N_PARTS, host=True, pages=N_PARTS))
    lanes_s = {"page": 1.0 + 0.02, "core": 1.0, "experts": 1.0 + 0.05}
    assert pass_s(op_list, times_s) == pytest.approx(lanes_s[bound] * N_LAYERS * N_PARTS, rel=0.01)


def test_with_three_equal_lanes_cgopipe_hides_two_of_them() -> None:
    """MoE-Lightning's example: each lane has 0.1549 s of a layer, and a pass of 32 takes 4.957 s."""
    lane_s = 0.1549 / N_PARTS
    op_list = compile_program(STREAMS["cgopipe"], step_of(N_LAYERS, N_PARTS, host=True, pages=N_PARTS))
    taken_s = pass_s(op_list, {"page": lane_s, "core": lane_s, "experts": lane_s})
    assert taken_s == pytest.approx(4.957, rel=0.02)


def test_schedules_rank_as_in_the_figure_of_moe_lightning() -> None:
    """Equal lanes: pages beside results, then whole layers before results, then no attention ahead."""
    times_s = {"page": 1.0, "core": 1.0, "experts": 0.8, "projections": 0.2, "queries": 0.05, "results": 0.05}
    paged = pass_s(compile_program(STREAMS["cgopipe"], step_of(8, 8, host=True, pages=8)), times_s)
    whole_s = times_s | {"page": 8.0}
    step = step_of(8, 8, host=True, pages=1)
    blocked, serial = (pass_s(compile_program(STREAMS[name], step), whole_s) for name in ("fastdecode", "flexgen-cpu"))
    assert paged < blocked < serial


def test_flexgen_waits_for_a_whole_layer_with_the_first_microbatch() -> None:
    """A layer takes max(weights, work of one microbatch) and the work of the others: all is synchronised after each.

    Results of attention on the host stand behind the weights in the queue to the device, so that experts wait for both.
    """
    step = step_of(6, 5, host=False, pages=1)
    taken_s = pass_s(compile_program(STREAMS["flexgen"], step), {"page": 7.0, "experts": 2.0, "core": 1.0})
    assert taken_s == pytest.approx(6 * (7.0 + 4 * 3.0))
    host_s = pass_s(
        compile_program(STREAMS["flexgen-cpu"], step_of(6, 5, host=True, pages=1)),
        {"page": 7.0, "projections": 0.5, "core": 1.0, "experts": 2.0},
    )
    assert host_s == pytest.approx(6 * (7.0 + 2.0 + 4 * 3.5))


def test_groups_of_vslpipe_alternate_between_device_and_host() -> None:
    """A stage takes max(device, host, half of a layer's weights); attention of the first group alone comes before."""
    works = {"projections": 1.0, "experts": 3.0, "core": 2.5, "page": 2.0}
    op_list = compile_program(STREAMS["vslpipe"], step_of(20, 2, host=True, pages=2))
    assert pass_s(op_list, works) == pytest.approx(2 * 20 * 4.0, rel=0.05)
    assert pass_s(op_list, works | {"core": 6.0}) == pytest.approx(2 * 20 * 6.0, rel=0.05)
    assert pass_s(op_list, works | {"page": 7.0}) == pytest.approx(2 * 20 * 7.0, rel=0.05)


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("copy_s", [0.5, 1.0, 2.5])
def test_a_ring_hides_copies_that_are_shorter_than_a_layer(slots: int, copy_s: float) -> None:
    """One engine copies a layer for every layer that works: T = layers x max(work, copy) but for K - 1 layers of start.

    SE-MoE's condition, t_compute(K layers) >= t_copy(layer), says that a copy is done when its turn comes; with one
    copy under way at a time that is not enough.
    """
    n_layers = 40
    step = ringed(make_step("none", [(False, False)] * n_layers, 1, collectives=False), StreamSpec(slots=slots))
    op_list = compile_program(STREAMS["ring"], step)
    durations = [price for op in op_list.ops for price in [_ring_price(op.work.kind, copy_s, op.is_exchange)]]
    taken_s = float(execute(op_list, durations).end_s.max())
    if copy_s <= 1.0:
        assert taken_s == pytest.approx(n_layers)
    else:
        assert n_layers * copy_s <= taken_s <= n_layers * copy_s + slots


def _ring_price(kind: str, copy_s: float, is_exchange: bool):  # type: ignore[no-untyped-def]
    from sim.durations import ExchangeTime

    zero = np.zeros(1)
    if is_exchange:
        return ExchangeTime(send_s=zero, receive_s=zero, group_size=1)
    return np.array([{"experts": 1.0, "page": copy_s}.get(kind, 0.0)])


def test_a_ring_of_one_slot_waits_for_every_copy() -> None:
    step = ringed(make_step("none", [(False, False)] * 10, 1, collectives=False), StreamSpec(slots=1))
    op_list = compile_program(STREAMS["ring"], step)
    durations = [_ring_price(op.work.kind, 0.5, op.is_exchange) for op in op_list.ops]
    assert float(execute(op_list, durations).end_s.max()) == pytest.approx(10 * 1.5)
