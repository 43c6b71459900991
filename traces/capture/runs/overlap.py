"""The next layer's weights copied beside this layer's work."""

from __future__ import annotations

import torch
from torch import Tensor

from traces.capture.decoder import Decoder
from traces.capture.experts import Backend, ExpertWeights, Routing
from traces.capture.runs.passes import PassLog
from traces.capture.streams import Event, Lanes


class StreamedLayers:
    """Experts of all layers in host memory, each layer's copied whole into one of two buffers before it is needed.

    overlapped: the copy of a layer is issued before the layer ahead of it is computed; else when it is needed.
    """

    def __init__(self, model: Decoder, backend: Backend, lanes: Lanes, *, overlapped: bool) -> None:
        self.model, self.backend, self.lanes, self.overlapped = model, backend, lanes, overlapped
        pin = lanes.device.type == "cuda"
        self.host = [[_host(part, pin) for part in (block.up, block.down)] for block in model.layers]
        first = model.layers[0]
        self.buffers = [[torch.empty_like(part.data) for part in (first.up, first.down)] for _ in range(2)]
        self.coming: dict[int, Event] = {}

    def begin(self) -> None:
        """Before a pass: issue the first layer's copy."""
        if self.overlapped:
            self._fetch(0)

    def mix(self, number: int, x: Tensor, normed: Tensor, routing: Routing, log: PassLog) -> Tensor:
        """x plus experts, when their weights have arrived."""
        del log
        if not self.overlapped:
            self._fetch(number)
        elif number + 1 < len(self.host):
            self._fetch(number + 1)
        self.coming.pop(number).wait()
        up, down = self.buffers[number % 2]
        result = self.backend(normed, routing, ExpertWeights(up, down))
        shared = self.model.layers[number].share(normed)
        return x + (result if shared is None else result + shared).view_as(x)

    def _fetch(self, number: int) -> None:
        self.coming[number] = self.lanes.copies.submit(lambda: self._copy(number), [self.lanes.reached()])

    def _copy(self, number: int) -> None:
        """Expert by expert, as the copies of an engine that knows experts."""
        for buffer, weights in zip(self.buffers[number % 2], self.host[number], strict=True):
            for slot, expert in zip(buffer, weights, strict=True):
                slot.copy_(expert, non_blocking=True)


def _host(part: Tensor, pin: bool) -> Tensor:
    return part.data.cpu().pin_memory() if pin else part.data
