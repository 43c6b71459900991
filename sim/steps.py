"""From a routing trace to the steps of a workload: transforms of routes, then batches, then drops at full experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.layout import ExpertLayout
from scenarios.errors import PlacementInfeasible, ScenarioError
from scenarios.models import ModelCard
from scenarios.routing_specs import MaskSpec, RoutingSpec
from scenarios.seeds import Use, generator
from scenarios.workload_specs import WorkloadSpec
from traces.batches import Batches, compose_batches, with_prompts
from traces.drops import Capacity, capped_sequences, capped_steps
from traces.formers import Forming, formed_batches
from traces.routes import (
    best_choices,
    highest,
    iterated,
    joined,
    masked,
    nucleus,
    pruned,
    spaced,
    weights_of,
    without_null,
)
from traces.routing import RoutingTrace
from traces.split import select_sequences
from traces.stats import expert_loads, gate_shares

FIT_STEPS = 64  # `joint` anneals on half of them on eight devices, and `auto` compares plans on the others


def numbered(trace: RoutingTrace, model: ModelCard, spec: RoutingSpec) -> RoutingTrace:
    """The trace with experts numbered among those of the largest layer.

    Raises ScenarioError where layers differ and share a capacity, which depends on their experts.
    """
    if model.experts_by_layer is None:
        return trace
    if spec.capacity_factor is not None:
        raise ScenarioError(
            f"workload.routing: capacity_factor is of {model.n_experts} experts a layer, and those of {model.name} "
            "differ (experts_by_layer); leave it out"
        )
    return spaced(trace, model.experts_by_layer)


def chosen(
    trace: RoutingTrace, spec: RoutingSpec, fit: NDArray[np.int64] | None = None, n_kept: int | None = None
) -> RoutingTrace:
    """The trace with the choices that `spec` leaves to each token; raises TraceError as the transforms do.

    fit     sequences by which a mask scores experts; None: all. n_kept: experts that it keeps of each layer, where
            that depends on the memory of devices.
    """
    rng = np.random.default_rng([spec.seed, 0])
    if spec.mask is not None:
        scored = trace if fit is None else select_sequences(trace, fit)
        kept = _kept_experts(scored, spec.mask, n_kept)
        trace = masked(trace, kept, rng)
        trace = pruned(trace, kept) if spec.mask.prune else trace
    if spec.top_k is not None:
        trace = best_choices(trace, spec.top_k)
    if spec.top_p is not None:
        trace = nucleus(trace, spec.top_p)
    if spec.null_experts is not None:
        trace = without_null(trace, spec.null_experts, rng if spec.null_by == "chance" else None)
    iterated(trace, spec.iterations)  # raises where choices do not divide
    return trace


def with_room(trace: RoutingTrace, spec: RoutingSpec) -> RoutingTrace:
    """The trace with the choices that find room where every request has a capacity of its own."""
    if spec.capacity_factor is None or spec.group != "sequence":
        return trace
    capped = capped_sequences(
        iterated(trace, spec.iterations), capacity_of(spec), np.random.default_rng([spec.seed, 1])
    )
    return joined(capped, spec.iterations)


def routed_model(model: ModelCard, spec: RoutingSpec) -> ModelCard:
    """The model whose tokens take as many experts as `spec` leaves them, in as many iterations."""
    if (spec.top_k, spec.iterations) == (None, 1):
        return model
    rounds = model.iterations * spec.iterations
    return model.model_copy(update={"top_k": (spec.top_k or model.choices) // rounds, "iterations": rounds})


def composed(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    workload: WorkloadSpec,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Batches:
    """`shape` (steps, devices) steps of the sequences, with the choices that find room on a device or in a step."""
    return dropped(as_chosen(trace, sequences, workload, shape, rng), workload.routing)


def judged_steps(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    workload: WorkloadSpec,
    n_devices: int,
    n_sharing: int,
    seed: int,
) -> Batches:
    """The steps of the workload with the choices of the trace, and their prompts, each on `n_sharing` devices."""
    shape = workload.steps, n_devices
    return with_prompts(
        as_chosen(trace, sequences, workload, shape, generator(seed, Use.JUDGED_STEPS)),
        trace,
        sequences,
        n_tokens=workload.prompt_tokens,
        n_sharing=n_sharing,
        rng=generator(seed, Use.PROMPTS),
    )


def spread_steps(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    workload: WorkloadSpec,
    n_devices: int,
    seed: int,
) -> Batches:
    """`FIT_STEPS` steps, evenly spread over one pass through the sequences.

    Steps in a row hold the same requests, and a plan fitted on them would know few.
    """
    n_tokens = int((trace.offsets[sequences + 1] - trace.offsets[sequences]).sum())
    n_steps = max(FIT_STEPS, n_tokens // (n_devices * workload.tokens_per_device))
    batches = as_chosen(trace, sequences, workload, (n_steps, n_devices), generator(seed, Use.FIT_STEPS))
    return dropped(batches.at(np.linspace(0, n_steps - 1, FIT_STEPS).astype(np.int64)), workload.routing)


def dropped(batches: Batches, spec: RoutingSpec) -> Batches:
    """The steps without the choices that find their expert full on a device or in a step."""
    if spec.capacity_factor is None or spec.group == "sequence":
        return batches
    rng = np.random.default_rng([spec.seed, 1])
    rounds = replace(batches, trace=iterated(batches.trace, spec.iterations))
    capped = capped_steps(rounds, by_device=spec.group == "device", rule=capacity_of(spec), rng=rng)
    return replace(capped, trace=joined(capped.trace, spec.iterations))


def capacity_of(spec: RoutingSpec) -> Capacity:
    """The rule of capacity; without one, as much as comes."""
    return Capacity(factor=spec.capacity_factor or np.inf, order=spec.drop, least=spec.min_capacity)


def as_chosen(
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    workload: WorkloadSpec,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Batches:
    """The steps with the choices of the trace, whether their experts have room or not."""
    pool = workload.batches.pool
    waiting = compose_batches(
        trace,
        sequences,
        phase=workload.phase,
        shape=(*shape, workload.tokens_per_device * pool),
        context_tokens=workload.context_tokens,
        rng=rng,
    )
    if pool == 1:
        return waiting
    forming = Forming(by=workload.batches.by, pool=pool, recall=workload.batches.recall)
    return formed_batches(waiting, workload.tokens_per_device, forming, rng)


def pruned_model(model: ModelCard, n_experts: int) -> ModelCard:
    """The model with so many experts in a layer; its router limits groups where these still divide the experts."""
    if n_experts == model.n_experts:
        return model
    grouped = {} if n_experts % model.n_group == 0 else {"n_group": 1, "topk_group": 1}
    return model.model_copy(update={"n_experts": n_experts, **grouped})


def kept_in_memory(model: ModelCard, spec: RoutingSpec, layout: ExpertLayout) -> int | None:
    """Experts of each layer that the mask's room on every device holds; None where the mask does not go by it.

    Raises PlacementInfeasible where that is fewer than a token takes.
    """
    if spec.mask is None or spec.mask.device is None:
        return None
    layer_bytes = len(model.moe_layers) * model.expert_bytes / layout.tp
    n_kept = min(int(spec.mask.device // layer_bytes) * layout.n_ranks, model.n_experts)
    if n_kept < model.choices:
        needed = -(-model.choices // layout.n_ranks) * layer_bytes
        raise PlacementInfeasible(
            f"workload.routing.mask.device: {spec.mask.device / 2**30:.2f} GiB on each of {layout.n_devices} devices "
            f"hold {n_kept} experts of each layer, where a token takes {model.choices}; short by "
            f"{(needed - spec.mask.device) / 2**30:.2f} GiB. Levers: more devices, a smaller expert dtype"
        )
    return n_kept


def _kept_experts(trace: RoutingTrace, mask: MaskSpec, n_kept: int | None) -> list[list[int]]:
    if mask.keep is not None:
        n_kept = int(np.ceil(mask.keep * trace.n_experts - 1e-9))
    if n_kept is not None:
        return highest(_scores(trace, mask), n_kept)
    by_layer = [list(entry) for entry in mask.experts or () if not isinstance(entry, int)]
    return by_layer or [[entry for entry in mask.experts or () if isinstance(entry, int)]] * trace.n_layers


def _scores(trace: RoutingTrace, mask: MaskSpec) -> NDArray[np.float64]:
    """Scores of all experts, float64[layer, expert]; raises TraceError where weights are asked of a trace without."""
    if mask.by == "weight":
        weights_of(trace, "mask.by weight")
        return gate_shares(trace)
    return expert_loads(trace).astype(np.float64)
