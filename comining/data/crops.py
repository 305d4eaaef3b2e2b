"""Pixels of objects that are cut out of images and pasted into others."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F


class Cut(NamedTuple):
    """Where an object is cut out, and the size at which it is pasted."""

    window: tuple[int, int, int, int]  # left, top, right, bottom, whole px of its image
    size: tuple[int, int]  # height, width, px of the image that it is pasted into
    box: tuple[float, float, float, float]  # of the object in a picture of that size, xyxy px
    mirrored: bool


class Crop(NamedTuple):
    """The pixels of an object, as in its image."""

    pixels: Tensor  # [3, h, w] uint8
    cover: Tensor | None  # [h, w] uint8, 255 where the object is; None without an outline

    @property
    def bytes(self) -> int:
        """Its memory in bytes."""
        return self.pixels.numel() + (0 if self.cover is None else self.cover.numel())


class CropCache:
    """A least-recently-used cache of crops, limited in bytes."""

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self.crops: OrderedDict[int, Crop] = OrderedDict()

    def get(self, row: int) -> Crop | None:
        """The crop of an annotation; None if it is not cached."""
        if row in self.crops:
            self.crops.move_to_end(row)
        return self.crops.get(row)

    def put(self, row: int, crop: Crop) -> None:
        """Add a crop, and drop the least recently used ones beyond the limit."""
        if crop.bytes > self.limit:
            return
        self.crops[row] = crop
        self.bytes += crop.bytes
        while self.bytes > self.limit:
            self.bytes -= self.crops.popitem(last=False)[1].bytes


def rendered(crop: Crop, cut: Cut) -> tuple[Tensor, Tensor]:
    """A crop at its pasted size: pixels [3, h, w] uint8, opacity [h, w] float32, 0 ... 1."""
    pixels, size = crop.pixels, list(cut.size)
    if pixels.shape[-2:] != cut.size:
        # Resized like images for the network, so that pasted pixels are as sharp as others.
        pixels = F.resize(pixels, size, antialias=False)
    pixels = pixels.flip(-1) if cut.mirrored else pixels
    if crop.cover is None:
        return pixels, faded(*cut.size, cut.box)
    cover = crop.cover[None, None].float() / 255
    if cover.shape[-2:] != cut.size:
        cover = functional.interpolate(cover, size=size, mode="bilinear", antialias=True)
    cover = cover.flip(-1) if cut.mirrored else cover
    return pixels, softened(cover)[0, 0]


def softened(cover: Tensor) -> Tensor:
    """A mask [1, 1, h, w] whose edge is blurred over a pixel on either side."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    padded = functional.pad(cover, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, torch.outer(kernel, kernel)[None, None]).clamp(0, 1)


def faded(height: int, width: int, box: tuple[float, float, float, float]) -> Tensor:
    """Opacity [height, width]: 1 in the box, decreasing to 0 towards the border around it."""
    left, top, right, bottom = box
    across, down = _ramp(width, left, right), _ramp(height, top, bottom)
    return torch.from_numpy(np.outer(down, across))


def _ramp(length: int, start: float, end: float) -> NDArray[np.float32]:
    """1 from start to end, decreasing to 0 towards the first and the last pixel."""
    at = np.arange(length, dtype=np.float32) + 0.5
    # Without background around the box there is no ramp.
    before, after = max(start, 1e-3), max(length - end, 1e-3)
    rising_and_falling: NDArray[np.float32] = np.minimum(at / before, (length - at) / after)
    return rising_and_falling.clip(max=1)


def blend(image: Tensor, hidden: Tensor, pixels: Tensor, opacity: Tensor, x: int, y: int) -> None:
    """Put pixels [3, h, w] into an image [3, H, W], both uint8, in place.

    Args:
        hidden: [H, W] float32, how much of the image is covered so far; updated in place.
        opacity: [h, w] float32.
        x, y: position in the image, px; parts outside are cut off.
    """
    height, width = image.shape[-2:]
    part_height, part_width = opacity.shape
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + part_height), min(width, x + part_width)
    inside = (slice(top - y, bottom - y), slice(left - x, right - x))
    share = opacity[inside]
    under = image[:, top:bottom, left:right]
    mixed = under.float() * (1 - share) + pixels[:, *inside].float() * share
    under.copy_(mixed.round().clamp(0, 255).to(torch.uint8))
    hidden[top:bottom, left:right] = torch.maximum(hidden[top:bottom, left:right], share)
