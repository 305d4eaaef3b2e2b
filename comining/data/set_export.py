"""Writing annotation sets as COCO, YOLO or Pascal VOC."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar
from xml.sax.saxutils import escape

import numpy as np
import yaml
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet, Categories
from comining.data.formats.annotation_format import px
from comining.data.formats.coco import FIELDS
from comining.data.knowledge import UNSAID, fields_of_status
from comining.errors import DataError

Sets = Mapping[str, tuple[AnnotationSet, Path]]  # a split's annotations, folder of its images


@dataclass(frozen=True)
class Export:
    """The files of an exported set.

    Args:
        text_files: content by path relative to the output.
        pictures: source picture by path relative to the output.
        losses: what the format cannot hold, and how often.
    """

    text_files: dict[str, str]
    pictures: dict[str, Path]
    losses: Counter[str]


class SetExport(ABC):
    """A format to write."""

    title: ClassVar[str]

    @abstractmethod
    def export(self, sets: Sets) -> Export:
        """All files of a set.

        Raises:
            DataError: the format cannot hold the set at all.
        """


class CocoExport(SetExport):
    """``annotations/instances_SPLIT.json`` and ``images/SPLIT``, without any loss."""

    title = "COCO"

    def export(self, sets: Sets) -> Export:
        text_files, pictures = {}, {}
        for split, (one, folder) in sets.items():
            text_files[f"annotations/instances_{split}.json"] = json.dumps(coco_content(one))
            for name in one.file_names:
                pictures[f"images/{split}/{_plain(name)}"] = folder / name
        return Export(text_files, pictures, Counter())


def coco_content(annotations: AnnotationSet) -> dict[str, object]:
    """The content of a COCO file with all information of the set."""
    annotations = _class_by_class(annotations)
    categories = annotations.categories
    columns = zip(
        annotations.ids.tolist(),
        annotations.image_ids[annotations.image].tolist(),
        np.array(categories.ids, dtype=np.int64)[annotations.labels].tolist(),
        annotations.bboxes.tolist(),
        annotations.areas.tolist(),
        annotations.crowd.astype(int).tolist(),
        strict=True,
    )
    marks = [{"proposed": True} if marked else {} for marked in annotations.proposed]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    images = zip(annotations.image_ids.tolist(), annotations.file_names, annotations.sizes.tolist())
    return {
        "images": [
            {"id": image_id, "file_name": name, "height": height, "width": width} | fields
            for (image_id, name, (height, width)), fields in zip(
                images, _fields(annotations), strict=True
            )
        ],
        "annotations": [
            dict(zip(keys, row)) | mark for row, mark in zip(columns, marks, strict=True)
        ],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(categories.ids, categories.names)
        ],
    }


def _fields(annotations: AnnotationSet) -> list[dict[str, list[int]]]:
    """The fields of LVIS for every image; empty if they were absent."""
    said = annotations.said_of_all
    named = fields_of_status(said, annotations.have_boxes)
    ids = np.array(annotations.categories.ids, dtype=np.int64)
    return [
        {key: ids[of_class[image]].tolist() for key, of_class in zip(FIELDS, named, strict=True)}
        if (said[image] != UNSAID).any()
        else {}
        for image in range(len(said))
    ]


class YoloExport(SetExport):
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.

    Shares have twelve decimals, from which the reader restores millionths of a pixel.
    """

    title = "YOLO"

    def export(self, sets: Sets) -> Export:
        losses: Counter[str] = Counter()
        categories = _common_categories(sets, losses)
        names = dict(enumerate(categories.names))
        description = {**{split: f"images/{split}" for split in sets}, "names": names}
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=10**6)
        text_files, pictures = {"data.yaml": text}, {}
        for split, (one, folder) in sets.items():
            one = _class_by_class(one)
            _count_losses(one, losses, ~one.crowd)
            _count(losses, "crowds and other regions to ignore, left out", int(one.crowd.sum()))
            for image, (name, rows) in enumerate(_by_image(one, ~one.crowd)):
                label_file = f"labels/{split}/{PurePosixPath(_plain(name)).with_suffix('.txt')}"
                if label_file in text_files:
                    raise DataError(
                        f"{one.path}: {name}: another image has the same name but for the "
                        "suffix, so that YOLO has one label file for both"
                    )
                lines: dict[str, None] = {}
                for row in rows:
                    line = _yolo_row(one, image, row, losses)
                    if line in lines:
                        losses["annotations that are equal to another, left out"] += 1
                    lines[line] = None
                text_files[label_file] = "".join(f"{line}\n" for line in lines)
                pictures[f"images/{split}/{_plain(name)}"] = folder / name
        return Export(text_files, pictures, losses)


def _yolo_row(annotations: AnnotationSet, image: int, row: int, losses: Counter[str]) -> str:
    height, width = annotations.sizes[image].tolist()
    x, y, w, h = annotations.bboxes[row].tolist()
    if w > width or h > height:  # a share above 1, which programs for YOLO refuse
        losses["boxes cut at the image border, which exceed the image on both sides"] += 1
        x1, y1, x2, y2 = annotations.boxes[row].tolist()
        x, y, w, h = x1, y1, x2 - x1, y2 - y1
    shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return " ".join([str(annotations.labels[row]), *(f"{share:.12f}" for share in shares)])


class VocExport(SetExport):
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, with decimals in the corners.

    Regions to ignore are objects marked as difficult.
    """

    title = "Pascal VOC"

    def export(self, sets: Sets) -> Export:
        losses: Counter[str] = Counter()
        categories = _common_categories(sets, losses)
        text_files, pictures = {}, {}
        names = [
            PurePosixPath(_plain(name))
            for annotations, _ in sets.values()
            for name in annotations.file_names
        ]
        stems = [name.with_suffix("") for name in names]
        # All splits share the folders. The reader removes such a subfolder again.
        apart = len(set(stems)) < len(stems) or any(name.parts[0] in sets for name in names)
        if apart:
            losses["one folder for all splits, whose images share names: each gets its own"] += 1
        for split, (one, folder) in sets.items():
            one = _class_by_class(one)
            everything = np.ones_like(one.crowd)
            _count_losses(one, losses, everything)
            regions = "regions to ignore, unless data.difficult=ignore reads difficult objects so"
            _count(losses, regions, int(one.crowd.sum()))
            listed = []
            for image, (name, rows) in enumerate(_by_image(one, everything)):
                place = PurePosixPath(split if apart else "", _plain(name))
                label_file = f"Annotations/{place.with_suffix('.xml')}"
                if label_file in text_files:
                    raise DataError(
                        f"{one.path}: {name}: another image has the same name but for the "
                        "suffix, so that VOC has one label file for both"
                    )
                listed.append(str(place.with_suffix("")))
                text_files[label_file] = _voc_text(one, image, place, rows)
                pictures[f"JPEGImages/{place}"] = folder / name
            lines = "".join(f"{name}\n" for name in sorted(listed))
            text_files[f"ImageSets/Main/{split}.txt"] = lines
        used = {
            categories.names[label]
            for annotations, _ in sets.values()
            for label in _class_by_class(annotations).labels.tolist()
        }
        unused = [name for name in categories.names if name not in used]
        if unused:
            losses["classes without an object"] += len(unused)
        kept = [name for name in categories.names if name in used]
        if kept != sorted(kept):
            losses["the order of classes, which data.names sets"] += 1
        return Export(text_files, pictures, losses)


def _voc_text(annotations: AnnotationSet, image: int, place: PurePosixPath, rows: list[int]) -> str:
    height, width = annotations.sizes[image].tolist()
    lines = [
        "<annotation>",
        f"  <filename>{escape(place.name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for row in rows:
        x, y, w, h = annotations.bboxes[row].tolist()
        corners = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}
        box = "".join(f"<{key}>{px(value):.15g}</{key}>" for key, value in corners.items())
        name = escape(annotations.categories.names[annotations.labels[row]])
        difficult = f"<difficult>{int(annotations.crowd[row])}</difficult>"
        lines.append(f"  <object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


# -- what formats have in common ----------------------------------------------------------


def _class_by_class(annotations: AnnotationSet) -> AnnotationSet:
    """The set with a region of each class for each that is ignored for every class."""
    for_all = annotations.labels < 0
    if not for_all.any():
        return annotations
    classes = len(annotations.categories)
    rows = np.arange(len(annotations.ids)).repeat(np.where(for_all, classes, 1))
    labels = annotations.labels[rows]
    labels[for_all[rows]] = np.tile(np.arange(classes), int(for_all.sum()))
    ids = annotations.ids[rows]
    further = np.flatnonzero(rows[1:] == rows[:-1]) + 1
    ids[further] = annotations.ids.max() + 1 + np.arange(len(further))
    return replace(
        annotations, ids=ids, labels=labels, image=annotations.image[rows],
        bboxes=annotations.bboxes[rows], boxes=annotations.boxes[rows],
        areas=annotations.areas[rows], crowd=annotations.crowd[rows],
        proposed=annotations.proposed[rows],
    )  # fmt: skip


def _common_categories(sets: Sets, losses: Counter[str]) -> Categories:
    """The categories of all splits, which share one list of names, without ids."""
    (first, _), *others = sets.values()
    for other, _ in others:
        if other.categories.names != first.categories.names:
            raise DataError(f"the categories of {other.path} and {first.path} differ")
    differ = sum(a != b for a, b in enumerate(first.categories.ids, start=1))
    if differ:
        losses["category ids"] += differ
    return first.categories


def _by_image(
    annotations: AnnotationSet, written: NDArray[np.bool_]
) -> list[tuple[str, list[int]]]:
    """File name and rows of the written annotations [M] of every image, in the order of ids."""
    rows: list[list[int]] = [[] for _ in annotations.image_ids]
    for row in np.argsort(annotations.ids, kind="stable").tolist():
        if written[row]:
            rows[annotations.image[row]].append(row)
    return list(zip(annotations.file_names, rows, strict=True))


def _count_losses(
    annotations: AnnotationSet, losses: Counter[str], objects: NDArray[np.bool_]
) -> None:
    """Count losses other than boxes and classes.

    Args:
        objects: [M] which annotations are written.
    """
    sides = annotations.bboxes[:, 2:]
    of_masks = ~np.isclose(annotations.areas, sides[:, 0] * sides[:, 1], rtol=1e-6, atol=1e-2)
    order = np.argsort(np.array(annotations.file_names), kind="stable")
    image_ids = annotations.image_ids[order]
    counts = {
        "what is known of images and classes (fields of LVIS)": int(
            (annotations.said_of_all != UNSAID).sum()
        ),
        "areas of masks, which become those of the boxes": int((of_masks & objects).sum()),
        'marks of boxes that nobody has corrected ("proposed")': int(
            (annotations.proposed & objects).sum()
        ),
        "image ids": int((image_ids != np.arange(1, len(image_ids) + 1)).sum()),
    }
    # Equal to the positions if images and annotations follow the rule for numbering.
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows = np.lexsort([annotations.ids[objects], position[annotations.image[objects]]])
    ids = annotations.ids[objects][rows]
    counts["annotation ids"] = int((ids != np.arange(1, len(ids) + 1)).sum())
    for what, count in counts.items():
        _count(losses, what, count)


def _count(losses: Counter[str], what: str, count: int) -> None:
    """Add a loss if it occurs at all."""
    if count:
        losses[what] += count


def _plain(name: str) -> str:
    """A file name with the separators that all formats have."""
    return str(PurePosixPath(name.replace("\\", "/")))
