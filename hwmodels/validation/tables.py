"""Where public tables of timings lie: in the package aiconfigurator-core, or in a folder of the same files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from scenarios.errors import HardwareError

ORIGIN = "aiconfigurator-core 0.12.0, Apache-2.0"
PACKAGE = "aiconfigurator_core"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of that package: of which system, family of operations, engine with version, and kind of operation."""

    system: str
    family: str
    engine: str
    version: str
    table: str

    @property
    def name(self) -> str:
        """Short name, such as `h200_sxm moe vllm 0.24.0`."""
        return f"{self.system} {self.table.replace('_', ' ')} {self.engine} {self.version}"

    def find(self, folder: Path) -> Path | None:
        """Its file below `folder`: laid out as in the package, or flat with `engine_version[_table]` as name."""
        family = folder / self.system / self.family
        stem, kind = f"{self.engine}_{self.version}", self.table.removeprefix(f"{self.engine}_")
        nested = family / self.engine / self.version / f"{self.table}_perf.parquet"
        named = sorted(family.glob(f"{stem}_*{kind}*.parquet"))
        short = [family / f"{stem}_{kind.partition('_')[0]}.parquet", family / f"{stem}.parquet"]
        return next((path for path in (nested, *named, *short) if path.is_file()), None)

    def path(self, folder: Path) -> Path:
        """Its file below `folder`; raises HardwareError where it is not there."""
        found = self.find(folder)
        if found is None:
            raise HardwareError(f"{folder}: holds no table {self.name}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures that someone read off a publication: a file beside the folder of tables, in no package."""

    file: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.file).name

    def find(self, folder: Path) -> Path | None:
        """The file beside `folder`, if it is there."""
        path = folder.parent / self.file
        return path if path.is_file() else None


def tables_folder(stated: Path | None) -> Path:
    """The folder stated, or that of the installed package. Raises HardwareError where there is neither."""
    if stated is not None:
        if not stated.is_dir():
            raise HardwareError(f"{stated}: no such folder of tables")
        return stated
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        remedy = "pip install 'moesim[tables]', or name a folder with --tables"
        raise HardwareError(f"the public tables of timings are not installed; {remedy}")
    return Path(spec.origin).parent / "systems" / "data"
