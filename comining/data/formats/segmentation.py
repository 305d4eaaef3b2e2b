"""Outlines of COCO segmentations: polygons, or run-length masks, compressed or not.

Masks are decoded here, not by pycocotools, which reads beyond the end of a broken text.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from comining.data.outlines import Outline
from comining.data.record_values import number, short
from comining.errors import DataError

Box = tuple[float, float, float, float]


def segmentation_box(
    where: str, segmentation: object, size: tuple[int, int] | None, repairs: Counter[str]
) -> Box | None:
    """The smallest box around a segmentation, xywh px; None if it is empty.

    See :func:`segmentation_outline`.
    """
    outline = segmentation_outline(where, segmentation, size, repairs)
    return None if outline is None else outline.box


def segmentation_outline(
    where: str, segmentation: object, size: tuple[int, int] | None, repairs: Counter[str]
) -> Outline | None:
    """The outline of a segmentation; None if it is empty.

    Args:
        where: the words that name the record in an error.
        segmentation: polygons [[x, y, x, y, ...], ...], one such list alone, one polygon as a list
            of points [[x, y], ...], or a mask {"size": [height, width], "counts": ...}.
        size: (height, width) of the image; None if it is unknown.
        repairs: counts deviations from COCO's form.

    Raises:
        DataError: naming the record; it is none of these.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _mask(where, segmentation, size)
    if not isinstance(segmentation, list):
        raise DataError(
            f"{where}: segmentation must be polygons or a mask, got {short(segmentation)}"
        )
    polygons = segmentation
    if not any(isinstance(part, list) for part in segmentation):
        polygons = [segmentation]
        repairs["polygons that are not in a list"] += 1
    elif len(segmentation) >= 3 and all(
        isinstance(part, list) and len(part) == 2 for part in segmentation
    ):
        polygons = [[side for point in segmentation for side in point]]
        repairs["polygons given as points"] += 1
    corners = []
    for polygon in polygons:
        points = _points(where, polygon, repairs)
        if len(points) >= 3:
            corners.append(points)
        elif len(points):
            repairs["parts of polygons of fewer than three points left out"] += 1
    return Outline(corners) if corners else None


def _points(where: str, polygon: object, repairs: Counter[str]) -> np.ndarray[Any, Any]:
    """The corners [N, 2] float64 of one polygon."""
    try:
        sides = [number(side, repairs) for side in polygon] if isinstance(polygon, list) else [None]
    except OverflowError:
        sides = [None]
    numbers = [side for side in sides if side is not None]
    if len(numbers) != len(sides) or len(sides) % 2:
        raise DataError(
            f"{where}: a polygon must be numbers [x, y, x, y, ...], got {short(polygon)}"
        )
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def _mask(where: str, mask: dict[str, Any], size: tuple[int, int] | None) -> Outline:
    """A run-length mask: counts of 0 and 1 in turn, down the columns."""
    shape, counts = mask.get("size"), mask.get("counts")
    whole = isinstance(shape, list) and [type(side) for side in shape] == [int, int]
    whole = whole and min(shape or (0,)) >= 1
    if not whole or (size is not None and tuple(shape or ()) != size):
        image = "" if size is None else f", the image is {list(size)}"
        raise DataError(f"{where}: the size [height, width] of the mask is {short(shape)}{image}")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    sound = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    height, width = shape or (0, 0)
    if not sound or sum(runs or ()) != height * width:
        raise DataError(f"{where}: the counts of the mask do not fill {width}x{height} px")
    return Outline(runs=np.array(runs, dtype=np.int64), height=height)


def _decompressed(text: str) -> list[int] | None:
    """The counts of a compressed mask (cocoapi, common/maskApi.c, rleFrString); None if broken.

    Numbers in groups of 5 bits per letter, least significant first; from the fourth on, differences
    to the number before the previous one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last letter of this number
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if shift == 0 else None
