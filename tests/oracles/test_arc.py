"""ARC against the algorithm of its paper, one access after another with lists as lists."""

import numpy as np
import pytest

from sim.offload.arc import Arc
from sim.offload.replay import Requests, replay

N_EXPERTS = 14


def textbook(accesses: list[int], size: int, start: list[int]) -> tuple[list[bool], list[float]]:
    """Hits, and targets p for T1, by figure 4 of Megiddo and Modha (FAST 2003); T1 holds `start`, LRU first."""
    once, often, gone_once, gone_often = list(start), list[int](), list[int](), list[int]()
    share, hits, shares = 0.0, [], []

    def replace(page: int) -> None:
        if once and (len(once) > share or (page in gone_often and len(once) == share)):
            gone_once.append(once.pop(0))
        else:
            gone_often.append(often.pop(0))

    for page in accesses:
        shares.append(share)
        hits.append(page in once or page in often)
        if hits[-1]:
            (once if page in once else often).remove(page)
        elif page in gone_once:
            share = min(size, share + max(1, len(gone_often) / len(gone_once)))
            replace(page)
            gone_once.remove(page)
        elif page in gone_often:
            share = max(0, share - max(1, len(gone_once) / len(gone_often)))
            replace(page)
            gone_often.remove(page)
        else:
            if len(once) + len(gone_once) == size:
                if len(once) < size:
                    gone_once.pop(0)
                    replace(page)
                else:
                    once.pop(0)
            elif len(once) + len(gone_once) + len(often) + len(gone_often) >= size:
                if len(once) + len(gone_once) + len(often) + len(gone_often) == 2 * size:
                    gone_often.pop(0)
                replace(page)
            once.append(page)
            continue
        often.append(page)
    return hits, [*shares, share]


@pytest.mark.parametrize("size", [1, 2, 4, 7, 11])
def test_one_expert_a_step_is_the_algorithm_of_the_paper(size: int) -> None:
    """Phases of favourites, scans and noise, so that both ghosts return and the target moves both ways."""
    rng = np.random.default_rng(size)
    phases = [rng.choice(N_EXPERTS, 40, p=rng.dirichlet(np.full(N_EXPERTS, 0.2))) for _ in range(12)]
    scans = [np.arange(N_EXPERTS)[rng.permutation(N_EXPERTS)] for _ in range(12)]
    accesses = np.concatenate([part for pair in zip(phases, scans, strict=True) for part in pair])
    used = np.zeros((len(accesses), 1, N_EXPERTS), bool)
    used[np.arange(len(accesses)), 0, accesses] = True
    ties = 1 - (np.arange(N_EXPERTS)[None] + 1) / N_EXPERTS
    slots = np.array([size])
    keeper = Arc(slots, ties)
    got = replay(
        Requests(
            used=used,
            ahead=None,
            keeper=keeper,
            ties=ties,
            slots=slots,
            placed=np.ones((1, N_EXPERTS), bool),
            admits=True,
        )
    )
    want, shares = textbook(accesses.tolist(), size, list(range(size))[::-1])
    assert got.resident.any(axis=-1)[:, 0].tolist() == want
    assert keeper.share[0] == shares[-1]
    assert len(set(shares)) > 1 or size == 1
