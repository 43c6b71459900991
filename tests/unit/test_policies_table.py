"""The table of policies of slots: complete, bounded by Belady, and ordered as documented on a captured trace."""

from pathlib import Path

import pytest

from docs.policies import WAYS, compared, markdown
from sim.offload.plot import slot_lines
from sim.result import Table
from tests.shared import shared_file
from traces.formats import import_trace
from traces.recording import ImportOptions
from traces.routing import RoutingTrace
from traces.storage import save_trace


def hits_of(table: Table) -> dict[str, list[float]]:
    return {name: [one.metrics["cache_hit_frac"] for one in line] for name, line in slot_lines(table).items()}


@pytest.mark.slow
def test_every_way_has_a_row_and_none_on_demand_exceeds_belady() -> None:
    table = compared(["workload.steps=16"], sizes=(0.25, 0.5))
    rows = list(markdown(table))
    assert len(rows) == 2 + len(WAYS) - 1  # the shipped trace has no gate weights, which MRS needs
    hits = hits_of(table)
    for name, found in hits.items():
        assert found[0] <= found[1], name
        if "prefetch" not in name:
            assert all(one <= bound for one, bound in zip(found, hits["belady"], strict=True)), name


@pytest.mark.slow
def test_rules_on_the_captured_trace(tmp_path: Path) -> None:
    """docs/reference/offload.md: at a quarter of the experts each causal rule beats a fixed set, Belady beats all."""
    source = shared_file("data/traces/gptoss20b_fingerprint")
    path = tmp_path / "gpt-oss-20b.npz"
    trace = import_trace("gptoss-fingerprint", source, ImportOptions())
    assert isinstance(trace, RoutingTrace)
    save_trace(trace, path)
    overrides = ["model=gpt-oss-20b", f"workload.trace={path}", "workload.steps=128"]
    hits = {name: found[0] for name, found in hits_of(compared(overrides, sizes=(0.25, 0.5))).items()}
    causal = [hits[name] for name in ("lru", "lfu", "arc", "hobbit")]
    assert hits["static"] < min(causal)
    assert max(causal) < hits["sch"] < hits["belady"]
    assert hits["lru, prefetch oracle"] == 1.0
