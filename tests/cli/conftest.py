"""The command line, run in this process or in one of its own, in a folder with a tiny model and scenario."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesim.cli import main
from tests.cli.command import CARD, SCENARIO, Done, changed, files_of, run_process

Command = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `tiny.yaml` and its model card."""
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    (tmp_path / "tiny-moe.yaml").write_text(CARD)
    return tmp_path


@pytest.fixture
def moesim(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`moesim(*arguments)`, run in this process and in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Done:
        before = files_of(folder)
        monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        code = exit.value.code
        assert isinstance(code, int)
        return Done(code=code, out=captured.out, err=captured.err, files=changed(before, folder))

    return run


@pytest.fixture
def moesim_process(folder: Path) -> Command:
    """`moesim_process(*arguments)`, run as a process of its own in `folder`."""
    return lambda *arguments: run_process(arguments, folder)
