"""Copy-paste of annotated objects (after Ghiasi et al., CVPR 2021), for partly annotated images.

What is annotated is all that is sure. An annotated object of another image is put where nothing is
annotated, so that it is seen more often, and among objects that are not annotated.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from comining.data.annotations import AnnotationSet
from comining.ops import resized_shape, share_inside

LoadImage = Callable[[Path, tuple[int, int]], Tensor]

# Objects that each process keeps decoded.
KEPT_CROPS = 4096
# Places that are tried for an object before it is left out.
TRIES = 20
# An object of which other annotations cover more than this share is not pasted: its picture shows
# them, too.
COVERED = 0.2


class Pasted(NamedTuple):
    """An image with further objects."""

    image: Tensor  # [3, H, W] uint8
    boxes: Tensor  # [P, 4] float32 xyxy px, of what was pasted
    labels: Tensor  # [P] int64


class Crop(NamedTuple):
    """An object with some of its background."""

    pixels: Tensor  # [3, h, w] uint8
    opacity: Tensor  # [h, w] float32, 1 where it replaces the image
    box: tuple[float, float, float, float]  # of the object in it, xyxy px


class ObjectPaster:
    """Pastes annotated objects of a training set, of all classes equally often.

    Args:
        annotations: the set.
        kept: [M] which annotations may be pasted.
        folder: of the images.
        load: decodes an image file of a given (height, width) to [3, H, W] uint8.
        min_size, max_size: shortest and longest side that the network shall see, px; an object has
            the size that its own image gives it.
        count: objects of an image at the most.
        scale: largest factor by which an object grows or shrinks.
        margin: of background that goes along, as a share of the object's sides; it fades out.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        kept: NDArray[np.bool_],
        folder: Path,
        load: LoadImage,
        *,
        min_size: int,
        max_size: int,
        count: int,
        scale: float,
        margin: float,
    ):
        self.annotations = annotations
        self.folder = folder
        self.load = load
        self.min_size, self.max_size = min_size, max_size
        self.count = count
        self.scale = scale
        self.margin = margin
        rows = np.flatnonzero(kept)
        clear = ~covered(annotations, rows)
        self.rows_of_class = []
        for label in np.unique(annotations.labels[rows]):
            of_class = annotations.labels[rows] == label
            # A class of which nothing is clear is pasted as it is.
            chosen = of_class & clear if (of_class & clear).any() else of_class
            self.rows_of_class.append(rows[chosen])
        self._crop = functools.lru_cache(maxsize=KEPT_CROPS)(self._decoded)

    def __call__(self, image: Tensor, taken: Tensor, chance: random.Random, flip: bool) -> Pasted:
        """Paste into one image.

        Args:
            image: [3, H, W] uint8; not changed.
            taken: [N, 4] xyxy px, what nothing may cover: annotations, regions to ignore.
            chance: decides everything.
            flip: whether objects may be mirrored.
        """
        size = (int(image.shape[-2]), int(image.shape[-1]))
        boxes: list[tuple[float, ...]] = []
        labels: list[int] = []
        occupied = [tuple(box) for box in taken.tolist()]
        for _ in range(self.count):
            rows = self.rows_of_class[chance.randrange(len(self.rows_of_class))]
            row = int(rows[chance.randrange(len(rows))])
            factor = self.scale ** chance.uniform(-1, 1)
            crop = resized(self._crop(row), factor, flip and chance.random() < 0.5)
            place = free_place(crop, size, occupied, chance)
            if place is None:
                continue
            if not boxes:
                image = image.clone()
            blend(image, crop, *place)
            x, y = place
            left, top, right, bottom = crop.box
            boxes.append((left + x, top + y, right + x, bottom + y))
            occupied.append(boxes[-1])
            labels.append(int(self.annotations.labels[row]))
        return Pasted(
            image,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
        )

    def _decoded(self, row: int) -> Crop:
        """An annotation with its margin, at the size that the network sees its image in."""
        image = int(self.annotations.image[row])
        height, width = (int(side) for side in self.annotations.sizes[image])
        pixels = self.load(self.folder / self.annotations.file(image), (height, width))
        left, top, right, bottom = self.annotations.boxes[row].tolist()
        margin_x, margin_y = self.margin * (right - left), self.margin * (bottom - top)
        x, y = max(0, math.floor(left - margin_x)), max(0, math.floor(top - margin_y))
        end_x = min(width, math.ceil(right + margin_x))
        end_y = min(height, math.ceil(bottom + margin_y))
        part = pixels[:, y:end_y, x:end_x]
        crop = Crop(
            part,
            faded(part.shape[-2], part.shape[-1], (left - x, top - y, right - x, bottom - y)),
            (left - x, top - y, right - x, bottom - y),
        )
        new_height, _ = resized_shape(height, width, self.min_size, self.max_size)
        return resized(crop, new_height / height, mirrored=False)


def covered(annotations: AnnotationSet, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[len(rows)] whether others of these rows cover a good part of one."""
    found = np.zeros(len(rows), dtype=np.bool_)
    order = np.argsort(annotations.image[rows], kind="stable")
    starts = np.flatnonzero(np.diff(annotations.image[rows][order])) + 1
    for of_image in np.split(order, starts):
        boxes = torch.from_numpy(annotations.boxes[rows[of_image]])
        shares = share_inside(boxes, boxes).fill_diagonal_(0)
        found[of_image] = (shares > COVERED).any(dim=0).numpy()
    return found


def faded(height: int, width: int, box: tuple[float, float, float, float]) -> Tensor:
    """Opacity [height, width]: 1 in the box, and falling to 0 towards the border around it."""
    left, top, right, bottom = box
    x = torch.arange(width) + 0.5
    y = torch.arange(height) + 0.5
    outside_x = torch.maximum((left - x) / max(left, 1.0), (x - right) / max(width - right, 1.0))
    outside_y = torch.maximum((top - y) / max(top, 1.0), (y - bottom) / max(height - bottom, 1.0))
    ramp_x, ramp_y = (1 - side.clamp(0, 1) for side in (outside_x, outside_y))
    return ramp_y[:, None] * ramp_x


def resized(crop: Crop, factor: float, mirrored: bool) -> Crop:
    """The crop scaled by a factor, and mirrored."""
    height, width = crop.opacity.shape
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    pixels, opacity = crop.pixels.float(), crop.opacity
    if size != (height, width):
        both = torch.cat([pixels, opacity[None]])[None]
        # As images are resized for the network.
        both = F.interpolate(both, size=size, mode="bilinear", align_corners=False)[0]
        pixels, opacity = both[:3], both[3]
    scale_x, scale_y = size[1] / width, size[0] / height
    left, top, right, bottom = crop.box
    box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
    if mirrored:
        pixels, opacity = pixels.flip(-1), opacity.flip(-1)
        box = (size[1] - box[2], box[1], size[1] - box[0], box[3])
    return Crop(pixels.round().clamp(0, 255).to(torch.uint8), opacity, box)


def free_place(
    crop: Crop,
    size: tuple[int, int],
    occupied: list[tuple[float, ...]],
    chance: random.Random,
) -> tuple[int, int] | None:
    """Where (x, y) a crop covers nothing and its box lies inside the image; None for nowhere."""
    height, width = size
    left, top, right, bottom = crop.box
    first_x, last_x = math.ceil(-left), math.floor(width - right)
    first_y, last_y = math.ceil(-top), math.floor(height - bottom)
    if first_x > last_x or first_y > last_y or min(right - left, bottom - top) < 1:
        return None
    crop_height, crop_width = crop.opacity.shape
    for _ in range(TRIES):
        x, y = chance.randint(first_x, last_x), chance.randint(first_y, last_y)
        if not any(
            x < end_x and start_x < x + crop_width and y < end_y and start_y < y + crop_height
            for start_x, start_y, end_x, end_y in occupied
        ):
            return x, y
    return None


def blend(image: Tensor, crop: Crop, x: int, y: int) -> None:
    """Put a crop into an image [3, H, W] uint8, in place; what overhangs is cut off."""
    height, width = image.shape[-2:]
    crop_height, crop_width = crop.opacity.shape
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + crop_height), min(width, x + crop_width)
    pixels = crop.pixels[:, top - y : bottom - y, left - x : right - x].float()
    opacity = crop.opacity[top - y : bottom - y, left - x : right - x]
    under = image[:, top:bottom, left:right]
    mixed = under.float() * (1 - opacity) + pixels * opacity
    under.copy_(mixed.round().clamp(0, 255).to(torch.uint8))
