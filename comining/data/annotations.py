"""A validated set of annotations, independent of the format that it was read from.

Everything is checked once, before any long work. Category ids and xywh boxes exist only at this
boundary; everywhere else labels are 0 ... K-1 and boxes xyxy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comining.data.knowledge import (
    UNSAID,
    Annotated,
    Status,
    resolved,
    status_of_fields,
)
from comining.data.outlines import Outlines
from comining.errors import DataError

OnInvalidBox = Literal["error", "drop"]
# How crowds are read: as regions to set aside, or as objects like all others.
Crowd = Literal["ignore", "object"]

# A repair: crowds were read with data.crowd=object.
CROWDS_AS_OBJECTS = "crowds taken as objects"


@dataclass(frozen=True)
class Categories:
    """The mapping between category ids of a file and labels 0 ... K-1.

    The position is the label. Ids are ascending, unless the labels are those of another file (see
    :func:`comining.data.category_matching.match_categories`).
    """

    ids: tuple[int, ...]  # K category ids
    names: tuple[str, ...]  # K

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class AnnotationSet:
    """A validated annotation file as columns: N images, M annotations.

    Columns instead of objects: worker processes share them without copying, and COCO's 860,000
    annotations take little memory.
    """

    path: Path
    categories: Categories
    image_ids: NDArray[np.int64]  # [N]
    file_names: list[str]  # N
    sizes: NDArray[np.int64]  # [N, 2] height, width
    ids: NDArray[np.int64]  # [M]
    image: NDArray[np.int64]  # [M] position in image_ids
    labels: NDArray[np.int64]  # [M]; -1 in ignored regions: every class
    bboxes: NDArray[np.float64]  # [M, 4] xywh as in the file: what COCO evaluates against
    boxes: NDArray[np.float64]  # [M, 4] xyxy, cut at the image border: the training targets
    areas: NDArray[np.float64]  # [M] of the file (of the mask, where there is one)
    crowd: NDArray[np.bool_]  # [M] a region to ignore, of one class or of all: never a target
    # [M] a box that a detector proposed and nobody has corrected: it is never pasted
    proposed: NDArray[np.bool_]
    repairs: dict[str, int]  # what was repaired, and how often
    # Id and name of a category that was left out because it is the unused parent of all others.
    unused_root: tuple[int, str] | None = None
    # Name of a class whose boxes became regions to ignore for all others (data.ignore_category).
    ignore_category: str | None = None
    # The names in the image folder of files that are spelt differently here, by position.
    found_as: dict[int, str] = field(default_factory=dict)
    # [N, K] the status of images and classes by fields of the file; None without any
    said: Status | None = None
    # What holds where the fields say nothing.
    otherwise: Literal["partial", "exhaustive"] = "partial"
    # The outlines of the annotations, for pasting; None if they were not read.
    outlines: Outlines | None = None

    @property
    def said_of_all(self) -> Status:
        """[N, K] the status by the fields of the file, UNSAID where they say nothing."""
        if self.said is not None:
            return self.said
        nothing = np.full((1, 1), UNSAID, dtype=np.int8)
        return np.broadcast_to(nothing, (len(self.image_ids), len(self.categories)))

    @property
    def status(self) -> Status:
        """[N, K] the status of every image and class; never UNSAID."""
        return resolved(self.said_of_all, self.otherwise)

    @property
    def is_partial(self) -> bool:
        """Whether objects may be missing where no field says so, so that AP is a lower bound."""
        return self.otherwise == "partial" and bool((self.said_of_all == UNSAID).any())

    def annotated_as(self, annotated: Annotated) -> AnnotationSet:
        """The set, with what holds for images without fields."""
        if annotated != "fields":
            return replace(self, otherwise=annotated)
        nothing = np.zeros((1, 1), dtype=np.bool_)
        empty_fields = status_of_fields(self.have_boxes, nothing, nothing)
        said = self.said_of_all
        return replace(self, said=np.where(said == UNSAID, empty_fields, said))

    @property
    def have_boxes(self) -> NDArray[np.bool_]:
        """[N, K] which classes have an annotation in an image that is not a region to ignore."""
        have = np.zeros((len(self.image_ids), len(self.categories)), dtype=np.bool_)
        have[self.image[~self.crowd], self.labels[~self.crowd]] = True
        return have

    def file(self, image: int) -> str:
        """The name in the image folder of the image at a position."""
        return self.found_as.get(image, self.file_names[image])

    def check_file_names(self) -> None:
        """Refuse two images with the same file.

        Raises:
            DataError: naming the second of them.
        """
        image_of: dict[PurePosixPath, int] = {}
        for position, image_id in enumerate(self.image_ids.tolist()):
            other = image_of.setdefault(PurePosixPath(self.file(position)), image_id)
            if other != image_id:
                raise DataError(
                    f"{self.path}: image {image_id}: file_name {self.file_names[position]!r} is "
                    f"that of image {other}, too"
                )

    def fingerprint(self) -> str:
        """A hash of every record that training or evaluation sees, independent of their order."""
        order = np.argsort(self.ids, kind="stable")
        digest = hashlib.sha256(repr(self.categories).encode())
        images = sorted(zip(self.image_ids.tolist(), self.file_names, self.sizes.tolist()))
        digest.update(repr(images).encode())
        image_ids = self.image_ids[self.image]
        for column in (self.ids, image_ids, self.labels, self.bboxes, self.areas, self.crowd):
            digest.update(np.ascontiguousarray(column[order]).tobytes())
        if self.proposed.any():
            digest.update(self.proposed[order].tobytes())
        if self.said is not None:
            digest.update(np.ascontiguousarray(self.said[np.argsort(self.image_ids)]).tobytes())
        return digest.hexdigest()[:16]

    def of_images(self, chosen: NDArray[np.bool_]) -> AnnotationSet:
        """The set with some of its images, which keep their ids.

        Args:
            chosen: [N] which images.
        """
        rows = chosen[self.image]
        position = np.cumsum(chosen) - 1
        return replace(
            self.of_rows(rows),
            image_ids=self.image_ids[chosen],
            file_names=[self.file_names[image] for image in np.flatnonzero(chosen)],
            found_as={
                int(position[image]): name for image, name in self.found_as.items() if chosen[image]
            },
            sizes=self.sizes[chosen],
            image=position[self.image[rows]],
            said=None if self.said is None else self.said[chosen],
        )

    def of_rows(self, rows: NDArray[np.bool_]) -> AnnotationSet:
        """The set with all of its images, and some of its annotations.

        Args:
            rows: [M] which annotations.
        """
        return replace(
            self,
            ids=self.ids[rows],
            image=self.image[rows],
            labels=self.labels[rows],
            bboxes=self.bboxes[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            proposed=self.proposed[rows],
            outlines=None if self.outlines is None else self.outlines.of_rows(rows),
        )
