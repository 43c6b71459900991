"""Layouts of attention and experts on the same devices: who works with whom, and on how many nodes."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from scenarios.cluster_specs import ParallelSpec
from scenarios.errors import ScenarioError
from sim.context_parallel import ring_attention_s
from sim.ranks import GROUPS, Ranks, group_cluster, ranks_of
from tests.small import even_placement, measured, random_trace, tiny_cluster, tiny_model, tiny_setting


def layout(n_nodes: int, attention: dict[str, Any], experts: dict[str, Any], per_node: int = 8) -> Ranks:
    parallel = ParallelSpec.model_validate({"attention": attention, "experts": experts})
    return ranks_of(tiny_cluster(n_nodes, per_node), parallel)


def coordinates(ranks: Ranks) -> list[dict[str, int]]:
    """Places of every device, counted up one by one: attention (pp, dp, cp, tp), experts (pp, edp, ep, tp)."""
    a, e = ranks.attention, ranks.experts
    attention = product(range(a.pp), range(a.dp), range(a.cp), range(a.tp))
    experts = product(range(e.pp), range(e.edp), range(e.ep), range(e.tp))
    return [
        {"pp": p, "dp": d, "cp": c, "tp": t, "expert pp": q, "edp": r, "ep": x, "etp": y}
        for (p, d, c, t), (q, r, x, y) in zip(attention, experts, strict=True)
    ]


FOLDED = [
    layout(16, {"dp": 8, "tp": 2, "pp": 8}, {"ep": 8, "edp": 2, "pp": 8}),  # Mixtral-8x22B on 128 devices, folded
    layout(16, {"dp": 8, "tp": 2, "pp": 8}, {"ep": 4, "tp": 2, "edp": 2, "pp": 8}),  # the same before folding
    layout(4, {"dp": 2, "tp": 2, "cp": 4, "pp": 2}, {"ep": 8, "edp": 2, "pp": 2}),
    layout(4, {"dp": 4, "tp": 8}, {"ep": 32}),
]


@pytest.mark.parametrize("ranks", FOLDED)
def test_groups_share_all_other_places(ranks: Ranks) -> None:
    places = coordinates(ranks)
    assert all(place["pp"] == place["expert pp"] for place in places)
    fixed = {
        "tp": ("pp", "dp", "cp"),
        "cp": ("pp", "dp", "tp"),
        "dp": ("pp", "tp"),
        "stage": ("pp",),
        "experts": ("pp", "edp"),
        "edp": ("pp", "ep", "etp"),
    }
    for name in GROUPS:
        groups = ranks.groups(name)
        assert sorted(groups.ravel()) == list(range(ranks.n_devices))
        for members in groups:
            for kind in fixed[name]:
                assert len({places[member][kind] for member in members}) == 1


def test_before_folding_experts_stand_at_the_stride_of_attention() -> None:
    """Section 3 of arXiv 2504.14960: experts cross nodes where tp x cp x ep exceeds a node, unless folded."""
    attention = {"dp": 4, "tp": 2, "cp": 4}
    apart = layout(4, attention, {"ep": 4, "tp": 2, "edp": 4, "folded": False})
    assert apart.groups("experts")[0].tolist() == [0, 1, 8, 9, 16, 17, 24, 25]
    assert apart.nodes_of("experts") == (4, 2)
    assert apart.groups("edp")[0].tolist() == [0, 2, 4, 6]
    assert sorted(apart.groups("experts").ravel()) == list(range(32))
    assert layout(4, attention, {"ep": 8, "edp": 4}).nodes_of("experts") == (1, 8)


def test_a_group_sees_its_own_part_of_the_cluster() -> None:
    cluster = tiny_cluster(4, 8)
    parallel = {"attention": {"dp": 4, "tp": 2, "cp": 4}, "experts": {"ep": 4, "tp": 2, "edp": 4, "folded": False}}
    seen = group_cluster(cluster, ranks_of(cluster, ParallelSpec.model_validate(parallel)))
    assert (seen.n_nodes, seen.devices_per_node) == (4, 2)
    assert seen.inter == cluster.inter
    assert group_cluster(cluster, ranks_of(cluster, ParallelSpec())) is cluster


@pytest.mark.parametrize(("attention", "experts", "words"), [
    ({"dp": 4, "tp": 2, "pp": 2, "cp": 2}, {"ep": 16}, r"dp x tp x cp x pp = 4 x 2 x 2 x 2 = 32, but .* 16 devices"),
    ({"dp": 8, "tp": 2}, {"ep": 4, "edp": 2}, r"experts: ep x tp x edp = 4 x 1 x 2 = 8, but the cluster has 16"),
    ({"dp": 4, "tp": 2, "pp": 2}, {"ep": 16}, r"attention has 2 pipeline stages and experts 1"),
    ({"dp": 2, "tp": 8}, {"ep": 4, "edp": 4}, r"tp 8 does not divide the 4 x 1 devices of an expert group"),
    ({"dp": 8, "tp": 2}, {"ep": 8, "edp": 2, "folded": False}, r"folded: false wants attention's tp \(2, not 1\)"),
    ({"dp": 1, "tp": 16}, {"ep": 16}, r"tp 16 does not divide the 8 devices of a node"),
])  # fmt: skip
def test_layouts_that_cannot_be(attention: dict[str, int], experts: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        layout(2, attention, experts)


def test_groups_that_lie_unevenly() -> None:
    ranks = layout(3, {"dp": 24}, {"ep": 3, "edp": 8})
    with pytest.raises(ScenarioError, match=r"groups of 3 devices .* lie unevenly on nodes of 8"):
        ranks.nodes_of("experts")


def test_replicas_of_experts_multiply_tokens_and_bytes_alone() -> None:
    """One group of four devices, alone and as one of three replicas."""
    model = tiny_model()
    alone = tiny_setting(model, tiny_cluster(1, 4), random_trace(model))
    replica = tiny_setting(
        model, alone.cluster, alone.trace, ranks=layout(3, {"dp": 12}, {"ep": 4, "edp": 3}, per_node=4)
    )
    one, three = (measured(setting, even_placement(model, 4)).metrics for setting in (alone, replica))
    tripled = {"tokens_per_s", "bytes.nvlink"}
    for name, value in one.items():
        assert three[name] == pytest.approx(value * (3 if name in tripled else 1))


def test_the_ring_hides_hops_as_long_as_parts_are_longer() -> None:
    """Four devices, tp 1: parts of 1 s beside hops of tokens x 64 values x 2 bytes at 80 GB/s."""
    model = tiny_model()
    ranks = layout(1, {"dp": 1, "cp": 4}, {"ep": 4}, per_node=4)
    setting = tiny_setting(model, tiny_cluster(1, 4), random_trace(model), ranks=ranks)
    link, core_s = setting.cluster.intra, np.array([4.0])
    assert ring_attention_s(setting, core_s, [1]) == pytest.approx(4.0)
    tokens = 3 * int(80e9) // 128
    hop_s = link.ring_step_latency_s + tokens * 64 * 2 / link.effective_bytes_per_s
    assert hop_s > 1.0
    assert ring_attention_s(setting, core_s, [tokens]) == pytest.approx(1.0 + 3 * hop_s)
    alone = tiny_setting(model, tiny_cluster(1, 4), setting.trace)
    assert ring_attention_s(alone, core_s, [tokens]) == pytest.approx(4.0)


def test_a_ring_over_nodes_hops_between_them() -> None:
    model = tiny_model()
    ranks = layout(2, {"dp": 1, "cp": 8}, {"ep": 4, "edp": 2}, per_node=4)
    setting = tiny_setting(model, tiny_cluster(2, 2), random_trace(model), ranks=ranks)
    assert setting.cluster.inter is not None
    hop_s = setting.cluster.inter.ring_step_latency_s + 10**9 * 128 / setting.cluster.inter.effective_bytes_per_s
    assert ring_attention_s(setting, np.array([8.0]), [10**9]) == pytest.approx(1.0 + 7 * hop_s)
