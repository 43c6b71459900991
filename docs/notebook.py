"""Runs docs/guides/notebook.ipynb and stores what it shows: `python -m docs.notebook [TARGET]`, or `make notebook`.

Needs `pip install 'moesim[notebook]'`. tests/cli/test_python_guide.py runs it, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "guides" / "notebook.ipynb"


def main(target: Path) -> None:
    """Write the notebook with its outputs of now to `target`, without times and names of this machine."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}, record_timing=False).execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"].pop("text/plain")  # the address of the figure
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK)
