"""Plan files of engines and tools. `FORMATS` lists them; `export_plan` writes one, `import_plan` reads one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from placement.formats import eplb_tensors, exflow, own, sglang, trtllm
from placement.formats.contents import Counts, Deployment, PlanFile
from placement.plan import Placement
from scenarios.errors import PlacementError, TraceError
from traces.formats.files import read_json
from traces.formats.tensors import read_torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file: how it is written and read, how its names end, and who takes it.

    A reader returns a plan, or counts int64[MoE layer, expert] from which the engine makes one itself.
    """

    write: Callable[[PlanFile, Path], None]
    read: Callable[[Path, Deployment], Placement | Counts]
    suffixes: tuple[str, ...]
    taken_by: str


FORMATS: dict[str, Format] = {
    "moesim": Format(write=own.write, read=own.read, suffixes=(".json",), taken_by="moesim: `placement: {file: FILE}`"),
    "sglang": Format(
        write=sglang.write_map,
        read=sglang.read_map,
        suffixes=(".json",),
        taken_by="SGLang: --init-expert-location FILE --ep-num-redundant-experts R",
    ),
    "sglang-counts": Format(
        write=sglang.write_counts,
        read=sglang.read_counts,
        suffixes=(".json",),
        taken_by="SGLang: the same option; it runs EPLB on these counts when it starts",
    ),
    "tensorrt-llm": Format(
        write=trtllm.write,
        read=trtllm.read,
        suffixes=(".yaml", ".yml"),
        taken_by="TensorRT-LLM: moe_config.load_balancer",
    ),
    "ktransformers": Format(
        write=sglang.write_activations,
        read=sglang.read_activations,
        suffixes=(".pt",),
        taken_by="KTransformers: counts for --kt-expert-placement-strategy frequency",
    ),
    "eplb": Format(
        write=eplb_tensors.write,
        read=eplb_tensors.read,
        suffixes=(".npz", ".npy", ".pt"),
        taken_by="tools around DeepSeek's EPLB: its three tensors (.npy: the map alone)",
    ),
    "exflow": Format(
        write=exflow.write, read=exflow.read, suffixes=(".csv",), taken_by="tools around ExFlow: Expert,Node"
    ),
}


def check_export(format: str, path: Path) -> None:
    """Raise PlacementError for an unknown format, or a file name that its reader would not take."""
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(FORMATS)}"
        raise PlacementError(f"unknown plan format '{format}'; {remedy}")
    suffixes = FORMATS[format].suffixes
    if path.suffix not in suffixes:
        raise PlacementError(f"{path}: a file of format {format} ends in {' or '.join(suffixes)}")


def export_plan(format: str, content: PlanFile, path: Path) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises PlacementError as `check_export` does, and where the format cannot hold the plan.
    """
    check_export(format, path)
    try:
        FORMATS[format].write(content, path)
    except (PlacementError, TraceError) as error:
        raise PlacementError(f"{path}: {error}") from None


def import_plan(path: Path, deployment: Deployment) -> Placement | Counts:
    """The plan, or the counts, of a file; its name's ending and content say which format it is.

    Raises PlacementError, with the path, where the file is missing, malformed, or for another model or other ranks.
    """
    if not path.is_file():
        raise PlacementError(f"{path}: no such plan file; `moesim place SCENARIO --export FORMAT FILE` writes one")
    try:
        return FORMATS[_format_of(path)].read(path, deployment)
    except (PlacementError, TraceError) as error:
        raise PlacementError(f"{path}: {error}") from None
    except OSError as error:
        raise PlacementError(f"{path}: cannot be read ({error.strerror}); check its rights") from None


def format_of(path: Path) -> str:
    """Name of the format of a file. Raises PlacementError, with the path, where it is none of ours."""
    try:
        return _format_of(path)
    except (PlacementError, TraceError) as error:
        raise PlacementError(f"{path}: {error}") from None


def _format_of(path: Path) -> str:
    by_key: dict[str, str] = {}
    keys: object = {}
    if path.suffix == ".json":
        by_key = {own.MARK: "moesim", sglang.MAP: "sglang", sglang.COUNT: "sglang-counts"}
        keys = read_json(path)
    elif path.suffix == ".pt":
        by_key = {sglang.COUNT: "ktransformers", eplb_tensors.MAP: "eplb"}
        keys = read_torch(path)
    else:
        found = [name for name, format in FORMATS.items() if path.suffix in format.suffixes]
        if found:
            return found[0]
        endings = sorted({suffix for format in FORMATS.values() for suffix in format.suffixes})
        raise PlacementError(f"files of plans end in {', '.join(endings)}, not in '{path.suffix}'")
    for key, name in by_key.items():
        if isinstance(keys, dict) and key in keys:
            return name
    raise PlacementError(f"holds none of {', '.join(by_key)}; is it a plan?")
