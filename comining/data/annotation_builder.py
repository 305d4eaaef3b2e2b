"""Builds an annotation set, record by record, with the checks that all formats share."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import (
    CROWDS_AS_OBJECTS,
    AnnotationSet,
    Categories,
    Crowd,
    OnInvalidBox,
)
from comining.data.file_names import without_roots
from comining.data.images import MAX_PIXELS
from comining.data.knowledge import UNSAID, Status, status_of_fields
from comining.data.outlines import Outline, Outlines, encoded
from comining.errors import DataError

log = logging.getLogger(__name__)

# A side below this share of the image's longer one may vanish in float32, where its logarithm is
# infinite.
MIN_SIDE = 1e-6


class AnnotationBuilder:
    """Builds an :class:`AnnotationSet`, record by record, with the checks that all formats share.

    Args:
        path: of the file or folder that is read, for error messages.
        categories: of the set.
        on_invalid_box: boxes that are empty, inverted, not finite or (mostly) outside of their
            image are an error that names the record, or are dropped and counted. COCO's own
            train2017 holds two empty boxes.
        crowd: annotations that are marked as crowds are set aside (``ignore``), or read as ordinary
            objects (``object``), for tools that mark every mask so.
        unused_root: see :class:`AnnotationSet`.
        outlines: whether outlines are kept; those of COCO take 200 MB.
    """

    def __init__(
        self,
        path: Path,
        categories: Categories,
        on_invalid_box: OnInvalidBox,
        crowd: Crowd = "ignore",
        *,
        unused_root: tuple[int, str] | None = None,
        outlines: bool = False,
    ):
        self.path = path
        self.categories = categories
        self.on_invalid_box = on_invalid_box
        self.crowd = crowd
        self.unused_root = unused_root
        self.repairs: Counter[str] = Counter()  # what was repaired, and how often
        self._position: dict[int, int] = {}  # of an image id
        self._image_of: dict[PurePosixPath, int] = {}
        self._file_names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._annotation_ids: set[int] = set()
        self._rows: list[tuple[int, int, int, bool, float, bool]] = []
        self._bboxes: list[tuple[float, float, float, float]] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._outlines: list[NDArray[np.int32]] | None = [] if outlines else None
        self._crowds = 0
        # Of an image: labels in neg_category_ids, and in not_exhaustive_category_ids.
        self._fields: dict[int, tuple[list[int], list[int]]] = {}

    def check_new_image(self, where: str, image_id: int) -> None:
        """Refuse an id that an earlier image has."""
        if image_id in self._position:
            raise DataError(f"{where}: image id {image_id} occurs twice")

    def check_new_annotation(self, where: str, annotation_id: int) -> None:
        """Refuse an id that an earlier annotation has, even a dropped one."""
        if annotation_id in self._annotation_ids:
            raise DataError(f"{where}: annotation id {annotation_id} occurs twice")

    def add_image(self, where: str, image_id: int, file_name: str, height: int, width: int) -> None:
        """Add an image.

        Args:
            where: the words that name the record in an error.
            file_name: relative to the image folder; absolute ones become so, see
                :func:`comining.data.file_names.without_roots`.
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

    def add_fields(self, image_id: int, neg: list[int], not_exhaustive: list[int]) -> None:
        """Add the fields of LVIS of an image that has been added.

        Args:
            neg: labels of classes that were looked for and are absent.
            not_exhaustive: labels of classes of which not all objects are annotated.
        """
        self._fields[self._position[image_id]] = (neg, not_exhaustive)

    def add_annotation(
        self,
        where: str,
        annotation_id: int,
        image_id: int,
        label: int,
        bbox: tuple[float, float, float, float] | None,
        *,
        area: float | None = None,
        crowd: bool = False,
        ignore: bool = False,
        proposed: bool = False,
        outline: Outline | None = None,
    ) -> None:
        """Add an annotation of an image that has been added.

        Args:
            where: the words that name the record in an error.
            label: 0 ... K-1.
            bbox: xywh, px; None if the record has none, which is an invalid box.
            area: px^2, of the mask if there is one; None for that of the box.
            crowd: True for a group of objects; a region to ignore, unless the builder reads crowds
                as objects.
            ignore: a region to ignore.
            proposed: a detector proposed the box, and nobody has corrected it.
            outline: of the object, if it is known; kept if the builder keeps outlines.

        Raises:
            DataError: naming the record.
        """
        self.check_new_annotation(where, annotation_id)
        self._annotation_ids.add(annotation_id)
        if image_id not in self._position:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        image = self._position[image_id]
        height, width = self._sizes[image]
        if bbox is None:
            self.drop_annotation(where, "bbox is empty, and so is the segmentation")
            return
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
        if crowd and self.crowd == "object":
            self.repairs[CROWDS_AS_OBJECTS] += 1
            crowd = False
        self._crowds += crowd
        self._rows.append((annotation_id, image, label, crowd or ignore, float(area), proposed))
        self._bboxes.append(bbox)
        self._boxes.append(box)
        if self._outlines is not None:
            if outline is not None and not outline.fits(bbox):
                self.repairs["outlines left out because they do not fit their box"] += 1
                outline = None
            # Regions to ignore are never pasted.
            outline = None if crowd or ignore else outline
            self._outlines.append(encoded(outline, height, width))

    def drop_annotation(self, where: str, problem: str) -> None:
        """Drop and count an annotation with an invalid box, if that is allowed.

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
        """The set. Logs the repairs in one line, and a warning if most annotations are crowds.

        Raises:
            DataError: there are no images.
        """
        if not self._position:
            raise DataError(f"{self.path}: no images")
        file_names = without_roots(self._file_names, self.repairs)
        said = self._said() if self._fields else None
        if self.repairs:
            summary = "; ".join(f"{what}: {count}" for what, count in sorted(self.repairs.items()))
            log.warning("%s: %s", self.path, summary)
        if 2 * self._crowds > len(self._rows):
            log.warning(
                "%s: %d of %d annotations are marked as crowds and set aside; data.crowd=object "
                "takes them as objects", self.path, self._crowds, len(self._rows),
            )  # fmt: skip
        columns: list[Any] = list(zip(*self._rows, strict=True)) if self._rows else [()] * 6
        built = AnnotationSet(
            path=self.path,
            categories=self.categories,
            image_ids=np.array(list(self._position), dtype=np.int64),
            file_names=file_names,
            sizes=np.array(self._sizes, dtype=np.int64),
            ids=np.array(columns[0], dtype=np.int64),
            image=np.array(columns[1], dtype=np.int64),
            labels=np.array(columns[2], dtype=np.int64),
            bboxes=np.array(self._bboxes, dtype=np.float64).reshape(-1, 4),
            boxes=np.array(self._boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array(columns[4], dtype=np.float64),
            crowd=np.array(columns[3], dtype=np.bool_),
            proposed=np.array(columns[5], dtype=np.bool_),
            repairs=dict(self.repairs),
            unused_root=self.unused_root,
            said=said,
            outlines=None if self._outlines is None else Outlines.of(self._outlines),
        )
        if file_names != self._file_names:
            built.check_file_names()
        return built

    def _said(self) -> Status:
        """[N, K] the status by the fields, once all boxes are added."""
        size = (len(self._position), len(self.categories))
        named = np.zeros((2, *size), dtype=np.bool_)
        for image, labels_of in self._fields.items():
            for kind, labels in enumerate(labels_of):
                named[kind, image, labels] = True
        have = np.zeros(size, dtype=np.bool_)
        for _, image, label, ignored, *_ in self._rows:
            have[image, label] |= not ignored
        said = np.full(size, UNSAID, dtype=np.int8)
        images = list(self._fields)
        said[images] = status_of_fields(have[images], *named[:, images])
        for words, count in (
            ("classes in neg_category_ids that have a box, taken as complete", have & named[0]),
            ("classes in both lists of fields, taken as not exhaustive", named[0] & named[1]),
        ):
            if count.any():
                self.repairs[words] += int(count.sum())
        return said


def fit_box(
    bbox: tuple[float, float, float, float], width: int, height: int
) -> tuple[str, tuple[float, float, float, float]]:
    """The problem of an xywh box ("" if none), and the box as xyxy inside the image."""
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
