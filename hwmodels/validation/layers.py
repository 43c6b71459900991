"""Suite `layers`: parts of layers that others measured, by cards that were fitted on other tables."""

from __future__ import annotations

from pathlib import Path

from hwmodels.validation.beside import missing
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.layer_parts import FOLDER, find_profile, layer_part_scores
from hwmodels.validation.rank_experts import RANK_TABLES, rank_expert_scores
from hwmodels.validation.score import Score


def layers(folder: Path, progress: Progress) -> list[Judged]:
    """Every measurement that is there. Raises TablesMissing where none is."""
    scores: list[Score] = []
    profile = find_profile(folder)
    if profile is not None:
        progress("RTX PRO 6000 profile", 0.0)
        scores += layer_part_scores(profile)
    present = [case for case in RANK_TABLES if case.table.find(folder) is not None]
    for number, case in enumerate(present, 1):
        progress(case.table.name, number / (1 + len(present)))
        scores += rank_expert_scores(folder, case)
    if not scores:
        raise missing(folder, "layer profile and no table of wide expert parallelism")
    return [judged("layers", score) for score in scores]


def layers_absent(folder: Path) -> list[str]:
    """What the suite would judge if the folder held it."""
    absent = [] if find_profile(folder) is not None else [f"{FOLDER} (LLMServingSim, commit 5daddb2)"]
    return absent + [case.table.name for case in RANK_TABLES if case.table.find(folder) is None]
