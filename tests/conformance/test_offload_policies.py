"""Programs of offload, hybrid, streamed layers and microbatches: every work once, and all executors agree."""

from collections import Counter
from functools import partial
from itertools import product

import networkx as nx
import numpy as np
import pytest

from sim.events import execute_events
from sim.expert_cache import all_resident, offloaded
from sim.fluid import execute_fluid
from sim.policies.offload import Sides, microbatches, offload, streamed
from sim.program import Program, compile_ops
from sim.vector import execute
from tests.oracles.random_steps import adversarial_s
from tests.oracles.textbook import simulate

N_LAYERS, N_EXPERTS, N_PASSES = 3, 8, 4
SIDES = {"copy engine and host": Sides(), "one side": Sides("host", "host")}


def counts_of(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, (N_PASSES, N_LAYERS, N_EXPERTS))
    for place in np.ndindex(N_PASSES, N_LAYERS):
        counts[(*place, rng.choice(N_EXPERTS, N_EXPERTS - rng.integers(1, 5), replace=False))] = 0
    return counts.astype(np.int64)


def predicted(seed):
    rng = np.random.default_rng(seed)
    return [[rng.choice(N_EXPERTS, 3, replace=False).tolist() for _ in range(1, N_LAYERS)] for _ in range(N_PASSES)]


USES = {
    "resident": lambda seed: all_resident(counts_of(seed)),
    "copied": lambda seed: offloaded(counts_of(seed), None, 4, 1),
    "prefetched": lambda seed: offloaded(counts_of(seed), predicted(seed), 4, 1),
    "hosted": lambda seed: offloaded(counts_of(seed), None, 4, 1 << 30),
    "mixed": lambda seed: offloaded(counts_of(seed), predicted(seed), 5, 3),
}
POLICIES = {
    **{f"offload {name}": (offload, make) for name, make in USES.items()},
    **{
        f"{name} {'overlapped' if overlapped else 'sequential'}": (
            partial(policy, overlapped=overlapped),
            USES["resident"],
        )
        for (name, policy), overlapped in product(
            (("streamed", streamed), ("microbatches", microbatches)), (False, True)
        )
    },
}


def program_of(policy, sides, seed):
    issue, make = POLICIES[policy]
    program, uses = Program(), make(seed)
    issue(program, uses, SIDES[sides], shared=bool(seed % 2))
    return compile_ops(program.ops), uses


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("policy", POLICIES)
class TestProgram:
    def test_every_expert_is_worked_on_once(self, policy, sides):
        op_list, uses = program_of(policy, sides, 1)
        works = Counter(op.work for op in op_list.ops)
        assert max(works.values()) == 1
        kinds = {(work.kind, work.step, work.layer, work.chunk) for work in works}
        for step, layers in enumerate(uses):
            for number, use in enumerate(layers):
                on_device = [e for _, s, n, e in kinds if (_, s, n) == ("expert", step, number)]
                on_host = [e for _, s, n, e in kinds if (_, s, n) == ("host expert", step, number)]
                assert sorted(on_device) == sorted((*use.resident, *use.coming, *use.copied))
                assert sorted(on_host) == sorted(use.hosted)
        assert sum(work.kind == "copy" for work in works) == sum(
            len(use.copied) + len(use.ahead or ()) for layers in uses for use in layers
        )

    def test_missed_experts_wait_for_their_copies_and_passes_for_their_experts(self, policy, sides):
        op_list, uses = program_of(policy, sides, 2)
        graph = nx.DiGraph([(op_list.ops[dep].work, op.work) for op in op_list.ops for dep in op.after])
        by_key = {(op.work.kind, op.work.step, op.work.layer, op.work.chunk): op.work for op in op_list.ops}
        for step, layers in enumerate(uses):
            for number, use in enumerate(layers):
                combine = by_key["combine", step, number, -1]
                for e in (*use.resident, *use.coming, *use.copied):
                    assert nx.has_path(graph, by_key["gate", step, number, -1], by_key["expert", step, number, e])
                    assert nx.has_path(graph, by_key["expert", step, number, e], combine)
                for e in use.copied:
                    assert nx.has_path(graph, by_key["copy", step, number, e], by_key["expert", step, number, e])
                for e in use.hosted:
                    assert nx.has_path(graph, by_key["host expert", step, number, e], combine)

    def test_all_executors_agree_on_adversarial_durations(self, policy, sides):
        for seed in range(3):
            op_list, _ = program_of(policy, sides, seed)
            rng = np.random.default_rng([seed, *policy.encode()])
            durations = list(adversarial_s(rng, (len(op_list.ops), 1), ["heavy tail", "ties", "mixed"][seed]))
            want, _ = simulate(op_list.ops, durations, np.zeros(1), "port")
            fluid = execute_fluid(op_list, [one[0] for one in durations])[:, None]
            for found in (execute(op_list, durations).end_s, execute_events(op_list, durations).end_s, fluid):
                np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)
