"""Checking single values of records that somebody else wrote."""

from __future__ import annotations

import math
import reprlib
from pathlib import PurePosixPath
from typing import Any

from comining.errors import DataError


def is_number(value: object) -> bool:
    """Whether a value is a finite number that float64 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_text(value: object) -> bool:
    """Whether a value is a text that can be printed on one line and used as a file name."""
    if not isinstance(value, str) or not value.strip():
        return False
    # JSON can spell halves of characters (surrogates), which no file and no terminal can hold.
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)


def short(value: object) -> str:
    """A value as Python writes it, but never the megabytes that a broken file may hold."""
    return _repr.repr(value)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def integer(where: str, record: dict[str, Any], key: str) -> int:
    """A whole number of 64 bits.

    Raises:
        DataError: naming the record and the key.
    """
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"{where}: {key} must be a whole number of 64 bits, got {short(value)}")
    return value


def file_name(where: str, record: dict[str, Any]) -> str:
    """A path inside of the image folder.

    Raises:
        DataError: naming the record.
    """
    name = record["file_name"]
    if not is_text(name):
        raise DataError(f"{where}: file_name must be a path, got {short(name)}")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: file_name {short(name)} leaves the image folder")
    return str(name)


def bbox(where: str, record: dict[str, Any]) -> tuple[float, float, float, float]:
    """Four numbers x, y, width, height, px; they may be infinite or NaN.

    Raises:
        DataError: naming the record.
    """
    bbox = record["bbox"]
    if isinstance(bbox, list) and len(bbox) == 5 and all(map(is_number, bbox)):
        raise DataError(
            f"{where}: bbox {short(bbox)} is a turned box (centre, width, height, angle), which "
            "cannot be trained on: give [x, y, width, height] of the upright box around it"
        )
    wrong = not isinstance(bbox, list) or len(bbox) != 4
    if wrong or any(isinstance(s, bool) or not isinstance(s, int | float) for s in bbox):
        raise DataError(
            f"{where}: bbox must be four numbers [x, y, width, height], got {short(bbox)}"
        )
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:
        raise DataError(f"{where}: bbox {short(bbox)} is too large") from None
    return x, y, width, height


def is_turned(record: dict[str, Any]) -> bool:
    """Whether a record turns its box by an angle, in degrees, beside ``bbox``.

    CVAT exports ``bbox`` of the box before it is turned, and ``attributes.rotation``.
    """
    attributes = record.get("attributes")
    angles = [record.get("rotation")]
    if isinstance(attributes, dict):
        angles.append(attributes.get("rotation"))
    return any(is_number(angle) and angle % 180 != 0 for angle in angles if angle is not None)
