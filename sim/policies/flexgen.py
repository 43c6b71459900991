"""FlexGen's loop over layers and microbatches (arXiv 2303.06865): what the next one needs is copied meanwhile."""

from __future__ import annotations

from sim.policies.streams import Weights, attend, begin, bring, finish, slots_of, works_of
from sim.program import Program, Step


def flexgen(program: Program, step: Step) -> None:
    """While one microbatch is in a layer, the next one's cache comes and the last one's goes; then all is synchronised.

    With the first microbatch of a layer the whole next layer comes, ahead of any cache in the same queue. Where the
    host computes attention the device waits for it: `generation_loop_overlap_multi_batch` of FlexLLMGen's flex_opt.py.
    """
    order = slots_of(step)
    ready = bring(program, works_of(step, order[0]).cache, None)
    weights, leaving = Weights(program, step), None
    for place, (layer, part) in enumerate(order):
        works, first = works_of(step, (layer, part)), len(program.ops)
        weights.ask((layer + 1, part), after=ready)
        for later in order[place + 1 : place + 2]:
            bring(program, works_of(step, later).cache, ready)
        if leaving is not None:
            program.beside(leaving, "to-host", after=ready)
        attended = attend(program, works, begin(program, works, ready))
        finish(program, step, (layer, part), bring(program, works.results, attended))
        leaving, ready = works.store, list(range(first, len(program.ops)))
    if leaving is not None:
        program.beside(leaving, "to-host", after=ready)


def prompts(program: Program, step: Step) -> None:
    """Prompts by layers and microbatches: the next layer's weights come, hidden states and cache go to the host."""
    stored: list[list[int]] = [[] for _ in step.microbatches]
    weights, before, last = Weights(program, step), list[int](), list[int]()
    for layer in range(len(step.layers)):
        for part in range(len(step.microbatches)):
            works = works_of(step, (layer, part))
            here = bring(program, works.cache, stored[part])
            weights.ask((layer + 1, part), after=before)
            begun = begin(program, works, [*here, *weights.before(layer)])
            last = finish(program, step, (layer, part), [*begun, *weights.of(layer)])
            stored[part] = last if works.store is None else [program.beside(works.store, "to-host", after=last)]
        before = last
