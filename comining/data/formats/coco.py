"""COCO annotation files."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import (
    AnnotationSet,
    Categories,
    Crowd,
    OnInvalidBox,
)
from comining.data.formats.annotation_format import ReadOptions, Split
from comining.data.formats.segmentation import segmentation_box, segmentation_outline
from comining.data.outlines import Outline
from comining.data.record_values import (
    bbox,
    file_name,
    flag,
    integer,
    is_lfs_pointer,
    is_text,
    is_turned,
    number,
    short,
    whole,
)
from comining.errors import DataError

Box = tuple[float, float, float, float]
NO_SIDES = [None] * 4
# Fields of LVIS in image records: classes that were looked for and are absent, and classes that are
# not exhaustively annotated.
FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_coco(
    path: str | Path,
    on_invalid_box: OnInvalidBox = "error",
    crowd: Crowd = "ignore",
    *,
    outlines: bool = False,
) -> AnnotationSet:
    """Read and validate a COCO detection file.

    Unambiguous deviations are read and counted in the repairs of the set: numbers written as 5.0 or
    as text, ``iscrowd`` as text or boolean, null for a missing value, boxes given only by a
    segmentation, and the root category that Roboflow adds.

    Annotations with ``iscrowd`` or ``ignore`` are regions to ignore. Those with
    ``"proposed": true`` and without ``proposed_bbox`` were added by ``python -m comining.complete``
    and have a box that nobody has corrected. The fields of LVIS in image records are kept, see
    :mod:`comining.data.knowledge`.

    Args:
        on_invalid_box: boxes that are empty, inverted, not finite or (mostly) outside of their
            image are an error that names the record, or are dropped and counted. COCO's own
            train2017 holds two empty boxes.
        crowd, outlines: see :class:`comining.data.annotation_builder.AnnotationBuilder`.

    Raises:
        DataError: naming the file and the first record that is wrong.
    """
    path = Path(path)
    return parse_coco(path, load_coco(path), on_invalid_box, crowd, outlines=outlines)


def parse_coco(
    path: Path,
    content: dict[str, Any],
    on_invalid_box: OnInvalidBox = "error",
    crowd: Crowd = "ignore",
    *,
    outlines: bool = False,
) -> AnnotationSet:
    """Validate the content of a COCO file, without changing it; else like :func:`read_coco`.

    Args:
        path: of the file, for messages.
        content: its top level.
    """
    mended: Counter[str] = Counter()
    categories, root = _read_categories(path, content, mended)
    builder = AnnotationBuilder(
        path, categories, on_invalid_box, crowd, unused_root=root, outlines=outlines
    )
    repairs = builder.repairs
    repairs.update(mended)
    sizes: dict[int, tuple[int, int]] = {}
    label_of = {category: label for label, category in enumerate(categories.ids)}
    for where, record in _records(path, content, "images", ("id", "file_name", "width", "height")):
        image_id = integer(where, record, "id", repairs)
        builder.check_new_image(where, image_id)
        where = f"{path}: image {image_id}"
        name = file_name(where, record)
        height = integer(where, record, "height", repairs)
        width = integer(where, record, "width", repairs)
        sizes[image_id] = (height, width)
        builder.add_image(where, image_id, name, height, width)
        if any(record.get(key) is not None for key in FIELDS):
            neg, not_exhaustive = (
                _read_classes(where, record, key, label_of, root, repairs) for key in FIELDS
            )
            builder.add_fields(image_id, neg, not_exhaustive)
    required = ("id", "image_id", "category_id")
    for where, record in _records(path, content, "annotations", required):
        annotation_id = integer(where, record, "id", repairs)
        builder.check_new_annotation(where, annotation_id)
        if "bbox" not in record and not record.get("segmentation"):
            raise DataError(f"{where}: 'bbox' is missing, and there is no segmentation")
        where = f"{path}: annotation {annotation_id}"
        image_id = integer(where, record, "image_id", repairs)
        category_id = integer(where, record, "category_id", repairs)
        if category_id not in label_of:
            raise DataError(f"{where}: category_id {category_id} is not among the categories")
        image_size = sizes.get(image_id)
        if is_turned(record):
            repairs["rotated boxes read without their angle: they do not fit objects"] += 1
        builder.add_annotation(
            where, annotation_id, image_id, label_of[category_id],
            _read_box(where, record, image_size, repairs),
            area=_read_area(where, record, repairs),
            crowd=flag(where, record, "iscrowd", repairs),
            ignore=flag(where, record, "ignore", repairs),
            proposed=record.get("proposed") is True and "proposed_bbox" not in record,
            outline=_read_outline(where, record, image_size, repairs) if outlines else None,
        )  # fmt: skip
    return builder.build()


def _read_classes(
    where: str,
    record: dict[str, Any],
    key: str,
    label_of: dict[int, int],
    root: tuple[int, str] | None,
    repairs: Counter[str],
) -> list[int]:
    """The labels of the category ids in a list of an image record."""
    written = record.get(key)
    if written is None:
        return []
    if not isinstance(written, list):
        raise DataError(f"{where}: {key} must be a list of category ids, got {short(written)}")
    labels = []
    for position, value in enumerate(written):
        element = f"{key}[{position}]"
        category_id = integer(where, {element: value}, element, repairs)
        if root is not None and category_id == root[0]:
            continue
        if category_id not in label_of:
            raise DataError(f"{where}: {key}: {category_id} is not among the categories")
        labels.append(label_of[category_id])
    return labels


def _read_box(
    where: str, record: dict[str, Any], size: tuple[int, int] | None, repairs: Counter[str]
) -> Box | None:
    """The box xywh of a record, or the one around its segmentation; None if it has neither."""
    written = record.get("bbox")
    if not (written is None or written == [] or written == NO_SIDES):
        return bbox(where, record, repairs)
    box = segmentation_box(where, record.get("segmentation"), size, repairs)
    if box is not None:
        repairs["boxes taken from the segmentation"] += 1
    return box


def _read_outline(
    where: str, record: dict[str, Any], size: tuple[int, int] | None, repairs: Counter[str]
) -> Outline | None:
    """The segmentation of a record that also has a box; None if it cannot be used.

    Never an error: it is read only for pasting, and a set that can be trained on should also work
    with pasting.
    """
    try:
        # Deviations from COCO's form are counted only if a box is taken from it.
        return segmentation_outline(where, record.get("segmentation"), size, Counter())
    except DataError:
        repairs["outlines left out because they cannot be read"] += 1
        return None


def _read_area(where: str, record: dict[str, Any], repairs: Counter[str]) -> float | None:
    """The area of a record, px^2; None if it has none."""
    value = record.get("area")
    if value is None:
        repairs["areas computed from the box because the file has none"] += 1
        return None
    try:
        area = number(value, repairs)
    except OverflowError:
        area = None
    if area is None or not 0 <= area < math.inf:
        raise DataError(f"{where}: area must be a number, got {short(value)}")
    return area


def coco_split(file: Path, folder: Path) -> Split:
    """A COCO file with its image folder as a split."""
    return Split(file, (file, folder), functools.partial(_read_split, file, folder))


def _read_split(file: Path, folder: Path, options: ReadOptions) -> tuple[AnnotationSet, Path]:
    if options.names is not None:
        raise DataError(f"{file}: names its classes itself; data.names is for other formats")
    annotations = read_coco(file, options.on_invalid_box, options.crowd, outlines=options.outlines)
    return annotations, folder


def load_coco(path: Path) -> dict[str, Any]:
    """The top level of a COCO file, not yet validated.

    Raises:
        DataError: the file cannot be read, or is not a JSON object.
    """
    try:
        # utf-8-sig: some editors write a byte order mark.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        if is_lfs_pointer(path):
            raise DataError(f"{path}: is a Git LFS pointer; run git lfs pull") from None
        reason = str(error).partition(";")[0]  # Python adds advice on its own settings
        raise DataError(f"{path}: not a JSON file ({reason})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO annotation file: its top level is not an object")
    return content


def _records(
    path: Path, content: dict[str, Any], section: str, required: tuple[str, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """The records of a section, each with its name for errors."""
    records = content.get(section)
    if not isinstance(records, list):
        found = "missing" if records is None else f"a {type(records).__name__}, not a list"
        raise DataError(f"{path}: not a COCO annotation file: '{section}' is {found}")
    named = []
    for position, record in enumerate(records):
        where = f"{path}: {section}[{position}]"
        if not isinstance(record, dict):
            raise DataError(f"{where} is not an object")
        for key in required:
            if key not in record:
                raise DataError(f"{where}: '{key}' is missing")
        named.append((where, record))
    return named


def _read_categories(
    path: Path, content: dict[str, Any], repairs: Counter[str]
) -> tuple[Categories, tuple[int, str] | None]:
    """The categories, and id and name of the unused root that was left out, or None."""
    records = _records(path, content, "categories", ("id", "name"))
    root = _unused_root([record for _, record in records], content.get("annotations"))
    names: dict[int, str] = {}
    used: set[str] = set()
    left_out = None
    for where, record in records:
        category_id = integer(where, record, "id", repairs)
        if category_id in names or (left_out is not None and category_id == left_out[0]):
            raise DataError(f"{where}: category id {category_id} occurs twice")
        name = record["name"]
        if type(name) is int:
            repairs["category names written as numbers"] += 1
            name = str(name)
        if not is_text(name):
            raise DataError(f"{where}: name must be a word, got {short(name)}")
        if record is root:
            repairs[f"root category {name!r} left out because no annotation has it"] += 1
            left_out = (category_id, name)
            continue
        if name in used:
            raise DataError(f"{where}: category name {name!r} occurs twice")
        used.add(name)
        names[category_id] = name
    if not names:
        raise DataError(f"{path}: no categories")
    ids = tuple(sorted(names))
    return Categories(ids, tuple(names[category_id] for category_id in ids)), left_out


def _unused_root(records: list[dict[str, Any]], annotations: object) -> dict[str, Any] | None:
    """The category that Roboflow adds: named after the project, above all others, never used.

    A class that merely has no annotation is never taken for it: the supercategory of the root is
    ``none``, and that of all others is its name or id.
    """
    roots = [one for one in records if _lower(one.get("supercategory")) == "none"]
    if len(roots) != 1 or len(records) == 1 or not isinstance(annotations, list):
        return None
    root = roots[0]
    known_as = {str(root["name"]), str(root["id"])}
    if any(str(one.get("supercategory")) not in known_as for one in records if one is not root):
        return None
    used = {whole(one.get("category_id")) for one in annotations if isinstance(one, dict)}
    return None if whole(root["id"]) in used else root


def _lower(value: object) -> str | None:
    return value.strip().lower() if isinstance(value, str) else None
