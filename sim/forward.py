"""The works of a forward pass: which a model, a layout and a schedule have, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scenarios.models import ModelCard
from scenarios.schedule_specs import ExchangeSpec
from sim.program import EXCHANGE_LANES, INSIDE_LANES, Chunk, Layer, Step, Tiling, Work


def build_step(
    model: ModelCard,
    *,
    chunks: int,
    attention_tp: int,
    microbatched: bool = False,
    split_attention: bool = False,
    tiling: Tiling | None = None,
    exchange: ExchangeSpec | None = None,
) -> Step:
    """The works of a forward pass of `model`: its experts in `chunks` chunks, or all of it in as many microbatches.

    split_attention  projections are a work of their own; tiling: the chunks are tiles of fused kernels.
    """
    shape = _Shape(attention_tp, split_attention, exchange or ExchangeSpec())
    if microbatched:
        first, *others = (_pass(model, (part,), part, shape) for part in range(chunks))
        return replace(first, others=tuple(others))
    step = _pass(model, tuple(range(chunks)), -1, shape)
    if tiling is None:
        return step
    return replace(step, layers=tuple(layer if layer.gate is None else tiled(layer, tiling) for layer in step.layers))


def tiled(layer: Layer, tiling: Tiling) -> Layer:
    """The layer with its chunks as tiles: experts' work 0 are the own rows, then rows that arrive, then columns."""
    n, work = len(layer.chunks), layer.chunks[0].experts
    tiles = tuple(
        replace(
            chunk,
            experts=replace(work, chunk=1 + place),
            down=replace(work, chunk=1 + n + place) if tiling == "columns" else None,
        )
        for place, chunk in enumerate(layer.chunks)
    )
    return replace(layer, chunks=tiles, local=replace(work, chunk=0))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What of a schedule decides which works a layer has."""

    attention_tp: int
    split_attention: bool
    exchange: ExchangeSpec


def _pass(model: ModelCard, chunks: tuple[int, ...], part: int, shape: _Shape) -> Step:
    """A pass whose experts work on `chunks`, and all else on `part` of the tokens."""
    attention_tp, split_attention = shape.attention_tp, shape.split_attention
    moe_layers = set(model.moe_layers)

    gathers = dict.fromkeys(range(model.n_layers if attention_tp > 1 else 0), "gather")
    if shape.exchange.algorithm == "coherent":
        gathers = {0: "contexts"}

    def layer(number: int, run: int) -> Layer:
        """A layer, or a further run of its experts."""
        is_moe, first = number in moe_layers, run == 0

        def work(kind: str) -> Work:
            return Work(kind, number, part, run)

        return Layer(
            attention=work("core" if split_attention else "attention") if first else None,
            projections=work("projections") if split_attention and first else None,
            gather=work(gathers[number]) if number in gathers and first else None,
            scatter=work("scatter") if attention_tp > 1 and first else None,
            gate=work("gate") if is_moe else None,
            shared=work("shared") if is_moe and model.shared_intermediate_size else None,
            mlp=None if is_moe else work("mlp"),
            chunks=tuple(_chunk(number, chunk, run, shape.exchange) for chunk in chunks) if is_moe else (),
            before_dispatch=(work("descend"),) if is_moe and model.bottleneck_size else (),
            after_combine=(work("ascend"),) if is_moe and model.bottleneck_size else (),
        )

    runs = [(n, run) for n in range(model.n_layers) for run in range(model.iterations if n in moe_layers else 1)]
    return Step(layers=tuple(layer(*run) for run in runs), head=Work("head", -1, part))


STAGES: dict[str, tuple[str, ...]] = {"hierarchical": ("regroup", "collect"), "sliced": ("forward", "collect")}
"""Works of a chunk inside nodes, by algorithm of the exchange."""


def _chunk(layer: int, chunk: int, run: int, exchange: ExchangeSpec) -> Chunk:
    dispatch, experts, combine = (Work(kind, layer, chunk, run) for kind in ("dispatch", "experts", "combine"))
    stages = {kind: Work(kind, layer, chunk, run) for kind in STAGES.get(exchange.algorithm, ())}
    lanes = INSIDE_LANES if exchange.inside == "own" else EXCHANGE_LANES
    back = None if exchange.algorithm == "coherent" else combine
    return Chunk(dispatch, experts, back, **stages, lanes=lanes)
