"""The wheel's hand-kept lists against the folders, declared against imported packages, and the search path."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import moesim

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = ("scenarios", "traces", "hwmodels", "placement", "sim")
IMPORTED_AS = {"PyYAML": "yaml"}


def requirement_names(requirements: list[str]) -> set[str]:
    """Names under which the distributions of a list of requirements are imported."""
    names = {re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


def sources() -> Iterator[Path]:
    """Python files of the program."""
    for folder in ("moesim", *FOLDERS):
        yield from (ROOT / folder).rglob("*.py")


def third_party(statements: Iterator[ast.AST]) -> set[str]:
    """Top-level names of packages, other than ours and Python's, that imports among `statements` name."""
    found = set()
    for node in statements:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"moesim", *FOLDERS}


def statements(node: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """Statements below `node`; or those that an import runs, without bodies of functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        )
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case) and not (at_import and later):
            yield child
            yield from statements(child, at_import=at_import)


def test_the_package_list_names_every_folder_with_code() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    dotted = {".".join(folder.parts) for folder in folders}
    wheel_names = {name if name == "moesim" else f"moesim._app.{name}" for name in dotted}
    assert sorted(SETUPTOOLS["packages"]) == sorted(wheel_names)
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_package_is_mapped_to_its_folder() -> None:
    nested = {f"moesim._app.{folder}": folder for folder in FOLDERS}
    assert SETUPTOOLS["package-dir"] == {"moesim": "moesim", **nested}


def test_package_data_covers_every_other_file() -> None:
    covered = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / SETUPTOOLS["package-dir"][package]
        covered |= {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for folder in ("moesim", *FOLDERS) for path in (ROOT / folder).rglob("*") if path.is_file()}
    shipped = {path for path in files if path.suffix not in {".py", ".pyc", ".nbi", ".nbc"} and path.name[0] != "."}
    assert shipped, "no data at all: the folders have moved"
    assert sorted(map(str, shipped - covered)) == []


def test_every_imported_package_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = requirement_names(PROJECT["project"]["dependencies"])
    optional = requirement_names(
        [name for extra in ("capture", "ray", "tables", "speed", "notebook") for name in extras[extra]]
    )
    optional |= {"triton"}  # comes with torch for CUDA, and only there
    for path in sources():
        tree = ast.parse(path.read_text())
        assert third_party(statements(tree, at_import=False)) <= required | optional, (
            f"{path}: imports what pyproject.toml does not list"
        )
        captures = "capture" in path.parts and path.parent.name != "commands"
        if not path.stem.endswith("_numba") and not captures:
            at_import = third_party(statements(tree, at_import=True))
            assert at_import <= required, f"{path}: an optional package must be imported inside a function"


def test_version_is_stated_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "moesim.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", moesim.__version__)


def test_public_names_come_from_the_api() -> None:
    from moesim import api
    from scenarios import errors

    for name in set(moesim.__all__) - {"__version__"}:
        assert getattr(moesim, name) is getattr(errors if hasattr(errors, name) else api, name)
    with pytest.raises(AttributeError, match="has no attribute 'bogus'"):
        _ = moesim.bogus


@pytest.fixture
def search_path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A copy of the search path in place of the real one."""
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", path)
    return path


def load_launcher(file: Path) -> ModuleType:
    """The module of a `moesim/__init__.py`, run under another name."""
    spec = importlib.util.spec_from_file_location("launcher_under_test", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checkout_comes_first_on_the_search_path(search_path: list[str]) -> None:
    search_path.insert(0, "/elsewhere")
    load_launcher(ROOT / "moesim" / "__init__.py")
    assert search_path[:2] == [str(ROOT), "/elsewhere"]
    load_launcher(ROOT / "moesim" / "__init__.py")
    assert search_path[:2] == [str(ROOT), "/elsewhere"], "a second import must add nothing"


def test_a_wheel_puts_its_own_folder_first(
    search_path: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOLDERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "moesim" / "_app").mkdir(parents=True)
    launcher = tmp_path / "moesim" / "__init__.py"
    launcher.write_bytes((ROOT / "moesim" / "__init__.py").read_bytes())
    load_launcher(launcher)
    assert search_path[0] == str(tmp_path / "moesim" / "_app")


@pytest.mark.parametrize("origin", ["/site-packages/traces/__init__.py", None])
def test_a_foreign_package_that_is_loaded_already_is_refused(
    origin: str | None, search_path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = ModuleType("traces")
    if origin is not None:
        foreign.__file__ = origin
    monkeypatch.setitem(sys.modules, "traces", foreign)
    before = list(search_path)
    with pytest.raises(ImportError, match=r"moesim has a package 'traces' of its own, but .* is imported already"):
        load_launcher(ROOT / "moesim" / "__init__.py")
    assert search_path == before


def test_importing_moesim_loads_no_dependency() -> None:
    required = sorted(requirement_names(PROJECT["project"]["dependencies"]))
    code = f"import sys, moesim; print(*(name for name in {required} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
