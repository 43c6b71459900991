"""What binds under a plan: layers by the time that other ranks wait, ranks by how often they are the last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import expert_times_s, layer_times
from placement.plan import Placement, imbalance, rank_loads
from placement.reduction import Reduction
from placement.split_prices import SplitPrices, split_prices
from scenarios.schedule_specs import ScheduleSpec
from sim.kernel_pricing import machine_of
from sim.setting import Setting

Array = NDArray[np.float64]
WANTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBinding:
    """One MoE layer, means over steps [s]; nothing overlaps inside it.

    dispatch_s, experts_s, combine_s  of the device that is last.
    excess_s       time of the slowest rank's experts over the mean of the ranks: what better balance could save.
    slowest_rank   the rank that is last most often, and `slowest_frac`, the share of steps in which it is.
    binding_ranks  ranks that no split of tokens over replicas can relieve: their price is above 0.
    """

    layer: int
    dispatch_s: float
    experts_s: float
    combine_s: float
    excess_s: float
    slowest_rank: int
    slowest_frac: float
    binding_ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBinding:
    """One rank over all MoE layers: share of (layer, step) in which it is the last, and its experts' mean time [s]."""

    rank: int
    slowest_frac: float
    experts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedReplica:
    """A replica that would relieve the busiest rank: by `relief` tokens for each token that it takes (a dual value)."""

    layer: int
    expert: int
    rank: int
    relief: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Layers in the order of `excess_s`, ranks in that of `slowest_frac`, replicas by the tokens that they relieve.

    imbalance_even, imbalance_split  fullest rank over the mean on the fitted counts, mean over layers: with tokens
                                     split evenly over replicas, and with the best split.
    """

    layers: tuple[LayerBinding, ...]
    ranks: tuple[RankBinding, ...]
    wanted: tuple[WantedReplica, ...]
    imbalance_even: float
    imbalance_split: float


def binding(setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec) -> Binding:
    """What binds on the setting's steps, reduced in one chunk; prices are those of the fitted counts."""
    machine = machine_of(setting, schedule.exchange)
    experts_s = expert_times_s(machine, placement, reduction)
    times = layer_times(machine, placement, reduction, setting.workload.tokens_per_device)
    prices = split_prices(placement, setting.fit_loads.astype(np.float64))
    last = experts_s.argmax(axis=2)
    excess_s = (experts_s.max(axis=2) - experts_s.mean(axis=2)).mean(axis=1)
    layers = []
    for row in np.argsort(-excess_s, kind="stable"):
        counts = np.bincount(last[row], minlength=placement.n_ranks)
        layers.append(
            LayerBinding(
                layer=setting.model.moe_layers[row],
                dispatch_s=float(times.dispatch_s[row].mean()),
                experts_s=float(times.experts_s[row].mean()),
                combine_s=float(times.combine_s[row].mean()),
                excess_s=float(excess_s[row]),
                slowest_rank=int(counts.argmax()),
                slowest_frac=float(counts.max() / counts.sum()),
                binding_ranks=tuple(int(rank) for rank in np.flatnonzero(prices.rank_price[row] > 1e-9)),
            )
        )
    even = rank_loads(placement, setting.fit_loads.astype(np.float64))
    mean = even.mean(axis=1)
    return Binding(
        layers=tuple(layers),
        ranks=_ranks(last, experts_s),
        wanted=_wanted(setting, prices, even),
        imbalance_even=float(imbalance(even).mean()),
        imbalance_split=float(np.mean(prices.busiest[mean > 0] / mean[mean > 0])),
    )


def _ranks(last: NDArray[np.intp], experts_s: Array) -> tuple[RankBinding, ...]:
    n_ranks = experts_s.shape[2]
    share = np.bincount(last.ravel(), minlength=n_ranks) / last.size
    means_s = experts_s.mean(axis=(0, 1))
    return tuple(
        RankBinding(rank=int(rank), slowest_frac=float(share[rank]), experts_s=float(means_s[rank]))
        for rank in np.argsort(-share, kind="stable")
    )


def _wanted(setting: Setting, prices: SplitPrices, loads: Array) -> tuple[WantedReplica, ...]:
    """The replica of each layer that relieves most, the largest relief first: price x tokens of the expert.

    Among equals it lies on the rank with the least of `loads` float64[layer, rank].
    """
    found: list[tuple[float, WantedReplica]] = []
    for row, layer in enumerate(setting.model.moe_layers):
        relief = prices.relief(row)
        tokens = relief * setting.fit_loads[row][:, None]
        expert = int(tokens.max(axis=1).argmax())
        rank = int(np.where(tokens[expert] == tokens[expert].max(), loads[row], np.inf).argmin())
        if tokens[expert, rank] > 0:
            wanted = WantedReplica(layer=layer, expert=expert, rank=rank, relief=float(relief[expert, rank]))
            found.append((float(tokens[expert, rank]), wanted))
    return tuple(wanted for _, wanted in sorted(found, key=lambda entry: -entry[0])[:WANTED])
