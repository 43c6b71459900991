"""Import checks against arrays small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scenarios.errors import TraceError
from tests.shared import shared_file
from traces import checks
from traces.recording import Finding, Recording

ONE = np.array([0, 4])


def ids_of(*tokens: list[list[int]]) -> NDArray[np.int16]:
    """ids [layer, k, token] from tokens [layer][k]."""
    return np.array(tokens, dtype=np.int16).transpose(1, 2, 0)


def test_warmup_marks_only_runs_longer_than_the_limit() -> None:
    rows = np.array([[5, 5, 5, 1, 2, 2, 5, 5]])  # runs of 3, 1, 2, 2
    assert checks.warmup_mask(rows, longest=2).tolist() == [True] * 3 + [False] * 5
    assert not checks.warmup_mask(rows, longest=3).any()
    assert checks.warmup_mask(np.zeros((2, 1), np.uint8)).tolist() == [False]


def test_warmup_rows_need_all_layers_identical() -> None:
    rows = np.array([[[5, 5, 5]], [[1, 1, 2]]])
    assert checks.warmup_mask(rows, longest=1).tolist() == [True, True, False]


def test_warmup_finding_says_what_was_done() -> None:
    mask = np.array([True, True, False])
    assert checks.warmup_rows(mask, keep=False).changed
    kept = checks.warmup_rows(mask, keep=True)
    assert (kept.count, kept.changed) == (2, False)
    assert "kept as asked" in kept.message
    assert checks.warmup_rows(~mask & mask, keep=False).note().endswith("[count 0]")


def test_adjacent_reuse_by_hand() -> None:
    """Token sets {0,1} {1,2} {1,2} {0,3}: lag 1 shares 1, 2, 0 of 2; lag 2 shares 1, 0; lag 3 shares 1."""
    ids = ids_of([[0, 1]], [[2, 1]], [[1, 2]], [[3, 0]])
    assert checks.adjacent_reuse(ids, ONE, 4).tolist() == pytest.approx([3 / 6, 1 / 4, 1 / 2, 0])


def test_adjacent_reuse_never_crosses_sequences_nor_counts_padding() -> None:
    ids = ids_of([[0, -1]], [[0, -1]], [[0, -1]], [[1, -1]])
    assert checks.adjacent_reuse(ids, np.array([0, 2, 4]), 2).tolist() == pytest.approx([1 / 4, 0])


def test_interleaved_rows_are_refused_and_the_stride_named() -> None:
    """Two sequences that keep their own experts for long, rows alternating: all reuse is at even lags."""
    rng = np.random.default_rng(0)
    own = np.repeat(rng.integers(0, 16, size=(2, 64)), 8, axis=1)  # [sequence, token], 8 tokens the same
    rows = np.stack([2 * own[0], 2 * own[1] + 1], axis=1).reshape(1, 1, -1)  # even and odd experts never meet
    whole = np.array([0, rows.shape[2]])
    finding = checks.interleaving(rows, whole)
    assert (finding.fatal, finding.count) == (True, 2)
    assert "--deinterleave 2" in finding.message
    ordered = np.concatenate([rows[..., 0::2], rows[..., 1::2]], axis=2)
    assert not checks.interleaving(ordered, np.array([0, 512, 1024])).fatal


def test_random_rows_are_not_taken_for_interleaved() -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).integers(0, 64, size=(4, 1, 600)).astype(np.uint8)
        assert not checks.interleaving(rows, np.array([0, 600])).fatal


def test_flame_reuse_in_megatron_order() -> None:
    """FLAME-MoE sample (Apache-2.0): .213 at lag 1 in text order; raw rows have .106 at lag 1 and .213 at lag 8."""
    with np.load(shared_file("data/traces/flame_moe_290m_sample/ids_probs_deinterleaved.npz")) as arrays:
        ids, offsets = arrays["ids"].transpose(1, 2, 0), arrays["offsets"]
    ordered = checks.adjacent_reuse(ids, offsets)
    assert (ordered[0], ordered[7]) == pytest.approx((0.213, 0.115), abs=5e-4)
    raw = ids.reshape(8, 6, 8, 256).transpose(0, 1, 3, 2).reshape(8, 6, 2048)
    reuse = checks.adjacent_reuse(raw, np.array([0, 2048]))
    assert (reuse[0], reuse[7]) == pytest.approx((0.106, 0.213), abs=5e-4)
    assert int(np.argmax(reuse)) == 7


@pytest.mark.parametrize(
    ("last", "top_k", "fatal"),
    [([8, 8], 2, True), ([7, 8], 2, False), ([3, 2], 1, True), ([3, 2], 2, False)],
)
def test_fused_shared_experts(last: list[int], top_k: int, fatal: bool) -> None:
    ids = np.array([[[0, 1], last]])  # two tokens, the second place is `last`; 8 experts
    assert checks.fused_shared_experts(ids, 8, top_k).fatal is fatal


def test_physical_ids_are_counted() -> None:
    finding = checks.physical_ids(ids_of([[0, 9]], [[8, 7]]), 8)
    assert (finding.count, finding.fatal) == (2, True)
    assert "largest: 9" in finding.message
    assert checks.physical_ids(ids_of([[0, 7]]), 8) == Finding(
        check="physical ids", count=0, message="none: every id is below 8"
    )


def test_repeated_experts_are_counted_per_token_and_layer() -> None:
    ids = ids_of([[1, 1], [2, 3]], [[0, 1], [4, 4]], [[-1, -1], [1, 2]])
    finding = checks.repeated_experts(ids)
    assert (finding.count, finding.fatal) == (2, True)


def test_dense_layers() -> None:
    ids = ids_of(
        [[-1, -1], [0, 0], [0, 1], [2, 2]],
        [[-1, -1], [0, 0], [0, 1], [2, 3]],
    )
    assert checks.dense_layer_mask(ids).tolist() == [True, True, False, False]
    assert checks.dense_layers((0, 1, 2, 5), 9).message == "4 of 9 layers were left out as dense: 0-2, 5"


def test_padded_places() -> None:
    finding = checks.padded_k(ids_of([[1, -1, -1]], [[2, 3, -1]]))
    assert (finding.count, finding.changed) == (1, True)
    assert not checks.padded_k(np.zeros((1, 2, 3), np.uint8)).changed


def test_truncated_tokens() -> None:
    ids = ids_of([[1, 2], [3, 4]], [[1, 2], [-1, -1]], [[1, -1], [3, 4]])
    mask = checks.truncated_mask(ids)
    assert mask.tolist() == [False, True, False]
    assert checks.truncated_tokens(mask).note() == (
        "truncated tokens: 1 of 3 tokens lack layers and were left out [count 1, changed]"
    )


def test_duplicated_layers_and_sequences() -> None:
    ids = ids_of([[1], [2], [1]], [[3], [4], [3]], [[1], [2], [1]], [[3], [4], [3]])
    layers = checks.duplicated_layers(ids, (3, 4, 5))
    assert (layers.count, layers.changed) == (1, False)
    assert "layers 5 repeat" in layers.message
    assert checks.duplicate_sequences(ids, np.array([0, 2, 4])).count == 1
    assert checks.duplicate_sequences(ids, np.array([0, 1, 4])).count == 0


def test_unsorted_ids() -> None:
    weights = np.array([[[0.75, 0.5], [0.25, 0.5]], [[0.25, 0.5], [0.75, 0.5]]], dtype=np.float16)
    assert checks.unsorted_ids(weights).count == 1  # layer 1, token 0; equal weights are in order
    assert "not tested" in checks.unsorted_ids(None).message


def test_idle_steps() -> None:
    counts = np.array([[[0, 0]], [[1, 0]], [[0, 0]]])
    finding = checks.idle_steps(counts)
    assert (finding.count, finding.changed) == (2, True)


def test_identity_says_what_may_be_measured() -> None:
    assert checks.request_identity("requests", 3).count == 0
    assert "only unions and loads" in checks.request_identity("steps", 3).message


def test_order_given_by_the_user_is_reported_not_refused() -> None:
    rows = np.stack([np.zeros(512, np.int16), np.arange(512, dtype=np.int16) // 64 % 7 + 1], axis=1).reshape(1, 1, -1)
    recording = Recording(
        ids=rows,
        offsets=np.array([0, 1024]),
        positions=np.arange(1024),
        layers=(0,),
        phase="prefill",
        identity="requests",
    )
    found = {f.check: f for f in checks.run_checks(recording, 8, in_order=False)}
    assert found["interleaving"].fatal
    with pytest.raises(TraceError, match="interleaving"):
        checks.refuse(found.values())
    accepted = checks.run_checks(recording, 8, in_order=True)
    checks.refuse(accepted)
    assert any(f.check == "interleaving" and "order given by the user" in f.message for f in accepted)
