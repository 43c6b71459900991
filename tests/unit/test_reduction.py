"""The reduction plane against loops over single tokens, and by hand."""

from pathlib import Path

import numpy as np
import pytest

from placement import counting
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import Reduction, reduce_trace
from placement.traffic import PortTokens
from scenarios.errors import PlacementError, ScenarioError
from scenarios.schedule_specs import DedupName
from tests.oracles.reduction_oracle import Expected, expected_reduction
from tests.small import even_placement, random_ids, random_placement, tiny_model, trace_of
from traces import storage
from traces.routing import RoutingTrace

N_EXPERTS, N_SLOTS, N_STEPS = 7, 11, 2
LAYOUTS = {
    "one node": ExpertLayout(n_devices=4, devices_per_node=4),
    "one node, tp 2": ExpertLayout(n_devices=4, devices_per_node=4, tp=2),
    "two nodes": ExpertLayout(n_devices=4, devices_per_node=2),
    "two nodes, tp 2": ExpertLayout(n_devices=8, devices_per_node=4, tp=2),
    "three nodes": ExpertLayout(n_devices=6, devices_per_node=2),
    "three nodes, tp 2": ExpertLayout(n_devices=6, devices_per_node=2, tp=2),
}
DEDUPS: tuple[DedupName, ...] = ("none", "device", "node")


def batches_of(trace: RoutingTrace, layout: ExpertLayout, n_tokens: int = 4) -> np.ndarray:
    """Steps of random tokens, some of them several times."""
    return np.random.default_rng(5).integers(0, trace.n_tokens, (N_STEPS, layout.n_devices, n_tokens))


def both(
    trace: RoutingTrace, placement: Placement, layout: ExpertLayout, chunks: int, dedup: DedupName
) -> tuple[Reduction, Expected]:
    tokens = batches_of(trace, layout)
    got = reduce_trace(trace, tokens, placement, layout, chunks=chunks, dedup=dedup, keep_pairs=True)
    return got, expected_reduction(trace, tokens, placement, layout, chunks=chunks, dedup=dedup)


def assert_equal(got: Reduction, want: Expected, dedup: DedupName) -> None:
    assert got.pairs is not None
    np.testing.assert_array_equal(got.slot_tokens, want.slot_tokens)
    np.testing.assert_array_equal(got.summed_tokens, want.summed_tokens)
    np.testing.assert_array_equal(got.pairs, want.pairs)
    np.testing.assert_array_equal(got.pairs_total, want.pairs.sum(axis=1))
    if dedup == "node" and want.node_pairs_total.shape[-1] > 1:
        np.testing.assert_array_equal(got.node_pairs_total, want.node_pairs_total)
    else:
        assert got.node_pairs_total.size == 0  # nobody forwards, nobody counts
    for name in PortTokens.__slots__:
        np.testing.assert_array_equal(getattr(got.ports, name), getattr(want.ports, name), err_msg=name)


def replicated(layout: ExpertLayout, seed: int = 0) -> Placement:
    """Replicas, and ranks that hold different numbers of slots."""
    return random_placement(2, N_EXPERTS, layout.n_ranks, N_SLOTS, seed)


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("dedup", DEDUPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_token_is_counted_where_it_goes(layout: ExpertLayout, dedup: DedupName, chunks: int) -> None:
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS), N_EXPERTS)
    assert_equal(*both(trace, replicated(layout), layout, chunks, dedup), dedup)


@pytest.mark.parametrize("dedup", DEDUPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_unused_places_of_the_top_k_go_nowhere(layout: ExpertLayout, dedup: DedupName) -> None:
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS, seed=1, unused_frac=0.4), N_EXPERTS)
    assert trace.variable_k
    assert_equal(*both(trace, replicated(layout, seed=1), layout, 2, dedup), dedup)


@pytest.mark.parametrize("dedup", DEDUPS)
@pytest.mark.parametrize("unused_frac", [0.0, 0.3])
def test_ids_of_two_bytes(unused_frac: float, dedup: DedupName) -> None:
    layout = LAYOUTS["two nodes, tp 2"]
    trace = trace_of(random_ids((2, 4, 30), 300, seed=2, unused_frac=unused_frac), 300)
    assert trace.ids.dtype == np.uint16
    assert_equal(*both(trace, random_placement(2, 300, layout.n_ranks, 320, 2), layout, 2, dedup), dedup)


def test_replicas_in_numbers_without_a_common_period() -> None:
    # 11 copies of expert 0, 7 of expert 1, 1 of expert 2: period 77, and 13 turns a device
    slots = [[0] * 11 + [1] * 7 + [2]]
    placement = Placement.from_slots(slots, 1, n_experts=3, name="many")
    trace = trace_of(random_ids((1, 2, 13), 3, seed=3), 3)
    layout = ExpertLayout(n_devices=1, devices_per_node=1)
    assert_equal(*both(trace, placement, layout, 1, "device"), "device")


@pytest.mark.parametrize("dedup", DEDUPS)
def test_blocks_of_tokens_do_not_show(monkeypatch: pytest.MonkeyPatch, dedup: DedupName) -> None:
    # 7 does not divide the 32 tokens, so blocks end inside steps, chunks and devices
    monkeypatch.setattr(counting, "BLOCK_TOKENS", 7)
    layout = LAYOUTS["two nodes"]
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS, seed=4, unused_frac=0.2), N_EXPERTS)
    assert_equal(*both(trace, replicated(layout), layout, 3, dedup), dedup)


@pytest.mark.slow
@pytest.mark.parametrize("unused_frac", [0.0, 0.4])
@pytest.mark.parametrize("dedup", DEDUPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("n_experts", [N_EXPERTS, 300])
def test_the_compiled_twin_gives_the_same_integers(
    monkeypatch: pytest.MonkeyPatch, layout: ExpertLayout, dedup: DedupName, unused_frac: float, n_experts: int
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setenv("MOESIM_SPEED", "numba")
    trace = trace_of(random_ids((2, 3, 30), n_experts, seed=6, unused_frac=unused_frac), n_experts)
    placement = random_placement(2, n_experts, layout.n_ranks, n_experts + 4, 6)
    for chunks in (1, 3):
        assert_equal(*both(trace, placement, layout, chunks, dedup), dedup)


@pytest.mark.slow
def test_the_compiled_twin_follows_the_least_loaded_split(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    layout = LAYOUTS["two nodes"]
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS, seed=7, unused_frac=0.2), N_EXPERTS)
    placement = random_placement(2, N_EXPERTS, layout.n_ranks, N_SLOTS, split="least-loaded")
    tokens = batches_of(trace, layout)
    plain = reduce_trace(trace, tokens, placement, layout, chunks=2)
    monkeypatch.setenv("MOESIM_SPEED", "numba")
    compiled = reduce_trace(trace, tokens, placement, layout, chunks=2)
    np.testing.assert_array_equal(plain.slot_tokens, compiled.slot_tokens)
    np.testing.assert_array_equal(plain.pairs_total, compiled.pairs_total)


def test_a_token_without_any_expert_goes_nowhere() -> None:
    ids = np.array([[[0, -1, 1], [1, -1, -1]]])
    layout = ExpertLayout(n_devices=1, devices_per_node=1)
    placement = Placement.from_slots([[0, 1]], 1, n_experts=2, name="pair")
    got = reduce_trace(trace_of(ids, 2), np.arange(3)[None, None], placement, layout)
    assert got.slot_tokens.tolist() == [[[1, 2]]]
    assert got.pairs_total.tolist() == [[[2]]]


def test_more_chunks_than_tokens_leave_some_empty() -> None:
    # 2 tokens in 4 chunks: the first and the third one hold a token, in the last step as in all others
    layout = ExpertLayout(n_devices=1, devices_per_node=1)
    placement = Placement.from_slots([[0, 1]], 1, n_experts=2, name="pair")
    tokens = np.array([[[0, 1]], [[1, 0]]])
    got = reduce_trace(trace_of([[[0, 1]]], 2), tokens, placement, layout, chunks=4)
    assert got.slot_tokens.tolist() == [[[1, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0], [1, 0], [0, 0]]]


@pytest.mark.parametrize(("n_tokens", "chunks"), [(4, 1), (4, 2), (5, 2), (5, 3), (7, 3), (7, 5)])
def test_chunks_are_equal_runs_of_tokens(n_tokens: int, chunks: int) -> None:
    # token t of the only device selects expert t, so the slots of a part are its tokens
    layout = ExpertLayout(n_devices=1, devices_per_node=1)
    placement = Placement.from_slots([range(n_tokens)], 1, n_experts=n_tokens, name="identity")
    trace = trace_of(np.arange(n_tokens)[None, None], n_tokens)
    got = reduce_trace(trace, np.arange(n_tokens)[None, None], placement, layout, chunks=chunks)
    sizes = got.slot_tokens[0].sum(axis=1)
    assert sizes.sum() == n_tokens
    assert sizes.max() - sizes.min() <= 1
    assert np.concatenate([np.flatnonzero(part) for part in got.slot_tokens[0]]).tolist() == list(range(n_tokens))


def test_one_token_by_hand() -> None:
    # Two nodes of two devices, expert e on rank e // 2. The token of device 0 selects experts 4, 5 (device 2), 6
    # (device 3) and 1 (device 0): per expert it sends three copies to node 1, per device two, per node one, which
    # device 2 (local number 0) passes on to device 3.
    layout = ExpertLayout(n_devices=4, devices_per_node=2)
    trace = trace_of([[[4], [5], [6], [1]]], 8)
    tokens = np.zeros((1, 4, 1), np.int64)
    placement = even_placement(tiny_model(n_layers=1), 4)
    sends = {"none": (0, 3), "device": (0, 2), "node": (0, 1)}
    for dedup in DEDUPS:
        got = reduce_trace(trace, tokens, placement, layout, dedup=dedup).ports
        assert (got.send_intra[0, 0, 0], got.send_inter[0, 0, 0]) == sends[dedup]
    assert got.receive_inter[0, 0].tolist() == [1, 1, 1, 1]
    # 1 to 0 for the tokens of 1 and 3; 2 to 3 for those of 0 and 2; 3 to 2 for those of 1 and 3
    assert got.send_intra[0, 0].tolist() == [0, 2, 2, 2]
    assert got.receive_intra[0, 0].tolist() == [2, 0, 2, 2]


def test_traces_on_disk_are_read_again_after_their_pages_were_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LARGE_BYTES", 0)  # release the pages of small files, too
    trace = trace_of(random_ids((2, 3, 12_000), N_EXPERTS), N_EXPERTS)
    storage.save_trace(trace, tmp_path / "trace.npz")
    mapped = storage.load_trace(tmp_path / "trace.npz")
    assert isinstance(mapped.ids, np.memmap)
    layout = LAYOUTS["two nodes"]
    tokens = batches_of(trace, layout)
    for _ in range(2):
        got, want = (reduce_trace(t, tokens, replicated(layout), layout) for t in (mapped, trace))
        np.testing.assert_array_equal(got.slot_tokens, want.slot_tokens)
    np.testing.assert_array_equal(mapped.ids, trace.ids)
    storage.release_pages(trace.ids)  # nothing to release of an array in memory


def test_pairs_are_kept_only_where_they_are_asked_for() -> None:
    layout = LAYOUTS["two nodes"]
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS), N_EXPERTS)
    tokens = batches_of(trace, layout)
    without = reduce_trace(trace, tokens, replicated(layout), layout)
    kept = reduce_trace(trace, tokens, replicated(layout), layout, keep_pairs=True)
    assert without.pairs is None
    np.testing.assert_array_equal(without.pairs_total, kept.pairs_total)


@pytest.mark.parametrize(
    ("n_experts", "n_ranks", "shape", "message"),
    [
        (8, 4, (1, 4, 2), "is for 2 layers of 8 experts, the trace has 2 of 7"),
        (7, 3, (1, 4, 2), "has 3 ranks, the layout 4"),
        (7, 4, (1, 3, 2), r"steps have shape \(1, 3, 2\), expected \[step, 4 devices, token\]"),
        (7, 4, (0, 4, 2), r"steps have shape \(0, 4, 2\)"),
        (7, 4, (4, 2), r"steps have shape \(4, 2\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    n_experts: int, n_ranks: int, shape: tuple[int, ...], message: str
) -> None:
    trace = trace_of(random_ids((2, 3, 30), N_EXPERTS), N_EXPERTS)
    placement = random_placement(2, n_experts, n_ranks, n_experts)
    with pytest.raises(PlacementError, match=message):
        reduce_trace(trace, np.zeros(shape, np.int64), placement, LAYOUTS["two nodes"])


@pytest.mark.parametrize(
    ("n_devices", "devices_per_node", "tp", "message"),
    [(6, 4, 1, "6 devices are not whole nodes of 4"), (6, 3, 2, "parallelism 2 does not divide the 3 devices")],
)
def test_ranks_must_fill_nodes(n_devices: int, devices_per_node: int, tp: int, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        ExpertLayout(n_devices=n_devices, devices_per_node=devices_per_node, tp=tp)
