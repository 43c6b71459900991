"""The documents against the code: links, the README's scenario and commands, metrics, fields of the result file."""

import ast
import re
from pathlib import Path

import pytest
import typer

from moesim.cli import app
from moesim.listings import LISTINGS
from moesim.trace_commands import trace_app
from scenarios.loader import load_scenario
from tests.fake_results import fake_comparison

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()
METRIC_FILES = ("metrics.py", "offload/measures.py", "serving/measures.py")
NOMENCLATURE = (ROOT / "docs" / "reference" / "nomenclature.md").read_text()


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Names in back quotes in the first column of the tables of a text."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def metric_names() -> set[str]:
    """Metrics that functions called `..._metrics` give, with `<link kind>` or `<number>` for what is filled in."""
    trees = [
        ast.parse((ROOT / "sim" / name).read_text())
        for name in (
            "metrics.py",
            "batch_measures.py",
            "energy.py",
            "expert_widths.py",
            "offload/measures.py",
            "serving/measures.py",
            "elastic/measures.py",
            "stream/measures.py",
        )
    ]
    bodies = [node for tree in trees for node in tree.body]
    functions = [node for node in bodies if isinstance(node, ast.FunctionDef) and node.name.endswith("_metrics")]
    nodes = [node for function in functions for node in ast.walk(function)]
    keys = [key for node in nodes if isinstance(node, ast.Dict) for key in node.keys]
    keys += [node.slice for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)]
    filled = {
        "".join(part.value if isinstance(part, ast.Constant) else _filled(part) for part in key.values)
        for key in keys
        if isinstance(key, ast.JoinedStr)
    }
    return filled | {key.value for key in keys if isinstance(key, ast.Constant)}


def _filled(part: ast.expr) -> str:
    return "<link kind>" if ast.unparse(part).endswith("kind}") else "<number>"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    pattern = r"`((?:moesim|sim|placement|hwmodels|traces|scenarios|tests|benchmarks|docs)/[\w/-]+\.\w+)`"
    named = re.findall(pattern, document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_scenario_loads(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(README.partition("```yaml\n")[2].partition("```")[0])
    spec = load_scenario(tmp_path / "scenario.yaml").spec
    assert spec.compare is not None
    assert len(spec.compare.placement) == 3


def test_the_readme_names_every_command() -> None:
    named = {line.split()[1] for line in first_cells(section(README, "Commands"))}
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert "{" + ",".join(typer.main.get_command(trace_app).commands) + "}" in README  # type: ignore[attr-defined]
    assert "{" + ",".join(LISTINGS) + "}" in README


def test_every_metric_is_defined_once() -> None:
    defined = first_cells(section(NOMENCLATURE, "Metrics"))
    assert len(defined) == len(set(defined))
    assert set(defined) == metric_names()
    assert len(defined) > 10


def test_every_field_of_the_result_file_is_described() -> None:
    written = fake_comparison().as_json()
    entries = [written, written["results"][0], written["constants"][0]]
    described = section(NOMENCLATURE, "result.json")
    assert [name for entry in entries for name in entry if f'"{name}"' not in described] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"^make (\w+)|`make (\w+)", path.read_text(), re.M)}
    assert {first or second for first, second in named} <= targets
