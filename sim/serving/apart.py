"""The two sides of a disaggregated load in a scenario: their plans, and the links between them."""

from __future__ import annotations

from dataclasses import replace

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster, build_cluster
from hwmodels.library import cards_with, find_node, list_cards
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import ScenarioError
from scenarios.serving_specs import EngineSpec, PrefillSpec
from scenarios.stream_specs import GENERATING
from sim.memory import kv_bytes_per_request
from sim.ranks import ranks_of
from sim.serving.handover import Wire
from sim.session import Plan, Session
from sim.together import check_together


def check_served(plan: Plan) -> None:
    """Raise ScenarioError where requests cannot be served under a plan."""
    if plan.schedule.search:  # what is best depends on the iteration
        raise ScenarioError("serving: a search over schedules has no iteration of its own; name one schedule")
    if plan.parallel.experts is not None and plan.parallel.experts.pp * plan.parallel.experts.edp > 1:
        raise ScenarioError(
            "serving: requests under load go to one expert group: leave parallel.experts.pp and edp out"
        )
    if plan.schedule.overlap in GENERATING:
        raise ScenarioError(f"serving: {plan.schedule.overlap} generates for all requests at once; leave serving out")


def side_plan(session: Session, plan: Plan, own: EngineSpec | None) -> Plan:
    """The plan of one side. Raises ScenarioError where its parts do not go together."""
    names = ("cluster", "parallel", "placement", "schedule")
    given = {} if own is None else {name: getattr(own, name) for name in names if getattr(own, name) is not None}
    side = replace(plan, **given)
    check_served(side)
    check_together(session.setting(side.cluster, side.parallel, session.spec.workload), side)
    return side


def wire_between(session: Session, spec: PrefillSpec, prefill: Plan, decode: Plan) -> Wire:
    """What lies between a rank of either side; devices of a rank send and receive side by side.

    Every device that decodes gets the keys and values that it needs; those that prefill send equal parts of them.
    Raises ScenarioError where the sides have no link of the kind asked for.
    """
    clusters = [build_cluster(plan.cluster, session.base) for plan in (prefill, decode)]
    links = _node_links(session, spec, prefill, decode, clusters) if spec.over == "node" else _network_links(clusters)
    tps = [
        ranks_of(cluster, plan.parallel).attention.tp for cluster, plan in zip(clusters, (prefill, decode), strict=True)
    ]
    model = session.model
    return Wire(
        moved_bytes=lambda tokens: tps[1] * kv_bytes_per_request(model, tokens, tps[1]),
        bytes_per_s=min(tp * link.effective_bytes_per_s for tp, link in zip(tps, links, strict=True)),
        latency_s=max(link.latency_s.value for link in links),
        n_layers=model.n_layers,
        layerwise=spec.transfer == "layerwise",
    )


def _network_links(clusters: list[Cluster]) -> list[LinkCard]:
    found = [cluster.inter for cluster in clusters if cluster.inter is not None]
    if len(found) < len(clusters):
        name = next(cluster.name for cluster in clusters if cluster.inter is None)
        raise ScenarioError(
            f"serving.prefill: keys and values go over the network, and {name} has no inter_link; name another node "
            "card, or over: node where both sides are parts of one node"
        )
    return found


def _node_links(
    session: Session, spec: PrefillSpec, prefill: Plan, decode: Plan, clusters: list[Cluster]
) -> list[LinkCard]:
    n_devices = spec.engines * clusters[0].n_devices + clusters[1].n_devices
    most = _node_devices(session, decode.cluster)
    nodes = {plan.cluster.node for plan in (prefill, decode)}
    if len(nodes) > 1 or n_devices > most:
        raise ScenarioError(
            f"serving.prefill: over node needs both sides in one node of {most} devices, and they are {n_devices} "
            f"devices of {' and '.join(sorted(nodes))}; use devices_per_node, or over: network"
        )
    return [cluster.intra for cluster in clusters]


def _node_devices(session: Session, spec: ClusterSpec) -> int:
    cards = cards_with(session.base / spec.cards) if spec.cards else list_cards()
    return int(find_node(spec.node, cards).n_devices.value)
