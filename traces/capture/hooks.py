"""Routing of one forward pass after the other, read by forward hooks that change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scenarios.errors import TraceError
from traces.capture.readings import Choice, Reading, by_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Routing of some tokens: ids int16 [layer, k, token] in descending order of weight, weights float16 alike."""

    ids: NDArray[np.int16]
    weights: NDArray[np.float16]

    def of(self, tokens: NDArray[np.int64]) -> Routes:
        """Routes of the chosen tokens."""
        return Routes(ids=self.ids[:, :, tokens], weights=self.weights[:, :, tokens])


def joined(parts: list[Routes]) -> Routes:
    """Routes of the tokens of all parts, in their order."""
    return Routes(
        ids=np.concatenate([part.ids for part in parts], axis=2),
        weights=np.concatenate([part.weights for part in parts], axis=2),
    )


@dataclass(slots=True)
class Recorder:
    """What the hooks saw since the last `take`. `n_experts` is known after the first pass, 0 before."""

    layers: tuple[int, ...]
    n_experts: int = 0
    seen: dict[int, Choice] = field(default_factory=dict)

    def add(self, layer: int, choice: Choice) -> None:
        """Note one layer's choice. Raises TraceError where the layer has routed in this pass already."""
        if layer in self.seen:
            raise TraceError(f"layer {layer} routed twice in one pass; capture cannot tell which of them counts")
        self.seen[layer] = by_weight(choice)

    def take(self, n_tokens: int) -> Routes:
        """Routes of the pass that has ended, of `n_tokens` tokens; the next pass starts empty.

        Raises TraceError where a layer did not route, or not by that many tokens or the same k as the others.
        """
        missing = [layer for layer in self.layers if layer not in self.seen]
        if missing:
            raise TraceError(
                f"the router of layer {missing[0]} was not called: a fused kernel stands in for it (MXFP4 or kernels "
                "of the hub?); load the model without it, for instance dequantised to bfloat16"
            )
        choices = [self.seen[layer] for layer in self.layers]
        shapes = {tuple(choice.ids.shape) for choice in choices}
        experts = {choice.n_experts for choice in choices}
        if len(shapes) > 1 or len(experts) > 1 or next(iter(shapes))[0] != n_tokens:
            raise TraceError(
                f"routers chose [token, k] = {sorted(shapes)} of {sorted(experts)} experts for {n_tokens} tokens; "
                "a trace needs the same k and number of experts in every layer, and a choice for every token"
            )
        self.n_experts = experts.pop()
        self.seen = {}
        ids = torch.stack([choice.ids.to(torch.int16) for choice in choices]).transpose(1, 2)
        weights = torch.stack([choice.weights.to(torch.float16) for choice in choices]).transpose(1, 2)
        return Routes(ids=ids.cpu().numpy(), weights=weights.cpu().numpy())


@contextmanager
def recorded(routers: Mapping[int, tuple[nn.Module, Reading]]) -> Iterator[Recorder]:
    """A recorder of every forward pass inside the block; its hooks are gone when the block ends."""
    recorder = Recorder(layers=tuple(routers))
    handles = [module.register_forward_hook(_hook(recorder, layer, read)) for layer, (module, read) in routers.items()]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _hook(recorder: Recorder, layer: int, read: Reading) -> Any:
    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        recorder.add(layer, read(module, output))

    return hook
