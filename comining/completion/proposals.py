"""``proposals.json``: boxes that may be missing among the annotations, each with a probability.

The file is a list in COCO's results format. docs/completion.md describes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from comining.completion.record_file import Box, Id, Number, Record, Share, read_records
from comining.data.annotation_builder import fit_box
from comining.data.annotations import AnnotationSet
from comining.errors import DataError
from comining.runs.files import write_json

# Tolerance for rounding in sums of probabilities.
ROUNDING = 1e-9


class Proposal(Record):
    """A box that may be an object without an annotation."""

    id: Annotated[int, Field(ge=1, lt=2**53)]  # which JavaScript can hold
    image_id: Id
    category_id: Id
    bbox: Box  # xywh px, as in the annotation file
    score: Number  # of the detector
    probability: Share  # that it is an object without an annotation


PROPOSALS = TypeAdapter(list[Proposal])


def read_proposals(file: Path, annotations: AnnotationSet) -> list[Proposal]:
    """Read proposals, in the order of the file.

    Args:
        annotations: of the images that they are for.

    Raises:
        DataError: naming the file, and the first record and field that are wrong.
    """
    proposals = read_records(file, PROPOSALS, "proposals")
    check_proposals(proposals, annotations, str(file))
    return proposals


def check_proposals(proposals: Sequence[Proposal], annotations: AnnotationSet, where: str) -> None:
    """Check proposals against the annotations and each other.

    Args:
        where: how an error names the file.

    Raises:
        DataError: an id occurs twice, an image or a category is not in the annotation file, or a
            box does not lie in its image.
    """
    sizes = dict(zip(annotations.image_ids.tolist(), annotations.sizes.tolist(), strict=True))
    categories = set(annotations.categories.ids)
    ids: set[int] = set()
    for position, proposal in enumerate(proposals):
        record = f"{where}: proposals[{position}]"
        if proposal.id in ids:
            raise DataError(f"{record}: id {proposal.id} occurs twice")
        ids.add(proposal.id)
        if proposal.image_id not in sizes:
            raise DataError(
                f"{record}: image_id {proposal.image_id} is not among the images of "
                f"{annotations.path}"
            )
        if proposal.category_id not in categories:
            raise DataError(
                f"{record}: category_id {proposal.category_id} is not among the categories of "
                f"{annotations.path}"
            )
        height, width = sizes[proposal.image_id]
        problem, _ = fit_box(proposal.bbox, width, height)
        if problem:
            raise DataError(
                f"{record}: bbox {proposal.bbox} in image {proposal.image_id} of "
                f"{width}x{height} px {problem}"
            )


def write_proposals(file: Path, proposals: Sequence[Proposal]) -> None:
    """Write proposals in the given order, whole or not at all."""
    write_json(file, [proposal.model_dump(mode="json") for proposal in proposals])


def digest(proposals: Sequence[Proposal]) -> str:
    """A hash that identifies a set of proposals, for decisions on it.

    It does not depend on the order, nor on scores and probabilities.
    """
    rows = sorted((one.id, one.image_id, one.category_id, *one.bbox) for one in proposals)
    return "sha256:" + hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def with_probability(proposals: Sequence[Proposal], least: float) -> list[Proposal]:
    """The proposals with a probability of at least ``least``, in their order."""
    return [proposal for proposal in proposals if proposal.probability >= least]


def with_precision(proposals: Sequence[Proposal], precision: float) -> list[Proposal]:
    """The largest set whose mean probability is at least ``precision``, in their order.

    Of two with the same probability, the one with the higher score comes first, then the one with
    the lower id.
    """
    best_first = sorted(proposals, key=lambda one: (-one.probability, -one.score, one.id))
    total, kept = 0.0, 0
    # The mean of the best k decreases with k.
    for count, proposal in enumerate(best_first, start=1):
        total += proposal.probability
        if total < (precision - ROUNDING) * count:
            break
        kept = count
    chosen = {proposal.id for proposal in best_first[:kept]}
    return [proposal for proposal in proposals if proposal.id in chosen]
