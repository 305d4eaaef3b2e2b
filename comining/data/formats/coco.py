"""COCO annotation files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from comining.data.annotations import AnnotationBuilder, AnnotationSet, Categories, OnInvalidBox
from comining.data.formats.annotation_format import ReadOptions, Split
from comining.data.record_values import bbox, file_name, integer, is_number, is_text, short
from comining.errors import DataError


def read_coco(path: str | Path, on_invalid_box: OnInvalidBox = "error") -> AnnotationSet:
    """Read and validate a COCO detection file.

    Args:
        on_invalid_box: boxes that are empty, inverted, not finite or (mostly) outside of their
            image are an error that names the record, or are dropped and counted. COCO's own
            train2017 holds two empty boxes.

    Raises:
        DataError: naming the file and the first record that is wrong.
    """
    path = Path(path)
    content = _read_json(path)
    categories = _read_categories(path, content)
    builder = AnnotationBuilder(path, categories, on_invalid_box)
    for where, record in _records(path, content, "images", ("id", "file_name", "width", "height")):
        image_id = integer(where, record, "id")
        builder.check_new_image(where, image_id)
        where = f"{path}: image {image_id}"
        name = file_name(where, record)
        size = (integer(where, record, "height"), integer(where, record, "width"))
        builder.add_image(where, image_id, name, *size)
    label_of = {category: label for label, category in enumerate(categories.ids)}
    required = ("id", "image_id", "category_id", "bbox")
    for where, record in _records(path, content, "annotations", required):
        annotation_id = integer(where, record, "id")
        builder.check_new_annotation(where, annotation_id)
        where = f"{path}: annotation {annotation_id}"
        image_id = integer(where, record, "image_id")
        category_id = integer(where, record, "category_id")
        if category_id not in label_of:
            raise DataError(f"{where}: category_id {category_id} is not among the categories")
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd must be 0 or 1, got {short(crowd)}")
        area: Any = record.get("area")
        if "area" not in record:
            builder.repairs["areas computed from the box because the file has none"] += 1
        elif not is_number(area) or area < 0:
            raise DataError(f"{where}: area must be a number, got {short(area)}")
        builder.add_annotation(
            where, annotation_id, image_id, label_of[category_id], bbox(where, record),
            area=area, crowd=bool(crowd),
        )  # fmt: skip
    return builder.build()


def coco_split(file: Path, folder: Path) -> Split:
    """A COCO file with its image folder as a split."""
    return Split(file, (file, folder), functools.partial(_read_split, file, folder))


def _read_split(file: Path, folder: Path, options: ReadOptions) -> tuple[AnnotationSet, Path]:
    if options.names is not None:
        raise DataError(f"{file}: names its classes itself; data.names is for other formats")
    return read_coco(file, options.on_invalid_box), folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # utf-8-sig: some editors begin a file with a mark.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(";")[0]  # Python goes on about its own settings
        raise DataError(f"{path}: not a JSON file ({reason})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO annotation file: its top level is not an object")
    return content


def _records(
    path: Path, content: dict[str, Any], section: str, required: tuple[str, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """The records of a section, each with the words that name it in an error."""
    records = content.get(section)
    if not isinstance(records, list):
        found = "missing" if records is None else f"a {type(records).__name__}, not a list"
        raise DataError(f"{path}: not a COCO annotation file: '{section}' is {found}")
    named = []
    for number, record in enumerate(records):
        where = f"{path}: {section}[{number}]"
        if not isinstance(record, dict):
            raise DataError(f"{where} is not an object")
        for key in required:
            if key not in record:
                raise DataError(f"{where}: '{key}' is missing")
        named.append((where, record))
    return named


def _read_categories(path: Path, content: dict[str, Any]) -> Categories:
    names: dict[int, str] = {}
    used: set[str] = set()
    for where, record in _records(path, content, "categories", ("id", "name")):
        category_id = integer(where, record, "id")
        if category_id in names:
            raise DataError(f"{where}: category id {category_id} occurs twice")
        name = record["name"]
        if not is_text(name):
            raise DataError(f"{where}: name must be a word, got {short(name)}")
        if name in used:
            raise DataError(f"{where}: category name {name!r} occurs twice")
        used.add(name)
        names[category_id] = name
    if not names:
        raise DataError(f"{path}: no categories")
    ids = tuple(sorted(names))
    return Categories(ids, tuple(names[category_id] for category_id in ids))
