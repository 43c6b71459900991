"""What all schedules share: the way of a chunk of tokens to its experts and back, with its stages inside nodes."""

from __future__ import annotations

from sim.program import After, Chunk, Program


def arrive(program: Program, chunk: Chunk, after: After) -> int:
    """Index of the operation after which the chunk's tokens are where their experts are."""
    if chunk.regroup is not None:
        after = program.exchange(chunk.regroup, after=after, lanes=chunk.lanes)
    here = program.exchange(chunk.dispatch, after=after)
    return here if chunk.forward is None else program.exchange(chunk.forward, after=here, lanes=chunk.lanes)


def come_back(program: Program, chunk: Chunk, after: After) -> int:
    """Index of the operation after which the chunk's results are where its tokens came from."""
    if chunk.collect is not None:
        after = program.exchange(chunk.collect, after=after, lanes=chunk.lanes)
    return program.exchange(chunk.combine, after=after)
