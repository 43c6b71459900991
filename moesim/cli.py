"""The command line; heavy imports wait for the command that needs them."""

from __future__ import annotations

import shutil
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from moesim import capture_commands
from moesim.options import Debug, Json, Out, Overrides, Quiet, Seed
from moesim.progress import heard, progress
from moesim.trace_commands import trace_app
from scenarios.errors import MoesimError

if TYPE_CHECKING:
    from moesim.scenario import Scenario as Loaded
    from moesim.shown import Shown

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h: ours, not the user's

app = typer.Typer(
    help="Discrete-event simulator and performance model for Mixture-of-Experts systems.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(trace_app, name="trace")
app.command("capture", context_settings=capture_commands.SETTINGS)(capture_commands.capture)
Scenario = Annotated[str, typer.Argument(metavar="SCENARIO", help="YAML file, or the name of a shipped scenario.")]


def main() -> None:
    """Run the command; errors of the user are one message and exit code 2 or 3, never a traceback."""
    try:
        _command()(prog_name="moesim")  # exits by itself: 0 when done, 2 for a wrong option, 130 when interrupted
    except MoesimError as error:
        _fail(error, str(error), error.exit_code)
    except MemoryError as error:
        remedy = "take fewer steps, tokens, devices or plans, or a larger machine"
        _fail(error, f"this machine's memory does not suffice; {remedy}", MoesimError.exit_code)
    except Exception as error:
        bug = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
        _fail(error, bug, INTERNAL_ERROR)


@cache
def _command() -> Any:
    """The command that Typer makes of `app`, made once where a process calls `main` many times, as the tests do."""
    return typer.main.get_command(app)


def _fail(error: Exception, message: str, code: int) -> NoReturn:
    """Exit with a message, below the traceback where `--debug` asks for it."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    print(f"moesim: {message}", file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from moesim.version import version_text

        print(version_text(Path(__file__).resolve().parents[1]), flush=True)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions.")] = False,
) -> None:
    del version


@app.command()
def run(
    scenario: Scenario,
    overrides: Overrides = None,
    seed: Seed = None,
    json: Json = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate the scenario's own plan: a table of metrics."""
    from moesim import api

    del debug
    _check_targets(json, out)
    _show(api.run(_load(scenario, overrides, seed), unfinished=_unfinished(out)), json, out, quiet=quiet)


@app.command()
def compare(
    scenario: Scenario,
    overrides: Overrides = None,
    seed: Seed = None,
    json: Json = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate every plan of the scenario's `compare:` axes on the same steps: ranked tables."""
    from moesim import api

    del debug
    _check_targets(json, out)
    loaded = _load(scenario, overrides, seed)
    with progress("reading the trace", quiet=quiet) as say:
        comparison = api.compare(loaded, say, unfinished=_unfinished(out))
    _show(comparison, json, out, quiet=quiet)


@app.command()
def bound(
    scenario: Scenario,
    overrides: Overrides = None,
    seed: Seed = None,
    json: Json = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write report.html, plots, bound.json.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Throughput bounds of the scenario's hardware: what binds, what more would bring, the best purchase."""
    from moesim import api

    del debug
    _check_targets(json, out)
    loaded = _load(scenario, overrides, seed)
    with progress("bounds", quiet=quiet) as say:
        bounds = api.bound(loaded, say)
    _show(bounds, json, out, quiet=quiet)


@app.command()
def reproduce(
    systems: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SYSTEM]...", help="Shipped systems or files of published results; default: all."),
    ] = None,
    limit: Annotated[
        float, typer.Option("--limit", min=0, help="Largest error of a claim without a stated reason.")
    ] = 0.35,
    json: Json = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write report.html, reproductions.json and .png.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Published results against predictions, one row a claim; exit code 1 where one is off without a reason."""
    from moesim import api

    del debug
    _check_targets(json, out)
    with progress("reproduce", quiet=quiet) as say:
        result = api.reproduce(*(systems or ()), limit=limit, progress=say)
    _show(result, json, out, quiet=quiet)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def sweep(
    scenario: Scenario,
    axes: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=A,B,C", help="An axis; repeatable, all are combined.")
    ] = None,
    zipped: Annotated[
        list[str] | None, typer.Option("--zip", metavar="PATH=A,B,C", help="Axes that advance together; repeatable.")
    ] = None,
    random: Annotated[int | None, typer.Option(min=1, help="So many points, drawn by the seed.")] = None,
    rank: Annotated[
        str | None, typer.Option("--rank", metavar="METRIC", help="What decides; default: tokens/s.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; default: one a core.")] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="A Ray cluster instead of processes.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Simulate again what is done.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results are kept and read again.")] = Path(
        "out/sweep"
    ),
    seed: Seed = None,
    json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate a grid of scenarios in parallel; interrupted or run again, it does only what is missing."""
    from moesim import sweeping
    from sim.sweep.points import parse_axis

    del debug
    _check_targets(json, out)
    loaded = _load(scenario, None, seed)
    grid = sweeping.Grid(
        axes=[parse_axis(text) for text in axes or ()],
        zipped=[parse_axis(text) for text in zipped or ()],
        n_random=random,
    )
    with progress("points to simulate", quiet=quiet) as say:
        workers = sweeping.Workers(jobs=jobs, folder=out, ray=ray, fresh=fresh, say=say)
        result = sweeping.sweep(loaded, grid, rank, workers)
    _show(result, json, out, quiet=quiet)


@app.command("place")
def place_(
    scenario: Scenario,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option("--export", metavar="FORMAT FILE", help="Write the plan for an engine; see `list formats`."),
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Judge the plan of a file instead of solving one.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also what binds, what would help, and whether EPLB does.")
    ] = False,
    overrides: Overrides = None,
    seed: Seed = None,
    json: Json = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve the scenario's placement: objective, bound, gap, quality on held-out requests; write it for engines."""
    from moesim import api
    from placement.formats import FORMATS, check_export
    from scenarios.files import check_file

    del debug
    _check_targets(json, out)
    if export is not None:
        check_export(*export)
        check_file(export[1])
    loaded = _load(scenario, overrides, seed)
    with heard("reading the trace", quiet=quiet) as told:
        result = api.place(loaded, import_, explain=explain, told=told)
    if export is not None:
        result.export(*export)
    _show(result, json, out, quiet=quiet)
    if export is not None and not quiet and json != "-":
        print(f"Exported: {export[1]} ({FORMATS[export[0]].taken_by})", flush=True)


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="models, hardware, scenarios, policies, solvers or formats.")
    ],
    debug: Debug = False,
) -> None:
    """Show what is shipped."""
    from moesim import listings

    del debug
    listings.show(kind)


@app.command()
def calibrate(
    tables: Annotated[
        list[Path], typer.Argument(metavar="TIMINGS...", help="Tables of timings: .parquet, .csv or .csv.gz.")
    ],
    card: Annotated[
        str | None, typer.Option(metavar="CARD", help="Device card that kernels ran on; see `moesim list hardware`.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the kernel card.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="CARD", help="Kernel card for what the tables do not hold.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the cards to a file.")] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Fit laws of kernels or links to measured timings: cards with their errors on unseen shapes."""
    from moesim import calibrating

    del debug
    calibrating.show(tables, card, name, base, out, json)


@app.command()
def validate(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="kernels, skew, transfer, interpolation, links, host, measured, layers, steps, published, runs, all.",
        ),
    ] = "all",
    tables: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of public tables; default: aiconfigurator-core.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One table of your own: .parquet, .csv or .csv.gz.")
    ] = None,
    card: Annotated[str | None, typer.Option(metavar="CARD", help="Device card that the table is of.")] = None,
    kernels: Annotated[
        str | None, typer.Option(metavar="CARD", help="Kernel card or its file; default: that of the table's engine.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(min=0.0, help="Largest median error, e.g. 0.15; exit 1 where one is larger.")
    ] = None,
    json: Json = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write plots and validation.json.")] = None,
    debug: Debug = False,
) -> None:
    """Judge the model on measurements: errors by operation and data type, against stated limits."""
    from moesim import validating
    from scenarios.errors import ScenarioError

    del debug
    _check_targets(json, out)
    if (table is None) != (card is None):
        raise ScenarioError("--table and --card belong together: a table of timings and the device it is of")
    if table is not None and card is not None:
        raise typer.Exit(validating.show_table(suite, table, card, kernels, limit, json, out))
    raise typer.Exit(validating.show_suites(suite, tables, json, out))


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="result.json, or a folder of --out.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one, of any version.")],
    limit: Annotated[float, typer.Option("--limit", min=0, help="Changes up to this share count as none.")] = 0.0,
    json: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Set two stored results beside each other, plan by plan; exit code 1 where they differ."""
    from moesim import stored

    del debug
    _check_targets(json, None)
    found = stored.diff(before, after, limit)
    _show(found, json, None, quiet=quiet)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead.")] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of scenario files, for completion and checks in editors."""
    import json

    from scenarios.files import write_text
    from scenarios.schema import scenario_schema

    del debug
    text = json.dumps(scenario_schema(), indent=2) + "\n"
    if out is None:
        print(text, end="", flush=True)
        return
    write_text(text, out)


def _check_targets(json: str | None, out: Path | None) -> None:
    """Raise MoesimError where the results could not be written, before they are computed."""
    from scenarios.files import check_file, check_folder

    if json not in (None, "-"):
        check_file(Path(json))
    if out is not None:
        check_folder(out)


def _unfinished(out: Path | None) -> Path | None:
    """Where served loads keep what they have done, until their results are written."""
    return out and out / "unfinished"


def _load(scenario: str, overrides: list[str] | None, seed: int | None) -> Loaded:
    from moesim import api

    return api.load(scenario, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])


def _show(result: Shown, json: str | None, out: Path | None, *, quiet: bool) -> None:
    """Results to the files asked for, then to the terminal: a closed pipe must not cost the files."""
    from scenarios.files import write_or_print

    written = [] if out is None else result.save(out)
    if out is not None:
        shutil.rmtree(out / "unfinished", ignore_errors=True)
    if json is not None:
        write_or_print(result.json_text(), json)
    if quiet or json == "-":
        return
    from rich.console import Console

    Console().print(result)
    report = [path for path in written if path.name == "report.html"]
    if written:
        print(f"Report: {report[0]}" if report else f"Written: {', '.join(map(str, written))}", flush=True)
