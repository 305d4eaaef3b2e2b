"""The order in which a person decides on proposals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from comining.completion.proposals import Proposal

Order = Literal["uncertain", "score", "random"]
ORDERS: tuple[str, ...] = get_args(Order)
# It gains most per decision, see docs/completion.md.
DEFAULT_ORDER: Order = "score"


def in_order(proposals: Sequence[Proposal], order: str) -> list[Proposal]:
    """Proposals in the order of the review.

    * ``uncertain``: those with a probability near one half first, spread over images and classes:
      one of each image before the second of any, and of these one of each class in turn.
    * ``score``: the highest score first.
    * ``random``: the same random order each time.
    """
    return _ORDERS[order](proposals)


def _uncertain(proposals: Sequence[Proposal]) -> list[Proposal]:
    nearest = sorted(proposals, key=lambda one: (abs(one.probability - 0.5), one.id))
    of_image: Counter[int] = Counter()
    of_class: Counter[tuple[int, int]] = Counter()
    keys = {}
    for proposal in nearest:
        turn = of_image[proposal.image_id]
        of_image[proposal.image_id] += 1
        place = of_class[turn, proposal.category_id]
        of_class[turn, proposal.category_id] += 1
        keys[proposal.id] = (turn, place)
    return sorted(nearest, key=lambda one: keys[one.id])  # stable: then by uncertainty


def _by_score(proposals: Sequence[Proposal]) -> list[Proposal]:
    return sorted(proposals, key=lambda one: (-one.score, one.id))


def _random(proposals: Sequence[Proposal]) -> list[Proposal]:
    rows = np.random.default_rng(0).permutation(len(proposals))
    by_id = sorted(proposals, key=lambda one: one.id)
    return [by_id[row] for row in rows]


_ORDERS: dict[str, Callable[[Sequence[Proposal]], list[Proposal]]] = {
    "uncertain": _uncertain,
    "score": _by_score,
    "random": _random,
}
