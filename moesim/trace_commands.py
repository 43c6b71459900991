"""`moesim trace`: look at, convert, generate and measure routing traces."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.options import Debug, Json, Seed

if TYPE_CHECKING:
    from traces.counts import ExpertCounts
    from traces.routing import RoutingTrace

LAYER_NUMBER = re.compile(r" *[0-9]{1,6} *")

trace_app = typer.Typer(help="Look at, convert, generate and measure routing traces.", no_args_is_help=True)
TraceFile = Annotated[str, typer.Argument(metavar="TRACE", help="A .npz trace of moesim, or a shipped name.")]


@trace_app.command()
def info(file: TraceFile, json: Json = None, debug: Debug = False) -> None:
    """Show shape, provenance and the import checks of a trace."""
    del debug
    trace = _opened(file)
    origin = trace.provenance
    facts = {
        "model": origin.model,
        "kind": origin.kind,
        "source": origin.source,
        "licence": origin.licence,
        "phase": trace.phase,
        "tokens": trace.n_tokens,
        "sequences": trace.n_sequences,
        "moe_layers": list(trace.moe_layers),
        "experts": trace.n_experts,
        "top_k": trace.top_k,
        "variable_k": trace.variable_k,
        "weight_ordered": trace.weight_ordered,
        "gate_weights": trace.weights is not None,
        "labels": sorted(set(trace.labels)),
        "checks": list(origin.notes),
    }
    _print(facts, json)


@trace_app.command()
def stats(
    file: TraceFile,
    locality: Annotated[bool, typer.Option(help="Also SRP, SCH and cache curves (slower).")] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Measure load, imbalance, reuse and affinity between layers, and on request cache locality."""
    from traces.stats import summarise

    del debug
    trace = _opened(file)
    summary = summarise(trace)
    facts = {entry.name: _plain(getattr(summary, entry.name)) for entry in fields(summary)}
    if locality:
        facts |= _locality(trace)
    _print(facts, json)


@trace_app.command()
def compare(
    files: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Files, or shipped names.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also a picture: routing.png.")] = None,
    json: Json = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Show load, reuse, affinity, domains, SRP and cache hits of several traces side by side (means over layers)."""
    import numpy as np

    from scenarios.files import check_folder
    from traces.profile import profile

    del debug
    if out is not None:
        check_folder(out)
    rng = np.random.default_rng(seed or 0)
    profiles = [profile(Path(file).stem, _opened(file), rng) for file in files]
    _print_columns({one.name: one.row() for one in profiles}, json)
    if out is not None:
        from sim.routing_plots import write_routing_figure

        out.mkdir(parents=True, exist_ok=True)
        write_routing_figure(profiles, out / "routing.png")
        typer.echo(f"{out / 'routing.png'}")


@trace_app.command("import")
def import_(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="See `moesim list formats`.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="File or folder to read.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The .npz trace to write.")],
    model: Annotated[str, typer.Option(help="Name of the traced model.")] = "unknown",
    licence: Annotated[str, typer.Option(help="Licence of the recording.")] = "not stated",
    experts: Annotated[int | None, typer.Option(min=1, help="Routed experts, where the format lacks it.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Experts per token, where the format lacks it.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Hidden layers, where the format lacks it.")] = None,
    moe_layers: Annotated[str | None, typer.Option(help="Layers with experts, e.g. 3-60 or 1,3,5.")] = None,
    physical_to_logical: Annotated[
        Path | None, typer.Option(help="JSON or .npy: expert of each physical slot.")
    ] = None,
    deinterleave: Annotated[int | None, typer.Option(min=1, help="Sequences of an interleaved micro-batch.")] = None,
    sequence_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence of a joined file.")] = None,
    keep_warmup: Annotated[bool, typer.Option(help="Keep runs of identical rows.")] = False,
    debug: Debug = False,
) -> None:
    """Read a foreign recording, check it, and write a trace."""
    from scenarios.errors import TraceError
    from scenarios.files import check_file
    from traces.counts import ExpertCounts
    from traces.formats import import_trace
    from traces.recording import ImportOptions
    from traces.storage import save_trace

    del debug
    options = ImportOptions(
        model=model,
        licence=licence,
        n_experts=experts,
        top_k=top_k,
        n_layers=layers,
        moe_layers=_layer_numbers(moe_layers),
        physical_to_logical=physical_to_logical,
        deinterleave=deinterleave,
        sequence_tokens=sequence_tokens,
        keep_warmup=keep_warmup,
    )
    check_file(target)
    trace = import_trace(format, source, options)
    for note in trace.provenance.notes:
        typer.echo(note)
    if isinstance(trace, ExpertCounts):
        _print(_counts(trace), None)
        raise TraceError(f"{source}: {format} holds counts, not routes per token, so there is no trace to write")
    save_trace(trace, target)
    typer.echo(
        f"{target}: {trace.n_tokens:,} tokens, {trace.n_layers} layers, {trace.n_experts} experts, top-{trace.top_k}"
    )


@trace_app.command()
def synth(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The .npz trace to write.")],
    model: Annotated[str, typer.Option(help="Model card: layers, experts and top-k.")],
    like: Annotated[Path | None, typer.Option(help="A trace whose statistics set the knobs.")] = None,
    tokens: Annotated[int, typer.Option(min=1)] = 32768,
    sequence_tokens: Annotated[int, typer.Option(min=1)] = 256,
    skew: Annotated[float, typer.Option(min=0.0, help="Spread of log expert popularity.")] = 0.5,
    sequence_skew: Annotated[float, typer.Option(min=0.0, help="The same, per sequence.")] = 0.5,
    reuse: Annotated[float, typer.Option(min=0.0, max=0.999, help="Chance to keep an expert.")] = 0.2,
    affinity: Annotated[float, typer.Option(min=0.0, max=0.999, help="Chance to follow the theme of the token.")] = 0.8,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Make up a trace from knobs, or like a captured one."""
    import numpy as np

    from scenarios.catalog import find_model
    from scenarios.files import check_file
    from scenarios.workload_specs import SynthesisSpec
    from traces.storage import load_trace, save_trace
    from traces.synth import fit_knobs, knobs_from_spec, synthesise

    del debug
    spec = SynthesisSpec(
        tokens=tokens,
        sequence_tokens=sequence_tokens,
        skew=skew,
        sequence_skew=sequence_skew,
        reuse=reuse,
        affinity=affinity,
        seed=seed or 0,
    )
    check_file(target)
    fitted = None if like is None else fit_knobs(load_trace(like))
    trace = synthesise(knobs_from_spec(spec, find_model(model, Path()), fitted), np.random.default_rng(spec.seed))
    save_trace(trace, target)
    typer.echo(f"{target}: {trace.provenance.source}")


def _opened(name: str) -> RoutingTrace:
    """The trace of a shipped name or a file."""
    from scenarios.catalog import list_traces
    from traces.storage import load_trace

    return load_trace(dict(list_traces()).get(name, Path(name)))


def _locality(trace: RoutingTrace) -> dict[str, Any]:
    """SRP, SCH and cache curves under the published convention (one pool, no cold misses)."""
    from traces.cache_curves import cache_curve, lru_curve, pool_capacity
    from traces.locality import segment_cache, segment_routing

    capacities = [pool_capacity(trace, rho) for rho in (1, 2, 3)]
    lru = lru_curve(trace, "model_pool")
    curves = {policy: cache_curve(trace, policy, "model_pool", capacities) for policy in ("lfu", "belady")}
    sch = segment_cache(trace, 16, capacities)
    routing = {window: segment_routing(trace, window) for window in (4, 16, 64)}
    return {
        **{f"srp.m{window}": result.srp for window, result in routing.items()},
        **{f"srp_rho_hat.m{window}": result.rho_hat for window, result in routing.items()},
        "cache convention": "model_pool: one pool of rho * k * layers experts, first touches are not misses",
        "hit_frac.lru.rho1-3": [float(lru.at(capacity)) for capacity in capacities],
        **{f"hit_frac.{name}.rho1-3": [float(v) for v in curve.hit_frac] for name, curve in curves.items()},
        "hit_frac.sch16.rho1-3": [float(v) for v in sch.hit_frac],
    }


def _counts(counts: ExpertCounts) -> dict[str, Any]:
    totals = counts.counts.sum(axis=0)
    return {
        "layers": totals.shape[0],
        "experts": totals.shape[1],
        "routed tokens": int(totals.sum()),
        "load_imbalance": _plain(totals.max(axis=1) / totals.mean(axis=1)),
    }


def _layer_numbers(text: str | None) -> tuple[int, ...] | None:
    """Layer numbers of "3-60" or "1,3,5". Raises BadParameter for anything else."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ends = [first, last or first]
        if not all(map(LAYER_NUMBER.fullmatch, ends)) or int(ends[0]) > int(ends[1]):
            raise typer.BadParameter(f"'{text}' is no list of layers; write 3-60 or 1,3,5")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(numbers)


def _plain(value: Any) -> Any:
    """Arrays as rounded lists, for people and JSON."""
    return [round(float(entry), 4) for entry in value] if hasattr(value, "shape") and value.ndim else value


def _print(facts: dict[str, Any], json: str | None) -> None:
    import json as encoder

    from rich.console import Console
    from rich.table import Table

    from scenarios.files import write_or_print

    if json is not None:
        write_or_print(encoder.dumps(facts, indent=2) + "\n", json)
    if json == "-":
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        text = "\n".join(map(str, value)) if name == "checks" else _short(value)
        table.add_row(name, text)
    Console().print(table)


def _print_columns(columns: dict[str, dict[str, Any]], json: str | None) -> None:
    """Facts by trace: JSON, or a table with a column each."""
    import json as encoder

    from rich.console import Console
    from rich.table import Table

    from scenarios.files import write_or_print

    if json is not None:
        write_or_print(encoder.dumps(columns, indent=2) + "\n", json)
    if json == "-":
        return
    table = Table("", *columns, box=None, pad_edge=False)
    for name in dict.fromkeys(name for facts in columns.values() for name in facts):
        table.add_row(name, *(_short(facts.get(name, "-")) for facts in columns.values()))
    Console().print(table)


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], float):
        mean = sum(value) / len(value)
        return f"mean {mean:.3f}   min {min(value):.3f}   max {max(value):.3f}   [{len(value)}]"
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:.4g}"
        if isinstance(value, float)
        else f"{value}"
    )
