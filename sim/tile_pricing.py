"""Prices of fused kernels: the time of one kernel divided into tiles, beside an exchange that some SMs carry out.

Tiles cost no launch, wave or latency of their own: they are parts of one kernel and of one stream of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodels.blends import norm4
from hwmodels.launch import compute_slowdown
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import Duration, ExchangeTime, Seconds
from sim.pricing import Prices
from sim.program import Tiling
from sim.setting import Setting

# Bytes that one SM moves over NVLink: `sm_bytes_per_s` of nvlink-4 deepep-normal in exchanges.yaml, fitted on H200
# tables; taken over to other devices (assumed).
SM_BYTES_PER_S = {"dispatch": 23.24e9, "combine": 17.74e9}
SCHEDULER_SMS = 1  # a persistent kernel keeps one thread block for its scheduler (FlashMoE, section 3)


def tile_prices(
    prices: Prices, setting: Setting, reduction: Reduction, schedule: ScheduleSpec, tiling: Tiling
) -> Prices:
    """Prices of a schedule's fused kernels, from those of the same layers in one chunk.

    Raises ScenarioError where the SMs that move tokens leave none to multiply.
    """
    layers = _fused_layers(prices, setting, reduction, tiling)
    n_sms = setting.cluster.device.n_sms
    bandwidth = _link_bytes_per_s(setting)
    if tiling == "rows":
        slower, carried = float(compute_slowdown(SCHEDULER_SMS, n_sms)), dict.fromkeys(SM_BYTES_PER_S, 1.0)
    else:
        sms = schedule.sms if schedule.sms != "auto" else best_sms(layers, n_sms, bandwidth, schedule.tiles)
        if sms >= n_sms:
            name = setting.cluster.device.card.name
            raise ScenarioError(f"schedule: sms {sms} leaves none of the {n_sms} SMs of {name}; give fewer")
        slower, carried = float(compute_slowdown(sms, n_sms)), exchange_slowdown(sms, bandwidth)
    n = schedule.tiles
    divided: dict[str, list[list[Duration]]] = {
        "experts": [_experts_tiles(layer, slower, n, tiling) for layer in layers],
        "dispatch": [_exchange_tiles(layer.dispatch, carried["dispatch"], n) for layer in layers],
        "combine": [_exchange_tiles(layer.combine, carried["combine"], n) for layer in layers],
    }
    return replace(prices, per_chunk={**prices.per_chunk, **divided})


def works_of_experts(tiling: Tiling, n_tiles: int) -> int:
    """Works that the experts of a layer are cut into: own rows, rows that arrive, and columns."""
    return 1 + n_tiles * (2 if tiling == "columns" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer:
    """One MoE layer before it is cut: its kernel alone on all SMs, and its exchanges at full speed.

    local_frac  float64[device]: share of a device's rows that are of its own tokens.
    rows_frac   share of the kernel before it is cut into columns; 1 where it is not.
    """

    experts_s: Seconds
    dispatch: ExchangeTime
    combine: ExchangeTime
    local_frac: NDArray[np.float64]
    rows_frac: float


def exchange_slowdown(sms: int, link_bytes_per_s: float) -> dict[str, float]:
    """How many times longer tokens travel when `sms` SMs carry them: |1, link / (sms * rate of one SM)|_4 by side.

    The blend is that of the fitted law, `hwmodels.expert_exchange.normal_s`.
    """
    return {side: float(norm4(1.0, link_bytes_per_s / (sms * rate))) for side, rate in SM_BYTES_PER_S.items()}


def fused_time_s(
    phases: tuple[float, float, float], exchanges: tuple[float, float], n_tiles: int, latency_s: float = 0.0
) -> float:
    """Time of a fused layer on devices that are all alike [s].

    phases     own rows, other rows, columns; exchanges: dispatch and combine, each without latency.
    With d, r, w, c of one tile: E = max(own + n r, l + d + n r, l + n d + r), T = E + max(w + l + n c, n w + c): the
    larger of computing and travelling, the first tile, and the tail. Exact where devices are alike.
    """
    own, rows, columns = phases
    dispatch, combine = (time / n_tiles for time in exchanges)
    row, column = rows / n_tiles, columns / n_tiles
    end = max(own + rows, latency_s + dispatch + rows, latency_s + n_tiles * dispatch + row)
    return end + max(column + latency_s + n_tiles * combine, columns + combine)


def best_sms(layers: Sequence[FusedLayer], n_sms: int, link_bytes_per_s: float, n_tiles: int) -> int:
    """Number of SMs to move tokens with that makes `fused_time_s` of the slowest device least, over all layers."""
    shapes = [_mean_phases(layer) for layer in layers]

    def total_s(sms: int) -> float:
        slower, carried = n_sms / (n_sms - sms), exchange_slowdown(sms, link_bytes_per_s)
        return sum(
            fused_time_s(
                (own * slower, rows * slower, columns * slower),
                (there * carried["dispatch"], back * carried["combine"]),
                n_tiles,
                latency_s,
            )
            for (own, rows, columns), (there, back), latency_s in shapes
        )

    return min(range(1, n_sms), key=total_s)


def _mean_phases(layer: FusedLayer) -> tuple[tuple[float, float, float], tuple[float, float], float]:
    """Phases and exchanges of the slowest device of each step, in the mean of the steps."""
    latency_s = layer.dispatch.latency_s
    rows_s = layer.experts_s * layer.rows_frac

    def mean(times_s: Seconds) -> float:
        return float(times_s.max(axis=-1).mean())

    phases = mean(rows_s * layer.local_frac), mean(rows_s * (1 - layer.local_frac)), mean(layer.experts_s - rows_s)
    both = (np.maximum(time.send_s, time.receive_s) - latency_s for time in (layer.dispatch, layer.combine))
    there, back = (mean(times_s) for times_s in both)
    return phases, (there, back), latency_s


def _fused_layers(prices: Prices, setting: Setting, reduction: Reduction, tiling: Tiling) -> list[FusedLayer]:
    pairs = reduction.pairs_total.astype(np.float64)
    own, arrived = np.diagonal(pairs, axis1=-2, axis2=-1), pairs.sum(axis=-2)
    local = np.divide(own, arrived, out=np.zeros_like(arrived), where=arrived > 0)
    # FLOPs of gate and up projections over those of all three; of two where the model is not gated.
    rows_frac = 1.0 if tiling == "rows" else 2 / 3 if setting.model.gated else 1 / 2
    found = []
    for row in range(len(local)):
        experts, dispatch, combine = (prices.per_chunk[kind][row][0] for kind in ("experts", "dispatch", "combine"))
        if isinstance(experts, ExchangeTime) or not (
            isinstance(dispatch, ExchangeTime) and isinstance(combine, ExchangeTime)
        ):
            raise ScenarioError(f"MoE layer {row}: a fused kernel needs experts between two exchanges")
        found.append(
            FusedLayer(
                experts_s=experts, dispatch=dispatch, combine=combine, local_frac=local[row], rows_frac=rows_frac
            )
        )
    return found


def _experts_tiles(layer: FusedLayer, slower: float, n: int, tiling: Tiling) -> list[Duration]:
    """Own rows, n tiles of other rows and, where they are cut, n blocks of columns."""
    experts_s = layer.experts_s * slower
    rows_s = experts_s * layer.rows_frac
    tiles: list[Duration] = [rows_s * layer.local_frac, *[rows_s * (1 - layer.local_frac) / n] * n]
    return tiles + [(experts_s - rows_s) / n] * n if tiling == "columns" else tiles


def _exchange_tiles(time: ExchangeTime, factor: float, n: int) -> list[Duration]:
    """n equal parts; the first one pays the latency."""
    latency_s = time.latency_s

    def part(total_s: Seconds, first: bool) -> Seconds:
        return (total_s - latency_s) * (factor / n) + (latency_s if first else 0.0)

    return [
        replace(
            time,
            send_s=part(time.send_s, place == 0),
            receive_s=part(time.receive_s, place == 0),
            message_s=None if time.message_s is None else time.message_s * (factor / n),
            latency_s=latency_s if place == 0 else 0.0,
        )
        for place in range(n)
    ]


def _link_bytes_per_s(setting: Setting) -> float:
    """Rate of the link that most tokens cross: between nodes where there are several."""
    cluster = setting.cluster
    link = cluster.intra if cluster.n_nodes == 1 or cluster.inter is None else cluster.inter
    return link.effective_bytes_per_s
