"""Tables corrected by iterations that are simulated whole, with the experts that their tokens visit.

    T(i) = table(i) x whole(k) / table(k)

k is the last iteration like i (with prompts, or without) that was simulated whole: every `every`-th one, and the first
of a kind. With `every` 1 all iterations are simulated whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.durations import Seconds
from sim.serving.engine import Engine
from sim.serving.ranks import UNBOUNDED, RankLoad
from sim.serving.routed import Experts, RankTokens

AT_ONCE = 16
"""Iterations that are simulated in one call."""


class Sample(NamedTuple):
    """An iteration that was simulated whole; factor: its time over the table's; loads int64[layer, expert]."""

    iteration: int
    factor: float
    imbalance: float
    loads: NDArray[np.integer]


@dataclass(slots=True, kw_only=True)
class Corrected:
    """What routing makes of an engine's iterations.

    samples  by whether prompts are among the tokens, in order.
    look     called between iterations, every `look_every` of them.
    n_loads  latest samples whose loads are kept.
    """

    experts: Experts
    every: int
    host_s: float
    look: Callable[[Engine], None] | None = None
    look_every: int = UNBOUNDED
    n_loads: int = 0
    samples: dict[bool, list[Sample]] = field(default_factory=lambda: {True: [], False: []})
    _stale: set[bool] = field(default_factory=lambda: {True, False})
    _looked: int = 0

    def iteration_s(self, engine: Engine, loads: Sequence[RankLoad], table_s: float) -> float:
        """Time of the iteration that the engine begins, which the tables say takes `table_s` [s]."""
        now, prompts = engine.n_iterations, any(load.prompt_tokens for load in loads)
        self._begin(engine)
        if prompts in self._stale or now % self.every == 0:
            self._simulate(prompts, [now], [[rank.tokens(now) for rank in engine.ranks]], [table_s])
        return table_s * self.samples[prompts][-1].factor

    def stretch_s(self, engine: Engine, table_s: Seconds) -> Seconds:
        """Times of the iterations without prompts that the engine begins, up to its environment's next event at least.

        table_s  float64[iteration] [s].
        """
        self._begin(engine)
        first = engine.n_iterations
        numbers = np.arange(first, first + len(table_s))
        due = np.flatnonzero(numbers % self.every == 0)
        if False in self._stale and 0 not in due:
            due = np.concatenate([[0], due])
        tokens = [rank.tokens(first) for rank in engine.ranks]
        left_s, times_s = engine.env.peek() - engine.env.now, []
        blocks = [due[i : i + AT_ONCE] for i in range(0, len(due), AT_ONCE)]
        begins = [int(block[0]) for block in blocks] + [len(table_s)]
        if begins[0] > 0:
            times_s.append(table_s[: begins[0]] * self.samples[False][-1].factor)
        for block, end in zip(blocks, begins[1:], strict=True):
            if sum(part.sum() for part in times_s) > left_s:
                break
            self._simulate(False, numbers[block].tolist(), [_later(tokens, int(i)) for i in block], table_s[block])
            factors = np.array([sample.factor for sample in self.samples[False][-len(block) :]])
            times_s.append(table_s[block[0] : end] * np.repeat(factors, np.diff([*block, end])))
        return np.concatenate(times_s)

    def quiet(self, iteration: int) -> int:
        """Iterations until somebody looks at the loads."""
        return UNBOUNDED if self.look is None else self.look_every - iteration % self.look_every

    def renew(self) -> None:
        """Let the next iterations of both kinds be simulated whole: something has changed."""
        self._stale = {True, False}

    def all_samples(self) -> list[Sample]:
        """Samples of both kinds in the order of their iterations."""
        return sorted(chain(*self.samples.values()), key=lambda sample: sample.iteration)

    def window(self, iterations: int) -> list[Sample]:
        """Samples of the last iterations that were carried out."""
        last = max((kind[-1].iteration for kind in self.samples.values() if kind), default=0)
        return [one for one in self.all_samples() if one.iteration > last - iterations and one.loads.size]

    def _begin(self, engine: Engine) -> None:
        """Forget what was simulated beyond the iterations that were carried out, and let somebody look."""
        now = engine.n_iterations
        for kind in self.samples.values():
            while kind and kind[-1].iteration >= now:
                kind.pop()
        self._stale |= {prompts for prompts, kind in self.samples.items() if not kind}
        if self.look is not None and now and now % self.look_every == 0 and now != self._looked:
            self._looked = now
            self.look(engine)

    def _simulate(
        self,
        prompts: bool,
        numbers: Sequence[int],
        iterations: Sequence[Sequence[RankTokens]],
        table_s: Sequence[float] | Seconds,
    ) -> None:
        whole = self.experts.simulated(iterations, with_loads=self.n_loads > 0)
        kept = self.samples[prompts]
        for i, number in enumerate(numbers):
            factor = float((whole.time_s[i] + self.host_s) / table_s[i])
            kept.append(Sample(number, factor, float(whole.imbalance[i]), whole.loads[i]))
        beyond = len(kept) - self.n_loads
        for past in range(max(0, beyond - len(numbers)), max(0, beyond)):
            kept[past] = kept[past]._replace(loads=kept[past].loads[:0])
        self._stale.discard(prompts)


def _later(tokens: Sequence[RankTokens], n: int) -> list[RankTokens]:
    """The tokens of ranks that but decode, `n` iterations later."""
    return [(decoding + np.array([[0], [n]]), prompts) for decoding, prompts in tokens]
