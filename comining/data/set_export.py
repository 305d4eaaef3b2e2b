"""Writing annotation sets as COCO, YOLO or Pascal VOC."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from xml.sax.saxutils import escape

import numpy as np
import yaml

from comining.data.annotations import AnnotationSet, Categories
from comining.data.formats.annotation_format import px
from comining.errors import DataError

Sets = Mapping[str, tuple[AnnotationSet, Path]]  # a split's annotations, folder of its images


@dataclass(frozen=True)
class Export:
    """What is written of a set.

    Args:
        text_files: for each path relative to the output its content.
        pictures: for each path relative to the output the picture that belongs there.
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
    """``annotations/instances_SPLIT.json`` and ``images/SPLIT``: all that a set says."""

    title = "COCO"

    def export(self, sets: Sets) -> Export:
        text_files, pictures = {}, {}
        for split, (one, folder) in sets.items():
            text_files[f"annotations/instances_{split}.json"] = json.dumps(_coco(one))
            for name in one.file_names:
                pictures[f"images/{split}/{_plain(name)}"] = folder / name
        return Export(text_files, pictures, Counter())


def _coco(annotations: AnnotationSet) -> dict[str, object]:
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
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    images = zip(annotations.image_ids.tolist(), annotations.file_names, annotations.sizes.tolist())
    return {
        "images": [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in images
        ],
        "annotations": [dict(zip(keys, row)) for row in columns],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(categories.ids, categories.names)
        ],
    }


class YoloExport(SetExport):
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.

    Shares have twelve decimals, of which the reader gives back a millionth of a pixel.
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
            _count_losses(one, losses)
            for image, (name, rows) in enumerate(_by_image(one)):
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
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, with decimals in the corners."""

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
        # All splits share the folders. The reader takes such a folder off again.
        apart = len(set(stems)) < len(stems) or any(name.parts[0] in sets for name in names)
        if apart:
            losses["one folder for all splits, whose images share names: each gets its own"] += 1
        for split, (one, folder) in sets.items():
            _count_losses(one, losses)
            listed = []
            for image, (name, rows) in enumerate(_by_image(one)):
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
            for label in annotations.labels[~annotations.crowd].tolist()
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
        lines.append(
            f"  <object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


# -- what YOLO and VOC have in common -----------------------------------------------------


def _common_categories(sets: Sets, losses: Counter[str]) -> Categories:
    """Those of all splits, which have one list of names here, and no ids."""
    (first, _), *others = sets.values()
    for other, _ in others:
        if other.categories.names != first.categories.names:
            raise DataError(f"the categories of {other.path} and {first.path} differ")
    differ = sum(a != b for a, b in enumerate(first.categories.ids, start=1))
    if differ:
        losses["category ids"] += differ
    return first.categories


def _by_image(annotations: AnnotationSet) -> list[tuple[str, list[int]]]:
    """File name and rows of every image, in the order of annotation ids; without crowds."""
    rows: list[list[int]] = [[] for _ in annotations.image_ids]
    for row in np.argsort(annotations.ids, kind="stable").tolist():
        if not annotations.crowd[row]:
            rows[annotations.image[row]].append(row)
    return list(zip(annotations.file_names, rows, strict=True))


def _count_losses(annotations: AnnotationSet, losses: Counter[str]) -> None:
    """Count what is neither a box nor a class of an image."""
    crowds = int(annotations.crowd.sum())
    objects = ~annotations.crowd
    sides = annotations.bboxes[:, 2:]
    of_masks = ~np.isclose(annotations.areas, sides[:, 0] * sides[:, 1], rtol=1e-6, atol=1e-2)
    order = np.argsort(np.array(annotations.file_names), kind="stable")
    image_ids = annotations.image_ids[order]
    counts = {
        "crowds, left out": crowds,
        "areas of masks, which become those of the boxes": int((of_masks & objects).sum()),
        "image ids": int((image_ids != np.arange(1, len(image_ids) + 1)).sum()),
    }
    # Equal to the positions when images and their annotations are in the order of the rule.
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows = np.lexsort([annotations.ids[objects], position[annotations.image[objects]]])
    ids = annotations.ids[objects][rows]
    counts["annotation ids"] = int((ids != np.arange(1, len(ids) + 1)).sum())
    losses.update({what: count for what, count in counts.items() if count})


def _plain(name: str) -> str:
    """A file name with the separators that all formats have."""
    return str(PurePosixPath(name.replace("\\", "/")))


# -- to the disk --------------------------------------------------------------------------


def _link(picture: Path, place: Path) -> None:
    try:
        # A symbolic link would lead out of the set, which readers refuse.
        os.link(os.path.realpath(picture), place)
    except OSError as error:
        raise DataError(
            f"{place}: cannot be linked to {picture} ({error.strerror}); --images copy copies it"
        ) from None


PUT: dict[str, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "link": _link,
    "none": lambda picture, place: None,
}


def write_export(export: Export, output: Path, images: str) -> None:
    """Write a set, whole or not at all.

    Args:
        output: the folder to make; it may be there if it is empty.
        images: ``copy``, ``link`` (hard links, on one file system) or ``none``.

    Raises:
        DataError: the folder holds something, or a picture cannot be linked.
        OSError: the disk is full, or a picture cannot be read.
    """
    check_output(output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        for name, text in export.text_files.items():
            place = draft / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for name, picture in export.pictures.items():
            place = draft / name
            if images != "none":
                place.parent.mkdir(parents=True, exist_ok=True)
            PUT[images](picture, place)
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_output(output: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        DataError: it does, or it is a file.
    """
    if output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output}: holds something already; nothing is written over")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file")
