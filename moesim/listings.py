"""What `moesim list` shows."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import get_args

from rich.console import Console
from rich.table import Table

from scenarios.errors import ScenarioError


def show(kind: str) -> None:
    """Print one listing. Raises ScenarioError for an unknown kind."""
    if kind not in LISTINGS:
        near = difflib.get_close_matches(kind, LISTINGS, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ScenarioError(f"cannot list '{kind}'{hint}: one of {', '.join(LISTINGS)}")
    console = Console()
    for table in LISTINGS[kind]():
        console.print(table)


def _models() -> list[Table]:
    from scenarios.catalog import list_models

    table = _table(
        "models", "name", "layers (MoE)", "hidden", "experts", "top-k", "shared", "parameters", "active", "source"
    )
    for card in sorted(list_models(), key=lambda card: card.name):
        table.add_row(
            card.name,
            f"{card.n_layers} ({len(card.moe_layers)})",
            str(card.hidden_size),
            str(card.n_experts),
            str(card.top_k),
            str(card.shared_intermediate_size or "-"),
            f"{card.total_parameters / 1e9:.1f} B",
            f"{card.active_parameters / 1e9:.1f} B",
            card.sources["default"].kind if "default" in card.sources else "per field",
        )
    return [table]


def _hardware() -> list[Table]:
    from hwmodels.library import list_cards

    cards = list_cards()
    devices = _table("devices", "name", "memory", "bandwidth", "best peak", "SMs", "kernels")
    for device in cards.devices:
        dtype, peak = max(device.peak_flop_per_s.items(), key=lambda entry: entry[1].value)
        devices.add_row(
            device.name,
            f"{device.memory_bytes.value / 1e9:.0f} GB",
            f"{device.memory_bytes_per_s.value / 1e9:,.0f} GB/s",
            f"{peak.value / 1e12:,.0f} TFLOP/s {dtype}",
            str(device.n_sms.value),
            device.kernels,
        )
    nodes = _table("nodes", "name", "devices", "inside", "between", "host")
    for node in cards.nodes:
        count = f"{node.n_devices.value} x {node.device}"
        nodes.add_row(node.name, count, node.intra_link, node.inter_link or "-", node.host or "-")
    links = _table("links", "name", "per direction", "reached", "latency")
    for link in cards.links:
        latency = f"{link.latency_s.value * 1e6:.1f} us ({link.latency_s.kind})"
        reached = f"{link.efficiency.value:.0%} ({link.efficiency.kind})"
        links.add_row(link.name, f"{link.bytes_per_s.value / 1e9:,.0f} GB/s", reached, latency)
    hosts = _table("hosts", "name", "cores", "DRAM channels", "DRAM bandwidth", "kernels")
    for host in cards.hosts:
        bandwidth = f"{host.dram_bytes_per_s.value / 1e9:.0f} GB/s ({host.dram_bytes_per_s.kind})"
        hosts.add_row(host.name, str(host.cores.value), str(host.dram_channels.value), bandwidth, host.kernels)
    ssds = _table("drives", "name", "capacity", "bandwidth", "latency")
    for ssd in cards.ssds:
        rate, latency = f"{ssd.bytes_per_s.value / 1e9:g} GB/s", f"{ssd.latency_s.value * 1e6:g} us"
        ssds.add_row(ssd.name, f"{ssd.capacity_bytes.value / 1e9:g} GB", rate, latency)
    return [devices, nodes, links, hosts, ssds]


def _scenarios() -> list[Table]:
    from scenarios.catalog import list_scenarios
    from scenarios.loader import load_scenario

    table = _table("scenarios", "name", "title")
    for name, path in list_scenarios():
        table.add_row(name, load_scenario(path).spec.name)
    return [table]


def _papers() -> list[Table]:
    from scenarios.catalog import list_papers
    from scenarios.loader import load_spec
    from scenarios.paper_specs import PaperSpec

    table = _table("papers", "system", "title", "claims")
    for name, path in list_papers():
        paper = load_spec(path, PaperSpec)
        table.add_row(name, paper.title, str(len(paper.claims)))
    return [table]


def _traces() -> list[Table]:
    from scenarios.catalog import list_traces
    from traces.storage import load_trace

    table = _table("traces (workload.trace)", "name", "layers", "experts", "top-k", "phase", "tokens", "requests", "of")
    for name, path in list_traces():
        trace = load_trace(path)
        shape = (trace.n_layers, trace.n_experts, trace.top_k)
        counts = (f"{trace.n_tokens:,}", str(trace.n_sequences))
        table.add_row(name, *map(str, shape), trace.phase, *counts, trace.provenance.model)
    return [table]


def _policies() -> list[Table]:
    from hwmodels.library import links_with
    from scenarios.schedule_specs import FittedKernelName
    from sim.laws import LAWS
    from sim.pipelines import PIPELINES
    from sim.policies import POLICIES

    policies = _table("schedule policies (schedule.overlap)", "name", "what it does")
    for name, policy in POLICIES.items():
        policies.add_row(name, _first_line(policy))
    pipelines = _table("pipelines (schedule.pipeline, where parallel.*.pp is above 1)", "name", "order of a stage")
    for name, order in PIPELINES.items():
        pipelines.add_row(name, _first_line(order))
    laws = _table("laws of link sharing (schedule.exchange.law)", "name", "what it says")
    for name, law in LAWS.items():
        laws.add_row(name, _first_line(law))
    kernels = _table("kernels of exchanges (schedule.exchange.kernel)", "name", "measured on")
    kernels.add_row("alpha-beta", "any link, by its latency and bandwidth")
    for kernel in ("nccl", *get_args(FittedKernelName)):
        kernels.add_row(kernel, ", ".join(links_with(kernel)))
    return [policies, pipelines, laws, kernels]


def _solvers() -> list[Table]:
    from placement.solve import SOLVERS

    table = _table("placement solvers (placement.solver)", "name", "minimises", "execution", "what it does")
    for name, solver in SOLVERS.items():
        table.add_row(name, solver.objective, solver.execution, _first_line(solver.plan))
    return [table]


def _formats() -> list[Table]:
    from placement.formats import FORMATS
    from traces.formats import IMPORTERS

    table = _table("trace formats (moesim trace import FORMAT FILE OUT)", "name", "what it reads")
    for name, importer in IMPORTERS.items():
        table.add_row(name, _first_line(importer))
    plans = _table("plan formats (moesim place SCENARIO --export FORMAT FILE)", "name", "files", "taken by")
    for name, format in FORMATS.items():
        plans.add_row(name, " ".join(format.suffixes), format.taken_by)
    return [table, plans]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None)
    for column in columns:
        table.add_column(column)
    return table


def _first_line(thing: Callable[..., object]) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0] if thing.__doc__ else ""


LISTINGS: dict[str, Callable[[], list[Table]]] = {
    "models": _models,
    "hardware": _hardware,
    "scenarios": _scenarios,
    "papers": _papers,
    "traces": _traces,
    "policies": _policies,
    "solvers": _solvers,
    "formats": _formats,
}
