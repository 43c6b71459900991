"""`moesim capture` and its twin for bare machines, with packages missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.errors import MoesimError
from traces.capture import commands

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = "import sys\nfor name in {names!r}:\n    sys.modules[name] = None\n"
ABSENT = ("pydantic", "yaml", "typer", "rich", "scipy", "simpy", "networkx", "matplotlib", "jinja2", "pulp")


def python(code, *names):
    blocked = BLOCKED.format(names=names)
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_help_of_every_command_needs_numpy_alone():
    code = "from traces.capture.commands import parser_of"
    done = python(code + "\nparser_of('x').print_help()", *ABSENT, "torch", "transformers")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in commands.COMMANDS)


def replace_kernels(monkeypatch, name):
    """A command `kernels` that misses a module."""

    def run(_):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("traces.capture.commands.kernels.run", run)
    monkeypatch.setattr("traces.capture.commands.kernels.add_options", lambda _: None)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_package_is_named_with_its_remedy(missing, monkeypatch):
    replace_kernels(monkeypatch, missing)
    with pytest.raises(MoesimError, match=rf"needs {missing}.*pip install 'moesim\[capture\]'"):
        commands.main(["kernels"], "moesim capture")


def test_another_missing_module_is_not_blamed_on_torch(monkeypatch):
    replace_kernels(monkeypatch, "traces.nowhere")
    with pytest.raises(ModuleNotFoundError, match=r"traces\.nowhere"):
        commands.main(["kernels"], "moesim capture")


def test_wrong_options_exit_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["bogus"], "moesim capture")
    assert ended.value.code == 2
    assert "invalid choice: 'bogus'" in capsys.readouterr().err


@pytest.mark.slow
def test_kernels_are_captured_with_torch_and_numpy_alone(tmp_path):
    pytest.importorskip("torch")
    code = (
        "from traces.capture.commands import main\n"
        "options = ['--device', 'cpu', '--only', 'copies', '--minutes', '0.01']\n"
        f"main(['kernels', *options, '--out', {str(tmp_path)!r}], 'x')"
    )
    done = python(code, *ABSENT, "transformers")
    assert done.returncode == 0, done.stderr
    assert "copies.csv" in done.stdout
    assert (tmp_path / "copies.csv").read_text().startswith("direction,host_memory,bytes,streams,under,latency")
    assert '"torch"' in (tmp_path / "provenance.json").read_text()


def test_a_gpu_that_is_not_there_is_a_clear_error(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MoesimError, match="no CUDA GPU"):
        commands.main(["kernels", "--device", "cuda", "--out", str(tmp_path)], "capture")
