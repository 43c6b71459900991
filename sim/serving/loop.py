"""A served load: requests arrive at an engine and are answered."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from scenarios.errors import MemoryInfeasible
from scenarios.serving_specs import ServingSpec
from sim.serving.engine import Correction, Engine, IterationPrices, Progress
from sim.serving.log import COARSE, ROW
from sim.serving.ranks import Rank
from traces.requests import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """Of keys and values that crossed, float64[request], NaN for requests of one token.

    waited_s  for room where they go; late_s: from the first token until they are there.
    moved_bytes  of all requests; prefill_logs: of engines that prefill, as `Served.log`.
    """

    waited_s: NDArray[np.float64]
    late_s: NDArray[np.float64]
    moved_bytes: float
    prefill_logs: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What happened to every request and in every iteration.

    first_token_s, done_s  float64[request]: end of the iteration that wrote the first (last) token.
    end_s                  float64[row]; busy_s: how long each took. A row is an iteration, or a stretch of them.
    n                      int32[row]: iterations of it.
    decoding, prompt_tokens, waiting, used_blocks  [row], of each of these, sums over ranks; waiting: in queues.
    peak_blocks            int32[row]: most blocks in use; most_tokens: tokens of the fullest rank.
    whole_s, imbalance     float64[sample]: ends of iterations that were simulated whole, and how many tokens their
                           fullest rank's experts had over the mean.
    changes                (copies began, plan took effect) of changes of placement [s].
    handed                 where prefill has devices of its own; all else is then of the engine that decodes.
    """

    requests: RequestTrace
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    n: NDArray[np.int32]
    decoding: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    waiting: NDArray[np.int32]
    used_blocks: NDArray[np.float64]
    peak_blocks: NDArray[np.int32]
    most_tokens: NDArray[np.int32]
    n_ranks: int
    n_blocks: int
    n_preempted: int
    whole_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    imbalance: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    changes: tuple[tuple[float, float], ...] = ()
    handed: Handed | None = None

    def __post_init__(self) -> None:
        rows = {name: len(getattr(self, name)) for name in ROW.names or ()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"rows of one log have several lengths: {rows}")


Watch = Callable[[Callable[[], "Served"]], None]
"""Is given, before a load begins, what tells how it stands at any time."""


def serve(
    requests: RequestTrace,
    spec: ServingSpec,
    n_ranks: int,
    n_blocks: int,
    prices: IterationPrices,
    correction: Correction | None = None,
    *,
    watch: Watch | None = None,
) -> Served:
    """All requests, served by `n_ranks` ranks with a KV cache of `n_blocks` blocks each.

    Rows are of single iterations where a correction samples them, and else of few bytes a token.
    Raises MemoryInfeasible where a request is longer than the KV cache of a rank.
    """
    check_lengths(requests, requests.input_tokens + requests.output_tokens, spec, n_blocks)
    env = simpy.Environment()
    progress = Progress.of(len(requests), env)
    lengths = requests.columns()
    engine = Engine(env, spec, [Rank(spec, n_blocks, *lengths) for _ in range(n_ranks)], prices, progress, correction)
    engine.log.most = COARSE if correction is None else 1
    if watch is not None:
        watch(lambda: served(requests, engine, progress))
    env.process(arrivals(env, requests.arrival_s, engine.submit))
    env.process(engine.run())
    env.run(until=progress.all_done)
    return served(requests, engine, progress)


def check_lengths(requests: RequestTrace, tokens: NDArray[np.int64], spec: ServingSpec, n_blocks: int) -> None:
    """Raise MemoryInfeasible where the KV cache of a rank does not hold so many `tokens` of each request."""
    longest = int(np.argmax(tokens))
    needed = int(tokens[longest])
    if -(-needed // spec.block_tokens) > n_blocks:
        raise MemoryInfeasible(
            f"request {longest} of {requests.source} has {needed:,} tokens, and the KV cache of a rank holds "
            f"{n_blocks * spec.block_tokens:,}; levers: fewer weights on a device, a smaller kv_dtype, shorter requests"
        )


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


def served(requests: RequestTrace, engine: Engine, progress: Progress, handed: Handed | None = None) -> Served:
    """What happened, as arrays."""
    log = engine.log.array()
    return Served(
        requests=requests,
        first_token_s=np.array(progress.first_token_s),
        done_s=np.array(progress.done_s),
        end_s=log["end_s"],
        busy_s=log["busy_s"],
        n=log["n"],
        decoding=log["decoding"],
        prompt_tokens=log["prompt_tokens"],
        waiting=log["waiting"],
        used_blocks=log["used_blocks"],
        peak_blocks=log["peak_blocks"],
        most_tokens=log["most_tokens"],
        n_ranks=len(engine.ranks),
        n_blocks=engine.ranks[0].n_blocks,
        n_preempted=sum(rank.n_preempted for rank in engine.ranks),
        handed=handed,
    )


def answered(served: Served) -> Served | None:
    """Of a load that goes on, the requests that are done; None where there are none."""
    done, handed = np.isfinite(served.done_s), served.handed
    if not done.any():
        return None
    return replace(
        served,
        requests=served.requests.only(done),
        first_token_s=served.first_token_s[done],
        done_s=served.done_s[done],
        handed=handed and replace(handed, waited_s=handed.waited_s[done], late_s=handed.late_s[done]),
    )
