"""Reading COCO annotation files: everything is checked here, once, before any long work.

Category ids and xywh boxes exist only on this edge; inside, labels are 0 ... K-1 and boxes xyxy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import reprlib
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comining.data.images import MAX_PIXELS, check_size, open_image
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
    image_of: dict[PurePosixPath, int] = {}
    for where, record in images:
        image_id = _integer(where, record, "id")
        if image_id in position:
            raise DataError(f"{where}: image id {image_id} occurs twice")
        position[image_id] = len(image_ids)
        image_ids.append(image_id)
        where = f"{path}: image {image_id}"
        name = _file_name(where, record)
        if (other := image_of.setdefault(PurePosixPath(name), image_id)) != image_id:
            raise DataError(f"{where}: file_name {name!r} is that of image {other}, too")
        file_names.append(name)
        size = (_integer(where, record, "height"), _integer(where, record, "width"))
        if min(size) < 1:
            raise DataError(f"{where}: height and width must be positive, got {size}")
        if size[0] * size[1] > MAX_PIXELS:
            raise DataError(
                f"{where}: height and width {size} make more than {MAX_PIXELS:,} px, the largest "
                "image that is decoded"
            )
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
            raise DataError(f"{where}: iscrowd must be 0 or 1, got {_short(crowd)}")
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
            raise DataError(f"{where}: area must be a number, got {_short(area)}")
        if area > 2 * width * height:  # a box that overhangs may be larger than the image, too
            raise DataError(
                f"{where}: area {area} does not fit an image of {width}x{height} px; without "
                "'area' it is computed from the box"
            )
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

    Only the header of an image is read. ``folder`` may be a link; a link below it may not lead out
    of it, so that an annotation file cannot name what else the machine holds.

    Raises:
        DataError: naming the annotation file, the image id and the image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder (images of {annotations.path})")
    inside: dict[Path, bool] = {}  # folders that have been looked at
    columns = zip(annotations.image_ids, annotations.file_names, annotations.sizes, strict=True)
    for image_id, name, (height, width) in columns:
        file = folder / name
        where = f"{annotations.path}: image {image_id}: {file}"
        try:
            mode = file.lstat().st_mode
            if file.parent not in inside:
                inside[file.parent] = _lies_in(file.parent, folder)
            leaves = not inside[file.parent] or (stat.S_ISLNK(mode) and not _lies_in(file, folder))
            if leaves:
                raise DataError(f"{where}: a link that leaves the image folder")
            if not stat.S_ISREG(file.stat().st_mode):
                raise DataError(f"{where}: not a file")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{where}: no such file") from None
        except OSError as error:  # a name that is too long, links in a circle
            raise DataError(f"{where}: cannot be read ({error.strerror})") from None
        if sizes:
            with open_image(file, where) as image:
                check_size(image, (int(height), int(width)), where)


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


# -- one record at a time ----------------------------------------------------------------


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
        category_id = _integer(where, record, "id")
        if category_id in names:
            raise DataError(f"{where}: category id {category_id} occurs twice")
        name = record["name"]
        if not _is_text(name):
            raise DataError(f"{where}: name must be a word, got {_short(name)}")
        if name in used:
            raise DataError(f"{where}: category name {name!r} occurs twice")
        used.add(name)
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


def _is_text(value: object) -> bool:
    """Whether a value is a text that can be printed on one line and used as a file name."""
    if not isinstance(value, str) or not value.strip():
        return False
    # JSON can spell halves of characters (surrogates), which no file and no terminal can hold.
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)


def _short(value: object) -> str:
    """A value as Python writes it, but never the megabytes that a broken file may hold."""
    return _repr.repr(value)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def _integer(where: str, record: dict[str, Any], key: str) -> int:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"{where}: {key} must be a whole number of 64 bits, got {_short(value)}")
    return value


def _file_name(where: str, record: dict[str, Any]) -> str:
    name = record["file_name"]
    if not _is_text(name):
        raise DataError(f"{where}: file_name must be a path, got {_short(name)}")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: file_name {_short(name)} leaves the image folder")
    return str(name)


def _bbox(where: str, record: dict[str, Any]) -> tuple[float, float, float, float]:
    bbox = record["bbox"]
    wrong = not isinstance(bbox, list) or len(bbox) != 4
    if wrong or any(isinstance(s, bool) or not isinstance(s, int | float) for s in bbox):
        raise DataError(
            f"{where}: bbox must be four numbers [x, y, width, height], got {_short(bbox)}"
        )
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:
        raise DataError(f"{where}: bbox {_short(bbox)} is too large") from None
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
    if min(w, h) <= MIN_SIDE * max(width, height):
        return "is empty", (0, 0, 0, 0)
    box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    sides = (max(box[2] - box[0], 0), max(box[3] - box[1], 0))
    if not sides[0] * sides[1] > 0.5 * w * h:
        return "lies outside of it by more than half", box
    if min(sides) <= MIN_SIDE * max(width, height):
        return "is empty inside the image", box
    return "", box
