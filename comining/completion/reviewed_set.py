"""Applying decisions: accepted boxes become annotations, and reviewed classes complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comining.completion.completed_set import added_record, with_records
from comining.completion.decisions import Decisions, Pair
from comining.completion.proposal_folder import ProposalFolder
from comining.data.formats.coco import FIELDS
from comining.data.knowledge import COMPLETE, PARTIAL, fields_of_status
from comining.data.record_values import whole

COMPLETED = "pairs of image and class that are complete now"


@dataclass(frozen=True)
class ReviewedSet:
    """The result of a review.

    Args:
        content: of the COCO file.
        counts: what happened, as text, and how often.
    """

    content: dict[str, Any]
    counts: Counter[str]


def reviewed_set(folder: ProposalFolder, decisions: Decisions) -> ReviewedSet:
    """The annotation file of a folder of proposals, with a person's decisions applied.

    Every image gets the fields of LVIS, so that its classes are read alike whatever
    ``data.annotated`` is. Earlier statements of the file remain valid, and in addition

    * a class of an image is complete if it was looked through, or if all its proposals there were
      decided on;
    * otherwise, one that gets a box is partial, unless it was complete before.

    Images whose fields already say all of this are unchanged.
    """
    annotations = folder.annotations
    counts: Counter[str] = Counter()
    records = []
    with_new_box: set[Pair] = set()
    undecided: set[Pair] = set()
    with_proposal: set[Pair] = set()
    for proposal in folder.proposals:
        pair = (proposal.image_id, proposal.category_id)
        with_proposal.add(pair)
        decision = decisions.of_proposal.get(proposal.id)
        if decision is None:
            undecided.add(pair)
            counts["not decided"] += 1
            continue
        if decision.decision == "reject":
            counts["rejected"] += 1
            continue
        record = {**added_record(proposal), "reviewed": True}
        category = proposal.category_id if decision.category_id is None else decision.category_id
        if category != proposal.category_id:
            record |= {"category_id": category, "proposed_category_id": proposal.category_id}
            counts["accepted as another class"] += 1
        else:
            counts["accepted"] += 1
        if decision.bbox is not None:
            record |= {
                "bbox": list(decision.bbox),
                "area": decision.bbox[2] * decision.bbox[3],
                "proposed_bbox": list(proposal.bbox),
            }
            counts["with a corrected box"] += 1
        records.append(record)
        with_new_box.add((proposal.image_id, category))

    before = annotations.status
    row = {image: position for position, image in enumerate(annotations.image_ids.tolist())}
    column = {category: label for label, category in enumerate(annotations.categories.ids)}

    def mask(pairs: set[Pair]) -> NDArray[np.bool_]:
        marked = np.zeros(before.shape, dtype=np.bool_)
        for image, category in pairs:
            marked[row[image], column[category]] = True
        return marked

    new_box = mask(with_new_box)
    finished = mask((with_proposal - undecided) | decisions.looked_through)
    status = before.copy()
    status[new_box & (status != COMPLETE)] = PARTIAL
    status[finished] = COMPLETE
    counts[COMPLETED] = int((finished & (before != COMPLETE)).sum())
    touched = ((status != before) | new_box).any(axis=1)
    named = fields_of_status(status, annotations.have_boxes | new_box)
    content = with_records(folder.content, records)
    content["images"] = [  # in the order of the rows
        record
        if _has_fields(record) and not touched[position]
        else _with_fields(
            record, [of_class[position] for of_class in named], annotations.categories.ids
        )
        for position, record in enumerate(content["images"])
    ]
    return ReviewedSet(content, counts)


def _has_fields(record: Mapping[str, Any]) -> bool:
    return any(record.get(key) is not None for key in FIELDS)


def _with_fields(
    record: Mapping[str, Any], named: Sequence[NDArray[np.bool_]], categories: tuple[int, ...]
) -> dict[str, Any]:
    """An image record with the fields of LVIS.

    Their entries for these and for unknown categories keep their places.

    Args:
        named: for each field, [K] the classes that it names.
        categories: K ids.
    """
    fields = {}
    for key, of_class in zip(FIELDS, named, strict=True):
        wanted = [category for category, is_named in zip(categories, of_class) if is_named]
        stays = {*wanted}
        kept = [
            value
            for value in record.get(key) or []
            if whole(value) in stays or whole(value) not in categories
        ]
        held = {whole(value) for value in kept}
        fields[key] = kept + [category for category in wanted if category not in held]
    return {**record, **fields}
