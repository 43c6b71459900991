"""The pages that users follow, run: their commands print what they show; and the site, built without warnings."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from docs.executed import PAGES, PageError, comparable, figures, renewed
from docs.generated import commands, filled, in_rest, keys
from moesim.cli import app
from scenarios.schema import scenario_schema

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_show_what_their_commands_print(page: Path, tmp_path: Path) -> None:
    """`make output` writes a page anew; look at what changed, and whether its text is still true."""
    assert comparable(renewed(page, tmp_path)) == comparable(page.read_text())
    for made, shown in figures(page.read_text()):
        assert (tmp_path / made).exists() and shown.exists()


def test_a_page_is_run_in_order_and_its_output_renewed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("""
```yaml
# folder/a.yaml
key: 1
```
```console
$ cat folder/a.yaml \\
    | tail -1
key: 2
$ echo hidden > b.txt; cat b.txt
```
```diff
--- a/b.txt
+++ b/b.txt
@@ -1 +1 @@
-hidden
+seen
```
```console
$ cat b.txt
```
""")
    shown = renewed(page, tmp_path)
    assert "| tail -1\nkey: 1\n$ echo hidden" in shown
    assert shown.endswith("$ cat b.txt\nseen\n```\n")


@pytest.mark.parametrize(
    ("block", "problem"),
    [("sh\nfalse\ntrue\n", "exit code 1"), ("yaml\nkey: 1\n", "name of its file"), ("console\nls\n", "begins with")],
)
def test_a_page_that_does_not_run_is_refused(block: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"```{block}```\n")
    with pytest.raises(PageError, match=problem):
        renewed(tmp_path / "page.md", tmp_path)


def test_the_reference_has_every_command_and_key() -> None:
    text = "\n".join(commands())
    assert [name for name in COMMANDS if f"\n## moesim {name}\n" not in text] == []
    assert all(name in text for name in ("### moesim trace import", "### moesim capture hf", "`--deinterleave` VALUE"))
    rows = "\n".join(keys())
    definitions = scenario_schema()["$defs"]
    names = {key for name, entry in definitions.items() if not name.endswith("Entry") for key in entry["properties"]}
    assert [name for name in sorted(names) if f"`{name}`" not in rows and f".{name}`" not in rows] == []
    assert "| `schedule.step_overhead` | quantity | time, as `3 us` | `0.0` | host time between steps |" in rows
    assert "`workload.split.evaluate` | number, > 0, ≤ 1 |" in rows


def test_commands_that_are_only_shown_have_these_options() -> None:
    """Those that need a GPU or a download stand in fences of text, or in the middle of a sentence."""
    reference = "\n".join(commands()).split("\n## moesim ")
    text = "\n".join(page.read_text() for page in PAGES)
    for command, rest in re.findall(r"(?:```text\n|`)moesim ([a-z]+)([^`\n]*)", text):
        (section,) = [part for part in reference if part.startswith(f"{command}\n")]
        assert [option for option in re.findall(r" (--[\w-]+)", rest) if f"`{option}`" not in section] == []


def test_docstrings_become_lists_of_names() -> None:
    lines = ["A plan.", "", "loads   `float64[layer]` of a", "        mean step * 2.", "", "Raises nothing."]
    in_rest(None, "", "", None, None, lines)
    assert lines[2:] == ["- ``loads``: ``float64[layer]`` of a", "  mean step \\* 2.", "", "Raises nothing."]


def test_the_numbers_of_hardware_cards_have_units_and_sources() -> None:
    text = filled("<!-- generated: hardware -->")
    assert "| `memory_bytes_per_s` | 3.35 TB/s | datasheet | NVIDIA H100 datasheet, H100 SXM |" in text
    assert "| `peak_flop_per_s` bf16 | 989 TFLOP/s | datasheet |" in text


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")), reason="needs moesim[docs]"
)
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = (tmp_path / "site" / "reference" / "scenario.html").read_text()
    assert "workload.synthetic.reuse" in built
