"""Laws of dispatch and combine kernels by hand numbers, and their blends."""

from typing import Any

import numpy as np
import pytest

from hwmodels.blends import norm2, norm4, slow_start_s
from hwmodels.expert_exchange import LowLatencyLaw, NormalLaw, RackLaw, Shipment, exchange_s

LINK = 100e9
ORIGIN: dict[str, Any] = {"source": "test", "kind": "assumed"}


def shipment(**fields: Any) -> Shipment:
    """100 tokens of 10 kB, 400 copies to seven others, 256 experts."""
    usual = {"tokens": 100, "copies": 400, "copy_bytes": 1e4, "n_experts": 256, "top_k": 8, "n_devices": 8}
    return Shipment(**(usual | fields))


def test_blends():
    assert norm2(3, 4) == 5
    assert norm4(1, 1) == pytest.approx(2**0.25)
    assert norm4(1e-6, 3e-6, 0) == pytest.approx(1e-6 * 82**0.25)
    assert slow_start_s(0, 1, 2) == 0
    assert slow_start_s(1e-9, 1, 2) == pytest.approx(3e-9)  # small work takes 1 + gain times its time
    assert slow_start_s(1e3, 1, 2) == pytest.approx(1001)  # large work the warm-up more
    assert slow_start_s(5, 0, 2) == 5


def test_low_latency_adds_latencies_and_copies():
    law = LowLatencyLaw(
        law="low-latency",
        latency_s=5e-6,
        expert_latency_s=1e-8,
        choice_latency_s=1e-7,
        byte_latency_s=1e-10,
        start_s=3e-5,
        copy_s=5e-9,
        token_byte_s=1e-12,
        bandwidth_frac=0.5,
        **ORIGIN,
    )
    # 5 + 2.56 + 0.8 + 1 us; 400 (5 ns + 10 kB / 50 GB/s) + 1 MB * 1 ps = 83 us beside 30 us.
    expected = 9.36e-6 + np.hypot(83e-6, 30e-6)
    assert exchange_s(shipment(), law, LINK) == pytest.approx(expected)


def test_few_experts_leave_a_low_latency_dispatch_to_few_sms():
    law = LowLatencyLaw(law="low-latency", latency_s=1e-6, start_s=0, sm_byte_s=1e-9, bandwidth_frac=1, **ORIGIN)
    # 1 MB at 1 ns a byte over 8 SMs; 256 experts share 128 of the 132.
    assert exchange_s(shipment(n_experts=8), law, LINK) == pytest.approx(1e-6 + 125e-6)
    assert exchange_s(shipment(copies=0), law, LINK) == pytest.approx(1e-6 + 1e-3 / 128)


def test_more_nodes_add_latency_by_doublings():
    law = LowLatencyLaw(
        law="low-latency", latency_s=20e-6, doubling_latency_s=4e-6, start_s=1e-6, bandwidth_frac=1, **ORIGIN
    )
    nothing = shipment(tokens=0, copies=0)
    for n_nodes, latency_s in ((2, 21e-6), (4, 25e-6), (8, 29e-6)):
        assert exchange_s(shipment(tokens=0, copies=0, n_nodes=n_nodes), law, LINK) == pytest.approx(latency_s)
    assert exchange_s(nothing, law, LINK) == pytest.approx(21e-6)


def test_normal_kernels_are_bound_by_their_sms_or_the_link():
    law = NormalLaw(law="normal", latency_s=1e-5, start_s=0, sm_bytes_per_s=1e10, bandwidth_frac=0.8, **ORIGIN)
    # 4 MB at 10 GB/s an SM: 400 us on one; on very many the link's 80 GB/s remain, 50 us.
    assert exchange_s(shipment(sms=1), law, LINK) == pytest.approx(1e-5 + 400e-6, rel=1e-3)
    assert exchange_s(shipment(sms=1000), law, LINK) == pytest.approx(1e-5 + 50e-6, rel=1e-3)


def test_normal_kernels_work_on_every_token_and_copy():
    law = NormalLaw(
        law="normal",
        latency_s=1e-5,
        byte_latency_s=1e-9,
        start_s=0,
        token_sm_s=2e-7,
        copy_sm_s=1e-7,
        sm_bytes_per_s=1e20,
        bandwidth_frac=1e12,
        **ORIGIN,
    )
    # 10 us + 10 kB * 1 ns; (100 * 0.2 + 400 * 0.1) us over 20 SMs.
    assert exchange_s(shipment(sms=20), law, LINK) == pytest.approx(20e-6 + 3e-6)


def test_rack_kernels_take_a_latency_for_every_doubling():
    law = RackLaw(law="rack", latency_s=1e-5, doubling_latency_s=1e-6, start_s=0, token_s=1e-7, **ORIGIN)
    # 100 tokens of 0.1 us beside 4 MB at 100 GB/s.
    moved_s = (10**4 + 40**4) ** 0.25 * 1e-6
    assert exchange_s(shipment(n_devices=2), law, LINK) == pytest.approx(1e-5 + moved_s)
    assert exchange_s(shipment(n_devices=32), law, LINK) == pytest.approx(1.4e-5 + moved_s)


def test_arrays_of_steps_and_devices():
    law = RackLaw(law="rack", latency_s=1e-5, start_s=1e-6, wire_token_s=1e-8, **ORIGIN)
    times = exchange_s(shipment(tokens=np.array([[8], [16]]), copies=np.arange(6).reshape(2, 3)), law, LINK)
    assert times.shape == (2, 3) and times.dtype == np.float64
