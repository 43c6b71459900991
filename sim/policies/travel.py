"""What all schedules share: the way of tokens to their experts and back, with stages inside nodes where it has them."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios.errors import DeadlockError
from sim.program import After, Chunk, Layer, Program


def dispatch(program: Program, layer: Layer, after: After) -> list[int]:
    """Indices of the operations after which the tokens of each chunk are where their experts are."""
    return [arrive(program, chunk, after) for chunk in layer.chunks]


def work(program: Program, layer: Layer, arrived: Sequence[int]) -> list[int]:
    """Indices of the experts' operations on each chunk, in the order in which it arrives."""
    return [program.compute(chunk.experts, after=at) for chunk, at in zip(layer.chunks, arrived, strict=True)]


def combine(program: Program, layer: Layer, worked: Sequence[int]) -> list[int]:
    """Indices of the operations after which the results of each chunk are where its tokens came from."""
    return [come_back(program, chunk, at) for chunk, at in zip(layer.chunks, worked, strict=True)]


def arrive(program: Program, chunk: Chunk, after: After) -> int:
    """Index of the operation after which the chunk's tokens are where their experts are."""
    if chunk.regroup is not None:
        after = program.exchange(chunk.regroup, after=after, lanes=chunk.lanes)
    here = program.exchange(chunk.dispatch, after=after)
    return here if chunk.forward is None else program.exchange(chunk.forward, after=here, lanes=chunk.lanes)


def come_back(program: Program, chunk: Chunk, after: After) -> int:
    """Index of the operation after which the chunk's results are where its tokens came from, or stay.

    Raises DeadlockError where results of several operations stay, which are then in no order.
    """
    if chunk.collect is not None:
        after = program.exchange(chunk.collect, after=after, lanes=chunk.lanes)
    if chunk.combine is not None:
        return program.exchange(chunk.combine, after=after)
    if not isinstance(after, int):
        raise DeadlockError(f"{chunk.experts}: tokens that stay with their experts wait for one operation, not {after}")
    return after
