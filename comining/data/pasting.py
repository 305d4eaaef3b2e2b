"""Copy-paste of annotated objects (after Ghiasi et al., CVPR 2021), for partly annotated images.

Only annotated objects are certain. An annotated object of another image is pasted where nothing is
annotated, so that it is seen more often, and next to unannotated objects. docs/pasting.md has the
rules.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comining.data.annotations import AnnotationSet
from comining.data.crops import Crop, CropCache, Cut, blend, rendered
from comining.ops import resized_shape

LoadImage = Callable[[Path, tuple[int, int]], Tensor]

# Largest factor by which an object grows or shrinks: large enough for variation, small enough for
# classes that differ in size, such as cells.
SCALE = 1.25
# Background around an object without an outline, as a share of its sides; it fades out, so that the
# end of the box shows no edge.
MARGIN = 0.1
# px around an object with an outline, after resizing, for the soft edge.
EDGE = 2
# Places that are tried for an object before it is left out.
TRIES = 20
# An object is not pasted if other annotations and ignored regions cover more than this share of it:
# its crop would show them, too.
COVERED = 0.2
# Objects with a side below this, px after resizing, are not pasted: nothing is left of them. Nor
# are those that cover more than this share of their image: they would hide another one.
SMALLEST_SIDE = 4
LARGEST_SHARE = 0.4
# Size of the cache of crops in each process, bytes.
CACHE_BYTES = 64 * 2**20
# A box counts as hidden if more than this share of it is covered.
HIDDEN = 0.5


class Pasted(NamedTuple):
    """An image with pasted objects."""

    image: Tensor  # [3, H, W] uint8
    boxes: Tensor  # [P, 4] float32 xyxy px, of what was pasted
    labels: Tensor  # [P] int64
    opacity: Tensor | None  # [H, W] float32, 1 where the image is hidden; None if nothing is pasted

    def visible(self, boxes: Tensor) -> Tensor:
        """Which boxes [N, 4] of the image are still mostly visible: [N] bool."""
        seen = torch.ones(len(boxes), dtype=torch.bool)
        if self.opacity is None:
            return seen
        height, width = self.opacity.shape
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            x, y = min(max(0, round(left)), width - 1), min(max(0, round(top)), height - 1)
            end_x, end_y = max(x + 1, round(right)), max(y + 1, round(bottom))
            seen[number] = bool(self.opacity[y:end_y, x:end_x].mean() <= HIDDEN)
        return seen


class ObjectPaster:
    """Pastes annotated objects of a training set; all classes are chosen equally often.

    Args:
        annotations: the set, with or without outlines.
        kept: [M] which annotations are known to training, without regions to ignore. Those whose
            box is a proposed one are not pasted.
        ignored: [M] which are regions to ignore.
        folder: of the images.
        load: decodes an image file of a given (height, width) to [3, H, W] uint8.
        min_size, max_size: shortest and longest side after resizing, px; an object is scaled like
            its own image.
        count: maximum number of pasted objects of an image.
        flip: probability that an object is mirrored.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        kept: NDArray[np.bool_],
        ignored: NDArray[np.bool_],
        folder: Path,
        load: LoadImage,
        *,
        min_size: int,
        max_size: int,
        count: int,
        flip: float,
    ):
        self.annotations = annotations
        self.folder = folder
        self.load = load
        self.min_size, self.max_size = min_size, max_size
        self.count = count
        self.flip = flip
        self.crops = CropCache(CACHE_BYTES)
        # The crop of a box that is only roughly right would repeat its error in other images.
        exact = kept & ~annotations.proposed
        usable = exact & self._of_usable_size()
        clear = usable & ~covered(annotations, exact | ignored)
        self.rows_of_class: list[NDArray[np.int64]] = []
        # Labels of classes that have annotations, but none that can be pasted.
        self.never_pasted: list[int] = []
        for label in np.unique(annotations.labels[kept]).tolist():
            of_class = annotations.labels == label
            # A class without any clear object uses all of its objects.
            rows = np.flatnonzero(clear & of_class)
            rows = rows if len(rows) else np.flatnonzero(usable & of_class)
            if len(rows):
                self.rows_of_class.append(rows)
            else:
                self.never_pasted.append(label)

    def _of_usable_size(self) -> NDArray[np.bool_]:
        """[M] bool, which annotations are neither tiny nor fill their image."""
        boxes, sizes = self.annotations.boxes, self.annotations.sizes
        scale = np.minimum(self.min_size / sizes.min(axis=1), self.max_size / sizes.max(axis=1))
        sides = boxes[:, 2:] - boxes[:, :2]
        image = self.annotations.image
        shares = sides.prod(axis=1) / sizes.prod(axis=1)[image]
        large_enough = sides.min(axis=1) * scale[image] >= SMALLEST_SIDE
        return np.asarray(large_enough & (shares <= LARGEST_SHARE))

    def __call__(self, image: Tensor, taken: Tensor, chance: random.Random) -> Pasted:
        """Paste into one image.

        Args:
            image: [3, H, W] uint8; not changed.
            taken: [N, 4] xyxy px, areas that must not be covered: annotations, regions to ignore.
            chance: the source of all random choices.
        """
        size = (int(image.shape[-2]), int(image.shape[-1]))
        occupied = taken.numpy().astype(np.float64)
        boxes: list[tuple[float, ...]] = []
        labels: list[int] = []
        opacity: Tensor | None = None
        for _ in range(self.count if self.rows_of_class else 0):
            rows = self.rows_of_class[chance.randrange(len(self.rows_of_class))]
            row = int(rows[chance.randrange(len(rows))])
            factor = SCALE ** chance.uniform(-1, 1)
            cut = self.cut(row, factor, chance.random() < self.flip)
            # Before decoding: in a crowded image most objects find no place.
            place = free_place(cut, size, occupied, chance)
            if place is None:
                continue
            if opacity is None:
                image, opacity = image.clone(), torch.zeros(size)
            x, y = place
            blend(image, opacity, *rendered(self.crop(row, cut.window), cut), x, y)
            left, top, right, bottom = cut.box
            boxes.append((left + x, top + y, right + x, bottom + y))
            labels.append(int(self.annotations.labels[row]))
            height, width = cut.size
            occupied = np.append(occupied, [[x, y, x + width, y + height]], axis=0)
        return Pasted(
            image,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            opacity,
        )

    def cut(self, row: int, factor: float, mirrored: bool) -> Cut:
        """How an annotation is cut out, at ``factor`` times the size in its own resized image."""
        annotations = self.annotations
        height, width = (int(side) for side in annotations.sizes[annotations.image[row]])
        new_height, new_width = resized_shape(height, width, self.min_size, self.max_size)
        scale_x, scale_y = new_width / width, new_height / height
        left, top, right, bottom = annotations.boxes[row].tolist()
        # The same window for every factor, so that it is decoded only once.
        margin_x, margin_y = EDGE * SCALE / scale_x, EDGE * SCALE / scale_y
        if annotations.outlines is None or not annotations.outlines.has(row):
            margin_x, margin_y = MARGIN * (right - left), MARGIN * (bottom - top)
        x, y = max(0, math.floor(left - margin_x)), max(0, math.floor(top - margin_y))
        end_x = min(width, math.ceil(right + margin_x))
        end_y = min(height, math.ceil(bottom + margin_y))
        # Rounded to whole pixels; the box is scaled like the window.
        size = (
            max(1, round((end_y - y) * scale_y * factor)),
            max(1, round((end_x - x) * scale_x * factor)),
        )
        scale_x, scale_y = size[1] / (end_x - x), size[0] / (end_y - y)
        box = (
            (left - x) * scale_x, (top - y) * scale_y, (right - x) * scale_x, (bottom - y) * scale_y
        )  # fmt: skip
        if mirrored:
            box = (size[1] - box[2], box[1], size[1] - box[0], box[3])
        return Cut((x, y, end_x, end_y), size, box, mirrored)

    def crop(self, row: int, window: tuple[int, int, int, int]) -> Crop:
        """A window of the image of an annotation, as it is stored.

        Raises:
            DataError: the image cannot be decoded.
        """
        known = self.crops.get(row)
        if known is not None:
            return known
        annotations = self.annotations
        image = int(annotations.image[row])
        height, width = (int(side) for side in annotations.sizes[image])
        pixels = self.load(self.folder / annotations.file(image), (height, width))
        left, top, right, bottom = window
        cover = None
        if annotations.outlines is not None:
            outline = annotations.outlines.get(row, height)
            if outline is not None:
                share = torch.from_numpy(outline.cover(window))
                cover = (share * 255).round().to(torch.uint8)
        # A copy: a part of the image would keep all of it in memory.
        part = pixels[:, top:bottom, left:right].clone(memory_format=torch.contiguous_format)
        crop = Crop(part, cover)
        self.crops.put(row, crop)
        return crop


def covered(annotations: AnnotationSet, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[M] bool, which annotations are covered by another chosen one by more than ``COVERED``."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(annotations.image[rows], kind="stable")]
    image, boxes = annotations.image[rows], annotations.boxes[rows]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    found = np.zeros(len(annotations.ids), dtype=np.bool_)
    most = int(np.bincount(image).max()) if len(image) else 0
    for lag in range(1, most):  # all pairs of one image, one offset in the order at a time
        first = np.flatnonzero(image[lag:] == image[:-lag])
        second = first + lag
        corner = np.maximum(boxes[first, :2], boxes[second, :2])
        end = np.minimum(boxes[first, 2:], boxes[second, 2:])
        shared = (end - corner).clip(min=0).prod(axis=1)
        for one in (first, second):
            found[rows[one[shared > COVERED * areas[one]]]] = True
    return found


def free_place(
    cut: Cut, size: tuple[int, int], occupied: NDArray[np.float64], chance: random.Random
) -> tuple[int, int] | None:
    """A position (x, y) where a cut covers nothing and its box lies inside the image, or None.

    Args:
        size: height and width of the image, px.
        occupied: [N, 4] xyxy px, areas that must not be covered.
    """
    height, width = size
    left, top, right, bottom = cut.box
    # The background around the box may lie outside of the image.
    first_x, last_x = math.ceil(-left), math.floor(width - right)
    first_y, last_y = math.ceil(-top), math.floor(height - bottom)
    if first_x > last_x or first_y > last_y or min(right - left, bottom - top) < 1:
        return None
    cut_height, cut_width = cut.size
    for _ in range(TRIES):
        x, y = chance.randint(first_x, last_x), chance.randint(first_y, last_y)
        corner, end = (x, y), (x + cut_width, y + cut_height)
        if not ((occupied[:, :2] < end) & (occupied[:, 2:] > corner)).all(axis=1).any():
            return x, y
    return None
