"""What the notebook of the Python interface shows, run again; tests/docs/test_pages.py runs its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, environment

GUIDES = ROOT / "docs" / "guides"


@pytest.mark.slow
def test_the_notebook_stores_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="needs pip install 'moesim[notebook]'")
    pytest.importorskip("nbclient", reason="needs pip install 'moesim[notebook]'")
    printed(["-m", "docs.notebook", str(tmp_path / "now.ipynb")], ROOT)
    stored, now = (outputs(path) for path in (GUIDES / "notebook.ipynb", tmp_path / "now.ipynb"))
    assert stored == now, "run `make notebook`"
    assert sum("image/png" in kinds for kinds in stored) == 3


def printed(arguments: list[str], folder: Path) -> str:
    """What Python prints."""
    command = [sys.executable, *arguments]
    settings = environment() | {"COLUMNS": "96", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def outputs(notebook: Path) -> list[dict[str, Any]]:
    """What the cells of a notebook show: text, tables, and that there is a picture."""
    shown = [one for cell in json.loads(notebook.read_text())["cells"] for one in cell.get("outputs", ())]
    contents = [one.get("data", one) for one in shown]
    return [one | {"image/png": ""} if "image/png" in one else one for one in contents]
