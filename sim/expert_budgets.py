"""`moesim place`: bit widths and memory tiers of experts, chosen on the fitted part and judged on held-out requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.links import transfer_s
from placement.budget_checks import check_bits, check_tiers
from placement.budgets import bit_widths, tier_residency
from placement.knapsack import Choice
from placement.plan import FloatArray, Placement
from placement.reduction import reduce_trace
from scenarios.budget_specs import BitsSpec, TiersSpec
from scenarios.errors import HardwareError, ScenarioError
from scenarios.specs import MemorySpec
from sim.memory import device_memory
from sim.setting import Setting, sequence_parts
from traces.split import select_sequences
from traces.stats import gate_shares

Status = Literal["optimal", "time limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAnswer:
    """A width for every expert.

    bits                  float64[MoE layer, expert].
    weighted              importance is the sum of gate weights over tokens, or without them the share of choices.
    loss, bound           sum of importance times error of the choice, and the least that any within the budget has.
    even_loss             of the best width that all experts may take alike; inf where none keeps the budget.
    held_out, held_out_even, held_out_best  the same losses with importance of held-out requests: of the choice, of the
                          one width, and the bound on a choice that knew them.
    expert_bytes          of all experts, one copy each; full_bytes: at the model card's data type.
    """

    bits: FloatArray
    weighted: bool
    counts: dict[float, int]
    loss: float
    bound: float
    gap: float
    status: Status
    even_loss: float
    held_out: float
    held_out_even: float
    held_out_best: float
    expert_bytes: float
    full_bytes: float

    def as_json(self) -> dict[str, Any]:
        """All fields, tables as lists; docs/reference/nomenclature.md."""
        return asdict(self) | {"bits": self.bits.tolist(), "counts": {f"{k:g}": n for k, n in self.counts.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersAnswer:
    """Which copies of experts live in device memory: those of a rank by how often a step wants them.

    resident         bool[MoE layer, slot] of the plan, of whose slots `n_copies` hold an expert.
    device_bytes, host_bytes  room for experts of each device, in its own memory and in its share of the host's.
    copy_s, bound_s  expected time of copies from the host in a step, mean over devices, and the least that any
                     residency has.
    worst_copy_s     of the device with most.
    hit_frac         share of the experts that steps want which lie in device memory; in_order_hit_frac: were the first
                     layers resident instead. held_out_*: the same on held-out requests.
    """

    resident: NDArray[np.bool_]
    n_copies: int
    device_bytes: float
    host_bytes: float
    copy_s: float
    bound_s: float
    gap: float
    status: Status
    worst_copy_s: float
    held_out_copy_s: float
    hit_frac: float
    held_out_hit_frac: float
    in_order_hit_frac: float
    held_out_in_order_hit_frac: float

    def as_json(self) -> dict[str, Any]:
        """All fields, tables as lists; docs/reference/nomenclature.md."""
        return asdict(self) | {"resident": self.resident.tolist()}


def choose_bits(setting: Setting, spec: BitsSpec, seed: int) -> tuple[BitsAnswer, FloatArray]:
    """The widths of least loss on the fitted part, checked; and bytes of an expert over the card's, [layer, expert].

    Raises PlacementInfeasible where the mean is below the lightest width.
    """
    if spec.mean_bits is None:
        raise ScenarioError(
            "bits: `place` chooses widths within mean_bits, and the scenario has a table; give mean_bits"
        )
    mean_bits = spec.mean_bits
    parts = sequence_parts(setting.trace, setting.workload, seed)
    fitted, held_out = (gate_shares(select_sequences(setting.trace, part)) for part in (parts.fit, parts.judged))
    bits, errors = (np.array([getattr(width, name) for width in spec.widths]) for name in ("bits", "error"))
    each = tuple(bits.tolist().index(width) for width in spec.each)

    def chosen(importance: FloatArray) -> Choice:
        losses = importance[:, :, None] * errors
        return bit_widths(losses, bits, mean_bits, one_of_each=each, time_limit_s=spec.time_limit)

    choice = chosen(fitted)
    option = choice.option.reshape(fitted.shape)
    check_bits([layer.tolist() for layer in option], bits.tolist(), mean_bits, each)
    factor = np.array([width.bytes for width in spec.widths])[option]
    even = errors[bits <= mean_bits].min(initial=np.inf)
    answer = BitsAnswer(
        bits=bits[option],
        weighted=setting.trace.weights is not None,
        counts={float(width): int((option == number).sum()) for number, width in enumerate(bits)},
        loss=choice.cost,
        bound=choice.bound,
        gap=choice.gap,
        status=choice.status,
        even_loss=float(even * fitted.sum()),
        held_out=float((held_out * errors[option]).sum()),
        held_out_even=float(even * held_out.sum()),
        held_out_best=chosen(held_out).bound,
        expert_bytes=float(factor.sum() * setting.model.expert_bytes),
        full_bytes=float(factor.size * setting.model.expert_bytes),
    )
    return answer, factor


def choose_tiers(
    setting: Setting, plan: Placement, spec: TiersSpec, memory: MemorySpec, byte_factor: FloatArray | None = None
) -> TiersAnswer:
    """Residency of least expected copies on the fitted steps, checked; ranks are alike and decide for themselves.

    byte_factor  float64[MoE layer, expert]: bytes of an expert over the model card's; None: 1.

    Nothing is evicted: an expert on the host is copied in every step that wants it, which a cache only lowers. Raises
    HardwareError without a host, PlacementInfeasible where both tiers together are too small.
    """
    link = setting.cluster.host_link
    if link is None:
        raise HardwareError(f"tiers: {setting.cluster.name} has no host; name a node card with one, or leave tiers out")
    factor = 1.0 if byte_factor is None else byte_factor[np.arange(plan.n_layers)[:, None], plan.expert_of_slot]
    size_bytes = np.where(plan.filled, setting.model.expert_bytes / setting.layout.tp * factor, 0.0)
    free_bytes = _free_bytes(setting, plan, spec, memory)
    fitted, held_out = _wanted(setting, plan, fitted=True), _wanted(setting, plan, fitted=False)
    copied_s = transfer_s(size_bytes, link)
    resident, in_order = np.zeros(plan.filled.shape, bool), np.zeros(plan.filled.shape, bool)
    choices = []
    for rank in range(plan.n_ranks):
        own = (plan.rank_of_slot == rank) & plan.filled
        if not own.any():
            continue
        costs = np.stack([np.zeros(own.sum()), (fitted * copied_s)[own]], axis=1)
        choice = tier_residency(costs, size_bytes[own], free_bytes, time_limit_s=spec.time_limit / plan.n_ranks)
        check_tiers(choice.option.tolist(), size_bytes[own].tolist(), free_bytes.tolist())
        resident[own] = choice.option == 0
        in_order[own] = np.cumsum(size_bytes[own]) <= free_bytes[0]
        choices.append(choice)
    by_slot_s = np.where(resident, 0.0, copied_s)
    by_rank_s = np.bincount(plan.rank_of_slot.ravel(), weights=(fitted * by_slot_s).ravel(), minlength=plan.n_ranks)
    bound_s = sum((choice.bound for choice in choices), 0.0) / plan.n_ranks + 0.0  # never -0.0
    return TiersAnswer(
        resident=resident,
        n_copies=int(plan.filled.sum()),
        device_bytes=float(free_bytes[0]),
        host_bytes=float(free_bytes[1]),
        copy_s=float(by_rank_s.mean()),
        bound_s=bound_s,
        gap=float(by_rank_s.mean() / bound_s - 1) if bound_s > 0 else 0.0,
        status="optimal" if all(choice.status == "optimal" for choice in choices) else "time limit",
        worst_copy_s=float(by_rank_s.max()),
        held_out_copy_s=float((held_out * by_slot_s).sum() / plan.n_ranks),
        hit_frac=_share(fitted, resident),
        held_out_hit_frac=_share(held_out, resident),
        in_order_hit_frac=_share(fitted, in_order),
        held_out_in_order_hit_frac=_share(held_out, in_order),
    )


def _share(wanted: FloatArray, resident: NDArray[np.bool_]) -> float:
    return float((wanted * resident).sum() / wanted.sum())


def _free_bytes(setting: Setting, plan: Placement, spec: TiersSpec, memory: MemorySpec) -> FloatArray:
    """Room for experts of one device, float64[2]: in its own memory, and its share of the host's."""
    device_bytes, host_bytes, host = spec.device, spec.host, setting.cluster.host
    if device_bytes is None:
        whole = device_memory(setting, plan, memory)
        device_bytes = max(whole.usable_bytes - whole.other_weight_bytes - whole.kv_bytes, 0.0)
    if host_bytes is None:
        if host is None or host.dram_bytes is None:
            name = "the node" if host is None else host.name
            raise HardwareError(f"tiers: {name} states no dram_bytes; give tiers.host, the bytes of each node")
        host_bytes = host.dram_bytes.value
    return np.array([device_bytes, host_bytes / setting.cluster.devices_per_node])


def _wanted(setting: Setting, plan: Placement, *, fitted: bool) -> FloatArray:
    """Share of the steps in which any token visits a slot, float64[MoE layer, slot]."""
    batches = setting.batches if not fitted or setting.fit_batches is None else setting.fit_batches()
    reduction = reduce_trace(batches.trace, batches.tokens, plan, setting.layout)
    shares: FloatArray = (reduction.slot_tokens > 0).mean(axis=1)
    return shares
