"""Draws docs/images/schedule-<name>.png: a timeline with and without each mechanism, from the simulator's own log.

`python -m docs.timelines [NAME...]`, or `make images` for all of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from moesim import api
from scenarios.files import whole_file
from sim import pipelines
from sim.figure import STYLE, WIDTH_IN, Figure, png_bytes
from sim.pipeline_plot import draw_pipelines
from sim.pipelines.pipeline import run_pipeline
from sim.pipelines.tasks import PipelineShape
from sim.pipelines.times import PassTimes, stage_times
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
NODES = (
    "cluster.nodes=2",
    "cluster.devices_per_node=4",
    "parallel={attention: {dp: 8}, experts: {ep: 2, tp: 4}}",
    "schedule.overlap=chunked",
    "schedule.chunks=4",
    "schedule.exchange={dedup: none, algorithm: sliced}",
)
SKEWED = (
    "model={card: mixtral-8x7b, n_layers: 3, expert_intermediate_size: 4096}",
    "workload.synthetic={tokens: 65536, skew: 1.0, sequence_skew: 0.2, reuse: 0, affinity: 0}",
    "schedule.exchange.dedup=none",
    "cluster.intra_bandwidth=60 GB/s",
)
TRAIN_CHUNKED = ("workload.phase=train", "schedule.overlap=chunked", "schedule.chunks=4")

OFFLOADED = (
    "cluster.node=h100-sxm-8",
    "cluster.devices_per_node=1",
    "workload.phase=decode",
    "workload.tokens_per_device=1",
    "workload.steps=8",
    "memory.offload={share: 0.5}",
)

NEAR_MEMORY = (
    "cluster={node: logic-pim-4}",
    "model=mixtral-8x7b",
    "workload.phase=decode",
    "workload.tokens_per_device=48",
    "workload.prompt_tokens=32",
    "workload.context_tokens=8192",
    "parallel={attention: {dp: 4}, experts: {ep: 1, tp: 4}}",
)

STREAMED = (
    "workload.generate={prompt_tokens: 77, new_tokens: 512}",
    "model={card: mixtral-8x7b, n_layers: 6}",
)

# Attention of as many tokens takes about as long as their experts.
POOLS = (
    *DECODE[:1],
    "model=dbrx",
    "workload.tokens_per_device=150",
    "workload.context_tokens=1500",
    "cluster={node: h100-sxm-8, experts: {node: h100-sxm-8, nodes: 2}}",
    "workload.synthetic={tokens: 16384, skew: 0, sequence_skew: 0}",
    "schedule.overlap=ping-pong",
)

TOP_1 = ("model=switch-base-128", "workload.synthetic={tokens: 65536, skew: 0.1, sequence_skew: 0.1}")

# One entry a mechanism, by name.
PICTURES = (
    Picture(
        name="pim",
        titles=("each operation on the faster side", "experts and attention on both at once"),
        without=("schedule.pim=by-operation", *NEAR_MEMORY),
        use=("schedule.pim=co-processing", *NEAR_MEMORY),
    ),
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
        name="ping-pong",
        titles=("attention and experts on devices of their own", "three microbatches to and fro (MegaScale-Infer)"),
        without=(*POOLS, "schedule.chunks=1"),
        use=(*POOLS, "schedule.chunks=3"),
    ),
    Picture(
        name="coherent",
        titles=("tokens go home after each layer", "they stay with their expert (ExFlow)"),
        without=TOP_1,
        use=(*TOP_1, "schedule.exchange.algorithm=coherent"),
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
        name="sliced",
        titles=("four chunks, all transfers on one stream (Tutel)", "gathers inside nodes on their own (FSMoE)"),
        without=(*NODES, "schedule.exchange.inside=shared"),
        use=NODES,
        n_layers=1,
    ),
    Picture(
        name="shadow",
        titles=("tokens travel to the hot experts", "hot experts travel to all tokens (FasterMoE)"),
        without=SKEWED,
        use=(*SKEWED, "schedule.move={kind: shadow}"),
        n_layers=1,
    ),
    Picture(
        name="einsum",
        titles=("tokens put into buffers by a product with a mask (GShard)", "put there by index (Tutel, DeepSpeed)"),
        without=("schedule.encode=einsum",),
        use=("schedule.encode=index",),
        n_layers=1,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePicture:
    """Two pipelines under each other, by their names in scenarios, of stages that take equally long [s]."""

    name: str
    titles: tuple[str, str]
    pipelines: tuple[str, str]
    shape: tuple[int, int]
    passes_s: tuple[float, float, float]


# Forward, gradients of inputs and of weights: computation of a layer (attention and experts) in the training profile
# of DeepSeek (repository profile-data), H800, 4096 tokens; a pair that overlaps computes as long as both.
DEEPSEEK_S = (8.97e-3, 14.65e-3, 5.93e-3)
PIPELINES = (
    PipelinePicture(
        name="zb1p",
        titles=("1F1B", "ZB1P: gradients of weights wait"),
        pipelines=("1f1b", "zb1p"),
        shape=(8, 20),
        passes_s=DEEPSEEK_S,
    ),
    PipelinePicture(
        name="dualpipe",
        titles=("1F1B", "DualPipe (DeepSeek-V3)"),
        pipelines=("1f1b", "dualpipe"),
        shape=(8, 20),
        passes_s=DEEPSEEK_S,
    ),
)


def draw_orders(picture: PipelinePicture) -> Path:
    """Path of the picture, drawn anew."""
    forward_s, input_s, weight_s = (np.full(1, time_s) for time_s in picture.passes_s)
    passes = PassTimes(
        forward_s=forward_s,
        backward_input_s=input_s,
        backward_weight_s=weight_s,
        overlapped_s=forward_s + input_s + weight_s,
    )
    n_stages, n_microbatches = picture.shape
    times = stage_times([passes] * n_stages, n_microbatches, [0.0] * (n_stages - 1))
    panels = []
    for title, name in zip(picture.titles, picture.pipelines, strict=True):
        shape = PipelineShape(
            n_stages=n_stages, n_microbatches=n_microbatches, bidirectional=name in pipelines.BIDIRECTIONAL
        )
        orders = [pipelines.PIPELINES[name](shape, stage) for stage in range(n_stages)]
        panels.append((title, run_pipeline(shape, orders, times).bars()))
    with mpl.rc_context(STYLE):
        return _written(picture.name, draw_pipelines(panels, WIDTH_IN))


def draw(picture: Picture) -> Path:
    """Path of the picture, drawn anew."""
    results = (_run(picture, picture.without), _run(picture, picture.use))
    return _written(picture.name, timelines_figure(tuple(zip(picture.titles, results, strict=True)), picture.n_layers))


def _written(name: str, figure: Figure) -> Path:
    target = HERE / "images" / f"schedule-{name}.png"
    with whole_file(target) as temporary:
        temporary.write_bytes(png_bytes(figure))
    return target


def _run(picture: Picture, overrides: tuple[str, ...]) -> RunResult:
    beside = HERE / picture.scenario
    comparison = api.run(api.load(beside if beside.exists() else picture.scenario, overrides))
    return comparison.tables[0].results[0]


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    pictures = {picture.name: picture for picture in (*PICTURES, *PIPELINES)}
    if unknown := set(names) - pictures.keys():
        sys.exit(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(pictures)}")
    for name in names or pictures:
        picture = pictures[name]
        print(draw(picture) if isinstance(picture, Picture) else draw_orders(picture))


if __name__ == "__main__":
    main(sys.argv[1:])
