"""The two sides of a disaggregated load in a scenario: their plans, and the links between them."""

from __future__ import annotations

from dataclasses import replace

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster, build_cluster, node_devices
from scenarios.errors import ScenarioError
from scenarios.serving_specs import EngineSpec, PrefillSpec, ServingSpec
from scenarios.stream_specs import GENERATING
from sim.memory import kv_bytes_per_request
from sim.ranks import ranks_of
from sim.serving.handover import Side, Wire, serve_apart
from sim.serving.measures import serving_metrics
from sim.serving.prices import StepOf
from sim.serving.simulate import Deployment, LoadResult, asked_requests, deployed, load_note, typical_of
from sim.serving.unfinished import journal_of, journaled_prices, journaled_steps, watch_of
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


def serve_plan_apart(session: Session, plan: Plan, spec: ServingSpec, step_of: StepOf) -> LoadResult:
    """The requests of `spec` under a plan whose prompts have devices of their own.

    Raises MemoryInfeasible where a side has no room for a KV cache, or a request is longer than it; ScenarioError where
    the sides do not go together.
    """
    if spec.prefill is None:
        raise ScenarioError("serving.prefill: there is none")
    journal, requests = journal_of(session, plan), asked_requests(session, spec)
    step_of = journaled_steps(step_of, journal)
    prefill, decode = (
        deployed(session, side_plan(session, plan, own), spec.side(own), step_of) for own in (spec.prefill, spec.decode)
    )
    wire = wire_between(session, spec.prefill, prefill.plan, decode.plan)

    def side_of(own: Deployment, n_engines: int = 1) -> Side:
        prices = journaled_prices(own.prices, journal)
        return Side(spec=own.spec, n_ranks=own.n_ranks, n_blocks=own.n_blocks, prices=prices, n_engines=n_engines)

    watch = watch_of(journal, spec.slo, decode.table_error)
    served = serve_apart(requests, side_of(prefill, spec.prefill.engines), side_of(decode), wire, watch)
    if journal is not None:
        journal.write()
    return LoadResult(
        served=served,
        metrics=serving_metrics(served, spec.slo, max(prefill.table_error, decode.table_error)),
        typical=typical_of(session, decode.plan, served, decode.n_devices),
        notes=(load_note(requests, decode), f"On the side of prompts: {prefill.note}"),
    )


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
    most = node_devices(decode.cluster, session.base)
    nodes = {plan.cluster.node for plan in (prefill, decode)}
    if len(nodes) > 1 or n_devices > most:
        raise ScenarioError(
            f"serving.prefill: over node needs both sides in one node of {most} devices, and they are {n_devices} "
            f"devices of {' and '.join(sorted(nodes))}; use devices_per_node, or over: network"
        )
    return [cluster.intra for cluster in clusters]
