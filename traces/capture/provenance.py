"""What a recording was made on and with: device, versions, clocks, date, command."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy
import torch

from scenarios.files import write_text

PROVENANCE = "provenance.json"
CPU_INFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
DEFAULT_CACHE_BYTES = 64 << 20  # where the system does not tell: as large as that of few devices
QUERY = "clocks.sm,clocks.mem,driver_version,power.draw"
SMI_LIMIT_S = 20


def provenance(device: torch.device) -> dict[str, object]:
    """Facts of the machine and of this process, for a JSON file."""
    found: dict[str, object] = {
        "device": device_name(device),
        "device_type": device.type,
        "host": cpu_model(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m traces.capture", *sys.argv[1:]]),
        "clocks": clocks(device),
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "n_sms": torch.cuda.get_device_properties(device).multi_processor_count}
    return found


def write_provenance(facts: Mapping[str, object], path: Path) -> None:
    """Write the facts as JSON, whole or not at all."""
    write_text(json.dumps(facts, indent=2) + "\n", path)


def read_provenance(path: Path) -> dict[str, object]:
    """Facts that a file holds; none where it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def device_name(device: torch.device) -> str:
    """Name of the device as its maker states it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model(info: Path = CPU_INFO) -> str:
    """Model name of the CPU, or its architecture where the system does not tell."""
    return _cpu_field("model name", info) or platform.processor() or platform.machine()


def clocks(device: torch.device) -> dict[str, str]:
    """Clocks at this moment: MHz of the CPU, and of a GPU what nvidia-smi tells."""
    found = {"cpu_mhz": _cpu_field("cpu MHz", CPU_INFO)}
    if device.type == "cuda" and shutil.which("nvidia-smi") is not None:
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", f"--id={device.index or 0}"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=SMI_LIMIT_S)
        found |= dict(zip(QUERY.split(","), told.stdout.strip().split(", "), strict=False))
    return found


def cache_bytes(device: torch.device, caches: Path = CACHES) -> int:
    """Size of the last cache: L2 of a GPU, the largest of a CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", 0)) or DEFAULT_CACHE_BYTES
    sizes = [path.read_text(encoding="ascii").strip() for path in caches.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=DEFAULT_CACHE_BYTES)


def _cpu_field(name: str, info: Path) -> str:
    """First value of a field of /proc/cpuinfo; empty where there is none."""
    if not info.is_file():
        return ""
    lines = info.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
