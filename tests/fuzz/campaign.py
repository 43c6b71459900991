"""One worker a process: inputs of an entry point made, read, judged; and the parent that watches it.

Input `number` of an entry depends on nothing but the seed of the campaign, the entry and the number.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import FrameType

from scenarios.errors import MoesimError
from tests.fuzz import hostile
from tests.fuzz.canary import NAME, Ear
from tests.fuzz.corpus import SCENARIO_FILE, TEXT, Reader
from tests.fuzz.entries import ENTRIES
from tests.fuzz.generate import grafted
from tests.fuzz.mutate import files_of, mutated

FINE = ("read", "refused", "slow")
SAME_SEED = 64
"""Inputs in a row that are made of the same valid files."""
HOSTILE_SHARE = 0.04
ADDRESS_BYTES = 3 << 30  # beside what the worker holds when it begins
MOST_GROWTH_BYTES = 1 << 30  # of the resident memory, by one input
READERS_FLOOR_S = 20.0


class Hang(BaseException):
    """An input took longer than the limit; not an Exception, so that no reader catches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of an input: `read`, `refused`, or a defect; where, and the text or traceback."""

    number: int
    outcome: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Inputs of one entry, the limit of each [s], the campaign's seed, and the folder that keeps what fails."""

    entry: str
    numbers: range
    seed: int
    limit_s: float
    keep: Path | None


def found_by(job: Job) -> Iterator[Found]:
    """What came of every input, in order, each read in this process under its limit."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        home = Path.cwd()
        os.chdir(folder)
        try:
            yield from _inputs(job, Path(folder).resolve())
        finally:
            os.chdir(home)


def _inputs(job: Job, work: Path) -> Iterator[Found]:
    folder, ear = work / "input", Ear(work)
    read: Reader | None = None
    originals: dict[Path, bytes] = {}
    seeds = ENTRIES[job.entry].seeds
    for number in job.numbers:
        if read is None or number % SAME_SEED == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            read = seeds[number // SAME_SEED % len(seeds)](folder)
            originals = {path: path.read_bytes() for path in files_of(folder)}
        changed, what = _change(originals, Random(f"{job.seed} {job.entry} {number}"))
        (work / "what").write_text(what)
        found = _judged(job, number, read, ear, work)
        if found.outcome not in FINE:
            _keep(job, found, folder, what)
        yield found
        _restore(changed, originals[changed])


def _change(originals: dict[Path, bytes], rng: Random) -> tuple[Path, str]:
    """One file mutated, or something hostile put in its place."""
    path = rng.choice(list(originals))
    if rng.random() < HOSTILE_SHARE:
        name = rng.choice(list(hostile.CONTENTS) if path.name == TEXT else hostile.names())
        hostile.put(name, path)
        return path, f"{path.name}: {name}"
    if path.name == SCENARIO_FILE and rng.random() < 0.5:
        path.write_bytes(grafted(originals[path], rng))
    else:
        path.write_bytes(mutated(originals[path], path.name, rng))
    return path, f"{path.name}: mutated"


def _restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    path.write_bytes(content)


def _judged(job: Job, number: int, read: Reader, ear: Ear, work: Path) -> Found:
    """The input read: what it came to, and whether it did more than it should."""
    before = _resident_peak_bytes()
    ear.heard.clear()
    outcome, text = _outcome(read, job, ear)
    if (work / NAME).exists() or ear.heard:
        shutil.rmtree(work / NAME, ignore_errors=True)
        return Found(number=number, outcome="executed", text="\n".join(ear.heard) + text)
    growth = _resident_peak_bytes() - before
    if growth > MOST_GROWTH_BYTES and outcome in FINE:
        return Found(number=number, outcome="memory", text=f"the peak grew by {growth >> 20} MiB\n{text}")
    if outcome == "refused" and ENTRIES[job.entry].named and not names_input(text, work / "input"):
        return Found(number=number, outcome="unnamed", text=text)
    return Found(number=number, outcome=outcome, text=text)


def _outcome(read: Reader, job: Job, ear: Ear) -> tuple[str, str]:
    works = ENTRIES[job.entry].works
    _set_alarms(job.limit_s)
    ear.listening = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read()
    except MoesimError as error:
        return ("refused" if error.exit_code in (2, 3) and str(error) else "silent"), str(error)
    except Hang:
        return ("slow" if works else "hang"), traceback.format_exc()
    except MemoryError:  # the command line ends with exit code 2 and a remedy
        return ("refused" if works else "memory"), traceback.format_exc()
    except BaseException as error:
        return type(error).__name__, traceback.format_exc()
    finally:
        ear.listening = False
        _set_alarms(0)
    return "read", ""


def _set_alarms(limit_s: float) -> None:
    """Ring after so much time of the processor, or ten times as much by the clock, since the machine may be busy."""
    for number, timer, factor in ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 10)):
        signal.signal(number, _ring)
        signal.setitimer(timer, factor * limit_s)


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


def names_input(text: str, folder: Path) -> bool:
    """Whether a message names a file of the input, or the folder that it is."""
    return str(folder) in text or any(path.name in text for path in folder.rglob("*"))


def _resident_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _keep(job: Job, found: Found, folder: Path, what: str) -> None:
    """The failing input with its report, below the campaign's folder."""
    if job.keep is None:
        return
    kept = job.keep / job.entry.replace(" ", "-") / f"{found.number}-{found.outcome}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / "report.txt").write_text(
        f"{job.entry} {found.number} seed {job.seed}: {what}\n{found.text}", errors="replace"
    )
    for path in files_of(folder):
        if path.stat().st_size < 1 << 20 and os.access(path, os.R_OK):
            shutil.copy(path, kept / path.name)


def _work(job: Job, pipe: Connection) -> None:
    """Body of a worker process: what is found goes to the parent, one message an input."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + ADDRESS_BYTES, resource.RLIM_INFINITY))
    os.umask(0o022)
    for found in found_by(job):
        pipe.send(found)
    pipe.send(None)


def watched(job: Job) -> Iterator[Found]:
    """What a worker process finds; one that dies or stands still is ended, its input counted, and a new one goes on."""
    left: Sequence[int] = job.numbers
    while left:
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        now = Job(
            entry=job.entry, numbers=range(left[0], left[-1] + 1), seed=job.seed, limit_s=job.limit_s, keep=job.keep
        )
        worker = context.Process(target=_work, args=(now, theirs), daemon=True)
        worker.start()
        theirs.close()
        n_seen, ended = 0, "died"
        try:
            while ours.poll(12 * job.limit_s + READERS_FLOOR_S) or (
                worker.is_alive() and not (ended := "stands still")
            ):
                found = ours.recv()
                if found is None:
                    return
                n_seen += 1
                yield found
        except EOFError:
            ended = "died"
        worker.kill()
        worker.join()
        yield Found(number=left[n_seen], outcome=ended, text=f"exit code {worker.exitcode}")
        left = left[n_seen + 1 :]
