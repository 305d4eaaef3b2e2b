"""LabelMe: one JSON file per picture."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

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
    split_folders,
)
from comining.data.formats.picture_folder import (
    by_stem,
    common_folder,
    files_below,
    in_order,
    is_picture,
    size_of,
)
from comining.data.outlines import Outline
from comining.data.record_values import is_number, is_text, short
from comining.errors import DataError

OUTLINES = ("polygon", "rectangle", "rotation", "mask")
LEFT_OUT = ("point", "points", "line", "linestrip")  # without an extent
# Bytes that are read to recognise a file; it may contain the picture itself after its shapes.
HEAD = 4_096


class LabelMe(AnnotationFormat):
    """JSON files next to their pictures, in one folder or in folders named after splits.

    Rectangles are read as they are; for polygons, circles, masks and rotated rectangles the
    enclosing box is used. Points and lines are left out and counted. ``imageData`` is ignored. A
    picture without a JSON file counts as not annotated, unless ``data.missing_labels`` says
    otherwise. Classes are sorted by name, or in the order of ``data.names``. Areas are those of the
    boxes.
    """

    title: ClassVar[str] = "LabelMe"

    def recognise(self, root: Path) -> str | None:
        for folder in (root, *(one for one in sorted(root.iterdir()) if one.is_dir())):
            first = next(iter(sorted(folder.glob("*.json"))), None)
            if first is not None and _looks_like_labelme(first):
                return str(first.relative_to(root))
        return None

    def find_splits(self, root: Path) -> dict[str, Split]:
        folders = {
            split: folder
            for split, folder in split_folders(root).items()
            if any(folder.rglob("*.json"))
        } or {"train": root}
        labels = {
            split: [file for file in files_below(folder) if file.suffix == ".json"]
            for split, folder in folders.items()
        }
        if not any(labels.values()):
            raise DataError(f"{root}: no LabelMe set: there is no JSON file")
        classes = _Classes([file for split in labels.values() for file in split])
        return {
            split: Split(
                folder,
                (folder,),
                functools.partial(_read_split, root, folder, labels[split], classes),
            )
            for split, folder in folders.items()
        }


def _looks_like_labelme(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        return False
    return re.search(rb'"(shapes|imagePath)"\s*:', head) is not None


@dataclass(frozen=True)
class _Shape:
    """A shape that has a box."""

    where: str
    label: str
    kind: str
    points: list[tuple[float, float]]

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """The box xywh, px, of the shape, or the one around it."""
        if self.kind != "circle":
            return enclosing(self.points)
        (cx, cy), rim = self.points
        radius = math.dist((cx, cy), rim)
        return enclosing([(cx - radius, cy - radius), (cx + radius, cy + radius)])

    @property
    def outline(self) -> Outline | None:
        """The outline of a polygon; None for other shapes."""
        if self.kind != "polygon" or len(self.points) < 3:
            return None
        return Outline([np.array(self.points, dtype=np.float64)])


@dataclass(frozen=True)
class _LabelFile:
    """The content of a JSON file."""

    file: Path
    picture: str  # as written, relative to the file
    size: tuple[int, int] | None  # height, width
    shapes: list[_Shape]
    left_out: list[str]  # kinds of shapes without a box

    @classmethod
    def read(cls, file: Path) -> _LabelFile:
        content = _read_json(file)
        picture = content.get("imagePath")
        shapes = content.get("shapes")
        if not isinstance(shapes, list):
            raise DataError(f"{file}: not a LabelMe file: shapes must be a list")
        if not is_text(picture):
            raise DataError(f"{file}: imagePath must be a path, got {short(picture)}")
        sides = (content.get("imageHeight"), content.get("imageWidth"))
        for side in sides:
            if side is not None and (type(side) is not int or side < 1):
                raise DataError(
                    f"{file}: imageHeight and imageWidth must be whole, got {short(side)}"
                )
        height, width = sides
        read = [_shape(f"{file}: shapes[{n}]", shape) for n, shape in enumerate(shapes)]
        return cls(
            file,
            str(picture),
            None if height is None or width is None else (height, width),
            [shape for shape in read if shape.kind not in LEFT_OUT],
            [shape.kind for shape in read if shape.kind in LEFT_OUT],
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file ({str(error).partition(';')[0]})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a LabelMe file: its top level is not an object")
    return content


def _shape(where: str, shape: Any) -> _Shape:
    if not isinstance(shape, dict):
        raise DataError(f"{where} is not an object")
    label, points = shape.get("label"), shape.get("points")
    kind = shape.get("shape_type") or "polygon"  # missing in files of old versions
    if not is_text(label):
        raise DataError(f"{where}: label must be a word, got {short(label)}")
    if kind not in (*OUTLINES, "circle", *LEFT_OUT):
        raise DataError(f"{where}: shape_type {short(kind)} is unknown")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in points
    ):
        raise DataError(f"{where}: points must be pairs of numbers, got {short(points)}")
    wanted = 2 if kind == "circle" else len(points)
    if len(points) != wanted or (kind not in LEFT_OUT and len(points) < 2):
        raise DataError(f"{where}: a {kind} of {len(points)} points")
    return _Shape(where, str(label), kind, [(float(x), float(y)) for x, y in points])


class _Classes:
    """The classes of a set, over all of its splits."""

    def __init__(self, labels: list[Path]):
        self.labels = labels

    @functools.cached_property
    def by_name(self) -> list[str]:
        read = (_LabelFile.read(file) for file in self.labels)
        return sorted({shape.label for one in read for shape in one.shapes})


def _read_split(
    root: Path, folder: Path, labels: list[Path], classes: _Classes, options: ReadOptions
) -> tuple[AnnotationSet, Path]:
    if options.names is None:
        categories = numbered_categories(classes.by_name, str(folder))
    else:
        categories = numbered_categories(options.names, "data.names")
    builder = AnnotationBuilder(
        folder, categories, options.on_invalid_box, outlines=options.outlines
    )
    below = by_stem(file for file in files_below(folder) if is_picture(file))
    read: dict[Path, _LabelFile] = {}
    for file in labels:
        content = _LabelFile.read(file)
        picture = _picture(content, root, below)
        if picture in read:
            raise DataError(f"{file}: {picture} is the picture of {read[picture].file}, too")
        read[picture] = content
    # All pictures in folders with annotated ones belong to the set.
    homes = {picture.parent for picture in read}
    others = {one for same in below.values() for one in same if one.parent in homes} - read.keys()
    every = in_order({*read, *others}, common_folder(read))
    place = folder if all(one.is_relative_to(folder) for one in every) else common_folder(every)
    image_id = annotation_id = 0
    for picture in every:
        known = read.get(picture)
        if known is None and not keeps_unlabelled(
            builder, options.missing_labels or "skip", picture.with_suffix(".json"), picture
        ):
            continue
        image_id += 1
        where = f"{folder}: image {image_id}" if known is None else str(known.file)
        size = (known.size if known is not None else None) or size_of(picture, where)
        builder.add_image(where, image_id, picture.relative_to(place).as_posix(), *size)
        for shape in known.shapes if known is not None else ():
            annotation_id += 1
            if shape.label not in categories.names:
                raise DataError(f"{shape.where}: label {short(shape.label)} is not in data.names")
            if shape.kind != "rectangle":
                builder.repairs[f"boxes taken from another shape: {shape.kind}"] += 1
            label = categories.names.index(shape.label)
            builder.add_annotation(
                shape.where, annotation_id, image_id, label, shape.bbox, outline=shape.outline
            )
        for kind in known.left_out if known is not None else ():
            builder.repairs[f"left out because it has no box: {kind}"] += 1
    return builder.build(), place


def _picture(content: _LabelFile, root: Path, below: dict[Path, list[Path]]) -> Path:
    """The picture of a JSON file: the one that it names, or one with its name next to it."""
    name = PurePosixPath(content.picture.replace("\\", "/"))
    named = Path(os.path.normpath(content.file.parent / name))
    if named.is_relative_to(root) and named.is_file():
        return named
    beside = below.get(content.file.with_suffix(""), [])
    if len(beside) == 1:
        return beside[0]
    raise DataError(
        f"{content.file}: neither its picture {short(content.picture)} nor one of its name exists"
    )
