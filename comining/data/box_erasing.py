"""Erasing parts of annotated objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comining.data.seeding import derive_seed
from comining.data.strong_view import FILL
from comining.option_types import Fraction
from comining.structures import Boxes


class BoxErasing:
    """Covers a part of randomly chosen annotated boxes with a grey rectangle.

    Args:
        p: the probability that a part of a box is erased.
        sides: smallest and largest side of the rectangle, as a share of the side of the box.
    """

    def __init__(self, *, p: Fraction, sides: tuple[Fraction, Fraction]):
        if sides[0] > sides[1]:
            raise ValueError(f"method.erase.sides must be [smallest, largest], got {list(sides)}")
        self.p, self.sides = p, sides

    def __call__(
        self, images: Sequence[Tensor], annotated: Boxes, positions: Sequence[int], seed: int
    ) -> list[Tensor]:
        """Copies of images with parts erased.

        Args:
            images: B times [3, H, W] uint8, left unchanged.
            annotated: boxes of the B images.
            positions: B positions in the training stream; with ``seed`` they determine the parts.
            seed: of the run.
        """
        pictures = []
        for image, own, position in zip(images, annotated.split(), positions, strict=True):
            generator = torch.Generator().manual_seed(derive_seed("box parts", seed, position))
            picture = image.clone()
            rows = torch.rand(len(own), 5, generator=generator).tolist()
            for box, (chance, *shares) in zip(own.boxes.tolist(), rows, strict=True):
                if chance < self.p:
                    left, top, right, bottom = self.part(box, shares)
                    picture[:, top:bottom, left:right] = FILL
            pictures.append(picture)
        return pictures

    def part(self, box: Sequence[float], shares: Sequence[float]) -> list[int]:
        """The rectangle (left, top, right, bottom), whole px, inside a box (x1, y1, x2, y2).

        Args:
            shares: 4 numbers from 0 to 1: width, height, place along x and along y.
        """
        low, high = self.sides
        begin, end = [], []
        for axis in (0, 1):
            first, length = box[axis], box[axis + 2] - box[axis]
            side = (low + (high - low) * shares[axis]) * length
            start = first + shares[axis + 2] * (length - side)
            begin.append(max(0, round(start)))
            end.append(max(0, round(start + side)))
        return [*begin, *end]
