"""`moesim trace`: look at, convert, generate and measure routing traces."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.options import Debug, Json, Seed

if TYPE_CHECKING:
    from rich.table import Table

    from traces.counts import ExpertCounts

LAYER_NUMBER = re.compile(r" *[0-9]{1,6} *")

trace_app = typer.Typer(help="Look at, convert, generate and measure routing traces.", no_args_is_help=True)
TraceFile = Annotated[str, typer.Argument(metavar="TRACE", help="A .npz trace of moesim, or a shipped name.")]


@trace_app.command()
def info(file: TraceFile, json: Json = None, debug: Debug = False) -> None:
    """Show shape, provenance and the import checks of a trace."""
    from moesim import api

    del debug
    _print(api.trace(file).as_json(), json)


@trace_app.command()
def stats(
    file: TraceFile,
    locality: Annotated[bool, typer.Option(help="Also SRP, SCH and cache curves (slower).")] = False,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Measure load, imbalance, reuse and affinity between layers, and on request cache locality."""
    from moesim import api

    del debug
    _print(api.trace(file).statistics(locality=locality), json)


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

    from moesim import api
    from scenarios.files import check_folder
    from traces.profile import profile

    del debug
    if out is not None:
        check_folder(out)
    rng = np.random.default_rng(seed or 0)
    traces = [api.trace(file) for file in files]
    profiles = [profile(trace.name, trace.routing, rng) for trace in traces]
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


def _counts(counts: ExpertCounts) -> dict[str, Any]:
    from traces.facts import plain

    totals = counts.counts.sum(axis=0)
    return {
        "layers": totals.shape[0],
        "experts": totals.shape[1],
        "routed tokens": int(totals.sum()),
        "load_imbalance": plain(totals.max(axis=1) / totals.mean(axis=1)),
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


def _print(facts: dict[str, Any], json: str | None) -> None:
    from moesim.trace_tables import facts_table

    _write_or_show(facts, json, facts_table)


def _print_columns(columns: dict[str, dict[str, Any]], json: str | None) -> None:
    """Facts by trace: JSON, or a table with a column each."""
    from moesim.trace_tables import columns_table

    _write_or_show(columns, json, columns_table)


def _write_or_show(content: dict[str, Any], json: str | None, table: Callable[[dict[str, Any]], Table]) -> None:
    from rich.console import Console

    from scenarios.files import write_or_print
    from sim.outputs import json_of

    if json is not None:
        write_or_print(json_of(content), json)
    if json != "-":
        Console().print(table(content))
