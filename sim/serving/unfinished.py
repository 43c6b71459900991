"""What a plan under load leaves when it is interrupted, and goes on from: its journal, and metrics so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from scenarios.serving_specs import SloSpec
from sim.serving.engine import IterationPrices
from sim.serving.journal import Journal, JournaledPrices
from sim.serving.loop import Served, Watch, answered
from sim.serving.measures import serving_metrics
from sim.serving.prices import StepOf
from sim.session import Plan, Session
from sim.sweep.store import key_of


def journal_of(session: Session, plan: Plan) -> Journal | None:
    """The journal of a plan; None where nothing is kept."""
    if session.unfinished is None:
        return None
    own = session.spec.model_copy(update={part.name: getattr(plan, part.name) for part in fields(plan)})
    return Journal.of(session.unfinished, key_of(own, session.base))


def journaled_steps(step_of: StepOf, journal: Journal | None) -> StepOf:
    """Times of steps, by the journal where it has them."""
    if journal is None:
        return step_of
    return lambda plan, setting: journal.priced(lambda: step_of(plan, setting))


def journaled_prices(prices: IterationPrices, journal: Journal | None) -> IterationPrices:
    """Prices of iterations, by the journal where it has them."""
    return prices if journal is None else JournaledPrices(prices, journal)


def watch_of(journal: Journal | None, slo: SloSpec | None, table_error: float) -> Watch | None:
    """Writes with the journal how a load stands: requests that are done, and their metrics."""
    if journal is None:
        return None

    def watch(told: Callable[[], Served]) -> None:
        journal.partial = lambda: _partial(told(), slo, table_error)

    return watch


def _partial(served: Served, slo: SloSpec | None, table_error: float) -> dict[str, object] | None:
    done = answered(served)
    if done is None:
        return None
    metrics = serving_metrics(done, slo, table_error)
    return {"requests_done": len(done.requests), "requests": len(served.requests), "metrics": metrics}
