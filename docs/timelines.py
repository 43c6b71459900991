"""Draws docs/images/schedule-<name>.png: a timeline with and without each mechanism, from the simulator's own log.

`python -m docs.timelines [NAME...]`, or `make images` for all of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from moesim import api
from scenarios.files import whole_file
from sim.plots import png_bytes
from sim.result import RunResult
from sim.timeline_plot import timelines_figure

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Two runs under each other.

    scenario      shipped name, or path beside this file.
    titles        of the run without and of the run with the mechanism.
    without, use  overrides (`a.b.c=value`) of the run without, and of the run with the mechanism.
    """

    name: str
    titles: tuple[str, str]
    without: tuple[str, ...] = ()
    use: tuple[str, ...]
    scenario: str = "timelines.yaml"
    n_layers: int = 2


DECODE = (
    "workload.phase=decode",
    "workload.tokens_per_device=256",
    "workload.context_tokens=2048",
    "cluster.intra_bandwidth=40 GB/s",
)
# Experts of a layer travel about as long as 16,384 tokens compute.
FAST = ("schedule.exchange.dedup=none", "cluster.intra_bandwidth=450 GB/s", "workload.tokens_per_device=16384")
TRAIN_CHUNKED = ("workload.phase=train", "schedule.overlap=chunked", "schedule.chunks=4")

OFFLOADED = (
    "cluster.node=h100-sxm-8",
    "cluster.devices_per_node=1",
    "workload.phase=decode",
    "workload.tokens_per_device=1",
    "workload.steps=8",
    "memory.offload={share: 0.5}",
)

STREAMED = (
    "workload.generate={prompt_tokens: 77, new_tokens: 512}",
    "model={card: mixtral-8x7b, n_layers: 6}",
)

# One entry a mechanism, by name.
PICTURES = (
    Picture(
        name="offload",
        titles=("half of the experts on the device, misses copied", "the next layer's copied ahead (oracle)"),
        without=OFFLOADED,
        use=(*OFFLOADED, "memory.offload.prefetch={by: oracle}"),
    ),
    Picture(
        name="stream",
        titles=("attention on the device (FlexGen)", "attention on the host, weights in pages (CGOPipe)"),
        without=(*STREAMED, "schedule={overlap: flexgen, chunks: 8, microbatch: 256}"),
        use=(*STREAMED, "schedule={overlap: cgopipe, chunks: 8, microbatch: 256}"),
        scenario="examples/stream",
        n_layers=1,
    ),
    Picture(
        name="chunked",
        titles=("one after the other", "four chunks (Tutel)"),
        use=("schedule.overlap=chunked", "schedule.chunks=4"),
    ),
    Picture(
        name="tiles",
        titles=("one after the other", "tiles of fused kernels (Comet)"),
        use=("schedule.overlap=tiles", "schedule.tiles=8"),
        n_layers=1,
    ),
    Picture(
        name="persistent",
        titles=("four chunks", "one persistent kernel (FlashMoE)"),
        without=("schedule.overlap=chunked", "schedule.chunks=4"),
        use=("schedule.overlap=persistent", "schedule.tiles=4"),
        n_layers=1,
    ),
    Picture(
        name="two-batch-prefill",
        titles=("one after the other", "two batches in the order of DeepSeek's prefill"),
        use=("schedule.overlap=two-batch-prefill",),
    ),
    Picture(
        name="two-batch-decode",
        titles=("one after the other", "two batches in the order of DeepSeek's decode"),
        without=DECODE,
        use=(*DECODE, "schedule.overlap=two-batch-decode"),
    ),
    Picture(
        name="prefetch",
        titles=("experts pulled after the gate", "asked for a layer ahead (Janus)"),
        without=(*FAST, "schedule.move={kind: pull}"),
        use=(*FAST, "schedule.move={kind: pull}", "schedule.overlap=prefetch"),
    ),
    Picture(
        name="compressed",
        titles=("all tokens travel", "a fifth of them, as clusters (LSH-MoE)"),
        without=("schedule.exchange.dedup=none",),
        use=("schedule.exchange.dedup=none", "schedule.payload={rate: 0.2}"),
    ),
    Picture(
        name="priority",
        titles=("sums of gradients as soon as they are there", "tokens first, pieces of 40 MB (Lina)"),
        without=("workload.phase=train", "schedule.gradients={order: overlapped}"),
        use=("workload.phase=train", "schedule.gradients={order: priority, partition: 40 MB}"),
    ),
    Picture(
        name="fill",
        titles=(
            "four chunks, sums of gradients as soon as they are there",
            "in pieces as long as the ports idle (FSMoE)",
        ),
        without=(*TRAIN_CHUNKED, "schedule.gradients={order: overlapped}"),
        use=(*TRAIN_CHUNKED, "schedule.gradients={order: fill}"),
    ),
)


def draw(picture: Picture) -> Path:
    """Path of the picture, drawn anew."""
    results = (_run(picture, picture.without), _run(picture, picture.use))
    target = HERE / "images" / f"schedule-{picture.name}.png"
    figure = timelines_figure(tuple(zip(picture.titles, results, strict=True)), picture.n_layers)
    with whole_file(target) as temporary:
        temporary.write_bytes(png_bytes(figure))
    return target


def _run(picture: Picture, overrides: tuple[str, ...]) -> RunResult:
    beside = HERE / picture.scenario
    comparison = api.run(api.load(beside if beside.exists() else picture.scenario, overrides))
    return comparison.tables[0].results[0]


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    unknown = set(names) - {picture.name for picture in PICTURES}
    if unknown:
        sys.exit(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PICTURES)}")
    for picture in PICTURES:
        if not names or picture.name in names:
            print(draw(picture))


if __name__ == "__main__":
    main(sys.argv[1:])
