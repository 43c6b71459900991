"""What a command did, and the scenario and files that the tests of the command line share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CARD = """\
name: tiny-moe
sources: {default: {source: "made up for the tests", kind: assumed}}
n_layers: 3
hidden_size: 512
vocab_size: 4096
attention: {kind: gqa, n_heads: 8, n_kv_heads: 4, head_dim: 64}
n_experts: 16
top_k: 2
expert_intermediate_size: 256
"""

SCENARIO = """\
name: tiny
model: tiny-moe.yaml
cluster: {node: h200-sxm-8, nodes: 1}
workload:
  synthetic: {tokens: 512, sequence_tokens: 32}
  tokens_per_device: 8
  steps: 2
schedule: {overlap: none}
compare:
  placement: [{solver: contiguous}, {solver: eplb, redundant: 8}, {solver: greedy}]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished command: exit code, output, and the files of its folder that appeared or changed."""

    code: int
    out: str
    err: str
    files: set[str]

    def refused(self, code: int, *texts: str) -> None:
        """Check that a message with `texts` was all that came of the command."""
        assert (self.code, self.out, self.files) == (code, "", set()), self
        for text in texts:
            assert text in self.err, f"{text!r} is not in {self.err!r}"
        assert "Traceback" not in self.err
        assert "internal error" not in self.err

    def succeeded(self) -> Done:
        """This command, after a check that it ended well and without a complaint."""
        assert (self.code, self.err) == (0, ""), self
        return self


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    """Names of the files below `folder` that are new, gone or different."""
    after = files_of(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def environment() -> dict[str, str]:
    """Variables of a process that runs the command from the checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONWARNINGS": "default"}


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command as its own process."""
    return [sys.executable, "-m", "moesim", *arguments]


def run_process(arguments: Sequence[str], folder: Path) -> Done:
    """The command run in `folder` as its own process."""
    before = files_of(folder)
    ended = subprocess.run(
        command_line(arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return Done(code=ended.returncode, out=ended.stdout, err=ended.stderr, files=changed(before, folder))
