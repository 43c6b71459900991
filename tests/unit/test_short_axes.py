"""Reductions over a short last axis against numpy's own, to the last bit."""

import numpy as np
import pytest

from hwmodels.moe import expert_work
from hwmodels.short_axes import reduced


@pytest.mark.parametrize("shape", [(5,), (3, 8), (2, 3, 4, 7), (4, 1), (0, 3), (2, 0, 3), (3, 16), (3, 200)])
def test_the_same_bits_as_numpy(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    counts = np.random.default_rng(1).integers(-99, 99, shape)
    assert reduced(np.maximum, values).tolist() == values.max(axis=-1).tolist()
    assert reduced(np.minimum, values).tolist() == values.min(axis=-1).tolist()
    assert reduced(np.add, counts).tolist() == counts.sum(axis=-1).tolist()
    assert reduced(np.add, counts != 0).tolist() == np.count_nonzero(counts, axis=-1).tolist()


def test_views_and_no_slots_are_reduced_too() -> None:
    table = np.arange(24).reshape(2, 3, 4)
    moved = np.moveaxis(table, 1, 2)
    assert reduced(np.add, moved).tolist() == moved.sum(axis=-1).tolist()
    assert reduced(np.add, table[..., :0]).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("scale", [1, 2**29, 2**40])
def test_work_of_experts_is_whole_however_many_tokens_there_are(scale: int) -> None:
    counts = np.random.default_rng(2).integers(0, 5, (3, 40)) * scale
    work = expert_work(counts, (64, 128))
    assert work.routed.tolist() == counts.sum(axis=-1).tolist()
    for rows in (64, 128):
        assert work.row_tiles[rows].tolist() == (-(-counts // rows)).sum(axis=-1).tolist()
    assert work.active.tolist() == (counts > 0).sum(axis=-1).tolist()
