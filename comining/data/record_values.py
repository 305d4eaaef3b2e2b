"""Checks single values of untrusted records."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from pathlib import Path, PurePosixPath
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
    # JSON can hold lone surrogates, which no file name and no terminal can represent.
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)


def is_lfs_pointer(file: Path) -> bool:
    """Whether a readable file is only a Git LFS pointer."""
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def short(value: object) -> str:
    """A value as Python writes it, shortened if a broken file holds megabytes."""
    return _repr.repr(value)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


# Repairs made here, as named in the log.
WHOLE_FLOATS = "whole numbers written as floats"
TEXTS = "numbers written as text"
FLAGS = "truth values written as text or as true and false"
NULLS = "null values taken as missing"

_DECIMAL = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,4})?", re.ASCII)
_WHOLE = re.compile(r"([+-]?\d{1,40})(\.0*)?", re.ASCII)
_FLAGS = {"0": False, "false": False, "1": True, "true": True}


def number(value: object, repairs: Counter[str] | None = None) -> float | None:
    """A number, or a text that is exactly one; None for anything else.

    A text with a decimal comma or digit groups is ambiguous and not a number.

    Args:
        repairs: counts the texts.

    Returns:
        The number, which may be infinite or NaN.

    Raises:
        OverflowError: a whole number that no float can hold.
    """
    if type(value) is float:  # nearly always, and there are millions
        return value
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        if repairs is not None:
            repairs[TEXTS] += 1
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def whole(value: object) -> int | None:
    """An integer, also written as 5.0, "5" or "5.000"; None for anything else.

    Also None for floats of 2**53 and more, which stand for several integers.
    """
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value.strip())
        return int(match[1]) if match else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def integer(
    where: str, record: dict[str, Any], key: str, repairs: Counter[str] | None = None
) -> int:
    """A 64-bit integer, also written as 5.0 or as text.

    Args:
        repairs: counts values that are written in these ways.

    Raises:
        DataError: naming the record and the key.
    """
    value = record[key]
    if type(value) is int and abs(value) < 2**63:  # nearly always, and there are millions
        return value
    found = whole(value)
    if found is None or abs(found) >= 2**63:
        reason = ""
        if isinstance(value, float) and value.is_integer() and abs(value) >= 2**53:
            reason = " (a float of 2**53 or more stands for several)"
        raise DataError(
            f"{where}: {key} must be a whole number of 64 bits, got {short(value)}{reason}"
        )
    if repairs is not None and not isinstance(value, int):
        repairs[TEXTS if isinstance(value, str) else WHOLE_FLOATS] += 1
    return found


def flag(where: str, record: dict[str, Any], key: str, repairs: Counter[str] | None = None) -> bool:
    """A truth value: 0, 1, true, false, or one of these as a text; False if missing or null.

    Args:
        repairs: counts the values that are not 0 or 1.

    Raises:
        DataError: naming the record and the key.
    """
    value = record.get(key, 0)
    if type(value) is int and (value == 0 or value == 1):  # nearly always
        return value == 1
    repair = ""
    if value is None:
        found, repair = False, NULLS
    elif isinstance(value, bool):
        found, repair = value, FLAGS
    elif isinstance(value, str) and value.strip().lower() in _FLAGS:
        found, repair = _FLAGS[value.strip().lower()], FLAGS
    elif value in (0, 1):
        found = bool(value)
    else:
        raise DataError(f"{where}: {key} must be 0 or 1, got {short(value)}")
    if repair and repairs is not None:
        repairs[repair] += 1
    return found


def file_name(where: str, record: dict[str, Any]) -> str:
    """A path inside the image folder, or an absolute one of another machine.

    Raises:
        DataError: naming the record.
    """
    name = record["file_name"]
    if not is_text(name):
        raise DataError(f"{where}: file_name must be a path, got {short(name)}")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts:
        raise DataError(f"{where}: file_name {short(name)} leaves the image folder")
    if not set(parts) - {"/", "//"}:
        raise DataError(f"{where}: file_name must be a path, got {short(name)}")
    return str(name)


def bbox(
    where: str, record: dict[str, Any], repairs: Counter[str] | None = None
) -> tuple[float, float, float, float]:
    """Four numbers x, y, width, height, px; they may be infinite or NaN.

    Args:
        repairs: counts numbers that are written as text.

    Raises:
        DataError: naming the record.
    """
    bbox = record["bbox"]
    numbers: list[float | None] = []
    if isinstance(bbox, list) and len(bbox) == 5 and all(map(is_number, bbox)):
        raise DataError(
            f"{where}: bbox {short(bbox)} is a rotated box (centre, width, height, angle), which "
            "cannot be trained on: give [x, y, width, height] of the upright box around it"
        )
    if isinstance(bbox, list) and len(bbox) == 4:
        try:
            if all(type(side) is float or type(side) is int for side in bbox):
                x, y, width, height = map(float, bbox)  # nearly always
                return x, y, width, height
            numbers = [number(side, repairs) for side in bbox]
        except OverflowError:
            raise DataError(f"{where}: bbox {short(bbox)} is too large") from None
    sides = [side for side in numbers if side is not None]
    if len(sides) != 4:
        raise DataError(
            f"{where}: bbox must be four numbers [x, y, width, height], got {short(bbox)}"
        )
    return sides[0], sides[1], sides[2], sides[3]


def is_turned(record: dict[str, Any]) -> bool:
    """Whether a record rotates its ``bbox`` by an angle, in degrees.

    CVAT exports the box before its rotation as ``bbox``, and ``attributes.rotation``.
    """
    attributes = record.get("attributes")
    angles = [record.get("rotation")]
    if isinstance(attributes, dict):
        angles.append(attributes.get("rotation"))
    return any(isinstance(a, int | float) and is_number(a) and a % 180 != 0 for a in angles)
