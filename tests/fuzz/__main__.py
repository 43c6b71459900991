"""`python -m tests.fuzz [--n N] [--seed S] [ENTRY...]`: a campaign of mutated inputs over the entry points."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.campaign import FINE, Found, Job, watched
from tests.fuzz.entries import ENTRIES


def main() -> int:
    """Run the campaign; 1 where anything but reading and refusing was found."""
    options = _options()
    names = options.entries or list(ENTRIES)
    unknown = [name for name in names if name not in ENTRIES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], ENTRIES, n=1)
        print(f"no entry '{unknown[0]}'" + (f" (did you mean '{near[0]}'?)" if near else f"; {', '.join(ENTRIES)}"))
        return 2
    total = sum(ENTRIES[name].weight for name in names)
    jobs = [
        Job(
            entry=name,
            numbers=range(options.first, options.first + max(1, round(options.n * ENTRIES[name].weight / total))),
            seed=options.seed,
            limit_s=options.limit,
            keep=options.keep,
        )
        for name in names
    ]
    counts: dict[str, Counter[str]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for job, (found, seconds) in zip(jobs, pool.map(_all_found, jobs), strict=True):
            counts[job.entry] = Counter(one.outcome for one in found)
            print(_line(job.entry, counts[job.entry], seconds), flush=True)
            for text in dict.fromkeys(_signature(one) for one in found if one.outcome not in FINE):
                print(f"    {text}")
    together = sum(counts.values(), Counter[str]())
    print(_line("all", together, 0.0))
    return 0 if set(together) <= set(FINE) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"default: all of {', '.join(ENTRIES)}")
    parser.add_argument("--n", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes at a time")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of the processor that an input may take")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="folder for inputs that fail")
    options = parser.parse_args()
    options.keep = options.keep.absolute()
    return options


def _all_found(job: Job) -> tuple[Sequence[Found], float]:
    begun = time.monotonic()
    return list(watched(job)), time.monotonic() - begun


def _signature(found: Found) -> str:
    """What failed and where in the project, so that like failures are told once."""
    lines = found.text.strip().splitlines() or [""]
    places = [line.strip() for line in lines if line.strip().startswith("File ") and "/tests/fuzz/" not in line]
    own = [place for place in places if "site-packages" not in place and "/lib/python" not in place]
    return f"{found.outcome}: {lines[-1][:160]} {(own or places or [''])[-1]}".strip()


def _line(name: str, counts: Counter[str], seconds: float) -> str:
    defects = {outcome: n for outcome, n in counts.items() if outcome not in FINE}
    told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(defects.items())) or "no defect"
    fine = "".join(f" {counts[outcome]:7} {outcome}" for outcome in FINE)
    return f"{name:28} {sum(counts.values()):7} inputs{fine}  {told} [{seconds:.0f} s]"


if __name__ == "__main__":
    sys.exit(main())
