"""YOLO: one text file per picture, one row per object, in shares of the picture's sides."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import AnnotationSet
from comining.data.formats.annotation_format import (
    AnnotationFormat,
    ReadOptions,
    Split,
    enclosing,
    keeps_unlabelled,
    numbered_categories,
)
from comining.data.formats.picture_folder import common_folder, in_order, size_of
from comining.data.formats.yolo_layout import (
    YoloDescription,
    describe_root,
    label_folder,
    pictures_of,
    show_of_yolo,
)
from comining.data.outlines import Outline
from comining.data.record_values import short
from comining.errors import DataError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
# Tolerance for shares outside 0 ... 1, because tools round.
SLACK = 1e-3


class Yolo(AnnotationFormat):
    """Ultralytics' layout, with or without ``data.yaml``, and Darknet's with ``obj.data``.

    Boxes are ``class cx cy w h``; for polygons (segmentation, rotated boxes) the enclosing box is
    used. A picture without a text file counts as one without objects, as in Ultralytics' programs,
    unless ``data.missing_labels`` says otherwise. Areas are those of the boxes.
    """

    title: ClassVar[str] = "YOLO"

    def recognise(self, root: Path) -> str | None:
        return show_of_yolo(root)

    def find_splits(self, root: Path) -> dict[str, Split]:
        description = describe_root(root)
        return {
            name: Split(
                places[0], tuple(places), functools.partial(_read_split, description, places)
            )
            for name, places in description.places.items()
        }


def _read_split(
    description: YoloDescription, places: list[Path], options: ReadOptions
) -> tuple[AnnotationSet, Path]:
    """Read the pictures of some folders and lists, and the rows of each."""
    if options.names is not None:
        categories = numbered_categories(options.names, "data.names")
    elif description.names is not None:
        categories = numbered_categories(description.names, f"{description.file}: names")
    else:
        raise DataError(
            f"{description.root}: neither data.yaml nor classes.txt; give the class names in the "
            "order of their numbers with data.names=[...]"
        )
    builder = AnnotationBuilder(
        places[0], categories, options.on_invalid_box, outlines=options.outlines
    )
    pictures = [picture for place in places for picture in pictures_of(place, description.root)]
    if not pictures:
        raise DataError(f"{places[0]}: no pictures")
    alone = len(places) == 1 and places[0].is_dir()
    folder = places[0] if alone else common_folder(pictures)
    labels_of = {place: label_folder(place) for place in {picture.parent for picture in pictures}}
    files = {one: labels_of[one.parent] / f"{one.stem}.txt" for one in pictures}
    present = {file for file in files.values() if file.is_file()}
    if not present and options.missing_labels != "empty":
        looked = ", ".join(sorted({str(place) for place in labels_of.values()})[:3])
        raise DataError(
            f"{places[0]}: none of its {len(pictures)} pictures has a label file; "
            f"looked in {looked}"
        )
    if alone:  # a list may name only some pictures of a folder
        _count_left_over(builder, labels_of, present)
    reader = _RowReader(builder, description.keypoint_values)
    image_id = 0
    for picture in in_order(pictures, folder):
        file = files[picture]
        if file not in present and not keeps_unlabelled(
            builder, options.missing_labels or "empty", file, picture
        ):
            continue
        image_id += 1
        height, width = size_of(picture, f"{places[0]}: image {image_id}")
        name = picture.relative_to(folder).as_posix()
        builder.add_image(f"{places[0]}: image {image_id}", image_id, name, height, width)
        if file in present:
            reader.read(file, image_id, height, width)
    return builder.build(), folder


def _count_left_over(
    builder: AnnotationBuilder, labels_of: dict[Path, Path], present: set[Path]
) -> None:
    """Count label files without a picture in folders that should only hold label files."""
    for labels in {labels for pictures, labels in labels_of.items() if labels != pictures}:
        left_over = {file for file in labels.glob("*.txt") if file.name != "classes.txt"} - present
        if left_over:
            builder.repairs["label files without a picture, left out"] += len(left_over)


@dataclass
class _RowReader:
    """Reads label files one after the other and numbers the annotations consecutively."""

    builder: AnnotationBuilder
    keypoint_values: int | None  # columns that follow the box in a pose data set
    annotation_id: int = 0

    def read(self, file: Path, image_id: int, height: int, width: int) -> None:
        """Add the rows of one file to the set."""
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
            raise DataError(f"{file}: cannot be read ({reason})") from None
        seen: dict[tuple[int, tuple[float, ...]], int] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            columns = line.split()
            if not columns:
                continue
            self.annotation_id += 1
            where = f"{file}: line {number}"
            label = self._label(where, columns[0])
            shares = self._shares(where, columns)
            first = seen.setdefault((label, shares), number)
            if first != number:
                self.builder.drop_annotation(where, f"the same as line {first}")
                continue
            wrong = next((share for share in shares if not -SLACK <= share <= 1 + SLACK), None)
            if wrong is not None:
                self.builder.drop_annotation(
                    where,
                    f"{wrong:g} is not a number from 0 to 1: coordinates are shares of the "
                    "picture's width and height",
                )
                continue
            bbox = _bbox(shares, columns[1 : len(shares) + 1], height, width)
            outline = None
            if len(shares) > 4:
                points = np.array(shares, dtype=np.float64).reshape(-1, 2)
                outline = Outline([points * (width, height)])
            self.builder.add_annotation(
                where, self.annotation_id, image_id, label, bbox, outline=outline
            )

    def _label(self, where: str, text: str) -> int:
        value = float(text) if NUMBER.fullmatch(text) else -1.0
        count = len(self.builder.categories)
        if not 0 <= value < count or value != int(value):
            raise DataError(f"{where}: class {short(text)} is not a whole number 0 ... {count - 1}")
        return int(value)

    def _shares(self, where: str, columns: list[str]) -> tuple[float, ...]:
        """The coordinates of a row: four for a box, or two for every point of a polygon."""
        for text in columns[1:]:
            if not NUMBER.fullmatch(text) and not NOT_FINITE.fullmatch(text):
                raise DataError(f"{where}: {short(text)} is not a number")
        count, values = len(columns), [float(text) for text in columns[1:]]
        if count == 5:
            return tuple(values)
        if self.keypoint_values is not None and count == 5 + self.keypoint_values:
            self.builder.repairs["keypoints left out"] += 1
            return tuple(values[:4])
        if count == 6:
            self.builder.repairs["a sixth column (confidence or track) left out"] += 1
            return tuple(values[:4])
        if count == 7 and columns[6].isdecimal():
            # The output of a tracker ends in an integer from 1 on; a triangle may end in 1, too.
            if values[5] <= 1:
                raise DataError(
                    f"{where}: seven columns are a triangle, or a box with confidence and track; "
                    "which one is not clear"
                )
            self.builder.repairs["confidence and track left out"] += 1
            return tuple(values[:4])
        if count < 7 or count % 2 == 0:
            raise DataError(
                f"{where}: {count} columns are neither a box (class cx cy w h) nor a polygon "
                "(class x1 y1 x2 y2 x3 y3 ...)"
            )
        self.builder.repairs["boxes taken from polygons"] += 1
        return tuple(values)


def _bbox(
    shares: tuple[float, ...], texts: list[str], height: int, width: int
) -> tuple[float, float, float, float]:
    """A box xywh, px, from shares as written.

    Six decimals of a share are 0.0006 px in a picture 640 px wide, so rounding to 0.01 px restores
    annotations in steps of 0.01 px, up to sides of 6,600 px; beyond, six decimals are coarser than
    the steps. A share with d > 8 decimals restores d - 6 decimals of a pixel.
    """
    if len(shares) == 4:
        cx, cy, w, h = shares
        box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
    else:
        points = zip(shares[::2], shares[1::2], strict=True)
        box = enclosing([(x * width, y * height) for x, y in points])
    digits = max(2, max(map(_decimals, texts)) - 6)
    x, y, w, h = (round(side, digits) + 0.0 for side in box)
    return x, y, w, h


def _decimals(text: str) -> int:
    """The number of decimals of a written number."""
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)
