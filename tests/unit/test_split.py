"""Splitting and selecting sequences, on traces small enough to check by eye."""

import numpy as np
import pytest

from scenarios.errors import TraceError
from traces.routing import Provenance, RoutingTrace
from traces.split import select_label, select_sequences, split_sequences


def trace_of(sequences: list[list[int]], labels: tuple[str, ...] = ()) -> RoutingTrace:
    """One layer, top-1: the experts of each sequence's tokens; weights are expert / 10."""
    ids = np.array([[[expert for experts in sequences for expert in experts]]], np.uint8)
    lengths = [len(experts) for experts in sequences]
    return RoutingTrace(
        ids=ids,
        n_experts=8,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        positions=np.concatenate([np.arange(5, 5 + n) for n in lengths]).astype(np.int32),
        moe_layers=(3,),
        phase="decode",
        provenance=Provenance(model="toy", source="test", kind="synthetic"),
        weights=(ids / 10).astype(np.float16),
        labels=labels,
        weight_ordered=True,
    )


def ten_different() -> RoutingTrace:
    return trace_of([[s % 8, s // 8] for s in range(10)])


@pytest.mark.parametrize(("fit", "evaluate", "sizes"), [(0.5, 0.5, (5, 5)), (0.2, 0.3, (2, 3)), (0.0, 1.0, (0, 10))])
def test_shares_become_counts(fit: float, evaluate: float, sizes: tuple[int, int]) -> None:
    parts = split_sequences(ten_different(), fit, evaluate, seed=1)
    assert tuple(len(part) for part in parts) == sizes
    assert len(np.union1d(*parts)) == sum(sizes)
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_seed_decides_the_split() -> None:
    first, again, other = (split_sequences(ten_different(), 0.5, 0.5, seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(8))
def test_repeats_stay_together(seed: int) -> None:
    trace = trace_of([[1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [7, 0]])
    fit, evaluate = split_sequences(trace, 0.5, 0.5, seed)
    repeats = {0, 2, 4}
    assert repeats <= set(fit.tolist()) or repeats <= set(evaluate.tolist())
    assert sorted([*fit, *evaluate]) == list(range(6))


def test_same_ids_in_longer_sequence_are_no_repeat() -> None:
    fit, evaluate = split_sequences(trace_of([[1, 1], [1, 1, 1]]), 0.5, 0.5, seed=0)
    assert len(fit) == len(evaluate) == 1


def test_empty_part_is_an_error() -> None:
    with pytest.raises(TraceError, match=r"share fit: 0\.01 of 10 sequences"):
        split_sequences(ten_different(), 0.01, 0.5, seed=0)
    with pytest.raises(TraceError, match=r"share evaluate: 0.5 of 3 sequences \(1 different ones\) is empty"):
        split_sequences(trace_of([[1], [1], [1]]), 0.5, 0.5, seed=0)


@pytest.mark.parametrize(("fit", "evaluate"), [(0.6, 0.6), (-0.1, 0.5), (0.5, 1.5)])
def test_impossible_shares(fit: float, evaluate: float) -> None:
    with pytest.raises(TraceError, match="add up to at most 1"):
        split_sequences(ten_different(), fit, evaluate, seed=0)


def test_select_gathers_tokens_in_the_order_asked() -> None:
    trace = trace_of([[0, 1, 2], [3], [4, 5]], labels=("a", "b", "c"))
    part = select_sequences(trace, np.array([2, 0]))
    assert part.ids.tolist() == [[[4, 5, 0, 1, 2]]]
    assert part.weights is not None
    assert part.weights[0, 0].tolist() == pytest.approx([0.4, 0.5, 0.0, 0.1, 0.2], abs=1e-3)
    assert part.offsets.tolist() == [0, 2, 5]
    assert part.positions.tolist() == [5, 6, 5, 6, 7]
    assert part.labels == ("c", "a")
    assert (part.moe_layers, part.weight_ordered, part.n_experts) == ((3,), True, 8)


@pytest.mark.parametrize("chosen", [[], [3], [-1]])
def test_select_refuses_unknown_sequences(chosen: list[int]) -> None:
    with pytest.raises(TraceError):
        select_sequences(trace_of([[0], [1], [2]]), np.array(chosen, np.int64))


def test_select_label() -> None:
    trace = trace_of([[0], [1], [2]], labels=("code", "maths", "code"))
    assert select_label(trace, "code").ids.tolist() == [[[0, 2]]]
    with pytest.raises(TraceError, match=r"'codes' \(did you mean 'code'\?\); labels: code, maths"):
        select_label(trace, "codes")
    with pytest.raises(TraceError, match="carries no labels"):
        select_label(trace_of([[0]]), "code")
