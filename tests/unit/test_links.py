import numpy as np
import pytest

from hwmodels.links import all_gather_s, all_reduce_s, port_s, reduce_scatter_s, transfer_s
from scenarios.errors import ScenarioError
from tests.devices import link

# 100 GB/s at 80 %: 80,000 bytes take 1 us; the latency is 5 us.
LINK = link()


def test_port_holds_bytes_for_bytes_over_effective_bandwidth():
    assert port_s(80_000, LINK) == pytest.approx(1e-6)
    assert port_s(0, LINK) == 0


def test_transfer_adds_the_latency_once():
    assert transfer_s(80_000, LINK) == pytest.approx(6e-6)
    assert transfer_s(0, LINK) == pytest.approx(5e-6)


def test_all_gather_passes_on_one_contribution_per_step():
    assert all_gather_s(80_000, 4, LINK) == pytest.approx(3 * 6e-6)


def test_reduce_scatter_passes_on_one_nth_per_step():
    assert reduce_scatter_s(320_000, 4, LINK) == pytest.approx(3 * 6e-6)


def test_all_reduce_is_reduce_scatter_then_all_gather_of_the_parts():
    assert all_reduce_s(320_000, 4, LINK) == pytest.approx(6 * 6e-6)
    parts_s = reduce_scatter_s(320_000, 4, LINK) + all_gather_s(320_000 / 4, 4, LINK)
    assert all_reduce_s(320_000, 4, LINK) == parts_s


def test_large_all_reduce_approaches_twice_the_buffer_over_bandwidth():
    # 2 (n - 1) / n of the buffer pass every port: 2 * 7 / 8 at eight devices.
    assert all_reduce_s(1e12, 8, LINK) / port_s(1e12, LINK) == pytest.approx(2 * 7 / 8, rel=1e-4)


@pytest.mark.parametrize("collective", [all_gather_s, reduce_scatter_s, all_reduce_s])
def test_one_device_has_nothing_to_exchange(collective):
    assert collective(1e9, 1, LINK) == 0


@pytest.mark.parametrize("collective", [all_gather_s, reduce_scatter_s, all_reduce_s])
def test_no_device_is_an_error(collective):
    with pytest.raises(ScenarioError, match="0 devices"):
        collective(1e9, 0, LINK)


@pytest.mark.parametrize("collective", [all_gather_s, reduce_scatter_s, all_reduce_s])
def test_collectives_take_arrays(collective):
    sizes = np.array([[0, 1000], [80_000, 10**9]])
    times = collective(sizes, 8, LINK)
    assert times.shape == (2, 2) and times.dtype == np.float64
    assert times[1, 1] == collective(10**9, 8, LINK)
