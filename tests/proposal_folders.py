"""Small folders of proposals, written by tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comining.completion.proposal_folder import PROPOSALS_FILE, ProposalSource
from comining.completion.proposals import Proposal, digest, write_proposals
from tests.helpers import write_coco

# Of every image its annotations: x, y, w, h, category.
ANNOTATED: list[list[tuple[float, float, float, float, int]]] = [
    [(1, 2, 10, 12, 1), (20.123456, 20.01, 30.07, 20.99, 3)],
    [(-4, 40, 9.5, 8.25, 2)],
    [],
    [(30, 5, 20, 20, 2)],
]
# Image, category, probability; in the order of the file.
PROPOSED = [(1, 1, 0.5), (1, 1, 0.4), (1, 2, 0.7), (2, 1, 0.9), (3, 3, 0.2), (3, 3, 0.95)]
CLASSES = ["class 1", "class 2", "class 3"]


def proposal(number: int, image: int, category: int, probability: float) -> Proposal:
    """A box of its own, with a score that is not its probability."""
    return Proposal(
        id=number, image_id=image, category_id=category, bbox=(5.5 * number, 3.25, 12.0, 10.5),
        score=round(probability / 2, 3), probability=probability,
    )  # fmt: skip


def proposed(rows: Sequence[tuple[int, int, float]] = PROPOSED) -> list[Proposal]:
    """Proposals with the ids 1, 2, ..."""
    return [proposal(number, *row) for number, row in enumerate(rows, start=1)]


def write_folder(root: Path, proposals: Sequence[Proposal] | None = None, **source: Any) -> Path:
    """A COCO set of four images, and a folder of proposals for it beside."""
    write_coco(root, ANNOTATED)
    folder = root / "proposals"
    folder.mkdir()
    fields: dict[str, Any] = {
        "annotations": "../train.json", "images": "../train", "classes": CLASSES,
    }  # fmt: skip
    ProposalSource(**(fields | source)).write(folder)
    write_proposals(folder / PROPOSALS_FILE, proposed() if proposals is None else proposals)
    return folder


def write_decisions(
    file: Path,
    said: dict[int, str | int],
    looked_through: Sequence[tuple[int, int]] = (),
    proposals: Sequence[Proposal] | None = None,
) -> Path:
    """A ``decisions.json``: for ids accept, reject, or the category that it is instead."""
    decisions = [
        {"id": number, "decision": one}
        if isinstance(one, str)
        else {"id": number, "decision": "class", "category_id": one}
        for number, one in said.items()
    ]
    content = {
        "version": 1,
        "proposals": digest(proposed() if proposals is None else proposals),
        "decisions": decisions,
        "looked_through": [{"image_id": i, "category_id": c} for i, c in looked_through],
    }
    file.write_text(json.dumps(content))
    return file
