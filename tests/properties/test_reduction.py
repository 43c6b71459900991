"""What must hold of the reduction for any trace, placement and layout: conservation, and agreement with loops."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import Reduction, reduce_trace
from placement.traffic import PortTokens
from scenarios.placement_specs import SplitName
from scenarios.schedule_specs import DedupName
from tests.oracles.reduction_oracle import expected_reduction
from tests.small import random_ids, random_placement, trace_of
from traces.routing import RoutingTrace

DEDUPS: tuple[DedupName, ...] = ("none", "device", "node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trace, steps and a placement on a layout."""

    trace: RoutingTrace
    tokens: NDArray[np.int64]
    placement: Placement
    layout: ExpertLayout
    chunks: int

    def reduced(self, dedup: DedupName) -> Reduction:
        return reduce_trace(
            self.trace, self.tokens, self.placement, self.layout, chunks=self.chunks, dedup=dedup, keep_pairs=True
        )


@st.composite
def cases(draw: st.DrawFn, splits: tuple[SplitName, ...] = ("even", "least-loaded")) -> Case:
    tp, ranks_per_node, n_nodes = (draw(st.integers(1, most)) for most in (2, 3, 3))
    layout = ExpertLayout(n_devices=n_nodes * ranks_per_node * tp, devices_per_node=ranks_per_node * tp, tp=tp)
    n_experts = draw(st.sampled_from((2, 5, 9, 300)))
    top_k, seed = draw(st.integers(1, min(4, n_experts))), draw(st.integers(0, 2**32 - 1))
    ids = random_ids((2, top_k, 20), n_experts, seed, draw(st.sampled_from((0.0, 0.0, 0.5))))
    n_slots = n_experts + draw(st.integers(0, 9))
    split = draw(st.sampled_from(splits))
    shape = (draw(st.integers(1, 3)), layout.n_devices, draw(st.integers(1, 5)))
    return Case(
        trace=trace_of(ids, n_experts),
        tokens=np.random.default_rng(seed).integers(0, 20, shape),
        placement=random_placement(2, n_experts, layout.n_ranks, n_slots, seed, split=split),
        layout=layout,
        chunks=draw(st.integers(1, 4)),
    )


@settings(max_examples=20)
@given(cases(), st.sampled_from(DEDUPS))
def test_tokens_are_conserved(case: Case, dedup: DedupName) -> None:
    got = case.reduced(dedup)
    ids = case.trace.ids[:, :, case.tokens.ravel()].astype(np.int64)
    routed = np.sort(ids[ids != (case.trace.padding_id or -1)])
    counts = [
        np.bincount(case.placement.expert_of_slot[layer], got.slot_tokens[layer].sum(axis=0), case.trace.n_experts)
        for layer in range(2)
    ]
    np.testing.assert_array_equal(np.sum(counts, axis=0), np.bincount(routed, minlength=case.trace.n_experts))
    for kind in ("intra", "inter"):
        sent, received = (getattr(got.ports, f"{way}_{kind}").sum(axis=-1) for way in ("send", "receive"))
        np.testing.assert_array_equal(sent, received)


@settings(max_examples=15)
@given(cases())
def test_less_is_sent_the_more_is_left_out(case: Case) -> None:
    none, device, node = (case.reduced(dedup) for dedup in DEDUPS)
    for reduction in (device, node):
        np.testing.assert_array_equal(none.slot_tokens, reduction.slot_tokens)
    assert (none.pairs_total >= device.pairs_total).all()
    assert (none.ports.send_inter >= device.ports.send_inter).all()
    assert (device.ports.send_inter >= node.ports.send_inter).all()
    np.testing.assert_array_equal(device.pairs_total, node.pairs_total)
    # a forwarded token crosses once, and reaches every device but the first one over a port inside its node
    assert node.ports.send_inter.sum() + node.ports.send_intra.sum() >= (
        device.ports.send_inter.sum() + device.ports.send_intra.sum()
    )


@settings(max_examples=15)
@given(cases(splits=("even",)), st.sampled_from(DEDUPS))  # the least-loaded split balances chunk by chunk
def test_chunks_share_the_tokens_of_their_step(case: Case, dedup: DedupName) -> None:
    parts = case.reduced(dedup)
    whole = reduce_trace(case.trace, case.tokens, case.placement, case.layout, dedup=dedup)
    for got, want in (
        (parts.slot_tokens, whole.slot_tokens),
        *((getattr(parts.ports, name), getattr(whole.ports, name)) for name in PortTokens.__slots__),
    ):
        np.testing.assert_array_equal(got.reshape(2, len(case.tokens), case.chunks, -1).sum(axis=2), want)


@settings(max_examples=15)
@given(cases(splits=("even",)), st.sampled_from(DEDUPS))
def test_loops_over_tokens_give_the_same(case: Case, dedup: DedupName) -> None:
    got = case.reduced(dedup)
    want = expected_reduction(case.trace, case.tokens, case.placement, case.layout, chunks=case.chunks, dedup=dedup)
    np.testing.assert_array_equal(got.slot_tokens, want.slot_tokens)
    np.testing.assert_array_equal(got.pairs, want.pairs)
    for name in PortTokens.__slots__:
        np.testing.assert_array_equal(getattr(got.ports, name), getattr(want.ports, name), err_msg=name)
