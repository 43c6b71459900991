"""A forward pass beside a backward pass of another microbatch: each travels while the other computes (DualPipe).

DeepSeek-V3 (arXiv 2412.19437, figure 4): a pair of layers computes attention forward, experts backward, experts
forward, attention backward, while gradients arrive, tokens leave, gradients leave and results come back.
"""

from __future__ import annotations

from itertools import zip_longest

from scenarios.errors import DeadlockError
from sim.policies.around import leave, listed, settle, unleave, unsettle
from sim.policies.attend import attend, unattend
from sim.policies.sequential import forward
from sim.policies.travel import combine, dispatch, work
from sim.program import After, BackwardLayer, Layer, Program, Step


def paired(program: Program, step: Step, back: Step) -> None:
    """Issue the forward pass of `step` and the backward pass of `back`, a layer of each at a time."""
    if back.training is None:
        raise DeadlockError("a step without a backward pass has none to pair with")
    ahead: After = None
    behind: After = program.compute(back.training.head, after=None)
    for layer, backward in zip_longest(step.layers, back.training.layers):
        ahead, behind = _pair(program, layer, backward, (ahead, behind))
    program.compute(step.head, after=ahead)


def _pair(
    program: Program, layer: Layer | None, back: BackwardLayer | None, after: tuple[After, After]
) -> tuple[After, After]:
    """The operations after which the layer of each pass is done; one of the passes may have no layer left."""
    ahead, behind = after
    gradients: list[int] = []
    tokens: list[int] = []
    if back is not None:
        behind = unsettle(program, back.works, _again(program, back, behind))
        gradients = dispatch(program, back.works, behind)
    if layer is not None:
        ahead = leave(program, layer, attend(program, layer, ahead))
        tokens = dispatch(program, layer, ahead)
    if back is not None:
        behind = combine(program, back.works, work(program, back.works, gradients)) or behind
    if layer is not None:
        if layer.shared is not None:
            ahead = program.compute(layer.shared, after=ahead)
        ahead = settle(program, layer, combine(program, layer, work(program, layer, tokens)) or ahead)
    if back is not None:
        if back.works.shared is not None:
            behind = program.compute(back.works.shared, after=behind)
        _, behind = unattend(program, back.works, unleave(program, back.works, behind))
    return ahead, behind


def _again(program: Program, back: BackwardLayer, after: After) -> After:
    """What the layer's backward pass comes after: its forward pass once more, where its results were not kept."""
    if back.again is None:
        return after
    return [*listed(after), *listed(forward(program, back.again, after))]
