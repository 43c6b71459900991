"""Laws of small kernels and launches against hand numbers."""

import pytest

from hwmodels.launch import (
    LaunchConstants,
    activation_bytes,
    compute_slowdown,
    eager_s,
    host_floor_s,
    norm_bytes,
    permute_bytes,
    replayed_s,
    small_kernels_s,
    top_k_bytes,
)
from hwmodels.library import find_kernels
from scenarios.errors import HardwareError

CONSTANTS = LaunchConstants.model_validate(
    {"source": "test", "kind": "assumed", "kernel_s": "2 us", "small_memory_frac": 0.5}
    | {"eager_kernel_s": "10 us", "graph_s": "8 us"}
)


def test_bytes_of_small_kernels() -> None:
    assert norm_bytes([1, 3], 1000).tolist() == [8000, 24000]  # two rows read, two written, 2 bytes each
    assert top_k_bytes(1, 128, 8) == 576  # 128 scores, 8 weights and 8 ids of 4 bytes
    assert permute_bytes(2, 1000, value_bytes=1.0) == 4000
    assert activation_bytes(1, 1000, gated=True) == 6000  # 2I read, I written
    assert activation_bytes(1, 1000, gated=False) == 4000


def test_small_kernels_pay_their_floor_and_their_bytes() -> None:
    # 1 MB over 0.5 x 2 TB/s = 1 us
    assert small_kernels_s([0, 1e6], 2e12, CONSTANTS) == pytest.approx([2e-6, 3e-6])
    assert small_kernels_s(1e6, 2e12, CONSTANTS, n_kernels=4) == pytest.approx(9e-6)


def test_the_host_bounds_eager_steps_of_short_kernels() -> None:
    assert host_floor_s([1, 12], CONSTANTS) == pytest.approx([10e-6, 120e-6])
    # 12 kernels of 2 us wait for 12 launches of 10 us; of 50 us they do not.
    assert eager_s([24e-6, 600e-6], 12, CONSTANTS) == pytest.approx([120e-6, 600e-6])
    assert replayed_s([24e-6, 600e-6], CONSTANTS) == pytest.approx([32e-6, 608e-6])


def test_compute_slows_by_the_share_of_sms_that_are_left() -> None:
    assert compute_slowdown([0, 33, 66], 132) == pytest.approx([1, 4 / 3, 2])


@pytest.mark.parametrize("taken", [-1, 132, 200])
def test_sms_taken_leave_at_least_one(taken: int) -> None:
    with pytest.raises(HardwareError, match=f"{taken}.* SMs taken of 132: choose from 0 to 131"):
        compute_slowdown(taken, 132)


def test_launch_cards() -> None:
    # 4.4 and 2.4 us replayed, 20.9 and 29.5 us eager: aiconfigurator-core 0.12.0, H200 custom all-reduce of few values.
    assert find_kernels("h200-vllm").launch().eager_kernel_s == pytest.approx(20.9e-6, rel=0.01)
    assert find_kernels("h200-sglang").launch().eager_kernel_s == pytest.approx(29.5e-6, rel=0.01)
    assert find_kernels("datasheet-only").launch().kind == "assumed"
    assert find_kernels("h200-trtllm").launch() == find_kernels("datasheet-only").launch()  # its base
