"""Configuration of Sphinx: `make docs` builds out/docs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import moesim
from docs import generated

project = "moesim"
author = "the moesim authors"
release = version = moesim.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"moesim {release}"
html_copy_source = html_show_sourcelink = False
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"


def fill(_app, _name, source) -> None:
    """Put into a page what is made of the program."""
    source[0] = generated.filled(source[0])


def setup(app) -> None:
    """Register what is done to pages and docstrings."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", generated.in_rest)
