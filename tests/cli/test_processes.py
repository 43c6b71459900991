"""The command as a process: closed pipes, interrupts, tracebacks on request, and what it imports."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import ROOT, Done, changed, command_line, environment, files_of
from tests.cli.conftest import Command

pytestmark = pytest.mark.slow

HEAVY = (
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "numba",
    "torch",
    "simpy",
    "networkx",
    "pydantic",
    "jinja2",
)
JSON_FILE = ["run", "tiny.yaml", "--json", "r.json"]


def imported_by(*arguments: str, folder: Path) -> set[str]:
    """The heavy packages that the command has imported when it ends."""
    code = (
        "import atexit, os, sys\n"
        f"atexit.register(lambda: os.write(2, ' '.join(m for m in {HEAVY} if m in sys.modules).encode()))\n"
        f"sys.argv = ['moesim', *{arguments!r}]\n"
        "from moesim.cli import main\nmain()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(ended.stderr.split())


def test_help_imports_nothing_heavy(folder: Path) -> None:
    assert imported_by("--help", folder=folder) <= {"pydantic"}  # Typer's own
    assert imported_by("trace", "synth", "--help", folder=folder) <= {"pydantic"}


def test_lists_import_no_engine_and_no_plots(folder: Path) -> None:
    unwanted = {"pandas", "pyarrow", "matplotlib", "numba", "torch", "scipy"}
    assert not imported_by("list", "policies", folder=folder) & unwanted
    assert "numpy" not in imported_by("list", "models", folder=folder)


def test_a_comparison_without_a_report_imports_no_plots(folder: Path) -> None:
    used = imported_by("compare", "tiny.yaml", "--json", "r.json", folder=folder)
    assert "numpy" in used
    assert not used & {"pandas", "pyarrow", "matplotlib", "numba", "torch"}


def test_import_moesim_imports_nothing_else() -> None:
    code = f"import sys, moesim; print(*(m for m in {(*HEAVY, 'yaml', 'rich', 'typer')} if m in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "\n"


SCIPY = ("scipy.optimize", "scipy.special", "scipy.sparse")


def test_the_interface_waits_for_no_solver_and_no_plots() -> None:
    code = f"import sys, moesim; moesim.load; print(*(m for m in {(*SCIPY, *HEAVY)} if m in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    used = set(ended.stdout.split())
    assert "numpy" in used  # the interface is there
    assert used <= {"numpy", "scipy", "simpy", "pydantic", "jinja2"}


@pytest.mark.parametrize(
    "arguments", [["list", "models"], ["schema"], ["--version"], ["-h"], ["run", "tiny.yaml", "--json", "-"], JSON_FILE]
)
def test_a_closed_pipe_ends_the_command_without_noise(folder: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            command_line(arguments),
            cwd=folder,
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == 1
    assert (folder / "r.json").exists() == (arguments == JSON_FILE)


def test_a_terminal_shows_progress_beside_the_results(folder: Path, moesim: Command) -> None:
    expected = moesim("compare", "tiny.yaml").succeeded().out
    ours, terminal = pty.openpty()
    try:
        ended = subprocess.run(
            command_line(["compare", "tiny.yaml"]),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            check=False,
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(ours)
    assert (ended.returncode, ended.stdout.decode()) == (0, expected)
    assert "reading the trace" in shown


def test_debug_shows_the_traceback(moesim_process: Command) -> None:
    done = moesim_process("run", "tiny.yaml", "--set", "cluster.nodes=0", "--debug")
    assert (done.code, done.out, done.files) == (2, "", set())
    assert done.err.startswith("Traceback")
    assert "ScenarioError: --set cluster.nodes: must be greater than 0" in done.err
    assert done.err.endswith("moesim: --set cluster.nodes: must be greater than 0, got 0\n")
    moesim_process("run", "tiny.yaml", "--set", "cluster.nodes=0").refused(2, "moesim: --set cluster.nodes")


SLOW_WRITE = """
import sys, time
import numpy as np
from moesim.cli import main

def write_half(stream, **arrays):
    stream.write(b"half of a trace")
    stream.flush()
    time.sleep(120)

np.savez = write_half
sys.argv = ["moesim", *sys.argv[1:]]
main()
"""

SIGNAL_LATER = """
import os, signal, sys, threading
from moesim.cli import main

timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
timer.daemon = True
timer.start()
sys.argv = ["moesim", *sys.argv[1:]]
main()
"""


def stopped_while_writing(folder: Path, how: signal.Signals, *arguments: str) -> Done:
    """The command, sent a signal when half of its trace is in the temporary file."""
    before = files_of(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITE, *arguments], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 60
    while not any(part.stat().st_size for part in folder.glob(".*.part")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "the temporary file never came"
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return Done(code=process.returncode, out="", err=err, files=changed(before, folder))


def write_request(folder: Path) -> None:
    """`IN.npz`: a request as moe-balance records it, 4 tokens through 3 layers with 2 of 16 experts."""
    ids = np.arange(4 * 3 * 2).reshape(4, 3, 2) % 16
    np.savez(folder / "in.npz", routed_experts=ids)


@pytest.mark.parametrize("old", [None, b"the old trace"])
@pytest.mark.parametrize("command", ["synth", "import"])
def test_an_interrupted_write_leaves_what_was_there(folder: Path, command: str, old: bytes | None) -> None:
    write_request(folder)
    if old is not None:
        (folder / "t.npz").write_bytes(old)
    arguments = {
        "synth": ["trace", "synth", "t.npz", "--model", "tiny-moe.yaml", "--tokens", "64"],
        "import": ["trace", "import", "moe-balance", "in.npz", "t.npz", "--experts", "16"],
    }[command]
    done = stopped_while_writing(folder, signal.SIGINT, *arguments)
    assert (done.code, done.files) == (130, set())
    assert "Traceback" not in done.err
    killed = stopped_while_writing(folder, signal.SIGKILL, *arguments)
    assert killed.code == -signal.SIGKILL
    assert "t.npz" not in killed.files


def test_an_interrupt_in_the_middle_of_work_ends_with_130(folder: Path) -> None:
    before = files_of(folder)
    arguments = ["trace", "synth", "t.npz", "--model", "deepseek-v2-lite", "--tokens", "20000000"]
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_LATER, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr
    assert changed(before, folder) == set()
