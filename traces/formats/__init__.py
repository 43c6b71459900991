"""Importers of foreign routing recordings. `IMPORTERS` is the list of formats; `import_trace` reads one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from scenarios.errors import TraceError
from traces.counts import ExpertCounts
from traces.formats import flame, gptoss, research, sglang, tables, trtllm, vllm
from traces.recording import ImportOptions
from traces.routing import RoutingTrace

Importer = Callable[[Path, ImportOptions], RoutingTrace | ExpertCounts]

IMPORTERS: dict[str, Importer] = {
    "dynande": tables.import_dynande,
    "esft": tables.import_esft,
    "exflow": research.import_exflow,
    "flame-npz": flame.import_npz,
    "flame-parquet": flame.import_parquet,
    "gptoss-fingerprint": gptoss.import_fingerprint,
    "gptoss-json": gptoss.import_json,
    "moe-balance": research.import_moe_balance,
    "moe-beyond": tables.import_moe_beyond,
    "moe-infinity": research.import_moe_infinity,
    "sglang-per-pass": sglang.import_per_pass,
    "sglang-per-token": sglang.import_per_token,
    "sglang-routed-experts": sglang.import_routed_experts,
    "sglang-stat": sglang.import_stat,
    "speculative-moe": research.import_speculative_moe,
    "trtllm-raw": trtllm.import_raw,
    "trtllm-statistics": trtllm.import_statistics,
    "vllm-hook": vllm.import_hook,
    "vllm-routed-experts": vllm.import_routed_experts,
}


def import_trace(format: str, path: Path, options: ImportOptions) -> RoutingTrace | ExpertCounts:
    """Trace (or counts, where the format only counts) read from `path` in the named format of `IMPORTERS`.

    `provenance.notes` lists every check with its count and what was changed. Raises TraceError, with the path, where
    the format is unknown, the file is missing, malformed or too large, or a check finds the routing unusable.
    """
    importer = IMPORTERS.get(format)
    if importer is None:
        near = difflib.get_close_matches(format, IMPORTERS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(IMPORTERS)}"
        raise TraceError(f"unknown trace format '{format}'; {remedy}")
    if not path.exists():
        raise TraceError(f"{path}: no such file or folder")
    try:
        return importer(path, options)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except OSError as error:
        name = Path(str(error.filename)).name if error.filename else "it"
        raise TraceError(
            f"{path}: cannot read {name} ({error.strerror or error}); check the path and its rights"
        ) from None
    except MemoryError:
        raise TraceError(f"{path}: too large for the memory of this machine; import a part of it") from None
