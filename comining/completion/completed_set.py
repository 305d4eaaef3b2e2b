"""Annotation files with proposals added; the content of the file is otherwise unchanged."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from comining.completion.proposals import Proposal
from comining.data.record_values import whole
from comining.errors import DataError
from comining.runs.files import replace_file

LARGEST_ID = 2**63 - 1


def added_record(proposal: Proposal) -> dict[str, Any]:
    """The annotation for a proposal, marked as proposed; without an id."""
    width, height = proposal.bbox[2:]
    return {
        "image_id": proposal.image_id,
        "category_id": proposal.category_id,
        "bbox": list(proposal.bbox),
        "area": width * height,
        "iscrowd": 0,
        "proposed": True,
        "probability": proposal.probability,
        "score": proposal.score,
    }


def with_records(content: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A COCO file with further annotations after its own, with new ids.

    Args:
        content: of the file, validated; not changed.
        records: without ids.
    """
    ids = _free_ids(content["annotations"])
    numbered = [{"id": next(ids), **record} for record in records]
    return {**content, "annotations": [*content["annotations"], *numbered]}


def with_proposals(content: Mapping[str, Any], proposals: Sequence[Proposal]) -> dict[str, Any]:
    """A COCO file with proposals as further annotations, each marked."""
    return with_records(content, [added_record(proposal) for proposal in proposals])


def _free_ids(annotations: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Unused annotation ids, one after the other: above all others, if there is room."""
    taken = {whole(annotation["id"]) for annotation in annotations}
    highest = max((number for number in taken if number is not None), default=0)
    # Never 0, which counts as missed in COCO's evaluation.
    start = max(highest, 0) + 1
    if start > LARGEST_ID // 2:
        start = 1
    return (number for number in itertools.count(start) if number not in taken)


def write_coco(file: Path, content: Mapping[str, Any]) -> None:
    """Write a COCO file whole or not at all.

    NaN and infinity, which JSON does not define, are written as they were read: another program
    wrote them.
    """
    text = json.dumps(content)
    replace_file(file, lambda opened: opened.write(text.encode()))


def check_new(file: Path) -> None:
    """Refuse an output that already exists.

    Raises:
        DataError: it exists.
    """
    if file.exists() or file.is_symlink():
        raise DataError(f"{file}: already exists; nothing is overwritten")
