"""A validated set of annotations, whatever the format that it was read from.

Everything is checked once, before any long work. Category ids and xywh boxes exist only on this
edge; inside, labels are 0 ... K-1 and boxes xyxy.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comining.data.images import MAX_PIXELS
from comining.errors import DataError

log = logging.getLogger(__name__)

OnInvalidBox = Literal["error", "drop"]

# A side below this share of the image's longer one may vanish in float32, where its logarithm is
# infinite.
MIN_SIDE = 1e-6


@dataclass(frozen=True)
class Categories:
    """The one place where category ids of a file and labels 0 ... K-1 meet."""

    ids: tuple[int, ...]  # K category ids, rising; the position is the label
    names: tuple[str, ...]  # K

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class AnnotationSet:
    """A validated annotation file as columns: N images, M annotations.

    Columns rather than objects: worker processes share them without copying, and COCO's 860,000
    annotations stay small.
    """

    path: Path
    categories: Categories
    image_ids: NDArray[np.int64]  # [N]
    file_names: list[str]  # N
    sizes: NDArray[np.int64]  # [N, 2] height, width
    ids: NDArray[np.int64]  # [M]
    image: NDArray[np.int64]  # [M] position in image_ids
    labels: NDArray[np.int64]  # [M]
    bboxes: NDArray[np.float64]  # [M, 4] xywh as in the file: what COCO evaluates against
    boxes: NDArray[np.float64]  # [M, 4] xyxy, cut at the image border: what is trained on
    areas: NDArray[np.float64]  # [M] of the file (of the mask, where there is one)
    crowd: NDArray[np.bool_]  # [M] set aside: never a training target
    repairs: dict[str, int]  # what was mended, and how often

    def fingerprint(self) -> str:
        """Changes with every record that training or evaluation sees, not with the file's order."""
        order = np.argsort(self.ids, kind="stable")
        digest = hashlib.sha256(repr(self.categories).encode())
        images = sorted(zip(self.image_ids.tolist(), self.file_names, self.sizes.tolist()))
        digest.update(repr(images).encode())
        image_ids = self.image_ids[self.image]
        for column in (self.ids, image_ids, self.labels, self.bboxes, self.areas, self.crowd):
            digest.update(np.ascontiguousarray(column[order]).tobytes())
        return digest.hexdigest()[:16]

    def of_images(self, chosen: NDArray[np.bool_]) -> AnnotationSet:
        """The set with some of its images, which keep their ids.

        Args:
            chosen: [N] which.
        """
        rows = chosen[self.image]
        position = np.cumsum(chosen) - 1
        return replace(
            self,
            image_ids=self.image_ids[chosen],
            file_names=[self.file_names[image] for image in np.flatnonzero(chosen)],
            sizes=self.sizes[chosen],
            ids=self.ids[rows],
            image=position[self.image[rows]],
            labels=self.labels[rows],
            bboxes=self.bboxes[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
        )


class AnnotationBuilder:
    """Puts an :class:`AnnotationSet` together, record by record, and checks what all formats share.

    Args:
        path: of the file or folder that is read, for messages.
        categories: of the set.
        on_invalid_box: boxes that are empty, inverted, not finite or (mostly) outside of their
            image are an error that names the record, or are dropped and counted. COCO's own
            train2017 holds two empty boxes.
    """

    def __init__(self, path: Path, categories: Categories, on_invalid_box: OnInvalidBox):
        self.path = path
        self.categories = categories
        self.on_invalid_box = on_invalid_box
        self.repairs: Counter[str] = Counter()  # what was mended, and how often
        self._position: dict[int, int] = {}  # of an image id
        self._image_of: dict[PurePosixPath, int] = {}
        self._file_names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._annotation_ids: set[int] = set()
        self._rows: list[tuple[int, int, int, bool, float]] = []
        self._bboxes: list[tuple[float, float, float, float]] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def check_new_image(self, where: str, image_id: int) -> None:
        """Refuse an id that an earlier image has."""
        if image_id in self._position:
            raise DataError(f"{where}: image id {image_id} occurs twice")

    def check_new_annotation(self, where: str, annotation_id: int) -> None:
        """Refuse an id that an earlier annotation has, also one that was dropped."""
        if annotation_id in self._annotation_ids:
            raise DataError(f"{where}: annotation id {annotation_id} occurs twice")

    def add_image(self, where: str, image_id: int, file_name: str, height: int, width: int) -> None:
        """Add an image.

        Args:
            where: the words that name the record in an error.
            file_name: relative to the image folder.
            height, width: px.

        Raises:
            DataError: naming the record.
        """
        self.check_new_image(where, image_id)
        self._position[image_id] = len(self._position)
        other = self._image_of.setdefault(PurePosixPath(file_name), image_id)
        if other != image_id:
            raise DataError(f"{where}: file_name {file_name!r} is that of image {other}, too")
        self._file_names.append(file_name)
        size = (height, width)
        if min(size) < 1:
            raise DataError(f"{where}: height and width must be positive, got {size}")
        if height * width > MAX_PIXELS:
            raise DataError(
                f"{where}: height and width {size} make more than {MAX_PIXELS:,} px, the largest "
                "image that is decoded"
            )
        self._sizes.append(size)

    def add_annotation(
        self,
        where: str,
        annotation_id: int,
        image_id: int,
        label: int,
        bbox: tuple[float, float, float, float],
        *,
        area: float | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an annotation of an image that has been added.

        Args:
            where: the words that name the record in an error.
            label: 0 ... K-1.
            bbox: xywh, px.
            area: px^2, of the mask where there is one; None takes that of the box.

        Raises:
            DataError: naming the record.
        """
        self.check_new_annotation(where, annotation_id)
        self._annotation_ids.add(annotation_id)
        if image_id not in self._position:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        image = self._position[image_id]
        height, width = self._sizes[image]
        problem, box = fit_box(bbox, width, height)
        if problem:
            size = f"{width}x{height} px"
            self.drop_annotation(where, f"bbox {bbox} in image {image_id} of {size} {problem}")
            return
        overhang = max(-bbox[0], -bbox[1], bbox[0] + bbox[2] - width, bbox[1] + bbox[3] - height)
        if overhang > 1e-3:  # less is rounding of decimal coordinates
            self.repairs["boxes cut at the image border"] += 1
        if area is None:
            area = bbox[2] * bbox[3]
        if area > 2 * width * height:  # a box that overhangs may be larger than the image, too
            raise DataError(
                f"{where}: area {area} does not fit an image of {width}x{height} px; without "
                "'area' it is computed from the box"
            )
        self._rows.append((annotation_id, image, label, crowd, float(area)))
        self._bboxes.append(bbox)
        self._boxes.append(box)

    def drop_annotation(self, where: str, problem: str) -> None:
        """Leave out and count an annotation whose box is invalid, if that is allowed.

        Args:
            where: the words that name the record in an error.
            problem: what is wrong with it.

        Raises:
            DataError: ``on_invalid_box`` is ``error``.
        """
        if self.on_invalid_box == "error":
            raise DataError(f"{where}: {problem} (on_invalid_box=drop leaves such annotations out)")
        self.repairs["annotations dropped because their box is invalid"] += 1

    def build(self) -> AnnotationSet:
        """The set; what was mended is logged in one line.

        Raises:
            DataError: there are no images.
        """
        if not self._position:
            raise DataError(f"{self.path}: no images")
        if self.repairs:
            summary = "; ".join(f"{what}: {count}" for what, count in sorted(self.repairs.items()))
            log.warning("%s: %s", self.path, summary)
        columns: list[Any] = list(zip(*self._rows, strict=True)) if self._rows else [()] * 5
        return AnnotationSet(
            path=self.path,
            categories=self.categories,
            image_ids=np.array(list(self._position), dtype=np.int64),
            file_names=self._file_names,
            sizes=np.array(self._sizes, dtype=np.int64),
            ids=np.array(columns[0], dtype=np.int64),
            image=np.array(columns[1], dtype=np.int64),
            labels=np.array(columns[2], dtype=np.int64),
            bboxes=np.array(self._bboxes, dtype=np.float64).reshape(-1, 4),
            boxes=np.array(self._boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array(columns[4], dtype=np.float64),
            crowd=np.array(columns[3], dtype=np.bool_),
            repairs=dict(self.repairs),
        )


def fit_box(
    bbox: tuple[float, float, float, float], width: int, height: int
) -> tuple[str, tuple[float, float, float, float]]:
    """What is wrong with an xywh box ("" if nothing), and the box as xyxy inside the image."""
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return "is not finite", (0, 0, 0, 0)
    if w < 0 or h < 0:
        return "has a negative side", (0, 0, 0, 0)
    if min(w, h) <= MIN_SIDE * max(width, height):
        return "is empty", (0, 0, 0, 0)
    box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    sides = (max(box[2] - box[0], 0), max(box[3] - box[1], 0))
    if not sides[0] * sides[1] > 0.5 * w * h:
        return "lies outside of it by more than half", box
    if min(sides) <= MIN_SIDE * max(width, height):
        return "is empty inside the image", box
    return "", box
