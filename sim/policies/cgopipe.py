"""Attention on the host, beside the device's work on other microbatches: CGOPipe of MoE-Lightning (arXiv 2411.11217),
VSLPipe of MoE-Lens (arXiv 2504.09345)."""

from __future__ import annotations

from sim.policies.streams import Slot, Weights, attend, begin, bring, finish, slots_of, works_of
from sim.program import Program, Step

AHEAD = 2
"""Microbatches that attention runs ahead."""


def cgopipe(program: Program, step: Step) -> None:
    """PostAttn(i, j), PreAttn(i, j + 2) and its attention on the host; a page of layer i + 1 comes with each.

    The device has room for two layers: pages of layer i + 1 come when layer i - 1 is done. The first layer is there at
    the start, the last one brings that of the next pass. With one page a layer, all of it comes with the first
    microbatch, ahead of other results in the queue (FastDecode's order, S2 of the paper's figure 6).
    """
    order, n_parts = slots_of(step), len(step.microbatches)
    ahead = min(AHEAD, n_parts)
    attended = {
        slot: attend(program, works_of(step, slot), begin(program, works_of(step, slot), None))
        for slot in order[:ahead]
    }
    done: dict[Slot, list[int]] = {}
    weights = Weights(program, step)
    for place, (layer, part) in enumerate(order):
        results = bring(program, works_of(step, (layer, part)).results, attended[layer, part])
        weights.ask((layer + 1, part), after=done.get((layer - 1, n_parts - 1)))
        done[layer, part] = finish(program, step, (layer, part), [*results, *weights.of(layer)])
        for later in order[place + ahead : place + ahead + 1]:
            works, previous = works_of(step, later), done.get((later[0] - 1, later[1]), [])
            projected = begin(program, works, [*previous, *weights.before(later[0])])
            attended[later] = attend(program, works, projected)


def vslpipe(program: Program, step: Step) -> None:
    """Two groups of requests: a stage is GB(i) and GA(i + 1) of one group beside attention C of the other one.

    All wait for each other at the end of a stage; half of a layer's weights comes in each.
    """
    order, weights, stage = slots_of(step), Weights(program, step), list[int]()
    begun = [begin(program, works_of(step, slot), None) for slot in order[:2]]
    attended = attend(program, works_of(step, order[0]), begun[0])
    for place, (layer, part) in enumerate(order):
        first = len(program.ops)
        results = bring(program, works_of(step, (layer, part)).results, [*attended, *stage])
        for later in order[place + 1 : place + 2]:
            attended = attend(program, works_of(step, later), [*begun[place + 1], *stage])
        weights.ask((layer + 1, part), after=stage)
        done = finish(program, step, (layer, part), [*results, *weights.of(layer)])
        for later in order[place + 2 : place + 3]:
            begun.append(begin(program, works_of(step, later), [*done, *weights.before(later[0])]))
        stage = [*attended, *range(first, len(program.ops))]
