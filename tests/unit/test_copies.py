import pytest

from hwmodels.copies import CopyLaw, both_ways_s, find_copy_law, host_copy_s
from hwmodels.library import find_copies
from scenarios.errors import HardwareError

LINK = 64e9


def test_blocks_take_a_latency_and_their_bytes():
    law = CopyLaw(
        direction="to-device",
        method="copy-engine",
        block_latency_s=3e-6,
        least_block_s=4e-6,
        bandwidth_frac=0.5,
        source="test",
        kind="assumed",
    )
    # 64 kB at 32 GB/s take 2 us; a tiny block no less than 4 us.
    assert host_copy_s(10, 64_000, law, LINK) == pytest.approx(50e-6)
    assert host_copy_s(10, 1, law, LINK) == pytest.approx(40e-6)
    assert host_copy_s(0, 64_000, law, LINK) == 0


def test_copies_both_ways_slow_each_other_while_both_last():
    assert both_ways_s(9.0, 9.0, 0.9) == pytest.approx(10)
    assert both_ways_s(12.0, 0.0, 0.9) == 12
    assert both_ways_s(12.0, 9.0, 0.9) == pytest.approx(13)


def test_shipped_copies_of_pcie_5():
    card = find_copies("pcie-5")
    assert card is not None and find_copies("nvlink-4") is None
    engine = find_copy_law(card, "to-device", "copy-engine")
    # Large blocks reach 52 GB/s (figure 3 of the vLLM blog, 2026-01-08: 51.3 GB/s at 16 MiB).
    assert 16 * 2**20 / host_copy_s(1, 16 * 2**20, engine, LINK) == pytest.approx(51.3e9, rel=0.02)
    assert find_copy_law(card, "to-device", "copy-engine", "pageable").kind == "assumed"
    assert card.both_ways_frac.kind == "assumed"
    with pytest.raises(HardwareError, match="no to-host copy-engine pageable; they have"):
        find_copy_law(card, "to-host", "copy-engine", "pageable")
