"""Points of kernels: tokens of experts, rotation of weights, tables over several passes."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hwmodels.validation.timings import read_timings  # noqa: E402
from scenarios.errors import MoesimError  # noqa: E402
from traces.capture.clock import HostClock, Limits  # noqa: E402
from traces.capture.devices import chosen_device  # noqa: E402
from traces.capture.kernels import attention, copies, experts, session, sharing  # noqa: E402
from traces.capture.kernels.bench import Bench, Case  # noqa: E402
from traces.capture.kernels.grid import Grid, calls, heads, layer  # noqa: E402
from traces.capture.kernels.passes import joined, key_of, n_passes  # noqa: E402

QUICK = Limits(least=1, most=1, budget_s=0.0, warm_up=1)
BENCH = Bench(device=torch.device("cpu"), cache_bytes=1 << 12, clock=HostClock(), limits=QUICK)
SMALL = layer(16, 8, 8, 2)
GRID = Grid(
    dtypes=("fp32",),
    layers=(SMALL,),
    expert_tokens=(1, 4),
    backends=("loop",),
    products=((8, 16), (4, 8)),
    product_tokens=(1, 3),
    heads=(heads(4, 2, 8), heads(2, 1, 8)),
    calls=tuple(calls((1, 2), (4,), ((1, 3),))),
    other_calls=(),
    small_tokens=(2,),
    copy_bytes=(1 << 12,),
)


@pytest.mark.parametrize("kind", experts.KINDS)
@pytest.mark.parametrize("n_tokens", [1, 3, 64])
def test_counts_belong_to_tokens_with_distinct_experts(kind, n_tokens):
    counts = experts.counts_of(kind, SMALL, n_tokens)
    ids = experts.ids_of(counts, SMALL.top_k)
    assert ids.shape == (n_tokens, 2)
    assert (ids[:, 0] != ids[:, 1]).all()
    assert (np.bincount(ids.ravel(), minlength=8) == counts).all()


def test_uniform_counts_are_those_of_uniform_routing():
    # E(1 - (1 - k/E)^T) experts have a token: 16 (1 - (7/8)^4) = 6.6 for 4 tokens, over many draws of their number
    wide = layer(1, 1, 16, 2)
    active = [np.count_nonzero(experts.counts_of("uniform", wide, n)) for n in range(1, 200)]
    expected = [16 * (1 - (7 / 8) ** n) for n in range(1, 200)]
    assert np.mean(active) == pytest.approx(np.mean(expected), rel=0.01)


def test_turns_walk_through_all_experts_of_all_copies(monkeypatch):
    seen = []

    def spy(tokens, routing, weights):
        seen.append((id(weights.up), tuple(sorted(set(routing.ids.flatten().tolist())))))
        return tokens

    monkeypatch.setitem(experts.BACKENDS, "loop", spy)
    stack = experts.stack_of(BENCH, SMALL, "fp32", copies=2)
    bench = Bench(device=BENCH.device, cache_bytes=1, clock=HostClock(), limits=Limits(least=14, most=14, warm_up=1))
    counts = experts.counts_of("balanced", SMALL, 1)
    next(case for case in [experts._case(bench, stack, counts, "balanced", "loop")]).measure()
    assert len(set(seen[:8])) == 8  # 2 copies x 4 pairs of experts, before any is used again
    assert seen[:8] == seen[8:16]


def test_decode_and_prefill_are_what_calibration_takes_them_for(tmp_path):
    session.measure_families(BENCH, GRID, ["attention"], tmp_path, (60.0, 1))
    timings = read_timings(tmp_path / "attention.csv")
    assert timings.family == "attention"
    assert timings.ints("isl").tolist() == [1, 1, 3]
    assert timings.ints("step").tolist() == [3, 3, 0]  # contexts of 4, their own token included
    assert timings.ints("ragged").tolist() == [0, 1, 0]


def test_an_attention_call_is_the_decoders_own():
    work = attention.worker_of(BENCH, heads(4, 2, 8), attention.Call(requests=2, past=5, new=1), "fp32")
    with torch.inference_mode():
        assert work(0).shape == (2, 1, 32)
        assert torch.equal(work(0), work(0))


@pytest.mark.parametrize(("family", "rows"), [("gemm", 4 + 6), ("moe", 6 + 3), ("small", 8)])
def test_tables_hold_every_point_once(family, rows, tmp_path):
    done = session.measure_families(BENCH, GRID, [family], tmp_path, (60.0, 1))
    assert (done[0].rows, done[0].complete) == (rows, True)


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    session.measure_families(BENCH, GRID, ["gemm"], tmp_path, (60.0, 1))
    before = (tmp_path / "gemm.csv").read_text()
    session.measure_families(BENCH, GRID, ["gemm"], tmp_path, (60.0, 1))
    undisturbed = [line for line in before.splitlines() if ",0,0." in line or ",0,1" in line]
    assert set(undisturbed) <= set((tmp_path / "gemm.csv").read_text().splitlines())
    done = session.measure_families(BENCH, GRID, ["gemm"], tmp_path, (0.0, 9))
    assert not done[0].complete
    assert done[0].rows == 10


def test_a_point_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    def cases(_bench, _grid):
        yield Case(shape={"m": 1}, measure=lambda: {"latency": "1", "p10": "1", "p90": "1", "repeats": 1})
        yield Case(shape={"m": 2}, measure=lambda: torch.zeros(2) @ torch.zeros(3))
        yield Case(shape={"m": 3}, measure=lambda: {"latency": "3", "p10": "3", "p90": "3", "repeats": 1})

    monkeypatch.setitem(session.FAMILIES, "gemm", cases)
    done = session.measure_families(BENCH, GRID, ["gemm"], tmp_path, (60.0, 1))[0]
    assert (done.rows, done.complete) == (2, True)
    assert "{'m': 2}: RuntimeError" in done.failed[0]


def test_spinning_kernels_are_beside_only_where_they_can_run(monkeypatch):
    monkeypatch.setattr(sharing, "has_triton", lambda: True)
    assert "spin on 16" in sharing.neighbours_of(torch.device("cuda"))
    assert sharing.neighbours_of(torch.device("cpu")) == list(sharing.WORKS)


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(MoesimError, match="no family gem; choose from gemm, moe"):
        session.measure_families(BENCH, GRID, ["gem"], tmp_path, (1.0, 1))


def test_passes_are_joined_by_the_median_of_their_medians():
    def fresh(ms, p10, p90, disturbed=0):
        return {"m": 1, "latency": ms, "p10": p10, "p90": p90, "repeats": 5, "disturbed": disturbed}

    row = joined(None, fresh("1", "0.9", "1.2"))
    row = joined(row, fresh("3", "2", "5"))
    row = joined(row, fresh("1.5", "1.4", "1.6"))
    assert (row["latency"], row["p10"], row["p90"], row["repeats"]) == ("1.5", "0.9", "5", 15)
    assert row["passes"] == "1 3 1.5"
    assert n_passes(row) == 3
    assert joined(row, fresh("9", "9", "9", disturbed=1)) == row
    assert n_passes(joined(None, fresh("9", "9", "9", disturbed=1))) == 0
    assert key_of(row) == (("m", "1"),)


def test_a_gpu_copies_both_ways_from_both_kinds_of_memory_by_several_streams():
    wanted = {(c.direction, c.host_memory, c.streams, c.under) for c in copies.copies_of(torch.device("cuda"), [4096])}
    for way in ("to-device", "to-host"):
        assert {(way, "pinned", n, "none") for n in (1, 2, 4)} < wanted
        assert {(way, "pinned", 1, "gemm"), (way, "pageable", 1, "none")} < wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(MoesimError, match="no CUDA GPU on this machine; use --device cpu"):
        chosen_device("cuda")
    assert chosen_device(None).type == "cpu"


def test_provenance_says_what_it_was(tmp_path):
    from traces.capture.provenance import provenance, read_provenance, write_provenance

    facts = provenance(torch.device("cpu"))
    write_provenance(facts, tmp_path / "provenance.json")
    assert read_provenance(tmp_path / "provenance.json") == json.loads(json.dumps(facts))
    assert {"device", "torch", "date", "command", "clocks", "host", "system"} <= facts.keys()
