"""Tokens by source and slot against the reduction of the trace, and clusters by hand."""

import numpy as np
import pytest

from placement.layout import ExpertLayout
from placement.reduction import reduce_trace
from placement.sources import compressed, reduction_of, source_tokens
from placement.traffic import PortTokens
from tests.small import random_ids, random_placement, trace_of

LAYOUTS = [
    ExpertLayout(n_devices=4, devices_per_node=4),
    ExpertLayout(n_devices=4, devices_per_node=4, tp=2),
    ExpertLayout(n_devices=6, devices_per_node=2),
]


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("split", ["even", "least-loaded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sources_sum_to_what_the_trace_reduces_to(layout: ExpertLayout, split: str, chunks: int) -> None:
    """The same integers on another way: counted by slot and summed, or counted by pair of devices."""
    trace = trace_of(random_ids((3, 2, 40), 7, unused_frac=0.2), 7)
    placement = random_placement(3, 7, layout.n_ranks, 11, split=split)
    tokens = np.random.default_rng(1).integers(0, trace.n_tokens, (2, layout.n_devices, 6))
    sources = source_tokens(trace, tokens, placement, layout, chunks=chunks)
    got = reduction_of(sources, placement, layout, chunks=chunks, keep_pairs=True)
    want = reduce_trace(trace, tokens, placement, layout, chunks=chunks, dedup="none", keep_pairs=True)
    for name in ("slot_tokens", "summed_tokens", "pairs", "pairs_total", "n_chunks"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    for name in PortTokens.__slots__:
        np.testing.assert_array_equal(getattr(got.ports, name), getattr(want.ports, name), err_msg=name)


def test_a_share_of_the_tokens_of_each_source_and_expert_stays_and_at_least_one() -> None:
    sources = np.array([[[[0, 1, 5, 10, 11, 15]]]], np.int32)
    assert compressed(sources, 0.2).ravel().tolist() == [0, 1, 1, 2, 3, 3]
    assert compressed(sources, 1.0).tolist() == sources.tolist()
