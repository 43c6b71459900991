"""Three independent executors agree on every operation: vector, event, and the textbook SimPy model."""

from pathlib import Path

import numpy as np
import pytest

from placement.reduction import reduce_trace
from scenarios.catalog import find_model
from scenarios.cluster_specs import AttentionParallelSpec, ClusterSpec, ParallelSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import WorkloadSpec
from sim.laws import LAWS
from sim.metrics import Execution
from sim.policies import POLICIES
from sim.priced_steps import execute_schedule
from sim.session import solve_placement
from sim.setting import Setting, make_setting
from tests.oracles.random_steps import CHUNKS, Case, dag_case, of_step, policy_case
from tests.oracles.textbook import simulate
from tests.shared import shared_file
from traces.routing import Provenance, RoutingTrace

RTOL = 1e-9
CUT_LAYERS, CUT_SEQUENCES, CUT_STEPS = 2, 40, 2
SMOKE, CASES = 4, 80


def assert_agree(case: Case, name: str) -> None:
    """Ends and send ends of all operations, relative to the later of the two."""
    end_s, send_end_s = simulate(case.op_list.ops, case.durations, case.start_s, case.law, case.packet_s)
    assert np.isfinite(end_s).all(), f"{name}: the textbook model never ends"
    for executor, finished in (("vector", case.vector()), ("event", case.events())):
        for what, got_s, want_s in (("end", finished.end_s, end_s), ("send end", finished.send_end_s, send_end_s)):
            wrong = ~np.isclose(np.array(got_s), want_s, rtol=RTOL, atol=0.0)
            assert not wrong.any(), (
                f"{name}: {executor} {what} differs at [op, device] {np.argwhere(wrong)[:5].tolist()}"
            )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("policy", POLICIES)
def test_executors_agree_on_a_few_steps(policy: str, law: str) -> None:
    for seed in range(SMOKE):
        assert_agree(policy_case(policy, law, seed, max_devices=4), f"{policy} {law} {seed}")


@pytest.mark.parametrize("law", LAWS)
def test_executors_agree_on_a_few_random_op_lists(law: str) -> None:
    for seed in range(SMOKE):
        assert_agree(dag_case(law, seed), f"{law} {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("policy", POLICIES)
def test_executors_agree_on_policies(policy: str, law: str) -> None:
    for seed in range(SMOKE, SMOKE + CASES):
        assert_agree(policy_case(policy, law, seed), f"{policy} {law} {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_executors_agree_on_random_op_lists(law: str) -> None:
    for seed in range(SMOKE, SMOKE + CASES):
        assert_agree(dag_case(law, seed), f"{law} {seed}")


def cut_setting(n_nodes: int) -> Setting:
    """The first layers and sequences of captured gpt-oss-20b routing on 8 devices, attention in pairs of them.

    Positions count from the first captured token, since the test needs no true context lengths.
    """
    folder = "data/traces/gptoss20b_fingerprint"
    with np.load(shared_file(f"{folder}/ids.npz")) as arrays:
        offsets = arrays["offsets"][: CUT_SEQUENCES + 1]
        ids = np.ascontiguousarray(arrays["ids"][: offsets[-1], :CUT_LAYERS].transpose(1, 2, 0))
    trace = RoutingTrace(
        ids=ids,
        n_experts=32,
        offsets=offsets,
        positions=(np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))).astype(np.int32),
        moe_layers=tuple(range(CUT_LAYERS)),
        phase="decode",
        provenance=Provenance(model="openai/gpt-oss-20b", source=folder, kind="captured"),
    )
    return make_setting(
        model=find_model("gpt-oss-20b", Path()).model_copy(update={"n_layers": CUT_LAYERS}),
        cluster=ClusterSpec(node="h200-sxm-8", nodes=n_nodes, devices_per_node=8 // n_nodes),
        parallel=ParallelSpec(attention=AttentionParallelSpec(dp=4, tp=2)),
        workload=WorkloadSpec(trace="ids.npz", tokens_per_device=64, steps=CUT_STEPS),
        trace=trace,
        seed=0,
    )


def cut_execution(setting: Setting, policy: str, law: str) -> Execution:
    """All steps of the setting by the vector executor, as a run of a scenario would execute them."""
    placement = solve_placement(setting, PlacementSpec(solver="eplb", redundant=8))
    fields = {"exchange": {"law": law, "dedup": "none"}, "move": {"kind": "pull"}} if policy == "prefetch" else {}
    chunks = min(3, max(CHUNKS[policy]))
    schedule = ScheduleSpec.model_validate({"overlap": policy, "chunks": chunks, "exchange": {"law": law}} | fields)
    kept = law != "port"
    reduction = reduce_trace(
        setting.trace, setting.batches.tokens, placement, setting.layout, chunks=schedule.n_parts, keep_pairs=kept
    )
    return execute_schedule(setting, placement, reduction, schedule)


def assert_cut_agrees(policy: str, law: str, n_nodes: int) -> None:
    execution = cut_execution(cut_setting(n_nodes), policy, law)
    for step in range(CUT_STEPS):
        alone = [of_step(duration, step) for duration in execution.durations]
        case = Case(op_list=execution.op_list, durations=alone, start_s=np.zeros(8), law=law)
        assert_agree(case, f"{policy} {law} step {step}")
        batched_s = np.array(execution.finished.end_s)[:, step]
        np.testing.assert_allclose(batched_s, case.vector().end_s, rtol=RTOL, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("n_nodes", [1, 2])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("policy", POLICIES)
def test_executors_agree_on_captured_routing(policy: str, law: str, n_nodes: int) -> None:
    assert_cut_agrees(policy, law, n_nodes)
