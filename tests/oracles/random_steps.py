"""Random steps for tests of the execution plane; durations are adversarial, since realistic ones hide errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scenarios.schedule_specs import MOVING
from sim.durations import Duration, ExchangeTime, Seconds
from sim.events import execute_events
from sim.forward import tiled
from sim.laws import LAWS
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, TILED
from sim.program import Chunk, Layer, OpList, Program, Step, Work, compile_ops, compile_program
from sim.vector import Finished, execute

ZERO_FRAC = 0.3
KINDS = ("heavy tail", "ties", "mixed")
SOME = (1, 2, 3, 4)
# policy -> numbers of chunks that its steps may have; a new policy is added here
CHUNKS: dict[str, tuple[int, ...]] = {
    "none": (1,),
    "chunked": SOME,
    "two-batch": SOME,
    "two-batch-prefill": (2,),
    "two-batch-decode": (2,),
    "tiles": SOME,
    "persistent": SOME,
    "prefetch": (1,),
    "ping-pong": SOME,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A step to execute: what to run, for how long, from when on, under which law."""

    op_list: OpList
    durations: list[Duration]
    start_s: Seconds
    law: str
    packet_s: float = np.inf

    def vector(self) -> Finished:
        law = LAWS[self.law]
        return execute(self.op_list, self.durations, self.start_s, law=law, packet_s=self.packet_s)

    def events(self) -> Finished:
        return execute_events(self.op_list, self.durations, self.start_s, law=self.law, packet_s=self.packet_s)


def policy_case(policy: str, law: str, seed: int, *, max_devices: int = 6) -> Case:
    """A random model under a policy: 1 to 3 layers, 1 to 4 chunks, dense layers, shared experts, gather and scatter."""
    rng = np.random.default_rng([seed, *policy.encode(), *law.encode()])
    n_devices = int(rng.integers(1, max_devices + 1))
    chunks = int(rng.choice(CHUNKS[policy]))
    tensor_parallel = bool(rng.random() < 0.5)
    moves = (0, 0, 1, 2) if policy in MOVING else (0,)
    kinds = [
        (*(rng.random(2) < (0.25, 0.5)), rng.choice(moves), rng.random() < 0.5) for _ in range(int(rng.integers(1, 4)))
    ]
    if seed % 4 == 0:  # every fourth case has layers that are run again
        kinds = [run for kind in kinds for run in (kind, *([] if kind[0] else [(False, *kind[1:], True)]))]
    step = make_step(policy, kinds, chunks, collectives=tensor_parallel)
    op_list = compile_program(POLICIES[policy], step)
    group_size = 2 if n_devices % 2 == 0 else 1
    return price_case(op_list, n_devices, law, rng, group_size)


def dag_case(law: str, seed: int, *, max_devices: int = 6, max_ops: int = 14) -> Case:
    """A random op list, of no policy: operations on random lanes that come after any earlier ones."""
    rng = np.random.default_rng([seed, *law.encode()])
    program = Program()
    for index in range(int(rng.integers(1, max_ops + 1))):
        after = [int(dep) for dep in rng.integers(0, max(index, 1), rng.integers(0, 5))] if index else None
        draw = rng.random()
        if draw < 0.4:
            program.compute(Work("compute", index), after=after)
        elif draw < 0.7:
            program.beside(Work("aside", index), "to-device" if draw < 0.55 else "host", after=after)
        else:
            program.exchange(Work(str(rng.choice(["gather", "dispatch"])), index), after=after)
    n_devices = int(rng.integers(1, max_devices + 1))
    divisors = [size for size in range(1, n_devices + 1) if n_devices % size == 0]
    return price_case(compile_ops(program.ops), n_devices, law, rng, int(rng.choice(divisors)))


def make_step(policy: str, kinds: Sequence[object], chunks: int, *, collectives: bool) -> Step:
    """A step whose layers are of these kinds (dense, shared experts): in microbatches where the policy wants them."""
    if policy not in MICROBATCHED:
        step = _pass(kinds, range(chunks), -1, collectives=collectives)
    else:
        first, *others = (_pass(kinds, (part,), part, collectives=collectives) for part in range(chunks))
        step = replace(first, others=tuple(others))
    return _formed(step, policy)


def _formed(step: Step, policy: str) -> Step:
    """The step with its attention in two parts, or its chunks as tiles, where the policy wants them."""
    layers, tiling = step.layers, TILED.get(policy)
    if policy in SPLIT_ATTENTION:
        layers = tuple(
            one if one.attention is None else replace(one, projections=replace(one.attention, kind="projections"))
            for one in layers
        )
    if tiling is not None:
        layers = tuple(one if one.gate is None else tiled(one, tiling) for one in layers)
    return replace(step, layers=layers, others=tuple(_formed(other, policy) for other in step.others))


def _pass(kinds: Sequence[object], chunks: Sequence[int], part: int, *, collectives: bool) -> Step:
    layers = [make_layer(number, chunks, kind, part, collectives=collectives) for number, kind in enumerate(kinds)]
    return Step(layers=tuple(layers), head=Work("head", -1, part))


def make_layer(number: int, chunks: Sequence[int], dense_shared: object, part: int = -1, *, collectives: bool) -> Layer:
    """One layer in `chunks`; kind: dense, shared experts, experts (1) shadowed or (2) pulled, packed tokens, again."""
    dense, shared, move, packed, again = (*np.asarray(dense_shared, int), 0, 0, 0)[:5]
    moved = move > 0 and not dense
    parts = tuple(
        Chunk(Work("dispatch", number, c), Work("experts", number, c), Work("combine", number, c))
        for c in ([] if dense or move == 2 else chunks)
    )
    return Layer(
        attention=None if again else Work("attention", number, part),
        gate=None if dense else Work("gate", number, part),
        chunks=parts,
        shared=Work("shared", number, part) if shared and not dense else None,
        mlp=Work("mlp", number, part) if dense else None,
        gather=Work("gather", number, part) if collectives and not again else None,
        scatter=Work("scatter", number, part) if collectives and not again else None,
        fetch=Work("fetch", number) if moved else None,
        local=Work("local", number) if moved else None,
        before_dispatch=() if dense or not packed else (Work("descend", number, part), Work("compress", number, part)),
        after_combine=() if dense or not packed else (Work("restore", number, part), Work("ascend", number, part)),
    )


def adversarial_s(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Seconds:
    """Durations [s]: heavy-tailed or of few values, so that ties abound; about 30 % are exactly zero."""
    heavy = rng.lognormal(0.0, 1.5, shape)
    few = rng.choice([0.5, 1.0, 1.5, 3.0], shape)
    rough = {"heavy tail": heavy, "ties": few, "mixed": np.where(rng.random(shape) < 0.5, heavy, few)}[kind]
    return np.where(rng.random(shape) < ZERO_FRAC, 0.0, rough)


def price_case(op_list: OpList, n_devices: int, law: str, rng: np.random.Generator, group_size: int) -> Case:
    """The op list with random durations; gather and scatter stay in groups and do not tell messages apart."""
    kind = str(rng.choice(KINDS))
    n_kinds = int(rng.integers(1, 3))
    latency_s = float(adversarial_s(rng, (1,), kind)[0])
    durations: list[Duration] = []
    for op in op_list.ops:
        if not op.is_exchange:
            durations.append(adversarial_s(rng, (n_devices,), kind))
            continue
        collective = op.work.kind.split(".")[0] in ("gather", "scatter")
        durations.append(
            ExchangeTime(
                send_s=adversarial_s(rng, (n_devices,), kind),
                receive_s=adversarial_s(rng, (n_devices,), kind),
                group_size=group_size if collective else n_devices,
                message_s=None if law == "port" or collective else _messages(rng, n_kinds, n_devices, kind),
                latency_s=latency_s,
            )
        )
    start_s = adversarial_s(rng, (n_devices,), kind) * rng.integers(0, 2)
    return Case(op_list=op_list, durations=durations, start_s=start_s, law=law)


def varied(duration: Duration, vary: Callable[[Seconds], Seconds]) -> Duration:
    """The duration with `vary` applied to each of its arrays, whose last axes are devices."""
    if not isinstance(duration, ExchangeTime):
        return vary(duration)
    return replace(
        duration,
        send_s=vary(duration.send_s),
        receive_s=vary(duration.receive_s),
        message_s=None if duration.message_s is None else vary(duration.message_s),
    )


def of_step(duration: Duration, step: int) -> Duration:
    """The duration of one step of a batch."""
    return varied(duration, lambda array: np.asarray(array[step]))


def _messages(rng: np.random.Generator, n_kinds: int, n_devices: int, kind: str) -> Seconds:
    """Times of messages; with two kinds of ports each pair of devices uses one, as inside and between nodes."""
    message_s = adversarial_s(rng, (n_kinds, n_devices, n_devices), kind)
    if n_kinds == 2 and rng.random() < 0.5:
        node = np.arange(n_devices) // 2
        same_node = node[:, None] == node[None, :]
        message_s = message_s * np.stack([same_node, ~same_node])
    if rng.random() < 0.5:
        message_s = message_s * ~np.eye(n_devices, dtype=bool)
    return message_s
