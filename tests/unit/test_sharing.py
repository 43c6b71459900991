"""Max-min fair shares by hand."""

import numpy as np
import pytest

from hwmodels.sharing import fair_shares
from scenarios.errors import HardwareError


def test_shares_by_hand() -> None:
    # 10 for 2, 8 and 6: the smallest gets its 2, the others half of the remaining 8.
    assert fair_shares([2, 8, 6], 10).tolist() == [2, 4, 4]
    # 15: 2 and 6 are served, 7 are left for 8.
    assert fair_shares([2, 8, 6], 15).tolist() == [2, 7, 6]
    assert fair_shares([2, 8, 6], 16).tolist() == [2, 8, 6]
    assert fair_shares([2, 8, 6], 0).tolist() == [0, 0, 0]


def test_arrays_give_the_shares_of_their_rows() -> None:
    demands = np.array([[2.0, 8, 6], [1, 1, 1]])
    assert fair_shares(demands, [10, 2]).tolist() == [[2, 4, 4], [2 / 3] * 3]
    assert fair_shares([2, 8, 6], [10, 15]).tolist() == [[2, 4, 4], [2, 7, 6]]


def test_nobody_shares_nothing() -> None:
    assert fair_shares(np.zeros((2, 0)), 5).shape == (2, 0)


def test_a_copy_beside_cpu_experts_and_attention() -> None:
    # 300 GB/s: experts would take all, attention 200, a copy to the device 26. The copy keeps its rate.
    assert fair_shares([300e9, 200e9, 26e9], 300e9) == pytest.approx([137e9, 137e9, 26e9])


@pytest.mark.parametrize("demands", [[-1, 2], [np.nan, 2], [np.inf, 2]])
def test_demands_are_checked(demands: list[float]) -> None:
    with pytest.raises(HardwareError, match="a demand of a shared bandwidth must be finite and zero or more"):
        fair_shares(demands, 1)
    with pytest.raises(HardwareError, match="a capacity"):
        fair_shares([1], demands[0])
