"""What a result keeps for the report: bytes of exchanges against those of the ports, and loads of experts by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from placement.plan import EMPTY, Placement
from placement.reduction import Reduction
from scenarios.specs import ScenarioSpec
from sim.expert_loads import expert_loads
from sim.result import RunResult
from sim.run import run

GOLDEN = Path(__file__).parents[1] / "golden"
WORKLOAD = {"synthetic": {"tokens": 1024, "sequence_tokens": 32}, "tokens_per_device": 12, "steps": 1}


def simulated(nodes: int, schedule: dict[str, Any], workload: dict[str, Any]) -> RunResult:
    spec = {
        "name": "small",
        "model": "tiny-moe.yaml",
        "cluster": {"node": "h200-sxm-8", "devices_per_node": 4, "nodes": nodes},
        "workload": WORKLOAD | workload,
        "schedule": schedule,
    }
    (result,) = run(ScenarioSpec.model_validate(spec), GOLDEN, "test").tables[0].results
    return result


@pytest.mark.parametrize(
    ("nodes", "schedule", "workload"),
    [
        (1, {"overlap": "none"}, {}),
        (2, {"overlap": "chunked", "chunks": 3}, {}),
        (1, {"overlap": "tiles", "tiles": 4}, {}),
        (2, {"overlap": "none", "exchange": {"dedup": "node"}}, {"phase": "train"}),
    ],
)
def test_bytes_of_a_step_are_those_of_its_ports(nodes: int, schedule: dict[str, Any], workload: dict[str, Any]) -> None:
    result = simulated(nodes, schedule, workload)
    moved = [op.moved_bytes for op in result.log if op.moved_bytes is not None]
    assert len(moved) == sum(op.work.kind.startswith(("dispatch", "combine")) for op in result.log) > 0
    np.testing.assert_allclose(np.sum(moved, axis=0), result.port_loads.moved_bytes.sum(axis=0), rtol=1e-12)


def test_stages_of_an_exchange_keep_no_bytes() -> None:
    result = simulated(2, {"overlap": "none", "exchange": {"algorithm": "hierarchical"}}, {})
    assert all(op.moved_bytes is None for op in result.log)


def test_the_fullest_copies_hold_all_tokens_where_there_is_one_of_each() -> None:
    loads = simulated(1, {"overlap": "none"}, {}).expert_loads
    np.testing.assert_allclose(loads.fullest_share.mean(axis=1), 1.0)
    assert (loads.copies == 1).all()


def test_the_fullest_copy_of_an_expert_is_found_by_hand() -> None:
    placement = Placement.from_slots([[0, 1, 0, EMPTY]], 2, n_experts=2, name="two copies of expert 0")
    reduction = SimpleNamespace(slot_tokens=np.array([[[3, 4, 2, 0], [0, 4, 3, 0]]]))
    loads = expert_loads(placement, cast(Reduction, reduction))
    assert loads.fullest_share.tolist() == [[5 / 8, 1.0]]  # 16 tokens, 8 an expert; copies of 3 and 5, and one of 8
    assert loads.copies.tolist() == [[2, 1]]
