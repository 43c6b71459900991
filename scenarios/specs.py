"""What a scenario may say. Names of solvers, policies and laws are checked here, so that an error has a line number;
a conformance test compares them with the implementations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scenarios.models import DType
from scenarios.sources import Spec
from scenarios.units import BytesPerS, Dollars, Seconds, Watts

SolverName = Literal[
    "contiguous",
    "round-robin",
    "random",
    "greedy",
    "eplb",
    "balance",
    "flexmoe",
    "smartmoe",
    "saa",
    "joint",
    "auto",
    "chain-exact",
    "alsa",
    "two-stage",
    "exflow",
    "ilp-affinity",
    "ilp-load",
    "ilp-saa",
    "migrate",
]
OverlapName = Literal["none", "chunked", "two-batch"]
LawName = Literal["port", "fifo", "maxmin"]
DedupName = Literal["none", "device", "node"]
SplitName = Literal["even", "least-loaded", "lp", "lp-local"]
FittedKernelName = Literal["deepep-normal", "deepep-low-latency", "nvl72-one-sided", "nvl72-two-sided"]
KernelName = Literal["alpha-beta", "nccl"] | FittedKernelName
KERNEL_DEDUP: dict[str, DedupName] = {
    "deepep-normal": "node",
    "deepep-low-latency": "none",
    "nvl72-one-sided": "device",
    "nvl72-two-sided": "device",
}
"""What each fitted kernel sends once: a copy of a token for every expert, device or node."""


class ClusterSpec(Spec):
    """Nodes of one kind. `node` names a node card; the other fields override parts of it."""

    node: str
    nodes: int = Field(default=1, gt=0)
    device: str | None = Field(default=None, description="device card instead of the node's own")
    devices_per_node: int | None = Field(default=None, gt=0)
    cards: str | None = Field(default=None, description="file of hardware cards that come before the shipped ones")
    kernels: str | None = Field(default=None, description="kernel card or its file, instead of the device's own")
    intra_bandwidth: BytesPerS | None = Field(default=None, description="per device and direction, inside a node")
    inter_bandwidth: BytesPerS | None = Field(default=None, description="per device and direction, between nodes")


class SynthesisSpec(Spec):
    """A made-up routing trace; `fit` takes the knobs from a real trace instead of from here."""

    tokens: int = Field(default=32768, gt=0)
    sequence_tokens: int = Field(default=256, gt=0)
    skew: float = Field(default=0.5, ge=0, description="standard deviation of log expert popularity")
    sequence_skew: float = Field(default=0.5, ge=0, description="the same, drawn anew for each sequence")
    reuse: float = Field(default=0.2, ge=0, lt=1, description="chance that a token keeps an expert of its predecessor")
    affinity: float = Field(default=0.8, ge=0, lt=1, description="chance that a choice follows the token's theme")
    fit: str | None = Field(default=None, description="path of a trace whose statistics set the knobs")
    seed: int = Field(default=0, ge=0)


class SplitSpec(Spec):
    """Shares of the sequences: plans are fitted on one part and judged on another."""

    fit: float = Field(default=0.5, ge=0, le=1)
    evaluate: float = Field(default=0.5, gt=0, le=1)
    shifted: str | None = Field(
        default=None, description="label of a domain that is in neither part: `place` judges plans on it, too"
    )

    @model_validator(mode="after")
    def _parts(self) -> SplitSpec:
        if self.fit + self.evaluate > 1 + 1e-9:
            raise ValueError(f"fit {self.fit} and evaluate {self.evaluate} overlap: together they exceed 1")
        return self


class WorkloadSpec(Spec):
    """Tokens that every device processes in a step, taken from a routing trace."""

    trace: str | None = Field(
        default=None, description="path of a .npz trace, relative to the scenario, or the name of a shipped one"
    )
    synthetic: SynthesisSpec | None = None
    phase: Literal["decode", "prefill"] = "decode"
    tokens_per_device: int = Field(default=64, gt=0)
    context_tokens: int | None = Field(default=None, gt=0, description="context of every token; default: its position")
    steps: int = Field(default=64, gt=0)
    split: SplitSpec = SplitSpec()

    @model_validator(mode="after")
    def _one_origin(self) -> WorkloadSpec:
        if (self.trace is None) == (self.synthetic is None):
            raise ValueError("give either 'trace: FILE' or 'synthetic: {...}'")
        return self


class AttentionParallelSpec(Spec):
    """Layout of attention: `dp` replicas of `tp` devices each."""

    dp: int = Field(gt=0)
    tp: int = Field(default=1, gt=0)


class ExpertParallelSpec(Spec):
    """Layout of experts: `ep` ranks of `tp` devices each."""

    ep: int = Field(gt=0)
    tp: int = Field(default=1, gt=0)


class ParallelSpec(Spec):
    """Parallel layout; left out, attention is data parallel and experts are spread over all devices."""

    attention: AttentionParallelSpec | None = None
    experts: ExpertParallelSpec | None = None


class PlacementSpec(Spec):
    """A placement solver with its options, or the file of a plan."""

    solver: Literal[SolverName, "file"] = "contiguous"
    file: str | None = Field(
        default=None, description="a plan of `moesim place` or of an engine, or counts for EPLB; see `list formats`"
    )
    redundant: int = Field(default=0, ge=0, description="replica slots of a layer, over all ranks together")
    split: SplitName = Field(default="even", description="how tokens choose among replicas")
    spare: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="auto: spare slots of a rank to try"
    )
    seed: int = Field(default=0, ge=0)
    hierarchical: bool | None = Field(
        default=None, description="eplb: groups to nodes first; default: where it divides"
    )
    time_limit: Seconds = Field(default=60.0, gt=0, description="exflow, ilp-*: time of all programmes together")
    current: str | None = Field(default=None, description="migrate, flexmoe, smartmoe: file of the plan in force")
    moves: int | None = Field(default=None, ge=0, description="migrate: most copies moved, all layers; default: any")
    name: str | None = Field(default=None, description="name of the row in tables")

    @model_validator(mode="before")
    @classmethod
    def _file_solves(cls, raw: Any) -> Any:
        return {"solver": "file", **raw} if isinstance(raw, dict) and raw.get("file") is not None else raw

    @model_validator(mode="after")
    def _file_or_solver(self) -> PlacementSpec:
        if (self.solver == "file") != (self.file is not None):
            raise ValueError("a plan is either solved ('solver: NAME') or read ('file: FILE')")
        return self

    @model_validator(mode="after")
    def _own_options(self) -> PlacementSpec:
        if self.solver == "auto" and self.redundant:
            raise ValueError(
                f"auto chooses the replica slots itself: give spare: [...], not redundant: {self.redundant}"
            )
        if self.solver != "auto" and "spare" in self.model_fields_set:
            raise ValueError(f"spare is an option of solver auto, not of {self.solver}; give redundant")
        if self.solver != "migrate" and self.moves is not None:
            raise ValueError(f"moves is an option of solver migrate, not of {self.solver}")
        return self


class ExchangeSpec(Spec):
    """How tokens travel: law of link sharing, what is sent once, and the kernel that sends it.

    Kernels but alpha-beta were fitted to measured times. They decide themselves what is sent once, and want law port.
    """

    law: LawName = "port"
    kernel: KernelName = Field(default="alpha-beta", description="alpha-beta: the link's latency and bandwidth alone")
    sms: int | None = Field(default=None, gt=0, description="deepep-normal: SMs that it takes; default: 20")
    dedup: DedupName = Field(
        default="device", description="a token is sent once per expert, device or node; fitted kernels have their own"
    )
    dispatch_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")
    combine_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")

    @model_validator(mode="before")
    @classmethod
    def _kernels_dedup(cls, raw: Any) -> Any:
        own = KERNEL_DEDUP.get(raw.get("kernel", "")) if isinstance(raw, dict) else None
        return raw if own is None else {"dedup": own, **raw}

    @model_validator(mode="after")
    def _one_kernel(self) -> ExchangeSpec:
        own = KERNEL_DEDUP.get(self.kernel, self.dedup)
        if self.dedup != own:
            raise ValueError(f"kernel {self.kernel} has dedup {own}, not {self.dedup}; leave dedup out")
        if self.kernel != "alpha-beta" and self.law != "port":
            raise ValueError(f"kernel {self.kernel} is timed as a whole: law port, not {self.law}")
        if self.sms is not None and self.kernel != "deepep-normal":
            raise ValueError(f"sms is an option of kernel deepep-normal, not of {self.kernel}")
        return self


class ScheduleSpec(Spec):
    """A schedule policy with its options."""

    overlap: OverlapName = "none"
    chunks: int = Field(
        default=2, ge=1, description="chunked: parts of the experts' tokens; two-batch: microbatches of the whole step"
    )
    exchange: ExchangeSpec = ExchangeSpec()
    executor: Literal["vector", "event"] = "vector"
    step_overhead: Seconds = Field(default=0.0, description="host time between steps")
    launch: Literal["graph", "eager"] = Field(
        default="graph", description="kernels replayed as a CUDA graph, or launched one by one by the host"
    )
    name: str | None = None

    @property
    def n_parts(self) -> int:
        """Parts that the tokens of a device travel in."""
        return 1 if self.overlap == "none" else self.chunks


class MemorySpec(Spec):
    """What memory must hold beside weights."""

    reserve: float = Field(default=0.1, ge=0, lt=1, description="share kept for activations, buffers and the runtime")
    requests_per_device: int | None = Field(
        default=None, ge=0, description="requests with KV cache on a device; default: tokens_per_device in decode"
    )
    context_tokens: int | None = Field(
        default=None, gt=0, description="KV tokens per request; default: the trace's longest"
    )


class CompareSpec(Spec):
    """Axes of `moesim compare`: every combination is one row; each workload gets a table of its own.

    An entry of an axis overrides keys of the scenario's own section; a placement entry stands alone.
    """

    placement: tuple[PlacementSpec, ...] = ()
    schedule: tuple[ScheduleSpec, ...] = ()
    parallel: tuple[ParallelSpec, ...] = ()
    cluster: tuple[ClusterSpec, ...] = ()
    workload: tuple[WorkloadSpec, ...] = ()


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


class ScenarioSpec(Spec):
    """A whole scenario, as in its YAML file."""

    name: str
    description: str | None = None
    model: str = Field(description="model card name, card file, or Hugging Face config.json")
    cluster: ClusterSpec
    workload: WorkloadSpec
    parallel: ParallelSpec = ParallelSpec()
    placement: PlacementSpec = PlacementSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    memory: MemorySpec = MemorySpec()
    compare: CompareSpec | None = None
    budget: BudgetSpec | None = Field(default=None, description="bound: what may be bought")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _complete_axes(cls, raw: Any) -> Any:
        axes = raw.get("compare") if isinstance(raw, dict) else None
        if not isinstance(axes, dict):
            return raw
        completed = {axis: _over_base(raw.get(axis), entries) for axis, entries in axes.items() if axis != "placement"}
        return {**raw, "compare": {**axes, **completed}}


def _over_base(base: Any, entries: Any) -> Any:
    """The entries of an axis, each completed by the keys of the scenario's own section that it leaves out.

    An entry that names its routing (`trace` or `synthetic`) takes neither from the section.
    """
    if not isinstance(base, dict) or not isinstance(entries, list):
        return entries
    routing = {"trace", "synthetic"}
    without = {key: value for key, value in base.items() if key not in routing}
    return [
        {**(without if routing & entry.keys() else base), **entry} if isinstance(entry, dict) else entry
        for entry in entries
    ]
