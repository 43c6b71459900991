"""What all kinds of runs share: a model at a time, warm-up, repeats, and the arrays of a case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from scenarios.errors import ScenarioError
from traces.capture.decoder import Decoder, KvCache
from traces.capture.runs.models import make_model, set_routing, shapes_of
from traces.capture.runs.passes import PassLog, part_times, routing_of
from traces.capture.runs.quiet import quietly
from traces.capture.runs.record import Recorded
from traces.capture.streams import CpuLanes, CudaLanes

Play = Callable[[], Sequence[PassLog]]
"""One repeat of a case from its begin on; the passes that it ran, in order."""


@dataclass(slots=True)
class Bench:
    """A device with the models that run on it; every case is played once to warm up, then `repeats` times."""

    lanes: CpuLanes | CudaLanes
    repeats: int = 5
    shapes: Mapping[str, Any] = field(default_factory=dict)
    _loaded: tuple[str, Decoder] | None = None
    _noise: tuple[Decoder, KvCache] | None = None

    def __post_init__(self) -> None:
        self.shapes = self.shapes or shapes_of(self.lanes.device.type)

    def model(self, name: str, routing: str) -> Decoder:
        """The model of this name, kept until another one is asked for."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = self._noise = None
            self._loaded = name, make_model(self.shapes[name], self.lanes.device)
        set_routing(self._loaded[1], routing)
        return self._loaded[1]

    def cache(self, model: Decoder, contexts: Sequence[int], room: int) -> KvCache:
        """A cache of requests with `contexts` tokens of noise; raises ScenarioError where `room` more do not fit.

        Caches share their memory: what one run writes, others may overwrite, except the lengths.
        """
        longest = max(contexts) + room
        if longest > model.config.max_tokens:
            raise ScenarioError(f"contexts of {longest} tokens exceed max_tokens {model.config.max_tokens}")
        lengths = torch.tensor(contexts)
        if self._noise is None or self._noise[0] is not model or len(self._noise[1].keys[0]) < len(contexts):
            self._noise = model, _noisy_cache(model, len(contexts))
        whole, n = self._noise[1], len(contexts)
        return KvCache([keys[:n] for keys in whole.keys], [values[:n] for values in whole.values], lengths)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations: float32 on a CPU, bfloat16 on a GPU."""
        return torch.float32 if self.lanes.device.type == "cpu" else torch.bfloat16

    @property
    def backend(self) -> str:
        """Back end of runs that do not compare them: grouped GEMM leaves a GPU's host free, the loop suits a CPU."""
        return "loop" if self.lanes.device.type == "cpu" else "grouped"

    def measure(
        self, name: str, settings: Mapping[str, Any], play: Play, reset: Callable[[], None] = lambda: None
    ) -> Recorded:
        """The case played, each time after a `reset` that is not timed; raises ScenarioError where routing differs."""
        reset()
        play()
        recorded, share = quietly(lambda: self._repeated(name, settings, play, reset))
        return replace(recorded, others_frac=round(share, 3))

    def _repeated(self, name: str, settings: Mapping[str, Any], play: Play, reset: Callable[[], None]) -> Recorded:
        run_s, step_s, part_s, seen = [], [], [], None
        measured: dict[str, Any] = {}
        for _ in range(self.repeats):
            reset()
            self.lanes.synchronise()
            begin = time.perf_counter()
            logs = play()
            self.lanes.synchronise()
            run_s.append(time.perf_counter() - begin)
            between = [self.lanes.seconds(log.marks) for log in logs]
            step_s.append([sum(one) for one in between])
            part_s.append([part_times(one, len(logs[0].ids)) for one in between])
            now = routing_of(logs) | _predicted(logs)
            if seen is not None and any(not np.array_equal(seen[key], now[key]) for key in now):
                raise ScenarioError(f"{name}: repeats were routed differently; a case must not depend on time")
            seen, measured = now, _cache_use(logs)
        measured["step_s"] = np.array(step_s, np.float64)
        measured["part_s"] = np.median(part_s, axis=0).astype(np.float32)
        return Recorded(name=name, settings=settings, run_s=run_s, seen=seen or {}, measured=measured)


def _noisy_cache(model: Decoder, slots: int) -> KvCache:
    cache = KvCache.empty(model.config, slots, model.embedding.weight)
    noise = torch.randn(cache.keys[0].shape[1:], generator=torch.Generator().manual_seed(3))
    for part in (*cache.keys, *cache.values):
        part.copy_(noise.expand_as(part))
    return cache


def _predicted(logs: Sequence[PassLog]) -> dict[str, np.ndarray[Any, Any]]:
    """Experts that were predicted for the layers after the first, uint8 [layer - 1, k, token]; nothing without any."""
    if not logs[0].predicted:
        return {}
    layers = sorted(logs[0].predicted)
    ids = torch.stack([torch.cat([log.predicted[layer].cpu() for log in logs]) for layer in layers])
    return {"predicted": ids.permute(0, 2, 1).contiguous().numpy().astype(np.uint8)}


def _cache_use(logs: Sequence[PassLog]) -> dict[str, np.ndarray[Any, Any]]:
    """Experts found and not found on the device, int16 [pass, layer]; nothing where all are there."""
    if not logs[0].hits:
        return {}
    return {
        name: np.array([[len(experts) for experts in getattr(log, name)] for log in logs], np.int16)
        for name in ("hits", "misses")
    }
