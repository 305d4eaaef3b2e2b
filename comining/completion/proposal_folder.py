"""A folder of proposals: ``proposals.json``, and ``complete.json``, which names their data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from comining.completion.proposals import Proposal, read_proposals
from comining.completion.record_file import Record, Share, read_records
from comining.data.annotations import AnnotationSet
from comining.data.formats.coco import load_coco, parse_coco
from comining.data.images import BitDepth, Exif
from comining.data.knowledge import Annotated
from comining.errors import DataError
from comining.runs.files import write_json

PROPOSALS_FILE = "proposals.json"
SOURCE_FILE = "complete.json"


class RateEstimate(Record):
    """The annotated share of the objects of a class."""

    rate: Share
    interval: tuple[Share, Share]  # low, high

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {list(self.interval)} must be [low, high]")
        return self


class ProposalSource(Record):
    """``complete.json``: the data that the proposals are for.

    Paths are absolute if the user gave absolute ones, else relative to the folder of the file.
    """

    version: Literal[1] = 1
    annotations: str = Field(min_length=1)  # a COCO file
    images: str = Field(min_length=1)  # the folder of its pictures
    classes: list[str]  # names, in the order of the category ids
    annotated: Annotated = "partial"  # data.annotated of the run
    exif: Exif = "ignore"  # data.exif of the run
    bit_depth: BitDepth = "auto"  # data.bit_depth of the run
    rates: dict[str, RateEstimate] = Field(default_factory=dict)  # of a class, where it is known
    # Options of train.py that train like the run, except those that name the training set.
    training: list[str] = Field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the file into a folder, whole or not at all."""
        write_json(folder / SOURCE_FILE, self.model_dump(mode="json"))


SOURCE = TypeAdapter(ProposalSource)


@dataclass(frozen=True)
class ProposalFolder:
    """The content of a folder of proposals, with the annotations that they are for.

    Args:
        path: the folder.
        images: the folder of the pictures.
        content: of the annotation file, unchanged.
        annotations: the same, validated; boxes without area are left out.
        proposals: in the order of their file.
    """

    path: Path
    source: ProposalSource
    images: Path
    content: dict[str, Any]
    annotations: AnnotationSet
    proposals: list[Proposal]

    @property
    def file(self) -> Path:
        """The file of the proposals."""
        return self.path / PROPOSALS_FILE

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder, without its pictures.

        Raises:
            DataError: naming the file, and the record that is wrong.
        """
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        source = read_records(path / SOURCE_FILE, SOURCE)
        # Joining leaves an absolute path alone.
        file = Path(os.path.normpath(path / source.annotations))
        content = load_coco(file)
        annotations = parse_coco(file, content, on_invalid_box="drop")
        names = list(annotations.categories.names)
        if names != source.classes:
            differ = sorted({*names} ^ {*source.classes}) or "they have another order"
            raise DataError(f"{path / SOURCE_FILE}: classes are not those of {file}: {differ}")
        return cls(
            path,
            source,
            Path(os.path.normpath(path / source.images)),
            content,
            annotations.annotated_as(source.annotated),
            read_proposals(path / PROPOSALS_FILE, annotations),
        )


def path_from(folder: Path, given: str | Path) -> str:
    """A path for ``complete.json``: unchanged if it is absolute, else relative to its folder.

    A given relative path refers to the working directory. If no relative path exists (another
    drive), it becomes absolute.
    """
    given = Path(given)
    if given.is_absolute():
        return str(given)
    try:
        return Path(os.path.relpath(given, folder)).as_posix()
    except ValueError:
        return str(given.absolute())


def by_image(proposals: Sequence[Proposal]) -> dict[int, list[Proposal]]:
    """The proposals of every image id that has one, in their order."""
    found: dict[int, list[Proposal]] = {}
    for proposal in proposals:
        found.setdefault(proposal.image_id, []).append(proposal)
    return found
