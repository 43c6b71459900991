"""A page as one file: style, scripts and data lie inside, and the page itself forbids whatever else would be loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent
TABLES = ("page.js",)
CHARTS = ("page.js", "echarts.min.js", "charts.js", "steptime.js", "timeline.js", "heatmaps.js")
"""Scripts of a page of tables, and of one with interactive charts, in the order in which they run."""


def render(template: str, scripts: Sequence[str], charts: Sequence[object] = (), **content: object) -> str:
    """HTML of a template; all text is escaped. `charts` is what the scripts draw: plain values, one entry a section.

    Only the page's own scripts run: the policy names them by their SHA-256.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = [_text(name) for name in scripts]
    return environment.get_template(template).render(
        style=_text("style.css"),
        scripts=texts,
        hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in texts),
        charts=_json_in_html(charts),
        **content,
    )


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_in_html(value: object) -> str:
    """JSON without the letters that could end a script or begin a comment in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
