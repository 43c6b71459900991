"""What must hold of the laws of links: more bytes never take less time, and half the speed takes exactly twice it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels.collectives import collective_s
from hwmodels.copies import block_s
from hwmodels.expert_exchange import Shipment, exchange_s
from hwmodels.library import find_link, list_cards
from tests.devices import half_speed_law

EXAMPLES = settings(max_examples=25)
CARDS = list_cards()
EXCHANGE_LAWS = [
    pytest.param(law, find_link(card.link).bytes_per_s.value, id=f"{card.name} {side}")
    for card in CARDS.exchanges
    for side in ("dispatch", "combine", "prepare", "combine_low_precision")
    if (law := getattr(card, side)) is not None
]
loads = st.builds(
    Shipment,
    tokens=st.integers(0, 2**17),
    copies=st.integers(0, 2**20),
    copy_bytes=st.sampled_from((2048.0, 7392.0, 14336.0)),
    n_experts=st.sampled_from((8, 128, 256, 384)),
    top_k=st.sampled_from((1, 2, 8)),
    n_devices=st.sampled_from((2, 8, 72)),
    n_nodes=st.sampled_from((1, 2, 8)),
    sms=st.integers(1, 64),
)


@pytest.mark.parametrize(("law", "bytes_per_s"), EXCHANGE_LAWS)
@EXAMPLES
@given(load=loads)
def test_half_speed_doubles_an_exchange_exactly(law, bytes_per_s, load):
    assert exchange_s(load, half_speed_law(law), bytes_per_s / 2) == 2 * exchange_s(load, law, bytes_per_s)


@pytest.mark.parametrize(("law", "bytes_per_s"), EXCHANGE_LAWS)
@EXAMPLES
@given(load=loads, more=st.integers(0, 10_000))
def test_more_tokens_or_copies_never_take_less(law, bytes_per_s, load, more):
    time_s = exchange_s(load, law, bytes_per_s)
    assert exchange_s(replace(load, tokens=load.tokens + more), law, bytes_per_s) >= time_s
    assert exchange_s(replace(load, copies=load.copies + more), law, bytes_per_s) >= time_s
    assert time_s >= law.latency_s > 0


@EXAMPLES
@given(st.sampled_from(CARDS.collectives), st.integers(2, 16), st.integers(0, 2**32), st.integers(0, 2**24))
def test_collectives_scale_and_grow(card, n_devices, total_bytes, more):
    bytes_per_s = find_link(card.link).bytes_per_s.value
    slow = card.model_copy(update={"laws": tuple(half_speed_law(law) for law in card.laws)})
    for op in {law.op for law in card.laws}:
        time_s = collective_s(op, total_bytes, n_devices, card, bytes_per_s)
        assert collective_s(op, total_bytes, n_devices, slow, bytes_per_s / 2) == 2 * time_s
        assert collective_s(op, total_bytes + more, n_devices, card, bytes_per_s) >= time_s
        assert collective_s(op, 0, n_devices, card, bytes_per_s) > 0


@EXAMPLES
@given(st.sampled_from(CARDS.copies[0].laws), st.integers(0, 2**26), st.integers(0, 2**20))
def test_copies_scale_and_grow(law, block_bytes, more):
    time_s = block_s(block_bytes, law, 64e9)
    assert block_s(block_bytes, half_speed_law(law), 32e9) == 2 * time_s
    assert block_s(block_bytes + more, law, 64e9) >= time_s
