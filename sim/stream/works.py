"""The works of a pass whose weights stream, by schedule: where attention is computed, and which copies there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scenarios.models import ModelCard
from scenarios.stream_specs import HOST_ATTENTION, MIXED, PAGED, StreamSpec
from sim.program import Layer, Step, Streamed, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class PassShape:
    """What of a schedule and a pass decides which works there are.

    decodes, prompts  whether the pass holds decoding requests, and whole prompts.
    """

    overlap: str
    n_parts: int
    spec: StreamSpec
    decodes: bool
    prompts: bool

    @property
    def on_host(self) -> bool:
        """Whether the host computes attention of decoding requests."""
        return self.decodes and self.overlap in HOST_ATTENTION

    @property
    def n_pages(self) -> int:
        """Pages that a layer's weights come in; a prefill of its own takes them at once."""
        paged = self.overlap in PAGED and (self.decodes or self.overlap in MIXED)
        return self.n_parts if paged else 1


def generating_step(model: ModelCard, shape: PassShape) -> Step:
    """A pass in microbatches whose layers have streamed works alone."""
    first, *others = (_microbatch(model, shape, part) for part in range(shape.n_parts))
    return replace(first, others=tuple(others))


def _microbatch(model: ModelCard, shape: PassShape, part: int) -> Step:
    layers = tuple(_layer(model, shape, layer, part) for layer in range(model.n_layers))
    return Step(layers=layers, head=Work("head", -1, part))


def _layer(model: ModelCard, shape: PassShape, layer: int, part: int) -> Layer:
    def work(kind: str) -> Work:
        return Work(kind, layer, part)

    core, is_moe = work("core"), layer in set(model.moe_layers)
    on_device = shape.decodes and not shape.on_host
    before = (work("projections"), *([work("prompt")] if shape.prompts else []), *([core] if on_device else []))
    shared = [work("shared")] if model.shared_intermediate_size else []
    feed_forward = (work("gate"), *shared, work("experts")) if is_moe else (work("mlp"),)
    kept_on_host = shape.prompts or on_device
    return Layer(
        attention=core,
        streamed=Streamed(
            early=work("attention page") if shape.spec.weights == "layers" and part == 0 else None,
            page=_page(shape, layer, part, is_moe=is_moe),
            cache=work("cache") if on_device or (shape.prompts and not shape.decodes) else None,
            before=before,
            queries=work("queries") if shape.on_host else None,
            attended=core if shape.on_host else None,
            results=work("results") if shape.on_host else None,
            after=(work("output"), *feed_forward),
            store=work("store") if kept_on_host and not shape.on_host else None,
        ),
    )


def _page(shape: PassShape, layer: int, part: int, *, is_moe: bool) -> Work | None:
    streams = is_moe or shape.spec.weights == "layers"
    return Work("page" if is_moe else "dense page", layer, part) if streams and part < shape.n_pages else None


def ringed(step: Step, spec: StreamSpec) -> Step:
    """The step whose MoE layers have their experts copied into a ring of slots."""
    layers = tuple(
        layer
        if layer.gate is None
        else replace(layer, streamed=Streamed(page=Work("page", layer.attention.layer), slots=spec.slots))
        for layer in step.layers
    )
    return replace(step, layers=layers)
