"""Continuous batching: requests arrive at random, join the batch between two steps, and leave when they are done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traces.capture.decoder import Decoder, KvCache
from traces.capture.runs.models import draw_tokens
from traces.capture.runs.passes import Inputs, Mix, PassLog, run_pass
from traces.capture.streams import Lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests: when they arrive [s] and how long prompt and answer are [tokens], each float64 or int64 [request]."""

    arrival_s: np.ndarray[Any, np.dtype[np.float64]]
    prompt_tokens: np.ndarray[Any, np.dtype[np.int64]]
    answer_tokens: np.ndarray[Any, np.dtype[np.int64]]


def poisson_load(n_requests: int, rate_per_s: float, seed: int) -> Load:
    """Poisson arrivals; prompts of 16 to 128 tokens and answers of 8 to 48, uniform."""
    rng = np.random.default_rng(seed)
    return Load(
        arrival_s=np.cumsum(rng.exponential(1 / rate_per_s, n_requests)),
        prompt_tokens=rng.integers(16, 129, n_requests),
        answer_tokens=rng.integers(8, 49, n_requests),
    )


@dataclass(slots=True)
class ServingLog:
    """Times [s] from the begin of the run: of every request's first token and of its last; and of steps in order.

    passes  (slots' requests, log) of every pass: prefills have one request.
    """

    first_token_s: np.ndarray[Any, np.dtype[np.float64]]
    done_s: np.ndarray[Any, np.dtype[np.float64]]
    passes: list[tuple[list[int], PassLog]] = field(default_factory=list)


class Server:
    """Serves a load with at most `max_batch` requests at once; the tokens are given, so that routing is the same.

    Between two decode steps every waiting request that finds a free slot is prefilled by itself, the oldest first; its
    first token comes from that. Then all active requests write one token each.
    """

    def __init__(self, model: Decoder, mix: Mix, lanes: Lanes, max_batch: int) -> None:
        self.model, self.mix, self.lanes = model, mix, lanes
        self.cache = KvCache.empty(model.config, max_batch, model.embedding.weight)

    def serve(self, load: Load, clock: Callable[[], float] = time.perf_counter) -> ServingLog:
        """What happened, when."""
        n = len(load.arrival_s)
        longest = int((load.prompt_tokens + load.answer_tokens).max())
        text = draw_tokens(self.model.config, n, longest, seed=11)
        log = ServingLog(np.full(n, np.nan), np.full(n, np.nan))
        written = np.zeros(n, np.int64)
        waiting, slots = deque(range(n)), dict.fromkeys(range(len(self.cache.keys[0])), -1)
        self.cache.lengths.zero_()
        start = clock()
        while waiting or any(request >= 0 for request in slots.values()):
            free = [slot for slot, request in slots.items() if request < 0]
            if len(free) == len(slots):
                _wait_until(start + load.arrival_s[waiting[0]], clock)
            for slot in free:
                if not waiting or load.arrival_s[waiting[0]] > clock() - start:
                    break
                request = waiting.popleft()
                slots[slot] = request
                self.cache.lengths[slot] = 0
                self._pass([request], [slot], text[request : request + 1, : load.prompt_tokens[request]], log)
                log.first_token_s[request], written[request] = clock() - start, 1
            active = {slot: request for slot, request in slots.items() if request >= 0}
            requests = list(active.values())
            places = torch.from_numpy(load.prompt_tokens[requests] + written[requests] - 1)
            self._pass(requests, list(active), text[requests, places].unsqueeze(1), log)
            written[requests] += 1
            for slot, request in active.items():
                if written[request] >= load.answer_tokens[request]:
                    log.done_s[request], slots[slot] = clock() - start, -1
        return log

    def _pass(self, requests: list[int], slots: list[int], tokens: Tensor, log: ServingLog) -> None:
        best, done = run_pass(
            self.model, self.cache, Inputs(tokens=tokens, slots=torch.tensor(slots)), self.mix, self.lanes
        )
        best.tolist()  # the server sends the tokens out: on a GPU the host waits for them
        log.passes.append((requests, done))


def _wait_until(when_s: float, clock: Callable[[], float]) -> None:
    while (left_s := when_s - clock()) > 0:
        if left_s > 2e-3:
            time.sleep(left_s - 1e-3)


def routing_by_request(log: ServingLog, n_requests: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Experts of all tokens by request, uint8 [layer, k, token], and offsets int32 [request + 1]."""
    rows: list[list[Tensor]] = [[] for _ in range(n_requests)]
    for requests, done in log.passes:
        ids = torch.stack([layer.cpu() for layer in done.ids])  # [layer, request x token, k]
        for request, part in zip(requests, ids.split(done.n_tokens, dim=1), strict=True):
            rows[request].append(part)
    whole = [torch.cat(parts, dim=1) for parts in rows]
    offsets = np.concatenate([[0], np.cumsum([part.shape[1] for part in whole])]).astype(np.int32)
    return torch.cat(whole, dim=1).permute(0, 2, 1).contiguous().numpy().astype(np.uint8), offsets
