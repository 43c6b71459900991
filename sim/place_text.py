"""What `moesim place` says, in tables and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import rich.box
import rich.table
from rich.text import Text

from sim.binding import Binding
from sim.eplb_answer import EplbAnswer, EplbCase
from sim.expert_budgets import BitsAnswer, TiersAnswer
from sim.levers import Lever
from sim.place import Measure, Placed
from sim.wording import GIB, shown_name, shown_percent, shown_time

SHOWN_LAYERS = 5
SHOWN_RANKS = 4


def measures_table(placed: Placed) -> rich.table.Table:
    """Objectives of the plan on the fitted part, with bound and gap."""
    took = f", {shown_time(placed.solve_time_s)}" if placed.solve_time_s else ""
    shares = placed.file.placement.replica_slots
    shared = f"; replica slots by layer: {shown_counts(shares.tolist())}" if shares.max() > shares.min() else ""
    moved = "" if placed.moved_copies is None else f"; {placed.moved_copies:,} copies move"
    facts = f"{placed.solver}, {placed.status}{took}; execution model: {placed.execution}{moved}{shared}"
    title = f"{shown_name(placed.plan)}: {facts}"
    rows = [
        (
            f"{measure.name}{' (minimised)' if measure.minimised else ''}",
            _amount(measure, measure.value),
            _amount(measure, measure.bound),
            "-" if measure.gap is None else shown_percent(measure.gap),
        )
        for measure in placed.measures
    ]
    return _table(title, ("on the fitted part", "plan", "lower bound", "gap"), rows)


def shown_counts(values: Sequence[int]) -> str:
    """How often each value occurs, such as "8 in 3 layers, 0 in 21"."""
    counts = sorted(Counter(values).items(), reverse=True)
    return ", ".join(f"{value} in {n}{' layers' if place == 0 else ''}" for place, (value, n) in enumerate(counts))


def budget_parts(placed: Placed) -> Iterator[rich.table.Table | str]:
    """Tables and sentences of bit widths and memory tiers, where the scenario asks for them."""
    if placed.bits is not None:
        yield from _bits_parts(placed.bits)
    if placed.tiers is not None:
        yield from _tiers_parts(placed.tiers)


def _bits_parts(answer: BitsAnswer) -> Iterator[rich.table.Table | str]:
    rows = [
        ("chosen by expert", f"{answer.loss:.4g}", f"{answer.held_out:.4g}"),
        ("one width for all", f"{answer.even_loss:.4g}", f"{answer.held_out_even:.4g}"),
        ("lower bound", f"{answer.bound:.4g}", f"{answer.held_out_best:.4g}"),
    ]
    title = f"Bits of experts: {answer.status}, gap {shown_percent(answer.gap, places=2)}"
    yield _table(title, ("sum of importance x error", "fitted", "held out"), rows)
    importance = "sum of gate weights" if answer.weighted else "share of tokens (the trace has no gate weights)"
    counts = ", ".join(f"{n:,} at {bits:g}" for bits, n in answer.counts.items())
    saved = f"{answer.expert_bytes / GIB:.2f} of {answer.full_bytes / GIB:.2f} GiB"
    yield (
        f"Experts by bits: {counts}; mean {answer.bits.mean():.3f}. All experts once take {saved}. "
        f"Importance: {importance}."
    )


def _tiers_parts(answer: TiersAnswer) -> Iterator[rich.table.Table | str]:
    rows = [
        ("by expected use", shown_percent(answer.hit_frac), shown_percent(answer.held_out_hit_frac)),
        ("first layers", shown_percent(answer.in_order_hit_frac), shown_percent(answer.held_out_in_order_hit_frac)),
    ]
    held, all_copies = int(answer.resident.sum()), answer.n_copies
    title = f"Memory tiers of experts: {answer.status}, gap {shown_percent(answer.gap, places=2)}"
    yield _table(title, ("wanted experts in device memory", "fitted", "held out"), rows)
    yield (
        f"{held:,} of {all_copies:,} copies lie in device memory ({answer.device_bytes / GIB:.2f} GiB for experts on "
        f"each device), the others on the host ({answer.host_bytes / GIB:.2f} GiB for each device). Copies from there "
        f"take {shown_time(answer.copy_s)} of a step on a mean device (at least {shown_time(answer.bound_s)}), "
        f"{shown_time(answer.worst_copy_s)} on the busiest; {shown_time(answer.held_out_copy_s)} on held-out requests. "
        "Times below are those of experts that are all in device memory: these copies come on top."
    )


def judgement_table(placed: Placed) -> rich.table.Table:
    """MoE time of the plan over EPLB's on every part of the requests."""
    rows = [
        (
            part.name,
            shown_time(part.step_s),
            f"{part.over_eplb:.3f}",
            f"{part.low:.3f}–{part.high:.3f}",
            shown_percent(part.fixed_frac),
        )
        for part in placed.judgement.parts
    ]
    title = f"Time of all MoE layers over that of {shown_name(placed.reference)}; overfit: {_yes(placed)}"
    return _table(title, ("requests", "MoE time", "ratio", "90 % interval", "no plan changes"), rows)


def _yes(placed: Placed) -> str:
    return "yes, the gain on fitted requests is more than twice that on others" if placed.judgement.overfit else "no"


def explanation_parts(placed: Placed) -> Iterator[rich.table.Table | str]:
    """Tables and sentences of `--explain`, in order; nothing without it."""
    told = placed.explanation
    if told is None:
        return
    yield _layers_table(told.binding)
    yield from _binding_sentences(told.binding)
    yield _levers_table(told.levers)
    yield _eplb_table(told.eplb)
    yield eplb_sentence(told.eplb)


def eplb_sentence(answer: EplbAnswer) -> str:
    """The answer to "will EPLB help here?" with its number, noise and check."""
    best = answer.best
    slots = f"EPLB with {best.redundant} replica slots"
    said = {
        "helps": f"Yes: {slots} shortens a step by {_signless(best)}",
        "harms": f"No: at its best, {slots} lengthens a step by {_signless(best)}",
        "no difference": f"No: at its best, {slots} shortens a step by {_predicted(best)}, which is within the noise,",
    }[best.verdict]
    return (
        f"Will EPLB help here? {said} against experts in order (predicted from {answer.folds} parts of the fitted "
        f"requests, {answer.steps} steps each). Simulated on held-out requests: the step changes by "
        f"{shown_percent(-best.held_out, signed=True)}. {_why(best)}"
    )


def _why(case: EplbCase) -> str:
    """The causes that gain or lose most."""
    causes = sorted(case.changes_s.items(), key=lambda entry: -abs(entry[1]))
    largest = abs(causes[0][1])
    told = [
        f"{cause} {'-' if change_s < 0 else '+'}{shown_time(abs(change_s))}"
        for cause, change_s in causes
        if abs(change_s) > 0.1 * largest and largest > 0
    ]
    return f"Of a device's time there: {', '.join(told)}." if told else ""


def _signless(case: EplbCase) -> str:
    return f"{shown_percent(abs(case.predicted))} ± {shown_percent(case.noise)}"


def _predicted(case: EplbCase) -> str:
    return f"{shown_percent(case.predicted, signed=True)} ± {shown_percent(case.noise)}"


def _layers_table(bound: Binding) -> rich.table.Table:
    rows = [
        (
            str(layer.layer),
            *(shown_time(time_s) for time_s in (layer.dispatch_s, layer.experts_s, layer.combine_s, layer.excess_s)),
            f"{layer.slowest_rank} ({shown_percent(layer.slowest_frac)})",
            _ranks(layer.binding_ranks),
        )
        for layer in bound.layers[:SHOWN_LAYERS]
    ]
    more = len(bound.layers) - SHOWN_LAYERS
    title = "Layers that bind" + (f" ({more} more with less excess)" if more > 0 else "")
    header = ("layer", "dispatch", "experts", "combine", "excess", "slowest rank", "binding ranks")
    return _table(title, header, rows)


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{len(ranks)} ranks"


def _binding_sentences(bound: Binding) -> Iterator[str]:
    total_s, excess_s = (sum(getattr(layer, name) for layer in bound.layers) for name in ("experts_s", "excess_s"))
    share = excess_s / total_s if total_s > 0 else 0.0
    last = [f"rank {rank.rank} ({shown_percent(rank.slowest_frac)})" for rank in bound.ranks[:SHOWN_RANKS]]
    yield (
        "Excess is the experts' time of the slowest rank over the mean: "
        f"{shown_time(excess_s)} of {shown_time(total_s)} in all layers ({shown_percent(share)}). "
        f"Slowest most often: {', '.join(last)}."
    )
    yield (
        f"Split over replicas on the fitted counts: fullest rank {bound.imbalance_even:.3f} of the mean evenly, "
        f"{bound.imbalance_split:.3f} at best (linear programme; binding ranks have a dual price above 0)."
    )
    if bound.wanted:
        wanted = [f"expert {w.expert} of layer {w.layer} on rank {w.rank} ({w.relief:.2f})" for w in bound.wanted]
        yield (
            f"Replicas wanted most, and tokens that the busiest rank is relieved of for each token that they take "
            f"(dual values): {', '.join(wanted)}."
        )


def _levers_table(pulled: Sequence[Lever]) -> rich.table.Table:
    rows: list[tuple[str, ...]] = []
    for lever in pulled:
        if lever.why_not:
            rows.append((lever.name, "", "", "", lever.why_not))
            continue
        gains = (shown_percent(gain, signed=True) for gain in (lever.gain, lever.per_device_gain))
        rows.append((lever.name, shown_time(lever.step_time_s), *gains, shown_name(lever.plan)))
    header = ("what if", "step", "tokens/s", "per device", "plan, solved anew")
    return _table("Levers, simulated on held-out requests", header, rows)


def _eplb_table(answer: EplbAnswer) -> rich.table.Table:
    rows = [
        (str(case.redundant), _predicted(case), shown_percent(case.held_out, signed=True), case.verdict)
        for case in answer.cases
    ]
    header = ("replica slots", "predicted gain", "held-out gain", "verdict")
    return _table("EPLB against experts in order, step time", header, rows)


def _amount(measure: Measure, value: float) -> str:
    if measure.unit == "s":
        return shown_time(value)
    return f"{value:,.0f} tokens" if measure.unit == "tokens" else f"{value:.3f} {measure.unit}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> rich.table.Table:
    """A table of text whose first and last columns may fold."""
    shown = rich.table.Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="",
    )
    for number, name in enumerate(header):
        shown.add_column(Text(name), justify="left" if number in (0, len(header) - 1) else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown
