"""Cards of collectives, expert exchanges and host copies, fitted to tables of timings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from hwmodels.calibration.collective_tables import custom_all_reduce_problems, nccl_problems
from hwmodels.calibration.copy_tables import BOTH_WAYS, PAGEABLE, copy_problems
from hwmodels.calibration.exchange_tables import (
    low_latency_problems,
    moe_a2a_problems,
    normal_problems,
    rack_problems,
)
from hwmodels.calibration.fit import residuals_of
from hwmodels.calibration.link_problem import LinkProblem
from hwmodels.cards import CardSet
from hwmodels.fitted import Fitted
from hwmodels.validation.columns import Column, numbers, positive, sizes, words
from hwmodels.validation.timings import read_columns
from scenarios.errors import CalibrationError, HardwareError

Reader = Callable[[dict[str, Column]], list[LinkProblem]]

FAMILIES: dict[str, tuple[set[str], Reader]] = {
    "nccl": ({"nccl_dtype", "num_gpus", "message_size", "op_name", "latency", "device"}, nccl_problems),
    "custom all-reduce": (
        {"allreduce_dtype", "num_gpus", "message_size", "op_name", "latency", "device"},
        custom_all_reduce_problems,
    ),
    "deepep low latency": (
        {"node_num", "hidden_size", "num_token", "num_topk", "num_experts", "device", "dispatch_avg_t_us",
         "combine_avg_t_us"},
        low_latency_problems,
    ),
    "deepep normal": (
        {"node_num", "hidden_size", "num_token", "num_topk", "num_experts", "device", "dispatch_sms",
         "dispatch_transmit_us", "dispatch_notify_us", "combine_transmit_us", "combine_notify_us"},
        normal_problems,
    ),
    "moe all-to-all": (
        {"comm_backend", "phase", "node_num", "hidden_size", "num_tokens", "topk", "num_experts", "sms", "latency",
         "device"},
        moe_a2a_problems,
    ),
    "rack all-to-all": (
        {"op_name", "kernel_source", "moe_dtype", "num_tokens", "hidden_size", "topk", "num_experts", "moe_ep_size",
         "latency", "device"},
        rack_problems,
    ),
    "host copies": ({"direction", "method", "block_KB", "GB_per_s_digitised"}, copy_problems),
}  # fmt: skip
"""Columns by which a family of tables is known, and what turns them into problems."""
OPTIONAL = {"backend", "implementation", "dispatch_sms", "sms"}
WORDS = {"nccl_dtype", "allreduce_dtype", "op_name", "device", "comm_backend", "phase", "kernel_source", "moe_dtype",
         "direction", "method", "backend", "implementation"}  # fmt: skip
RATES = {"latency", "block_KB", "GB_per_s_digitised"}
"""Columns of words, and of times and rates beside those in us; the others hold sizes and counts."""


def is_link_table(columns: Iterable[str]) -> bool:
    """Whether a table of these columns is one of communication."""
    return _family(columns) is not None


def link_problems(path: Path) -> list[LinkProblem]:
    """The fitting problems of a table of communication timings.

    Raises HardwareError where the file is unreadable or its columns fit no family.
    """
    columns = read_columns(path)
    family = _family(columns)
    if family is None:
        known = "; ".join(f"{name}: {', '.join(sorted(needed))}" for name, (needed, _) in FAMILIES.items())
        raise HardwareError(f"{path}: the columns fit no family of communication tables; needed are, of {known}")
    needed, problems_of = FAMILIES[family]
    checked = {name: _checked(path, name, column) for name, column in columns.items() if name in needed | OPTIONAL}
    if not all(map(len, checked.values())):
        raise HardwareError(f"{path}: the table has no rows")
    try:
        return problems_of(columns | checked)
    except HardwareError as error:
        raise HardwareError(f"{path}: {error}") from None


def _checked(path: Path, name: str, column: Column) -> Column:
    """A column as its name says: words, times and rates, or sizes."""
    if name in WORDS:
        return words(path, name, column)
    if name.endswith("_notify_us"):
        return numbers(path, name, column)
    return (positive if name in RATES or name.endswith("_us") else sizes)(path, name, column)


def calibrate_links(path: Path, source: str | None = None, links: Iterable[str] | None = None) -> CardSet:
    """Cards fitted to a table, each block with its source and its errors on shapes that nothing was fitted on.

    source  how the blocks name the table; default: its file. links: only cards of these; default: all that it has.
    Raises HardwareError where the table is unreadable, CalibrationError where it is too small.
    """
    return cards_of(fitted_links(path, source, links))


def fitted_links(
    path: Path, source: str | None = None, links: Iterable[str] | None = None
) -> list[tuple[LinkProblem, Fitted]]:
    """The problems of a table with their fitted blocks; arguments and errors as of `calibrate_links`."""
    problems = [problem for problem in link_problems(path) if links is None or problem.link in set(links)]
    try:
        return [(problem, _block(problem, source or f"fitted on {path.name}")) for problem in problems]
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from None


def cards_of(blocks: Iterable[tuple[LinkProblem, Fitted]]) -> CardSet:
    """Blocks put together into cards."""
    cards: dict[str, dict[str, dict[str, Any]]] = {"collectives": {}, "exchanges": {}, "copies": {}}
    for problem, block in blocks:
        card = cards[problem.kind].setdefault(problem.card, {"name": problem.card, "link": problem.link})
        if problem.kind == "exchanges":
            card |= {"kernel": problem.subject, problem.part.replace("-", "_"): _plain(block)}
            continue
        if problem.kind == "collectives":
            card["library"] = problem.subject
        card.setdefault("laws", []).append(_plain(block))
    for card in cards["copies"].values():
        card["laws"].append(_plain(PAGEABLE))
        card["both_ways_frac"] = BOTH_WAYS.model_dump()
    return CardSet.model_validate({kind: list(named.values()) for kind, named in cards.items()})


def cards_yaml(cards: CardSet) -> str:
    """The cards as a YAML file of the library."""
    return yaml.safe_dump(
        cards.model_dump(mode="json", exclude_defaults=True, exclude_none=True),
        sort_keys=False,
        default_flow_style=None,
        width=120,
        allow_unicode=True,
    )


def _family(columns: Iterable[str]) -> str | None:
    have = set(columns)
    return next((name for name, (needed, _) in FAMILIES.items() if needed <= have), None)


def _block(problem: LinkProblem, source: str) -> Fitted:
    found = problem.cross_fit()
    residuals = residuals_of(found.held_out_s, problem.measured_s)
    return problem.make(found.constants).model_copy(update={"source": source, "residuals": residuals})


def _plain(block: Fitted) -> dict[str, Any]:
    """Fields that differ from their defaults, numbers to four digits."""
    plain: dict[str, Any] = _rounded(block.model_dump(mode="json", exclude_defaults=True, exclude_none=True))
    return plain


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
