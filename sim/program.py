"""Stream programs: a policy issues operations in program order, which are recorded once as an op list.

Every device runs the same list on its own lanes, as a GPU runs the kernels that were put on its streams. A lane is
first in, first out: an operation starts when the one before it on its lane is done and all that it comes `after`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NewType

from scenarios.errors import DeadlockError

StageLane = NewType("StageLane", str)
"""A pipeline stage, or the way from one to another (sim/pipelines)."""
DeviceLane = Literal[
    "compute",
    "send",
    "receive",
    "send-inside",
    "receive-inside",
    "experts",
    "send-experts",
    "receive-experts",
    "to-device",
    "to-device-later",
    "to-host",
    "from-ssd",
    "host",
    "pim",
]
"""Kernels of a device; its ports, and those inside its node where a stage of an exchange has them to itself; kernels
and ports of the device that holds experts, where that is another one; the engines that copy from the host's memory and
to it, and copies of the first that let others pass; reads from the host's drive; the host's cores; processing units in
the memory of the device."""
Lane = DeviceLane | StageLane
Lanes = tuple[Lane, ...]
COMPUTE_LANE: Lanes = ("compute",)
PIM_LANE: Lanes = ("pim",)
EXCHANGE_LANES: Lanes = ("send", "receive")
INSIDE_LANES: Lanes = ("send-inside", "receive-inside")
LATER_LANE: Lanes = ("to-device-later",)
TO_EXPERTS: Lanes = ("send", "receive-experts")
FROM_EXPERTS: Lanes = ("send-experts", "receive")
PORTS = (EXCHANGE_LANES, INSIDE_LANES, TO_EXPERTS, FROM_EXPERTS)
SEND_LANES, RECEIVE_LANES = (tuple(dict.fromkeys(lanes)) for lanes in zip(*PORTS, strict=True))


Tiling = Literal["rows", "columns"]
"""How a fused kernel is cut: into rows all the way, or at the second GEMM into columns of its result."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an operation does, and so which durations apply.

    `kind` of `layer` (-1: none), for one `chunk` of the tokens (-1: all) or expert, in one `step` where a program holds
    several, or run of a layer that is run several times.
    """

    kind: str
    layer: int = -1
    chunk: int = -1
    step: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One part of a layer's tokens on its way through the experts; without a combine they stay there.

    Stages inside nodes, where the exchange has them: `regroup` before the dispatch, `forward` after it, `collect`
    before the combine; `lanes` are those that they occupy, their own or those of the exchange.
    down  where a kernel splits at the second GEMM: `experts` is a tile of rows up to the activation, `down` a block of
          columns of all rows, which the combine sends; None where `experts` are both GEMMs.
    """

    dispatch: Work
    experts: Work
    combine: Work | None
    regroup: Work | None = None
    forward: Work | None = None
    collect: Work | None = None
    lanes: Lanes = INSIDE_LANES
    down: Work | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Works of a layer whose experts live in the host's memory; those that never occur are left out.

    resident, coming, loads  experts on the device by how they came: there before the step, copied `ahead` of it, missed
                             and copied: pairs of the copies of some and of their work.
    hosted, deferred         what the host computes; the results of the second are summed one layer later.
    astray, rest             where missed experts pass those asked for ahead: copies ahead that nobody will use, before
                             and after those of `ahead`; what is left of `ahead` when the gate has spoken.
    drop                     giving up what is then left of those of `astray`.
    reads                    reads from the host's drive before each of `loads`; read_hosted, read_ahead: the same of
                             what the host computes, and of copies ahead.
    lead                     the copies ahead are asked for at the gate of so many MoE layers before.
    """

    resident: Work
    ahead: Work | None = None
    coming: Work | None = None
    loads: tuple[tuple[Work, Work], ...] = ()
    hosted: Work | None = None
    deferred: Work | None = None
    astray: tuple[Work, ...] = ()
    rest: Work | None = None
    drop: tuple[Work, ...] = ()
    reads: tuple[Work, ...] = ()
    read_hosted: Work | None = None
    read_ahead: Work | None = None
    lead: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Works of a layer that PIM units do; of what the schedule gives to the device, their time is zero, and vice versa.

    core, experts  attention of requests, and routed experts; None where the layer has none.
    output         the projection after attention, which awaits both.
    beside         units and device may work at a time.
    """

    output: Work
    core: Work | None = None
    experts: Work | None = None
    beside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """Works of a layer for one microbatch, where weights stream from the host's memory; None: never occurs.

    early, page    copies of weights: those of attention, where they stream, too, and the others, or that page
                   of them which comes with this microbatch.
    cache          copy to the device of what it needs before it begins: cache of its requests, hidden states.
    before, after  computed by the device before and after what the host does in between.
    queries, attended, results  decode attention on the host: what it needs on its way there, its work, the way back.
    store          copy to the host of what the device leaves there: new cache, hidden states.
    slots          layers of weights that the device has room for.
    """

    early: Work | None = None
    page: Work | None = None
    cache: Work | None = None
    before: tuple[Work, ...] = ()
    queries: Work | None = None
    attended: Work | None = None
    results: Work | None = None
    after: tuple[Work, ...] = ()
    store: Work | None = None
    slots: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The works of one transformer block; those that the model, layout or schedule does not have are None.

    attention     none where the layer is another run of the experts of the one before.
    projections   what a schedule tells apart from `attention`: norm and projections before its core.
    fetch, local  copies of experts on their way, and the work on the device's own tokens, which wait for no dispatch;
                  without chunks no token travels.
    before_dispatch, after_combine  what a device does to its tokens before they leave and after they are back.
    stored        how its experts are served from the host's memory, in place of the chunk's `experts`.
    units         what PIM units do of it.
    streamed      its works where weights stream: in place of all others, or the page alone (ring).
    weights       all-gather of the layer's weights, where no device holds all of them.

    Raises DeadlockError for a gate whose tokens have no chunk to travel in, or chunks without a gate.
    """

    attention: Work | None
    gate: Work | None = None
    chunks: tuple[Chunk, ...] = ()
    shared: Work | None = None
    mlp: Work | None = None
    gather: Work | None = None
    scatter: Work | None = None
    projections: Work | None = None
    fetch: Work | None = None
    local: Work | None = None
    before_dispatch: tuple[Work, ...] = ()
    after_combine: tuple[Work, ...] = ()
    stored: Stored | None = None
    units: Units | None = None
    streamed: Streamed | None = None
    weights: Work | None = None

    @property
    def own_attention(self) -> Work:
        """The work of attention. Raises DeadlockError for a further run of a layer, which has none."""
        if self.attention is None:
            raise DeadlockError(f"{self.gate}: a further run of a layer has no attention")
        return self.attention

    @property
    def number(self) -> int:
        """Number of the layer in its model."""
        first = self.attention or self.gate
        return -1 if first is None else first.layer

    def __post_init__(self) -> None:
        if (self.gate is None) != (not self.chunks and self.local is None):
            raise DeadlockError(f"{self.attention or self.gate}: a gate and chunks of experts belong together")

    @property
    def is_pulled(self) -> bool:
        """Whether experts come to the tokens, all of which stay at home."""
        return self.local is not None and not self.chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardLayer:
    """The works of a layer's backward pass.

    works    gradients of inputs and weights, in the record of the forward pass, which is gone through in reverse: the
             dispatch brings the gradient of the combine to the experts, the combine that of the dispatch back.
    again    works of the forward pass that are issued again first, where their results were not kept.
    experts, others  sums over devices of the gradients of experts and of all other weights, in pieces.
    """

    works: Layer
    again: Layer | None = None
    experts: tuple[Work, ...] = ()
    others: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The works that follow a forward pass where a step trains.

    layers   in the order of the backward pass, the last one of the model first.
    head_sums, embedding_sums  sums of gradients that are there first and last, in pieces.
    refresh  all-gather of the weights that each device has updated a part of.
    """

    head: Work
    layers: tuple[BackwardLayer, ...]
    update: Work
    head_sums: tuple[Work, ...] = ()
    embedding_sums: tuple[Work, ...] = ()
    refresh: Work | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The works of one forward pass, in the order of the model.

    others    further microbatches: the same pass over other tokens of the step, which may run beside this one.
    training  backward pass, sums of gradients and update; None where nothing is trained.
    """

    layers: tuple[Layer, ...]
    head: Work
    others: tuple[Step, ...] = ()
    training: Training | None = None

    @property
    def microbatches(self) -> tuple[Step, ...]:
        """All passes of the step."""
        return (self, *self.others)


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded operation: `lanes` it occupies, and the indices of the operations that it comes after.

    rest_of  a copy on the lane `to-device-later`, of which it takes what is left over (`sim.copy_engine`); where it
             `drops` that, nothing more of it is copied.
    """

    work: Work
    lanes: Lanes
    after: tuple[int, ...]
    rest_of: int | None = None
    drops: bool = False

    @property
    def is_exchange(self) -> bool:
        """True where tokens travel between devices."""
        return self.lanes in PORTS


@dataclass(slots=True)
class Program:
    """Records what a policy issues. An operation is named by its index; `after=None` stands for 'at once'."""

    ops: list[Op] = field(default_factory=list)

    def compute(self, work: Work, *, after: After) -> int:
        """Index of a new operation on the compute lane."""
        return self._issue(work, COMPUTE_LANE, after)

    def exchange(self, work: Work, *, after: After, lanes: Lanes = EXCHANGE_LANES) -> int:
        """Index of a new exchange of tokens, on a send and a receive lane of all devices of its group."""
        return self._issue(work, lanes, after)

    def beside(self, work: Work, lane: Lane, *, after: After) -> int:
        """Index of a new operation of one device on a lane beside its compute lane."""
        return self._issue(work, (lane,), after)

    def later(self, work: Work, *, after: After) -> int:
        """Index of a new copy to the device that lets those on the lane `to-device` pass; only `rest` awaits it."""
        return self._issue(work, LATER_LANE, after)

    def rest(self, work: Work, of: int, *, after: After, drops: bool = False) -> int:
        """Index of a new copy on the lane `to-device`: of what is then left of the copy `of`; or that is given up."""
        index = self._issue(work, ("to-device",), (*_listed(after), *self.ops[of].after))
        self.ops[index] = replace(self.ops[index], rest_of=of, drops=drops)
        return index

    def _issue(self, work: Work, lanes: Lanes, after: After) -> int:
        waits = _listed(after)
        index = len(self.ops)
        later = [dep for dep in waits if not 0 <= dep < index]
        if later:
            raise DeadlockError(f"operation {index} ({work.kind}) waits for operation {later[0]}, not yet issued")
        if any(self.ops[dep].lanes == LATER_LANE for dep in waits):
            raise DeadlockError(f"operation {index} ({work.kind}) waits for a copy that others pass; await its rest")
        self.ops.append(Op(work, lanes, waits))
        return index


After = int | Sequence[int] | None


def _listed(after: After) -> tuple[int, ...]:
    return () if after is None else (after,) if isinstance(after, int) else tuple(after)


Policy = Callable[[Program, Step], None]


@dataclass(frozen=True, slots=True)
class OpList:
    """A compiled program.

    `waits[i]` are the operations whose end operation i awaits: `after` without what follows from the others.
    `lane_waits[i]` are (lane, operation) pairs: the predecessors on its lanes, without those that follow from `waits`.
    Dropping changes no time: an operation starts after all of its ancestors end on the same device. A receive lane
    may open for an exchange before the device itself starts it, so its predecessor always stays.
    """

    ops: tuple[Op, ...]
    waits: tuple[tuple[int, ...], ...]
    lane_waits: tuple[tuple[tuple[Lane, int], ...], ...]


@lru_cache(maxsize=64)
def compile_program(policy: Policy, step: Step) -> OpList:
    """The op list that `policy` issues for `step`; compiled once for each pair."""
    program = Program()
    policy(program, step)
    return compile_ops(program.ops)


def compile_ops(ops: Sequence[Op]) -> OpList:
    """Op list with redundant waits dropped; ancestors are kept as bit sets."""
    ancestors: list[int] = []
    last_on_lane: dict[Lane, int] = {}
    waits: list[tuple[int, ...]] = []
    lane_waits: list[tuple[tuple[Lane, int], ...]] = []
    for index, op in enumerate(ops):
        needed = [dep for dep in dict.fromkeys(op.after) if not _implied(dep, op.after, ancestors)]
        reached = 0
        for dep in needed:
            reached |= ancestors[dep] | 1 << dep
        before = [(lane, last_on_lane[lane]) for lane in op.lanes if lane in last_on_lane]
        waits.append(tuple(needed))
        lane_waits.append(tuple((lane, dep) for lane, dep in before if lane in RECEIVE_LANES or not reached >> dep & 1))
        ancestors.append(reached | _followed(before, ancestors))
        last_on_lane.update(dict.fromkeys(op.lanes, index))
    return OpList(tuple(ops), tuple(waits), tuple(lane_waits))


def list_ops(ops: Sequence[Op]) -> OpList:
    """Op list with all waits kept: for programs of so many operations that sets of ancestors would fill the memory."""
    last_on_lane: dict[Lane, int] = {}
    lane_waits: list[tuple[tuple[Lane, int], ...]] = []
    for index, op in enumerate(ops):
        lane_waits.append(tuple((lane, last_on_lane[lane]) for lane in op.lanes if lane in last_on_lane))
        last_on_lane.update(dict.fromkeys(op.lanes, index))
    return OpList(tuple(ops), tuple(op.after for op in ops), tuple(lane_waits))


def _implied(dep: int, deps: Sequence[int], ancestors: Sequence[int]) -> bool:
    return any(ancestors[other] >> dep & 1 for other in deps if other != dep)


def _followed(before: Sequence[tuple[Lane, int]], ancestors: Sequence[int]) -> int:
    """Ancestors gained through the lanes. An exchange frees its send lane before it ends, so the predecessor there
    has not ended yet; the receive lane and the compute lane are free only at its end."""
    reached = 0
    for lane, dep in before:
        if lane not in SEND_LANES:
            reached |= ancestors[dep] | 1 << dep
    return reached
