"""A served load: requests arrive at an engine and are answered."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import simpy
from numpy.typing import NDArray

from scenarios.errors import MemoryInfeasible
from scenarios.serving_specs import ServingSpec
from sim.serving.engine import Correction, Engine, IterationPrices, Progress
from sim.serving.ranks import Rank
from traces.requests import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What happened to every request and in every iteration.

    first_token_s, done_s  float64[request]: end of the iteration that wrote the first (last) token.
    end_s                  float64[iteration]; busy_s: how long each took.
    decoding, prompt_tokens, waiting, used_blocks  int64[iteration], sums over ranks; waiting: requests in queues.
    most_tokens            int64[iteration]: tokens of the fullest rank.
    whole_s, imbalance     float64[sample]: ends of iterations that were simulated whole, and how many tokens their
                           fullest rank's experts had over the mean.
    changes                (copies began, plan took effect) of changes of placement [s].
    """

    requests: RequestTrace
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    decoding: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    waiting: NDArray[np.int64]
    used_blocks: NDArray[np.int64]
    most_tokens: NDArray[np.int64]
    n_ranks: int
    n_blocks: int
    n_preempted: int
    whole_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    imbalance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    changes: tuple[tuple[float, float], ...] = ()


def serve(
    requests: RequestTrace,
    spec: ServingSpec,
    n_ranks: int,
    n_blocks: int,
    prices: IterationPrices,
    correction: Correction | None = None,
) -> Served:
    """All requests, served by `n_ranks` ranks with a KV cache of `n_blocks` blocks each.

    Raises MemoryInfeasible where a request is longer than the KV cache of a rank.
    """
    longest = int(np.argmax(requests.input_tokens + requests.output_tokens))
    needed = int(requests.input_tokens[longest] + requests.output_tokens[longest])
    if -(-needed // spec.block_tokens) > n_blocks:
        raise MemoryInfeasible(
            f"request {longest} of {requests.source} has {needed:,} tokens, and the KV cache of a rank holds "
            f"{n_blocks * spec.block_tokens:,}; levers: fewer weights on a device, a smaller kv_dtype, shorter requests"
        )
    env = simpy.Environment()
    progress = Progress.of(len(requests), env)
    lengths = requests.input_tokens.tolist(), requests.output_tokens.tolist()
    engine = Engine(env, spec, [Rank(spec, n_blocks, *lengths) for _ in range(n_ranks)], prices, progress, correction)
    env.process(arrivals(env, requests.arrival_s, engine.submit))
    env.process(engine.run())
    env.run(until=progress.all_done)
    return served(requests, engine, progress)


def arrivals(
    env: simpy.Environment, arrival_s: NDArray[np.float64], submit: Callable[[int], None]
) -> Generator[simpy.Event, None, None]:
    """Requests are submitted when they arrive."""
    for request, time_s in enumerate(arrival_s.tolist()):
        if time_s > env.now:
            yield env.timeout(delay_until(time_s, env.now))
        submit(request)


def delay_until(time_s: float, now: float) -> float:
    """The delay that leads from `now` to `time_s` to the last bit."""
    delay_s = time_s - now
    while now + delay_s < time_s:
        delay_s = float(np.nextafter(delay_s, np.inf))
    while now + delay_s > time_s:
        delay_s = float(np.nextafter(delay_s, 0.0))
    return delay_s


def served(requests: RequestTrace, engine: Engine, progress: Progress) -> Served:
    """The log as arrays."""
    end_s, busy_s, *counts = (np.hstack(column) for column in zip(*engine.log, strict=True))
    decoding, prompts, waiting, blocks, most = (column.astype(np.int64) for column in counts)
    return Served(
        requests=requests,
        first_token_s=np.array(progress.first_token_s),
        done_s=np.array(progress.done_s),
        end_s=end_s,
        busy_s=busy_s,
        decoding=decoding,
        prompt_tokens=prompts,
        waiting=waiting,
        used_blocks=blocks,
        most_tokens=most,
        n_ranks=len(engine.ranks),
        n_blocks=engine.ranks[0].n_blocks,
        n_preempted=sum(rank.n_preempted for rank in engine.ranks),
    )
