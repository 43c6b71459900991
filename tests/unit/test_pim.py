"""Laws of PIM units against hand numbers and the published design of Duplex."""

import numpy as np
import pytest

from hwmodels.cards import PimUnits
from hwmodels.library import find_device
from hwmodels.moe import ExpertShape
from hwmodels.pim import crossover_flop_per_byte, pim_experts_s, pim_s, pim_units, prefers_pim, together_s
from scenarios.errors import HardwareError

MIXTRAL = ExpertShape(hidden_size=4096, intermediate_size=14336, gated=True, weight_dtype="fp16")
XPU = (989.4e12, 3.352e12)  # peak and bandwidth of Duplex's GPU


def units(name: str) -> PimUnits:
    return pim_units(find_device(name))


def test_roofline_of_the_units() -> None:
    # 13.408 TB/s and 106.5 TFLOP/s: 13.408 MB are 1 us, 213 MFLOP are 2 us.
    assert pim_s([0, 213e6], 13.408e6, units("logic-pim")) == pytest.approx([1e-6, 2e-6])


def test_experts_of_mixtral_take_what_the_authors_simulator_says() -> None:
    # Decode of 64 requests, Mixtral on 4 devices, experts tensor-parallel: 16 tokens an expert, 8 experts of a quarter
    # in 32 layers. A re-run of the later simulator of Duplex's authors prints 3.38 ms for experts on Logic-PIM and,
    # at 32 requests on the GPU alone, 6.77 ms (22.5 GB a device at 3.352 TB/s).
    quarter = ExpertShape(hidden_size=4096, intermediate_size=14336 // 4, gated=True, weight_dtype="fp16")
    assert 32 * float(pim_experts_s([16] * 8, quarter, units("logic-pim"))) == pytest.approx(3.38e-3, rel=0.01)
    assert 32 * 8 * quarter.weight_bytes / XPU[1] == pytest.approx(6.77e-3, rel=0.01)


def test_experts_without_tokens_cost_nothing() -> None:
    # Mixtral's expert has 3 x 4096 x 14336 weights, 352.3 MB: 26.28 us on Logic-PIM, 6.57 us on Bank-PIM, whose
    # 53.632 TFLOP/s need 6.57 us a token for 352.3 MFLOP.
    assert pim_experts_s([[0, 1], [0, 0]], MIXTRAL, units("logic-pim")) == pytest.approx([26.28e-6, 0], rel=1e-3)
    assert pim_experts_s([[1], [2]], MIXTRAL, units("bank-pim")) == pytest.approx([6.57e-6, 13.14e-6], rel=1e-3)


@pytest.mark.parametrize(("name", "crossover"), [("logic-pim", 31.8), ("bankgroup-pim", 32.0), ("bank-pim", 16.0)])
def test_dispatch_by_operations_per_byte(name: str, crossover: float) -> None:
    # The units' peak over the GPU's 3.352 TB/s: 106.5, 107.3 and 53.6 TFLOP/s.
    limit = crossover_flop_per_byte(units(name), *XPU)
    assert limit == pytest.approx(crossover, abs=0.05)
    flop = np.array([0.5, 0.999, 1.001, 100]) * limit * 1e6
    assert prefers_pim(flop, 1e6, units(name), *XPU).tolist() == [True, True, False, False]


def test_units_that_read_no_faster_never_win_and_those_that_also_compute_as_fast_always_do() -> None:
    assert crossover_flop_per_byte(units("logic-pim"), 989.4e12, 13.408e12) == 0
    assert not prefers_pim([1e3, 1e9], 1e6, units("logic-pim"), 989.4e12, 13.408e12).any()
    assert crossover_flop_per_byte(units("logic-pim"), 106.5e12, 3.352e12) == float("inf")


def test_exclusive_units_make_the_device_wait() -> None:
    assert together_s([2.0, 5.0], [3.0, 1.0], units("bank-pim")).tolist() == [5.0, 6.0]
    assert together_s([2.0, 5.0], [3.0, 1.0], units("logic-pim")).tolist() == [3.0, 5.0]


def test_a_device_without_units_is_an_error() -> None:
    with pytest.raises(HardwareError, match="h100-sxm has no PIM units"):
        units("h100-sxm")
