"""Experts in host memory with slots for some of them on the device, least recently used ones leaving first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from scenarios.errors import ScenarioError
from traces.capture.decoder import Block
from traces.capture.experts import ExpertWeights
from traces.capture.streams import Event, Lanes


class SlotCache:
    """Slots of one layer: `resident` maps experts to slots, the least recently used first; `coming` to their copies.

    Experts that one step asks for count as used at the same time; of those, higher numbers leave first.
    """

    def __init__(self, block: Block, n_slots: int, device: torch.device) -> None:
        pin = device.type == "cuda"
        self.host = ExpertWeights(*(_host(part, pin) for part in (block.up, block.down)))
        self.slots = ExpertWeights(*(part.data.new_empty(n_slots, *part.shape[1:]) for part in (block.up, block.down)))
        self.resident: OrderedDict[int, int] = OrderedDict()
        self.coming: dict[int, Event] = {}
        self.reset()

    @property
    def n_slots(self) -> int:
        """Experts that the device holds."""
        return len(self.slots.up)

    def reset(self) -> None:
        """Hold the first experts, as at the begin of every run."""
        self.coming.clear()
        self.resident = OrderedDict((expert, expert) for expert in reversed(range(self.n_slots)))
        self.slots.up.copy_(self.host.up[: self.n_slots])
        self.slots.down.copy_(self.host.down[: self.n_slots])

    def place(self, wanted: Iterable[int]) -> list[int]:
        """Those of the wanted experts that were absent, ascending; all have slots now, the fresh ones to be filled.

        Raises ScenarioError where the wanted experts are more than the slots.
        """
        experts = sorted(wanted)
        if len(experts) > self.n_slots:
            raise ScenarioError(f"a step wants {len(experts)} experts of a layer, the device has {self.n_slots} slots")
        missed = [expert for expert in experts if expert not in self.resident]
        for expert in reversed(experts):
            if expert in self.resident:
                self.resident.move_to_end(expert)
        for expert in missed:
            oldest, slot = self.resident.popitem(last=False)
            self.coming.pop(oldest, None)
            self.resident[expert] = slot
        for expert in reversed(experts):
            self.resident.move_to_end(expert)
        return missed

    def fetch(self, experts: Sequence[int], lanes: Lanes) -> None:
        """Copy experts into their slots on the stream for copies, one after another."""
        after = [lanes.reached()]
        for expert in experts:
            fill = partial(self._copy, expert, self.resident[expert])
            self.coming[expert] = lanes.copies.submit(fill, after)

    def _copy(self, expert: int, slot: int) -> None:
        self.slots.up[slot].copy_(self.host.up[expert], non_blocking=True)
        self.slots.down[slot].copy_(self.host.down[expert], non_blocking=True)


def _host(part: Tensor, pin: bool) -> Tensor:
    return part.data.cpu().pin_memory() if pin else part.data
