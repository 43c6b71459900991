"""Prints a table of policies of slots by their size, and draws docs/images/offload-<name>.png.

`python -m docs.policies`, or with a name for the picture and overrides of docs/policies.yaml:
`python -m docs.policies gpt-oss-20b model=gpt-oss-20b workload.trace=gpt-oss-20b.npz`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moesim import api
from scenarios.catalog import find_trace
from scenarios.files import whole_file
from sim.figure import png_bytes
from sim.offload.plot import slot_lines, slots_figure
from sim.result import RunResult, Table
from traces.storage import load_trace

HERE = Path(__file__).parent
SIZES = (0.125, 0.25, 0.5, 0.75)
WAYS: tuple[dict[str, Any], ...] = (
    {"evict": "static"},
    {"evict": "lru"},
    {"evict": "lfu"},
    {"evict": "arc"},
    {"evict": "hobbit"},
    {"evict": "mrs"},
    {"evict": "sch"},
    {"evict": "belady"},
    {"evict": "lru", "prefetch": {"by": "activation", "width": 4}},
    {"evict": "lru", "prefetch": {"by": "learned", "width": 4}},
    {"evict": "lru", "prefetch": {"by": "oracle"}},
    {"evict": "lru", "miss": "balanced"},
    {"evict": "static", "miss": "host"},
)


def compared(overrides: Sequence[str] = (), sizes: Sequence[float] = SIZES) -> Table:
    """All ways at all sizes on the scenario's trace; MRS where it holds gate weights."""
    scenario = api.load(HERE / "policies.yaml", overrides)
    weighted = load_trace(find_trace(str(scenario.spec.workload.trace), HERE)).weights is not None
    ways = [way for way in WAYS if weighted or way["evict"] != "mrs"]
    entries = [{"offload": way | {"share": size}} for way in ways for size in sizes]
    return api.compare(scenario.with_({"compare": {"memory": entries}})).tables[0]


def markdown(table: Table) -> Iterator[str]:
    """One row a way: hits, timely hits where it prefetches, exposed copies [ms] and tokens/s at every size."""
    lines = slot_lines(table)
    held = [result.metrics["slots_frac"] for result in next(iter(lines.values()))]
    yield "| | " + " | ".join(f"{share:.0%}" for share in held) + " |"
    yield "|---" * (len(held) + 1) + "|"
    for name, line in sorted(lines.items(), key=lambda item: -item[1][1].metrics["tokens_per_s"]):
        yield f"| {name} | " + " | ".join(_cell(result) for result in line) + " |"


def _cell(result: RunResult) -> str:
    metrics = result.metrics
    hits = f"{metrics['cache_hit_frac']:.0%}"
    timely = f" ({metrics['timely_hit_frac']:.0%})" if "timely_hit_frac" in metrics else ""
    return f"{hits}{timely}, {metrics['exposed_copy_s'] * 1e3:.1f}, {metrics['tokens_per_s']:.0f}"


def main(words: Sequence[str]) -> None:
    """The table of one trace, and its picture."""
    name, *overrides = words or ("moesim-20m-prefill",)
    table = compared(overrides)
    print("\n".join(markdown(table)))
    target = HERE / "images" / f"offload-{name}.png"
    with whole_file(target) as temporary:
        temporary.write_bytes(png_bytes(slots_figure(table)))
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
