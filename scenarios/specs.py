"""What a scenario may say. Names of solvers, policies and laws are checked in its parts, so that an error has a line
number."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scenarios.budget_specs import TABLES, BitsSpec, TiersSpec
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.offload_specs import OffloadSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.serving_specs import ServingSpec
from scenarios.sources import Spec
from scenarios.stream_specs import StreamSpec
from scenarios.training_specs import TrainingSpec
from scenarios.units import Dollars, DollarsPerJ, Seconds, Watts
from scenarios.workload_specs import WorkloadSpec


class MemorySpec(Spec):
    """What memory must hold beside weights, and which weights are not on the devices."""

    reserve: float = Field(default=0.1, ge=0, lt=1, description="share kept for activations, buffers and the runtime")
    requests_per_device: int | None = Field(
        default=None, ge=0, description="requests with KV cache on a device; default: tokens_per_device in decode"
    )
    context_tokens: int | None = Field(
        default=None, gt=0, description="KV tokens per request; default: the trace's longest"
    )
    offload: OffloadSpec | None = None
    stream: StreamSpec | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one_way_to_the_host(self) -> MemorySpec:
        if self.offload is not None and self.stream is not None:
            raise ValueError("offload serves single experts, stream whole layers: give one of them")
        return self


class CompareSpec(Spec):
    """Axes of `moesim compare`: every combination is one row; each workload gets a table of its own.

    An entry of an axis overrides keys of the scenario's own section; a placement entry stands alone.
    """

    placement: tuple[PlacementSpec, ...] = ()
    schedule: tuple[ScheduleSpec, ...] = ()
    parallel: tuple[ParallelSpec, ...] = ()
    cluster: tuple[ClusterSpec, ...] = ()
    workload: tuple[WorkloadSpec, ...] = ()
    memory: tuple[MemorySpec, ...] = ()
    serving: tuple[ServingSpec, ...] = ()
    bits: tuple[BitsSpec, ...] = ()
    training: tuple[TrainingSpec, ...] = ()


class OfferSpec(Spec):
    """One kind of node that can be bought; price and power are those of a whole node, as the buyer knows them."""

    node: str = Field(description="node card")
    device: str | None = Field(default=None, description="device card instead of the node's own")
    kernels: str | None = Field(default=None, description="kernel card or its file, instead of the device's own")
    price: Dollars = Field(gt=0)
    power: Watts | None = None
    rack_units: int | None = Field(default=None, gt=0)
    most: int = Field(default=64, gt=0, description="nodes on offer")
    group: tuple[int, ...] = Field(
        default=(1,), min_length=1, description="nodes that serve one copy of the model together; each is tried"
    )


class BudgetSpec(Spec):
    """What may be spent, and on what: `moesim bound` finds the mix of nodes with the highest throughput."""

    money: Dollars = Field(gt=0)
    power: Watts | None = None
    rack_units: int | None = Field(default=None, gt=0)
    catalogue: tuple[OfferSpec, ...] = Field(min_length=1)
    rank_by: Literal["simulated", "bound"] = Field(
        default="simulated", description="throughput of the scenario's own plan and schedule, or what nothing exceeds"
    )

    @model_validator(mode="after")
    def _known_limits(self) -> BudgetSpec:
        for limit in ("power", "rack_units"):
            missing = [offer.node for offer in self.catalogue if getattr(offer, limit) is None]
            if getattr(self, limit) is not None and missing:
                raise ValueError(f"the budget limits {limit}: give {limit} for {', '.join(missing)}")
        return self


class PricesSpec(Spec):
    """What devices and energy cost: metric `cost_usd_per_mtok`."""

    device: Dollars | None = Field(default=None, description="a device; default: the price that its card states")
    node: Dollars = Field(default=0.0, description="what a node costs beside its devices")
    lifetime: Seconds = Field(gt=0, description="time over which they are paid off, such as 4 a (years)")
    used: float = Field(default=1.0, gt=0, le=1, description="share of it in which they serve")
    energy: DollarsPerJ | None = Field(default=None, description="price of energy; default: not paid for")


class ScenarioSpec(Spec):
    """A whole scenario, as in its YAML file."""

    name: str = Field(description="title of the results")
    description: str | None = Field(default=None, description="what is asked, in a sentence or two")
    model: str | dict[str, Any] = Field(
        description="model card name, card file, or Hugging Face config.json; or {card: NAME, n_layers: 2, ...}, a "
        "card with other numbers"
    )
    cluster: ClusterSpec
    workload: WorkloadSpec
    parallel: ParallelSpec = ParallelSpec()
    placement: PlacementSpec = PlacementSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    memory: MemorySpec = MemorySpec()
    training: TrainingSpec = Field(default=TrainingSpec(), description="of workload.phase train")
    serving: ServingSpec | None = Field(
        default=None, description="requests under load, instead of steps of workload.tokens_per_device"
    )
    compare: CompareSpec | None = None
    prices: PricesSpec | None = None
    budget: BudgetSpec | None = Field(default=None, description="bound: what may be bought")
    bits: BitsSpec | None = Field(default=None, description="bit widths that experts are stored in")
    tiers: TiersSpec | None = Field(default=None, description="place: experts in device memory, the others on the host")
    seed: int = Field(default=0, ge=0, description="of the split, the batches and random plans")

    @model_validator(mode="before")
    @classmethod
    def _complete_axes(cls, raw: Any) -> Any:
        axes = raw.get("compare") if isinstance(raw, dict) else None
        if not isinstance(axes, dict):
            return raw
        completed = {axis: _over_base(raw.get(axis), entries) for axis, entries in axes.items() if axis != "placement"}
        return {**raw, "compare": {**axes, **completed}}


EITHER = (frozenset({"trace", "synthetic"}), frozenset(TABLES))
"""Keys of which a section has one."""


def _over_base(base: Any, entries: Any) -> Any:
    """The entries of an axis, each completed by the keys of the scenario's own section that it leaves out.

    An entry that names its routing (`trace` or `synthetic`), or its table of bits, takes none from the section.
    """
    if not isinstance(base, dict) or not isinstance(entries, list):
        return entries

    def completed(entry: dict[str, Any]) -> dict[str, Any]:
        replaced = {key for either in EITHER if either & entry.keys() for key in either}
        return {**{key: value for key, value in base.items() if key not in replaced}, **entry}

    return [completed(entry) if isinstance(entry, dict) else entry for entry in entries]
