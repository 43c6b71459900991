"""Memory that a simulation itself takes, estimated before it starts: absurd sizes are refused, not tried."""

from __future__ import annotations

from scenarios.errors import ScenarioError
from scenarios.host_memory import check_host_memory
from scenarios.models import ModelCard
from scenarios.schedule_specs import FUSED, ScheduleSpec
from scenarios.workload_specs import WorkloadSpec
from sim.policies import MICROBATCHED

TOKEN_BYTES = 65  # measured: indices, contexts and counting of a token of a step
ROUTE_BYTES = 4  # id and kept or not of a choice, before and after drops
PART_BYTES = 300  # measured: counts, durations and times of one device in one chunk of one layer and step
MESSAGE_BYTES = 55  # measured: counts and times of one pair of devices, the same


def check_workload(workload: WorkloadSpec, model: ModelCard, n_devices: int) -> None:
    """Raise MoesimError where the steps of `workload` cannot fit into the memory of this machine."""
    steps, tokens = workload.steps, workload.tokens_per_device
    token_bytes = TOKEN_BYTES
    if workload.routing.capacity_factor is not None and workload.routing.group != "sequence":
        token_bytes += ROUTE_BYTES * len(model.moe_layers) * model.top_k
    needed = steps * n_devices * (tokens * token_bytes + model.n_layers * PART_BYTES)
    check_host_memory(
        needed,
        f"workload: {steps:,} steps of {tokens:,} tokens on each of {n_devices:,} devices take",
        "lower workload.steps or workload.tokens_per_device",
    )


def check_schedule(schedule: ScheduleSpec, workload: WorkloadSpec, model: ModelCard, n_devices: int) -> None:
    """Raise ScenarioError where there are more chunks than tokens, MoesimError where their exchanges cannot fit."""
    chunks, option = schedule.n_chunks, "tiles" if schedule.overlap in FUSED else "chunks"
    if chunks > workload.tokens_per_device:
        raise ScenarioError(
            f"schedule.{option}: {chunks} {option} of the {workload.tokens_per_device} tokens of a device leave some "
            f"empty; lower schedule.{option} or raise workload.tokens_per_device"
        )
    if workload.prompt_tokens and schedule.overlap in MICROBATCHED:
        raise ScenarioError(
            f"workload.prompt_tokens: {schedule.overlap} halves the tokens of a device, which leaves prompts and "
            "requests apart; leave prompt_tokens out"
        )
    if schedule.pim != "none" and workload.phase == "train":
        raise ScenarioError("schedule.pim: units in the memory do attention of requests and experts, not training")
    messages = 0 if schedule.exchange.law == "port" else n_devices * MESSAGE_BYTES
    needed = workload.steps * chunks * model.n_layers * n_devices * (PART_BYTES + messages)
    check_host_memory(
        needed,
        f"schedule: {workload.steps:,} steps of {chunks} {option}, law {schedule.exchange.law}, on "
        f"{n_devices:,} devices take",
        f"lower workload.steps or schedule.{option}, or use law port",
    )
