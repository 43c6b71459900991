"""A controller: more devices where requests miss their limits or wait, fewer where batches are empty."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scenarios.errors import MemoryInfeasible
from scenarios.scaling_specs import ControllerSpec
from sim.elastic.devices import TooFewDevices
from sim.elastic.fleet import Fleet, Steps
from sim.elastic.scaling import scale

NEAR = 3
"""Undoing a change within so many times the cooldown, or window of limits, is going back and forth."""


@dataclass(slots=True)
class Controller:
    """Looks at the fleet from time to time.

    decisions  (time, devices that came, or went where negative, when they were ready).
    """

    fleet: Fleet
    spec: ControllerSpec
    decisions: list[tuple[float, int, float]] = field(default_factory=list)

    def run(self) -> Steps:
        """Look, decide, change; no sooner than the cooldown after the last change was ready."""
        fleet, scaling, ready_s = self.fleet, self.fleet.scaling, -np.inf
        least, most = scaling.least, scaling.most or fleet.pool.n_devices
        while True:
            yield fleet.env.timeout(self.spec.every)
            if fleet.is_changing or not fleet.open_replicas or fleet.env.now < ready_s + scaling.cooldown:
                continue
            wanted = fleet.n_devices + scaling.by * self.wish()
            if wanted == fleet.n_devices or not least <= wanted <= most:
                continue
            decided_s, by = fleet.env.now, wanted - fleet.n_devices
            try:
                yield from scale(fleet, wanted)
            except (MemoryInfeasible, TooFewDevices) as short:
                fleet.notes.append(f"The controller keeps {fleet.n_devices} devices instead of {wanted}: {short}.")
                least, most = (least, fleet.n_devices) if wanted > fleet.n_devices else (fleet.n_devices, most)
            ready_s = fleet.env.now
            self.decisions.append((decided_s, by, ready_s))

    def wish(self) -> int:
        """1 for more devices, -1 for fewer, 0 for as many."""
        if self.spec.queue is not None and self.waiting() > self.spec.queue:
            return 1
        if self.spec.slo_attainment is not None and self.attainment() < self.spec.slo_attainment:
            return 1
        return -1 if self.waiting() == 0 and self.filled() < self.spec.calm else 0

    def waiting(self) -> int:
        """Requests that no rank has begun with."""
        engines = [replica.engine for replica in self.fleet.open_replicas]
        return sum(len(engine.inbox) + sum(len(rank.waiting) for rank in engine.ranks) for engine in engines)

    def filled(self) -> float:
        """Share of the places of all batches that requests have."""
        ranks = [rank for replica in self.fleet.open_replicas for rank in replica.engine.ranks]
        busy = sum(rank.n_decoding + len(rank.prompts) for rank in ranks)
        return busy / (len(ranks) * self.fleet.spec.max_requests)

    def attainment(self) -> float:
        """Share of first tokens and of answers in the window that were in time; who waits beyond the limit was not."""
        fleet, slo, now = self.fleet, self.fleet.spec.slo, self.fleet.env.now
        arrival_s, outputs = fleet.requests.arrival_s, fleet.requests.output_tokens
        first_s, done_s = np.array(fleet.progress.first_token_s), np.array(fleet.progress.done_s)
        judged: list[bool] = []
        if slo is not None and slo.ttft is not None:
            begun = first_s > now - self.spec.window
            judged += (first_s - arrival_s <= slo.ttft)[begun].tolist()
            judged += [False] * int((np.isnan(first_s) & (arrival_s < now - slo.ttft)).sum())
        if slo is not None and slo.tpot is not None:
            ended = (done_s > now - self.spec.window) & (outputs > 1)
            judged += ((done_s - first_s)[ended] / (outputs[ended] - 1) <= slo.tpot).tolist()
        return float(np.mean(judged)) if judged else 1.0

    def note(self) -> list[str]:
        """A sentence where it went back and forth."""
        window_s = 0.0 if self.spec.slo_attainment is None else self.spec.window
        near_s = NEAR * max(self.fleet.scaling.cooldown, window_s, self.spec.every)
        pairs = zip(self.decisions, self.decisions[1:], strict=False)
        back = [later for (_, by, ready), (later, then, _) in pairs if by * then < 0 and later - ready <= near_s]
        if len(back) < 2:
            return []
        times = ", ".join(f"{at:,.0f}" for at in back[:6])
        return [
            f"The controller oscillates: {len(back)} of its {len(self.decisions)} decisions undid the last change "
            f"within {near_s:g} s (at {times} s). Raise scaling.cooldown or the controller's window, or lower its calm."
        ]
