"""The strong view of an image: other colours, another geometry, erased parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from comining.data.color_operations import ColorOperation
from comining.data.geometry import Geometry
from comining.data.seeding import derive_seed
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt

# Grey, for areas from beyond the border and for erased parts.
FILL = 125


class Warp(NamedTuple):
    """How an image is moved or sheared about its centre."""

    translate: float  # to the right, as a share of the width
    shear: tuple[float, float]  # degrees: along x, along y


class StrongView:
    """Makes the strong picture of Co-Student (ECCV 2024) out of an image.

    One of nine colour operations; then a shift along x or a shear along x or y, the two kinds
    equally often; then grey squares. All of it is a function of the seed and the position of the
    image in the training stream, as in :class:`SecondView`.

    Args:
        translate: the shift is at most this share of the width.
        shear: largest angle, degrees.
        squares: least and largest number of squares.
        square_side: their longest side as a share of the shorter side of the image.
        min_visible, min_box_size: see :class:`Geometry`.
    """

    def __init__(
        self,
        *,
        translate: Fraction,
        shear: Annotated[float, Field(ge=0, lt=90)],
        squares: tuple[NonNegativeInt, NonNegativeInt],
        square_side: Fraction,
        min_visible: Fraction,
        min_box_size: NonNegativeFloat,
    ):
        if squares[0] > squares[1]:
            raise ValueError(f"method.strong.squares must be [least, most], got {list(squares)}")
        self.operation = ColorOperation(p=1.0)
        self.translate, self.shear = translate, shear
        self.squares, self.square_side = squares, square_side
        self.min_visible, self.min_box_size = min_visible, min_box_size

    def __call__(
        self, images: Sequence[Tensor], positions: Sequence[int], seed: int
    ) -> list[Tensor]:
        """The strong pictures of images.

        Args:
            images: B times [3, H, W] uint8, left unchanged.
            positions: B positions in the training stream.
            seed: of the run.
        """
        pictures = []
        for image, position in zip(images, positions, strict=True):
            colours = _generator("strong colours", seed, position)
            warp = self.warp(position, seed)
            picture = F.affine(
                self.operation.change(image, colours),
                angle=0.0,
                translate=[warp.translate * image.shape[-1], 0.0],
                scale=1.0,
                shear=list(warp.shear),
                interpolation=InterpolationMode.BILINEAR,
                fill=[float(FILL)] * 3,
            )
            pictures.append(self.erase(picture, _generator("strong squares", seed, position)))
        return pictures

    def geometry(
        self,
        sizes: Sequence[tuple[int, int]],
        positions: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> Geometry:
        """The geometry of the strong pictures of B images.

        Args:
            sizes: B times (height, width).
            positions, seed: see :meth:`__call__`.
        """
        matrices, shifts = [], []
        for (height, width), position in zip(sizes, positions, strict=True):
            warp = self.warp(position, seed)
            # torchvision shears against the axes: x' = x - tan(shear) * (y - centre).
            along_x, along_y = (-math.tan(math.radians(angle)) for angle in warp.shear)
            matrices.append([[1.0, along_x], [along_y, 1.0]])
            shifts.append(
                [warp.translate * width - along_x * height / 2, -along_y * width / 2],
            )
        matrix = torch.tensor(matrices).to(device, non_blocking=True)
        shift = torch.tensor(shifts).to(device, non_blocking=True)
        return Geometry(matrix, shift, sizes, self.min_visible, self.min_box_size)

    def warp(self, position: int, seed: int) -> Warp:
        """The random warp of the image at a position."""
        generator = _generator("strong geometry", seed, position)
        kind, axis, amount = torch.rand(3, generator=generator).tolist()
        amount = 2 * amount - 1
        if kind < 0.5:
            return Warp(self.translate * amount, (0.0, 0.0))
        angle = self.shear * amount
        return Warp(0.0, (angle, 0.0) if axis < 0.5 else (0.0, angle))

    def erase(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """A copy of a picture [3, H, W] with grey squares."""
        picture = picture.clone()
        height, width = picture.shape[-2:]
        low, high = self.squares
        count = int(torch.randint(low, high + 1, (), generator=generator))
        for share, across, down in torch.rand(count, 3, generator=generator).tolist():
            side = round(share * self.square_side * min(height, width))
            left, top = round(across * (width - side)), round(down * (height - side))
            picture[:, top : top + side, left : left + side] = FILL
        return picture


def _generator(purpose: str, seed: int, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(purpose, seed, position))
