"""Every order that stages of a small pipeline can have, and its makespan by plain recursion; knows no schedule."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

Job = tuple[str, int]
"""(F, B or W; microbatch)"""


def stage_orders(kinds: str, n_microbatches: int, most_in_flight: int) -> list[tuple[Job, ...]]:
    """Orders of one stage: kinds of a microbatch in this order, microbatches of a kind in order, memory kept.

    A microbatch is in flight from its first kind to its last.
    """
    found: list[tuple[Job, ...]] = []

    def extend(order: tuple[Job, ...], counts: tuple[int, ...]) -> None:
        if counts[0] - counts[-1] > most_in_flight:
            return
        if len(order) == len(kinds) * n_microbatches:
            found.append(order)
        for place, kind in enumerate(kinds):
            if counts[place] < n_microbatches and (place == 0 or counts[place] < counts[place - 1]):
                more = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
                extend((*order, (kind, counts[place])), more)

    extend((), (0,) * len(kinds))
    return found


def makespan_s(
    orders: Sequence[tuple[Job, ...]],
    took_s: Callable[[int, Job], float],
    apart_s: float = 0.0,
    stage: int | None = None,
) -> float:
    """Time until all stages are done, or one of them; infinity where stages wait for each other for ever.

    took_s: time of a stage's job; apart_s: of a result on its way to a neighbour.
    """
    last = len(orders) - 1
    place = [{job: index for index, job in enumerate(order)} for order in orders]
    pending: set[tuple[int, Job]] = set()

    @lru_cache(None)
    def end_s(stage: int, job: Job) -> float:
        if (stage, job) in pending:
            return float("inf")
        pending.add((stage, job))
        kind, microbatch = job
        ready_s = [end_s(stage, orders[stage][place[stage][job] - 1])] if place[stage][job] else [0.0]
        if kind == "F" and stage > 0:
            ready_s.append(end_s(stage - 1, job) + apart_s)
        if kind == "B":
            ready_s.append(end_s(stage, ("F", microbatch)) if stage == last else end_s(stage + 1, job) + apart_s)
        pending.discard((stage, job))
        return max(ready_s) + took_s(stage, job)

    asked = range(len(orders)) if stage is None else (stage,)
    return max(end_s(one, orders[one][-1]) for one in asked)


def best_s(kinds: str, shape: tuple[int, int, int], times_s: dict[str, float]) -> float:
    """Least makespan of (stages, microbatches, most in flight) over all orders."""
    n_stages, n_microbatches, most = shape
    orders = stage_orders(kinds, n_microbatches, most)
    return min(makespan_s(chosen, lambda _, job: times_s[job[0]]) for chosen in product(orders, repeat=n_stages))
