"""The wheel, also that of the source distribution: beside foreign packages of our names it runs and harms none."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("scenarios", "traces", "hwmodels", "placement", "sim")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
FOREIGN = "raise RuntimeError('a foreign package was imported')\n"

pytestmark = pytest.mark.slow


def output_of(command: list[str], cwd: Path, search_path: Path | None = None) -> str:
    """Standard output of a command that must succeed, run with one more folder on Python's search path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if search_path is not None:
        environment["PYTHONPATH"] = str(search_path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that a build needs, so that nothing left in `build/` can slip in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("moesim", *FOLDERS):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    return built(source, tmp_path_factory.mktemp("dist"))


def built(source: Path, folder: Path) -> Path:
    """The wheel of a folder of sources, or of their archive, written to `folder`."""
    output_of([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    return next(folder.glob("moesim-*.whl"))


def contents(wheel: Path) -> dict[str, int]:
    """CRC of every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_of_the_source_distribution_is_that_of_the_checkout(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    output_of([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path), str(source)], tmp_path)
    (archive,) = tmp_path.glob("moesim-*.tar.gz")
    assert contents(built(archive, tmp_path)) == contents(wheel)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the wheel and foreign packages of our names; to be read only."""
    target = tmp_path_factory.mktemp("installed") / "site"
    output_of([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], target.parent)
    landed = sorted(path.name for path in target.iterdir() if path.name in FOLDERS)
    assert landed == [], f"the wheel brings top-level packages {landed}"
    for folder in FOLDERS:
        (target / folder).mkdir()
        (target / folder / "__init__.py").write_text(FOREIGN)
    return target


def test_both_commands_run_beside_foreign_packages(site: Path, tmp_path: Path) -> None:
    by_script = output_of([str(site / "bin" / "moesim"), "list", "scenarios"], tmp_path, site)
    by_module = output_of([sys.executable, "-m", "moesim", "list", "scenarios"], tmp_path, site)
    assert "examples/first" in by_script
    assert by_script == by_module
    assert "commit" not in output_of([sys.executable, "-m", "moesim", "--version"], tmp_path, site)


def test_a_simulation_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    command = [str(site / "bin" / "moesim"), "run", "examples/first", "--set", "workload.steps=2", "--out", "out"]
    output_of(command, tmp_path, site)
    assert (tmp_path / "out" / "result.json").stat().st_size > 0
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


def test_every_module_comes_from_inside_the_wheel(site: Path, tmp_path: Path) -> None:
    code = f"import moesim, importlib; print(*(importlib.import_module(name).__file__ for name in {FOLDERS}))"
    files = output_of([sys.executable, "-c", code], tmp_path, site).split()
    assert files == [str(site / "moesim" / "_app" / folder / "__init__.py") for folder in FOLDERS]


def test_a_foreign_package_that_was_imported_first_is_refused(site: Path, tmp_path: Path) -> None:
    site = shutil.copytree(site, tmp_path / "site")
    (site / "traces" / "__init__.py").write_text("")
    code = "import traces\ntry:\n    import moesim\nexcept ImportError as error:\n    print(error)"
    message = output_of([sys.executable, "-c", code], tmp_path, site)
    assert f"but {site}/traces/__init__.py is imported already" in message


def test_pypi_traces_survives_the_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [*PIP, "install", "--no-deps", "--retries", "0", "--timeout", "5", "--target", str(target), "traces"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("the package index cannot be reached")
    before = {path: path.read_bytes() for path in (target / "traces").glob("*.py")}
    output_of([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], tmp_path)
    assert "examples/first" in output_of([str(target / "bin" / "moesim"), "list", "scenarios"], tmp_path, target)
    assert {path: path.read_bytes() for path in (target / "traces").glob("*.py")} == before
    assert before
