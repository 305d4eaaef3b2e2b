"""The outlines of annotated objects: polygons or masks, in one flat column of a set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]

# Corners are stored in integer fractions of a pixel, this many per pixel: as fine as annotators
# draw, and int32 holds them for every image that is decoded.
PARTS = 16
# Polygons are drawn with this many rows and columns per pixel in windows of up to this many pixels;
# in larger ones a pixel is inside or not, which saves memory.
FINER, FINE_WINDOW = 4, 2**20


class Outline(NamedTuple):
    """The area of an object: the union of its polygons, or a mask."""

    polygons: Sequence[NDArray[np.float64]] = ()  # [n, 2] xy px each, n >= 3
    # A mask instead of polygons: alternating run lengths of 0 and 1, column by column.
    runs: NDArray[np.int64] | None = None
    height: int = 0  # of the image, px; of a mask only

    @property
    def box(self) -> Box | None:
        """The smallest box around it, xywh px; None if it is empty."""
        if self.runs is not None:
            return _box_of_runs(self.runs, self.height)
        if not self.polygons:
            return None
        corners = np.concatenate(self.polygons)
        left, top = corners.min(axis=0).tolist()
        right, bottom = corners.max(axis=0).tolist()
        return left, top, right - left, bottom - top

    def fits(self, bbox: Box) -> bool:
        """Whether the box around it has an IoU above 0.5 with a box xywh."""
        found = self.box
        if found is None or not all(map(math.isfinite, found)):
            return False
        (x, y, w, h), (left, top, width, height) = found, bbox
        shared_x = max(0.0, min(x + w, left + width) - max(x, left))
        shared_y = max(0.0, min(y + h, top + height) - max(y, top))
        shared = shared_x * shared_y
        return shared > 0.5 * (w * h + width * height - shared)

    def cover(self, window: tuple[int, int, int, int]) -> NDArray[np.float32]:
        """The share of every pixel of a window that it covers: [h, w], 0 ... 1.

        Args:
            window: left, top, right, bottom, whole px, inside the image.
        """
        if self.runs is not None:
            return _cover_of_runs(self.runs, self.height, window)
        left, top, right, bottom = window
        height, width = bottom - top, right - left
        finer = FINER if height * width <= FINE_WINDOW else 1
        canvas = Image.new("L", (finer * width, finer * height))
        pen = ImageDraw.Draw(canvas)
        for polygon in self.polygons:
            # In Pillow, the centre of a pixel has integer coordinates.
            moved = (polygon - (left, top)) * finer - 0.5
            pen.polygon([(x, y) for x, y in moved.tolist()], fill=255)
        share: NDArray[np.float32] = np.asarray(canvas.reduce(finer), dtype=np.float32)
        return share / np.float32(255)


@dataclass(frozen=True)
class Outlines:
    """The outlines of M annotations, some of which have none.

    An outline is a row of integers: the number of polygons, the number of corners of each, and then
    all corners, in units of 1 / :data:`PARTS` px; or 0 and the runs of a mask.
    """

    numbers: NDArray[np.int32]  # [V] row after row
    starts: NDArray[np.int64]  # [M + 1] of the rows; an annotation without outline has an empty one

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.int32]]) -> Outlines:
        """Concatenate encoded outlines, see :func:`encoded`."""
        lengths = [len(row) for row in rows]
        return cls(
            np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        )

    @classmethod
    def none(cls, count: int) -> Outlines:
        """Empty outlines for ``count`` annotations."""
        return cls(np.zeros(0, dtype=np.int32), np.zeros(count + 1, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Outlines]) -> Outlines:
        """Concatenate the outlines of several sets."""
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of_rows(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Outlines:
        """Some rows, by a mask [M] or by indices."""
        chosen = np.arange(len(self))[rows]
        first = self.starts[chosen]
        lengths = self.starts[chosen + 1] - first
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Position in the new column minus the start of its row there, plus the start of it here.
        inside = np.arange(starts[-1]) + np.repeat(first - starts[:-1], lengths)
        return Outlines(self.numbers[inside], starts)

    def has(self, row: int) -> bool:
        """Whether an annotation has an outline."""
        return bool(self.starts[row + 1] > self.starts[row])

    def get(self, row: int, height: int) -> Outline | None:
        """The outline of an annotation; None if it has none.

        Args:
            height: of its image, px.
        """
        numbers = self.numbers[self.starts[row] : self.starts[row + 1]]
        if not len(numbers):
            return None
        count = int(numbers[0])
        if count == 0:
            return Outline(runs=numbers[1:].astype(np.int64), height=height)
        ends = np.cumsum(numbers[1 : count + 1])
        corners = numbers[count + 1 :].reshape(-1, 2).astype(np.float64) / PARTS
        return Outline(np.split(corners, ends[:-1]))


def encoded(outline: Outline | None, height: int, width: int) -> NDArray[np.int32]:
    """A row of :class:`Outlines`; empty for None.

    Args:
        height, width: of the image, px. Corners that are farther outside than its own size, which
            nobody draws, are clamped to that distance.
    """
    if outline is None:
        return np.zeros(0, dtype=np.int32)
    if outline.runs is not None:
        return np.concatenate([[0], outline.runs]).astype(np.int32)
    limits = np.array([width, height], dtype=np.float64)
    near = [np.clip(polygon, -limits, 2 * limits) for polygon in outline.polygons]
    counts = [len(near), *map(len, near)]
    corners = np.round(np.concatenate(near).reshape(-1) * PARTS)
    return np.concatenate([counts, corners]).astype(np.int32)


def _runs_of_ones(runs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel of every run of 1, and the one after its last, counted down the columns."""
    ends = np.cumsum(runs)
    first, end = ends[:-1:2], ends[1::2]
    there = end > first
    return first[there], end[there]


def _box_of_runs(runs: NDArray[np.int64], height: int) -> Box | None:
    first, end = _runs_of_ones(runs)
    if not len(first):
        return None
    last = end - 1
    left, right = int(first.min()) // height, int(last.max()) // height
    top, bottom = int((first % height).min()), int((last % height).max())
    if (first // height != last // height).any():  # a run that continues in the next column
        top, bottom = 0, height - 1
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def _cover_of_runs(
    runs: NDArray[np.int64], height: int, window: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    left, top, right, bottom = window
    first, end = _runs_of_ones(runs)
    # Only the columns of the window: the mask of a large image need not be unpacked.
    start, stop = left * height, right * height
    first, end = np.clip(first, start, stop) - start, np.clip(end, start, stop) - start
    change = np.zeros(stop - start + 1, dtype=np.int8)
    np.add.at(change, first, 1)
    np.add.at(change, end, -1)
    columns = np.cumsum(change[:-1], dtype=np.int8).reshape(right - left, height)
    return columns.T[top:bottom].astype(np.float32)
