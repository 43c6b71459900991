"""Exchanges with stages: three executors agree, chunks meet the closed forms of FSMoE, tokens and times by hand."""

import numpy as np
import pytest

from placement.layout import ExpertLayout
from placement.traffic import regrouped_ports, to_one_of_group
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from sim.durations import Duration, ExchangeTime
from sim.forward import STAGES, build_step
from sim.laws import LAWS
from sim.metrics import time_metrics
from sim.policies import POLICIES
from sim.policies.travel import arrive, come_back
from sim.priced_steps import execute_schedule
from sim.program import EXCHANGE_LANES, INSIDE_LANES, Program, Step, Work, compile_program
from sim.vector import execute
from tests.oracles.random_steps import price_case
from tests.oracles.textbook import simulate
from tests.small import even_placement, random_trace, reduced, tiny_cluster, tiny_model, tiny_setting

STAGED = {"hierarchical": {}, "sliced": {"expert_tp": 2}, "all-gather": {}}


def spec_of(algorithm: str, inside: str = "own") -> ExchangeSpec:
    return ExchangeSpec.model_validate({"algorithm": algorithm, "inside": inside})


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("inside", ["own", "shared"])
@pytest.mark.parametrize("algorithm", STAGES)
@pytest.mark.parametrize("policy", ["none", "chunked", "two-batch"])
def test_executors_agree_on_stages(policy: str, algorithm: str, inside: str, law: str) -> None:
    for seed in (0, 2):
        step = build_step(
            tiny_model(),
            chunks=1 + seed,
            attention_tp=2,
            microbatched=policy == "two-batch",
            exchange=spec_of(algorithm, inside),
        )
        op_list = compile_program(POLICIES[policy], step)
        lanes = {op.lanes for op in op_list.ops if op.work.kind in STAGES[algorithm]}
        assert lanes == {INSIDE_LANES if inside == "own" else EXCHANGE_LANES}
        case = price_case(op_list, 4, law, np.random.default_rng(seed), 2)
        want, sent = simulate(op_list.ops, case.durations, case.start_s, law)
        for finished in (case.vector(), case.events()):
            np.testing.assert_allclose(finished.end_s, want, rtol=1e-9)
            np.testing.assert_allclose(finished.send_end_s, sent, rtol=1e-9)


def fsmoe_s(r: int, a2a: np.ndarray, ag: np.ndarray, experts: np.ndarray, rs: np.ndarray) -> np.ndarray:
    """Time of a layer by the cases of FSMoE, section 5, without gradients (t_gar = 0)."""
    q1, q2, q3 = a2a > ag, r * experts > 2 * (r - 1) * a2a, r * experts > (r - 1) * (ag + rs)
    conditions = [(q1 & q2) | (~q1 & q3), q1 & ~q2]
    return np.select(conditions, [2 * a2a + ag + rs + r * experts, 2 * r * a2a + ag + rs], 2 * a2a + r * (ag + rs))


@pytest.mark.parametrize("r", [1, 2, 4, 8])
def test_chunks_of_a_sliced_exchange_meet_the_closed_forms_of_fsmoe(r: int) -> None:
    """Cases 2, 3 and 4 exactly where all-gather and reduce-scatter take as long; never faster where they differ."""
    model = tiny_model(n_layers=1)
    op_list = compile_program(
        POLICIES["chunked"], build_step(model, chunks=r, attention_tp=1, exchange=spec_of("sliced"))
    )
    rng = np.random.default_rng(r)
    for alike in (True, False):
        a2a, ag, experts, rs = rng.lognormal(0, 1, (4, 2000))
        rs = ag if alike else rs
        times = {"dispatch": a2a, "combine": a2a, "forward": ag, "collect": rs, "experts": experts}
        durations: list[Duration] = []
        for op in op_list.ops:
            time_s = times.get(op.work.kind, np.zeros(2000))[:, None]
            durations.append(ExchangeTime(send_s=time_s, receive_s=time_s, group_size=1) if op.is_exchange else time_s)
        got = execute(op_list, durations).end_s[-1, :, 0]
        want = fsmoe_s(r, a2a, ag, experts, rs)
        assert (got >= want * (1 - 1e-9)).all()
        if alike:
            np.testing.assert_allclose(got, want, rtol=1e-9)


def before_gradients(program: Program, step: Step) -> None:
    """FSMoE's order on the link between nodes: D_1..D_r, a piece of the gradients, C_1..C_r."""
    layer = step.layers[0]
    gated = program.compute(layer.attention, after=None)
    arrived = [arrive(program, chunk, gated) for chunk in layer.chunks]
    program.exchange(Work("gradients", 0), after=gated)
    worked = [program.compute(chunk.experts, after=here) for chunk, here in zip(layer.chunks, arrived, strict=True)]
    for chunk, done in zip(layer.chunks, worked, strict=True):
        come_back(program, chunk, done)


@pytest.mark.parametrize("r", [1, 2, 4, 8])
def test_gradients_between_dispatches_and_combines_meet_the_closed_forms(r: int) -> None:
    """Cases 1, 2 and 4 exactly with AG as long as RS; the formula of case 3 is an upper bound (section 5)."""
    step = build_step(tiny_model(n_layers=1), chunks=r, attention_tp=1, exchange=spec_of("sliced"))
    op_list = compile_program(before_gradients, step)
    a2a, ag, experts, gar = np.random.default_rng(r).lognormal(0, 1, (4, 4000))
    gar = gar * np.sqrt(r)
    times = {"dispatch": a2a, "combine": a2a, "forward": ag, "collect": ag, "experts": experts, "gradients": gar}
    durations: list[Duration] = []
    for op in op_list.ops:
        time_s = times.get(op.work.kind, np.zeros(4000))[:, None]
        durations.append(ExchangeTime(send_s=time_s, receive_s=time_s, group_size=1) if op.is_exchange else time_s)
    got = execute(op_list, durations).end_s.max(axis=0)[:, 0]
    q1, q2, q3 = a2a > ag, r * experts > 2 * (r - 1) * a2a, r * experts > 2 * (r - 1) * ag
    q4, q5 = gar > 2 * ag, gar > r * experts - 2 * (r - 1) * a2a + 2 * ag
    q6 = gar > 2 * r * ag - 2 * (r - 1) * a2a
    case_1 = (q1 & ~q2 & q4) | (q1 & q2 & q5) | (~q1 & ~q3 & q6) | (~q1 & q3 & q5)
    case_2, case_3 = (q1 & q2 & ~q5) | (~q1 & q3 & ~q5), q1 & ~q2 & ~q4
    want = np.select(
        [case_1, case_2, case_3],
        [2 * r * a2a + gar, 2 * a2a + 2 * ag + r * experts, 2 * r * a2a + 2 * ag],
        2 * a2a + 2 * r * ag,
    )
    np.testing.assert_allclose(got[~case_3], want[~case_3], rtol=1e-9)
    assert (got[case_3] <= want[case_3] * (1 + 1e-9)).all()
    assert min(case_1.sum(), case_2.sum()) > 100


def test_tokens_regroup_inside_nodes_and_then_cross_to_devices_of_their_number() -> None:
    layout = ExpertLayout(n_devices=4, devices_per_node=2)
    pairs = np.arange(16).reshape(4, 4)
    ports = regrouped_ports(pairs, layout)
    # device 0 hands device 1 what is for 1 and 3; device 1 hands device 0 what is for 0 and 2
    assert ports.send_intra.tolist() == [1 + 3, 4 + 6, 9 + 11, 12 + 14]
    assert ports.receive_intra.tolist() == [4 + 6, 1 + 3, 12 + 14, 9 + 11]
    # then device 0 sends device 2 what devices 0 and 1 have for it
    assert ports.send_inter.tolist() == [2 + 6, 3 + 7, 8 + 12, 9 + 13]
    assert ports.receive_inter.tolist() == [8 + 12, 9 + 13, 2 + 6, 3 + 7]


def test_one_device_of_a_group_takes_the_token() -> None:
    pairs = np.arange(8, dtype=np.int32).reshape(4, 2)
    assert to_one_of_group(pairs, 2).tolist() == [[0, 0, 1, 0], [0, 2, 0, 3], [4, 0, 5, 0], [0, 6, 0, 7]]


@pytest.mark.parametrize("algorithm", STAGED)
def test_a_setting_runs_under_every_algorithm_and_policy(algorithm: str) -> None:
    setting = tiny_setting(tiny_model(), tiny_cluster(2, 4), random_trace(tiny_model()), **STAGED[algorithm])
    placement = even_placement(setting.model, setting.layout.n_ranks)
    for overlap in ("none", "chunked"):
        schedule = ScheduleSpec(overlap=overlap, exchange=spec_of(algorithm))
        execution = execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule)
        metrics = time_metrics(execution, np.cumsum([0.0, *execution.step_times_s]), setting, 0.0)
        assert metrics["step_time_s"] > 0
        assert ("busy_frac.send-inside" in metrics) == (algorithm in STAGES)
        kinds = {op.work.kind for op in execution.op_list.ops if isinstance(op.work, Work) and op.is_exchange}
        assert kinds == {"dispatch", "combine", *STAGES.get(algorithm, ())}


@pytest.mark.parametrize("algorithm", ["hierarchical", "sliced"])
def test_an_algorithm_without_its_stages_is_an_error(algorithm: str) -> None:
    setting = tiny_setting(tiny_model(), tiny_cluster(1, 4), random_trace(tiny_model()))
    placement, schedule = even_placement(setting.model, 4), ScheduleSpec(exchange=spec_of(algorithm))
    with pytest.raises(ScenarioError, match=f"algorithm {algorithm}"):
        execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule)
