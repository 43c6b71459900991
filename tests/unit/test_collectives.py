"""Collectives of a library by hand: the fastest protocol, groups between measured ones, and what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodels.collectives import (
    CollectiveCard,
    CollectiveLaw,
    collective_band,
    collective_s,
    point_to_point_s,
    protocol_s,
    sent_bytes,
)
from hwmodels.library import find_collectives, find_link
from scenarios.errors import HardwareError

LINK = 100e9  # bytes/s


def law(op: str, n_devices: int, latencies_s: tuple[float, ...], fracs: tuple[float, ...]) -> CollectiveLaw:
    return CollectiveLaw.model_validate(
        {
            "op": op,
            "n_devices": n_devices,
            "latencies_s": latencies_s,
            "bandwidth_fracs": fracs,
            "source": "test",
            "kind": "assumed",
        }
    )


CARD = CollectiveCard(
    name="test",
    link="link",
    library="nccl",
    laws=(
        law("all-gather", 2, (4e-6, 10e-6), (0.1, 0.5)),
        law("all-gather", 8, (8e-6,), (0.4,)),
        law("all-to-all", 2, (5e-6,), (0.5,)),
    ),
)


def test_a_device_sends_what_the_ring_passes_on():
    assert sent_bytes("all-gather", 800, 8) == 700
    assert sent_bytes("reduce-scatter", 800, 8) == 700
    assert sent_bytes("all-to-all", 800, 8) == 700
    assert sent_bytes("all-reduce", 800, 8) == 1400


def test_the_fastest_protocol_counts():
    # 10 GB/s after 4 us, or 50 GB/s after 10 us: they meet at 75 kB, where both take 11.5 us.
    times = protocol_s([0, 10_000, 75_000, 500_000], CARD.laws[0], LINK)
    assert times == pytest.approx([4e-6, 5e-6, 11.5e-6, 20e-6])


def test_a_measured_group_takes_its_own_law():
    # All-gather of 8: 700 kB of 800 leave a device at 40 GB/s.
    assert collective_s("all-gather", 800_000, 8, CARD, LINK) == pytest.approx(8e-6 + 17.5e-6)


def test_a_group_between_two_measured_ones_takes_their_mean_in_log_size():
    # Four lie half way from 2 to 8; each sends 750 kB of 1 MB: 10 + 15 us by the law of 2, 8 + 18.75 by that of 8.
    assert collective_s("all-gather", 1e6, 4, CARD, LINK) == pytest.approx((25e-6 + 26.75e-6) / 2)


def test_a_larger_group_takes_more_steps():
    # 15 steps instead of 7: 8 us become 17.1 us; 937.5 kB leave at 40 GB/s.
    assert collective_s("all-gather", 1e6, 16, CARD, LINK) == pytest.approx(8e-6 * 15 / 7 + 23.4375e-6)


def test_the_band_is_wider_where_nobody_measured():
    low, high = collective_band("all-gather", 4, CARD)
    assert low < 0.8 and high > 1.25
    assert collective_band("all-gather", 8, CARD) == (1, 1)  # the toy law states none


def test_two_devices_send_each_other_half_of_an_all_to_all():
    assert point_to_point_s(500_000, CARD, LINK) == pytest.approx(5e-6 + 10e-6)


def test_one_device_takes_no_time_and_none_is_an_error():
    assert collective_s("all-gather", 1e6, 1, CARD, LINK) == 0
    with pytest.raises(HardwareError, match="0 devices"):
        collective_s("all-gather", 1e6, 0, CARD, LINK)


def test_an_operation_that_nobody_measured_is_an_error():
    with pytest.raises(HardwareError, match="test have no all-reduce, only all-gather, all-to-all"):
        collective_s("all-reduce", 1e6, 8, CARD, LINK)


@pytest.mark.parametrize(("latencies_s", "fracs"), [((1e-6,), (0.5, 0.6)), ((0.0,), (0.5,)), ((1e-6,), (-0.5,))])
def test_protocols_need_a_latency_and_a_share_each(latencies_s, fracs):
    with pytest.raises(ValidationError):
        law("all-gather", 2, latencies_s, fracs)


@pytest.mark.parametrize("link", ["nvlink-3", "nvlink-4", "nvlink-5", "pcie-5-peer"])
def test_shipped_collectives_are_complete_and_no_faster_than_their_link(link):
    card = find_collectives(link)
    assert card is not None
    assert {(law.op, law.n_devices) for law in card.laws} == {
        (op, n) for op in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all") for n in (2, 4, 8)
    }
    for law in card.laws:
        assert law.residuals is not None
        # NVLink SHARP lets an all-reduce of eight exceed the ring's bus bandwidth, 469 of 450 GB/s.
        assert max(law.bandwidth_fracs) < 1.1, law
        assert np.diff(protocol_s([0, 1e3, 1e5, 1e7, 1e9], law, find_link(link).bytes_per_s.value)).min() > 0


def test_nobody_measured_collectives_on_a_network():
    assert find_collectives("ndr-ib") is None
