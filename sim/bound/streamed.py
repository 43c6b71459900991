"""Bound of offline generation whose weights stream from the host: lanes of a mean pass in one microbatch.

A request takes as many passes as its answer has tokens; each brings all weights once for all requests. Prompts come in
the passes of other requests (MoE-Lens), or in one pass before all others; the better of both counts. Attention of
decoding requests is divided between host and device where that leaves the busiest lane least to do: MoE-Lightning's
hierarchical roofline with the division as a variable, T = max(link, device, host), and so the turning points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from hwmodels.attention import windowed_context
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE
from scenarios.schedule_specs import ExchangeSpec
from scenarios.stream_specs import StreamSpec
from scenarios.workload_specs import GenerateSpec
from sim.bound.demand import Visits, visits_of
from sim.bound.division import Limits, Row, divided_resources, empty_resource
from sim.bound.resources import Kind, Resource, experts_floor_s
from sim.durations import Duration, Seconds
from sim.log import busy_s
from sim.memory import kv_bytes_per_request
from sim.pricing import Prices, layer_windows
from sim.setting import Setting
from sim.stream.memory import streamed_bytes
from sim.stream.passes import Pass, decode_passes, mixed_pass, prompt_pass
from sim.stream.prices import pass_prices, ways_of

DEVICE = ("projections", "output", "gate", "shared", "mlp", "prompt", "windowed prompt")
"""Works of the device in every layer that has them, experts and decode attention aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """What a pass asks of every lane, float64[2] [s] each: with decode attention on the host, and on the device.

    dram_bytes  that leave or enter the host's memory.
    """

    device_s: Seconds
    to_device_s: Seconds
    to_host_s: Seconds
    host_s: Seconds
    dram_bytes: float

    def times(self, factor: float) -> Lanes:
        """So many of it."""
        return Lanes(**{name: value * factor for name, value in self._fields()})

    def plus(self, other: Lanes) -> Lanes:
        """Both together."""
        pairs = zip(self._fields(), other._fields(), strict=True)
        return Lanes(**{name: value + more for (name, value), (_, more) in pairs})

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def requests_in_host(setting: Setting, stream: StreamSpec, generate: GenerateSpec) -> int | None:
    """Requests whose cache the host's memory holds beside the weights; None where its card does not say."""
    host = setting.cluster.host
    if host is None or host.dram_bytes is None:
        return None
    room = host.dram_bytes.value - streamed_bytes(setting, stream)
    per_request = kv_bytes_per_request(setting.model, generate.prompt_tokens + generate.new_tokens, 1)
    return max(int(room // (per_request * setting.cluster.devices_per_node)), 0)


def streamed_resources(
    setting: Setting, placement: Placement, reduction: Reduction, exchange: ExchangeSpec, stream: StreamSpec
) -> tuple[Resource, ...]:
    """The rows of a mean pass of all requests of the setting, at the best division of attention.

    reduction  in one chunk, of steps of all requests.
    """
    generate = setting.workload.generate
    if generate is None:
        raise ScenarioError("memory.stream: bounds are of generation; give workload.generate")
    first = replace(setting, batches=setting.batches.at(np.array([0])))
    passes = generate.new_tokens
    decoding = decode_passes(first, reduction, generate)
    # Lanes are convex in the context: at its mean over the answer they are at most the mean of all passes.
    contexts = np.full_like(decoding.setting.batches.contexts, generate.prompt_tokens + passes // 2)
    batches = replace(decoding.setting.batches, contexts=contexts)
    decoding = replace(decoding, setting=replace(decoding.setting, batches=batches))
    visits = _fewest_visits(setting, placement, reduction)

    def lanes(one: Pass, times: float = 1.0) -> Lanes:
        return _lanes(one, placement, exchange, stream, visits).times(times)

    apart = lanes(prompt_pass(first, reduction, generate), 1 / passes).plus(lanes(decoding, 1 - 1 / passes))
    mixed = lanes(mixed_pass(first, reduction, generate))
    found = [
        divided_resources(setting, list(_rows(setting, one)), Limits(other=1.0, away=np.empty(0)))
        for one in (apart, mixed)
    ]
    return max(found, key=lambda rows: min(row.tokens_per_s for row in rows))


def _fewest_visits(setting: Setting, placement: Placement, reduction: Reduction) -> Visits:
    """Of the step that visits the fewest experts."""
    by_step = [
        visits_of(placement, replace(reduction, slot_tokens=reduction.slot_tokens[:, step : step + 1]), setting.widths)
        for step in range(reduction.slot_tokens.shape[1])
    ]
    return min(by_step, key=lambda visits: visits.active)


def _rows(setting: Setting, lanes: Lanes) -> Iterator[Row]:
    """Lanes as inequalities; the second variable is the share of decode attention that the device computes."""
    host = setting.cluster.host
    named: dict[str, tuple[Kind, Seconds, str]] = {
        "device time": ("kernels", lanes.device_s, "kernel laws, all tokens of a pass at once"),
        "link to the device": ("links", lanes.to_device_s, "weights once a pass, and what attention moves"),
        "link to the host": ("links", lanes.to_host_s, "queries, keys and values"),
        "host cores": ("kernels", lanes.host_s, "attention by the law of the cores"),
    }
    for name, (kind, times_s, detail) in named.items():
        hosted_s, own_s = times_s.tolist()
        resource = empty_resource(name, kind, "s", 1.0, detail)
        yield Row(resource=resource, fixed=hosted_s, per_other=own_s - hosted_s, per_away=np.empty(0))
    if host is not None:
        dram = host.dram_bytes_per_s.value / setting.cluster.devices_per_node
        resource = empty_resource("host memory bandwidth", "hardware", "B", dram, "weights and cache once a pass")
        yield Row(resource=resource, fixed=lanes.dram_bytes, per_other=0.0, per_away=np.empty(0))


def _lanes(one: Pass, placement: Placement, exchange: ExchangeSpec, stream: StreamSpec, visits: Visits) -> Lanes:
    """A pass as one microbatch, each lane with the whole of the host's memory bandwidth."""
    setting = one.setting
    ways = ways_of(setting, host_attention=True)
    link = setting.cluster.host_link
    rate = ways.to_device if link is None else link.effective_bytes_per_s
    ways = replace(ways, to_device=rate, to_host=rate, attention=ways.cores.dram_bytes_per_s)
    hosted = pass_prices(one, placement, exchange, stream, ways, 1)
    owned = pass_prices(one, placement, exchange, stream, replace(ways, attention=0.0), 1)
    grown = float(one.reduction.slot_tokens.sum()) / visits.routed
    seen = Visits(
        routed=visits.routed * grown,
        active=visits.active,
        by_width=tuple((width, routed * grown, active) for width, routed, active in visits.by_width),
    )
    device_s = sum((_of_layers(setting, hosted, kind) for kind in DEVICE), 0.0) + _mean_s(hosted.per_layer["head"][0])
    device_s += experts_floor_s(setting, placement, seen)
    pages_s = sum((_mean_s(parts[0]) for parts in hosted.per_chunk["page"]), 0.0)
    pages_s += sum(_of_layers(setting, hosted, kind) for kind in ("dense page", "attention page"))
    decodes = bool(one.decoding.any())
    moved = {kind: _of_layers(setting, hosted, kind) for kind in ("queries", "results", "cache", "store")}
    hosts = ("results", "queries") if decodes else ("cache", "store")
    core_s = [
        _of_layers(setting, prices, "core") + _of_layers(setting, prices, "windowed core") for prices in (hosted, owned)
    ]
    return Lanes(
        device_s=np.array([device_s, device_s + core_s[1]]),
        to_device_s=pages_s + np.array([moved[hosts[0]], moved["cache"]]),
        to_host_s=np.array([moved[hosts[1]], moved["store"]]),
        host_s=np.array([core_s[0], 0.0]),
        dram_bytes=streamed_bytes(setting, stream) + _cache_bytes(one),
    )


def _of_layers(setting: Setting, prices: Prices, kind: str) -> float:
    """Time of the works of a kind in all layers that have them; 0 where none has."""
    model = setting.model
    n_moe = len(model.moe_layers)
    windowed = sum(n for window, n in layer_windows(model) if window is not None)
    counts = {"gate": n_moe, "shared": n_moe, "mlp": model.n_layers - n_moe, "dense page": model.n_layers - n_moe}
    counts |= {"core": model.n_layers - windowed, "prompt": model.n_layers - windowed}
    counts |= {"windowed core": windowed, "windowed prompt": windowed}
    if kind not in prices.per_layer:
        return 0.0
    return counts.get(kind, model.n_layers) * _mean_s(prices.per_layer[kind][0])


def _mean_s(duration: Duration) -> float:
    return float(busy_s(duration).mean())


def _cache_bytes(one: Pass) -> float:
    """Bytes of cache that the decoding requests of a pass attend to, in all layers."""
    model, contexts = one.setting.model, one.setting.batches.contexts[..., one.decoding]
    cached = model.attention.kv_values_per_token() * BYTES_PER_VALUE[model.kv_dtype]
    pairs = sum(float(windowed_context(contexts, window).sum()) * n for window, n in layer_windows(model))
    return pairs * cached
