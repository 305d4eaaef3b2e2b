"""Reading COCO annotation files: everything is checked here, once, before any long work.

Category ids and xywh boxes exist only on this edge; inside, labels are 0 ... K-1 and boxes xyxy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from comining.errors import DataError

log = logging.getLogger(__name__)

OnInvalidBox = Literal["error", "drop"]


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


def read_annotations(path: str | Path, on_invalid_box: OnInvalidBox = "error") -> AnnotationSet:
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
    images = _records(path, content, "images", ("id", "file_name", "width", "height"))
    image_ids: list[int] = []
    file_names: list[str] = []
    sizes: list[tuple[int, int]] = []
    position: dict[int, int] = {}
    for where, record in images:
        image_id = _integer(where, record, "id")
        if image_id in position:
            raise DataError(f"{where}: image id {image_id} occurs twice")
        position[image_id] = len(image_ids)
        image_ids.append(image_id)
        file_names.append(_file_name(where, record))
        size = (_integer(where, record, "height"), _integer(where, record, "width"))
        if min(size) < 1:
            raise DataError(f"{where}: height and width must be positive, got {size}")
        sizes.append(size)
    if not images:
        raise DataError(f"{path}: no images")

    label_of = {category: label for label, category in enumerate(categories.ids)}
    repairs: Counter[str] = Counter()
    seen: set[int] = set()
    rows: list[tuple[int, int, int, bool, float]] = []
    bboxes, boxes = [], []
    required = ("id", "image_id", "category_id", "bbox")
    for where, record in _records(path, content, "annotations", required):
        annotation_id = _integer(where, record, "id")
        if annotation_id in seen:
            raise DataError(f"{where}: annotation id {annotation_id} occurs twice")
        seen.add(annotation_id)
        where = f"{path}: annotation {annotation_id}"
        image_id = _integer(where, record, "image_id")
        if image_id not in position:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        category_id = _integer(where, record, "category_id")
        if category_id not in label_of:
            raise DataError(f"{where}: category_id {category_id} is not among the categories")
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
        bbox = _bbox(where, record)
        image = position[image_id]
        height, width = sizes[image]
        problem, box = _fit_box(bbox, width, height)
        if problem:
            if on_invalid_box == "error":
                raise DataError(
                    f"{where}: bbox {bbox} in image {image_id} of {width}x{height} px {problem} "
                    "(on_invalid_box=drop leaves such annotations out)"
                )
            repairs["annotations dropped because their box is invalid"] += 1
            continue
        overhang = max(-bbox[0], -bbox[1], bbox[0] + bbox[2] - width, bbox[1] + bbox[3] - height)
        if overhang > 1e-3:  # less is rounding of decimal coordinates
            repairs["boxes cut at the image border"] += 1
        if "area" not in record:
            repairs["areas computed from the box because the file has none"] += 1
        area = record.get("area", bbox[2] * bbox[3])
        if not _is_number(area) or area < 0:
            raise DataError(f"{where}: area must be a number, got {area!r}")
        rows.append((annotation_id, image, label_of[category_id], bool(crowd), float(area)))
        bboxes.append(bbox)
        boxes.append(box)
    if repairs:
        summary = "; ".join(f"{what}: {count}" for what, count in sorted(repairs.items()))
        log.warning("%s: %s", path, summary)
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 5
    return AnnotationSet(
        path=path,
        categories=categories,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=file_names,
        sizes=np.array(sizes, dtype=np.int64),
        ids=np.array(columns[0], dtype=np.int64),
        image=np.array(columns[1], dtype=np.int64),
        labels=np.array(columns[2], dtype=np.int64),
        bboxes=np.array(bboxes, dtype=np.float64).reshape(-1, 4),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.array(columns[4], dtype=np.float64),
        crowd=np.array(columns[3], dtype=np.bool_),
        repairs=dict(repairs),
    )


def check_images(annotations: AnnotationSet, folder: str | Path, sizes: bool) -> None:
    """Check that every image of the file exists and, if ``sizes``, has the size the file says.

    Only the header of an image is read.

    Raises:
        DataError: naming the annotation file, the image id and the image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder (images of {annotations.path})")
    columns = zip(annotations.image_ids, annotations.file_names, annotations.sizes, strict=True)
    for image_id, name, (height, width) in columns:
        file = folder / name
        where = f"{annotations.path}: image {image_id}: {file}"
        if not file.is_file():
            raise DataError(f"{where}: no such file")
        if not sizes:
            continue
        try:
            with Image.open(file) as image:
                found = image.size
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: not a readable image ({error})") from error
        if found != (width, height):
            raise DataError(
                f"{where}: is {found[0]}x{found[1]} px, the annotation file says {width}x{height}"
            )


# -- one record at a time ----------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error
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
    for where, record in _records(path, content, "categories", ("id", "name")):
        category_id = _integer(where, record, "id")
        if category_id in names:
            raise DataError(f"{where}: category id {category_id} occurs twice")
        name = record["name"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: name must be a word, got {name!r}")
        if name in names.values():
            raise DataError(f"{where}: category name {name!r} occurs twice")
        names[category_id] = name
    if not names:
        raise DataError(f"{path}: no categories")
    ids = tuple(sorted(names))
    return Categories(ids, tuple(names[category_id] for category_id in ids))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _integer(where: str, record: dict[str, Any], key: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"{where}: {key} must be a whole number of 64 bits, got {value!r}")
    return value


def _file_name(where: str, record: dict[str, Any]) -> str:
    name = record["file_name"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: file_name must be a path, got {name!r}")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: file_name {name!r} leaves the image folder")
    return name


def _bbox(where: str, record: dict[str, Any]) -> tuple[float, float, float, float]:
    bbox = record["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise DataError(f"{where}: bbox must be four numbers [x, y, width, height], got {bbox!r}")
    for side in bbox:
        if isinstance(side, bool) or not isinstance(side, int | float):
            raise DataError(f"{where}: bbox must be four numbers, got {bbox!r}")
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:
        raise DataError(f"{where}: bbox {bbox!r} is too large") from None
    return x, y, width, height


def _fit_box(
    bbox: tuple[float, float, float, float], width: int, height: int
) -> tuple[str, tuple[float, float, float, float]]:
    """What is wrong with an xywh box ("" if nothing), and the box as xyxy inside the image."""
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return "is not finite", (0, 0, 0, 0)
    if w < 0 or h < 0:
        return "has a negative side", (0, 0, 0, 0)
    if w == 0 or h == 0:
        return "is empty", (0, 0, 0, 0)
    box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    inside = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    if not inside > 0.5 * w * h:
        return "lies outside of it by more than half", box
    return "", box
