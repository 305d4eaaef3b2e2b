"""CVAT for images 1.1: one XML file for all pictures."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import AnnotationSet, Categories
from comining.data.formats.annotation_format import (
    AnnotationFormat,
    ReadOptions,
    Split,
    enclosing,
    numbered_categories,
    px,
    split_of,
)
from comining.data.formats.xml_elements import XmlElement, as_number, as_side, read_xml
from comining.data.outlines import Outline
from comining.data.record_values import file_name, short
from comining.errors import DataError

CORNERS = ("xtl", "ytl", "xbr", "ybr")
# Shapes without an extent, or that are not objects of their own.
LEFT_OUT = ("polyline", "points", "skeleton", "tag")
NO_SUBSET = ("", "default")

Point = tuple[float, float]


class Cvat(AnnotationFormat):
    """``annotations.xml`` with ``images/`` beside it, as CVAT exports a task or a project.

    Boxes are read as they are; for polygons, masks, ellipses, cuboids and rotated boxes the
    enclosing box is used. Polylines, points, skeletons and tags are left out and counted. Classes
    are in the order of the labels in the file's ``meta``, splits its subsets. Areas are those of
    the boxes.
    """

    title: ClassVar[str] = "CVAT for images"

    def recognise(self, root: Path) -> str | None:
        return None if (file := _xml_file(root)) is None else file.name

    def find_splits(self, root: Path) -> dict[str, Split]:
        file = _xml_file(root)
        if file is None:
            raise DataError(f"{root / 'annotations.xml'}: no such file, which CVAT exports")
        top = read_xml(file)
        if top.tag != "annotations":
            raise DataError(f"{top.where}: not a CVAT file, which begins with annotations")
        track = top.find("track")
        if track is not None:
            raise DataError(
                f"{track.where}: a file of CVAT for video; export the task as CVAT for images 1.1"
            )
        images: dict[str, list[XmlElement]] = {}
        for image in top.all("image"):
            subset = image.attributes.get("subset", "")
            split = "train" if subset in NO_SUBSET else split_of(subset)
            if split is None:
                raise DataError(
                    f"{image.where}: subset {short(subset)} is not train, validation or test"
                )
            images.setdefault(split, []).append(image)
        if not images:
            raise DataError(f"{file}: no images")
        return {
            split: Split(file, (file,), functools.partial(_read_split, top, found))
            for split, found in images.items()
        }


def _xml_file(root: Path) -> Path | None:
    file = root / "annotations.xml"
    return file if file.is_file() else None


def _categories(top: XmlElement, names: Sequence[str] | None) -> Categories:
    """The classes of ``data.names``, of the labels in ``meta``, or those that occur, sorted."""
    if names is not None:
        return numbered_categories(names, "data.names")
    meta = top.find("meta")
    for owner in meta.children if meta is not None else ():
        labels = owner.find("labels")
        # Parts of a skeleton have a parent.
        entries = [] if labels is None else [e for e in labels.all("label") if not e.find("parent")]
        if entries:
            found = dict.fromkeys(entry.value("name") for entry in entries)
            return numbered_categories(found, f"{top.file}: meta")
    shapes = (shape for image in top.all("image") for shape in image.children)
    used = {shape.attribute("label") for shape in shapes if shape.tag not in LEFT_OUT}
    return numbered_categories(sorted(used), str(top.file))


def _read_split(
    top: XmlElement, images: list[XmlElement], options: ReadOptions
) -> tuple[AnnotationSet, Path]:
    categories = _categories(top, options.names)
    builder = AnnotationBuilder(
        top.file, categories, options.on_invalid_box, outlines=options.outlines
    )
    names = [file_name(image.where, {"file_name": image.attribute("name")}) for image in images]
    subset = images[0].attributes.get("subset", "")
    folder = _picture_folder(top.file.parent, subset, names[0])
    image_id = annotation_id = 0
    for name, image in sorted(zip(names, images), key=lambda pair: pair[0]):
        image_id += 1
        height, width = (as_side(image.where, k, image.attribute(k)) for k in ("height", "width"))
        builder.add_image(image.where, image_id, name, height, width)
        for shape in image.children:
            if shape.tag in LEFT_OUT:
                builder.repairs[f"left out because it has no box: {shape.tag}"] += 1
                continue
            annotation_id += 1
            label = shape.attribute("label")
            if label not in categories.names:
                raise DataError(f"{shape.where}: label {short(label)} is not among the classes")
            number, bbox = categories.names.index(label), _bbox(shape, builder)
            outline = _outline(shape) if options.outlines else None
            builder.add_annotation(
                shape.where, annotation_id, image_id, number, bbox, outline=outline
            )
    return builder.build(), folder


def _picture_folder(root: Path, subset: str, name: str) -> Path:
    """The folder of the pictures of a subset: that of its first one."""
    candidates = [root / "images" / subset, root / "images", root / subset, root]
    there = [folder for folder in candidates if (folder / name).is_file()]
    return there[0] if there else root / "images"


def _bbox(shape: XmlElement, builder: AnnotationBuilder) -> tuple[float, float, float, float]:
    """The box xywh, px, of a shape, or the one around it; shapes other than boxes are counted."""

    def number(name: str) -> float:
        return as_number(shape.where, name, shape.attribute(name))

    angle = as_number(shape.where, "rotation", shape.attributes.get("rotation", "0"))
    if shape.tag == "box":
        x1, y1, x2, y2 = map(number, CORNERS)
        if not angle:
            return px(x1), px(y1), px(x2 - x1), px(y2 - y1)
        builder.repairs["boxes that enclose a rotated one"] += 1
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        return enclosing(_turned(corners, ((x1 + x2) / 2, (y1 + y2) / 2), angle))
    builder.repairs[f"boxes taken from another shape: {shape.tag}"] += 1
    if shape.tag == "polygon":
        return enclosing(_points(shape))
    if shape.tag == "mask":
        left, top, width, height = map(number, ("left", "top", "width", "height"))
        return px(left), px(top), px(width), px(height)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = map(number, ("cx", "cy", "rx", "ry"))
        turn = math.radians(angle) if math.isfinite(angle) else math.nan
        dx = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
        dy = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
        return enclosing([(cx - dx, cy - dy), (cx + dx, cy + dy)])
    if shape.tag == "cuboid":
        corner_names = [f"{side}{n}" for side in ("tl", "bl", "tr", "br") for n in (1, 2)]
        return enclosing([(number(f"x{name}"), number(f"y{name}")) for name in corner_names])
    raise DataError(f"{shape.where}: unknown shape")


def _outline(shape: XmlElement) -> Outline | None:
    """The outline of a polygon; None for other shapes."""
    points = _points(shape) if shape.tag == "polygon" else []
    return Outline([np.array(points, dtype=np.float64)]) if len(points) >= 3 else None


def _points(shape: XmlElement) -> list[Point]:
    """The points of ``points="x,y;x,y;..."``."""
    found = []
    for pair in shape.attribute("points").split(";"):
        x, _, y = pair.partition(",")
        found.append((as_number(shape.where, "x", x), as_number(shape.where, "y", y)))
    return found


def _turned(points: list[Point], centre: Point, degrees: float) -> list[Point]:
    """Points rotated around a centre, by degrees."""
    if not math.isfinite(degrees):
        return [(math.nan, math.nan)]  # reported by the builder
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = centre
    moved = [(x - cx, y - cy) for x, y in points]
    return [(cx + cos * x - sin * y, cy + sin * x + cos * y) for x, y in moved]
