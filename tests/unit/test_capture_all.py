"""`capture all`: its parts run on their own, and what one wrote survives the failure of another."""

import argparse
import json
import subprocess
import zipfile

import pytest

from scenarios.errors import MoesimError
from traces.capture.commands import everything, parser_of


def options(out, *more):
    return parser_of("capture").parse_args(["all", "--device", "cpu", "--out", str(out), *more])


class FakeRun:
    """Parts that write a file each; `bad` fails, `slow` runs into its time limit."""

    def __init__(self, bad=(), slow=()):
        self.bad, self.slow, self.seen = bad, slow, {}

    def __call__(self, words, *, timeout, **_):
        name, folder = words[3], everything.Path(words[words.index("--out") + 1])
        self.seen[name] = (words, timeout)
        folder.mkdir(parents=True)
        (folder / f"{name}.csv").write_text("a,b\n1,2\n")
        (folder / "checkpoint.pt").write_bytes(b"0" * 1000)
        if name in self.slow:
            raise subprocess.TimeoutExpired(words, timeout)
        return argparse.Namespace(returncode=2 if name in self.bad else 0, stderr=f"said by {name}\n")


def test_every_part_gets_its_share_of_the_time_and_an_archive(tmp_path, monkeypatch):
    fake = FakeRun()
    monkeypatch.setattr(subprocess, "run", fake)
    everything.run(options(tmp_path, "--minutes", "10", "--corpus", "code=/texts"))
    limits = {name: timeout for name, (_, timeout) in fake.seen.items()}
    assert limits["kernels"] == pytest.approx(0.45 * 600, rel=0.01)
    assert limits["train"] == pytest.approx(600, rel=0.01)  # all that the others left
    assert fake.seen["train"][0][-2:] == ["--corpus", "code=/texts"]
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "kernels.zip", "runs.zip", "summary.json", "train.zip",
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "kernels.zip") as archive:
        assert archive.namelist() == ["kernels.csv"]  # no checkpoint


def test_a_part_that_fails_or_takes_too_long_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", FakeRun(bad=("runs",), slow=("kernels",)))
    with pytest.raises(MoesimError, match="kernels: cut off by its time limit; runs: said by runs"):
        everything.run(options(tmp_path))
    parts = json.loads((tmp_path / "summary.json").read_text())
    assert [(part["name"], part["exit_code"]) for part in parts] == [("kernels", None), ("runs", 2)]
    assert all(zipfile.ZipFile(tmp_path / part["archive"]).namelist() for part in parts)


def test_an_archive_that_is_too_large_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", FakeRun())
    monkeypatch.setattr(everything, "LARGEST_BYTES", 10)
    everything.run(options(tmp_path))
    assert "exceeds 16 MiB" in json.loads((tmp_path / "summary.json").read_text())[0]["message"]
