"""Erasing a part of an annotated object (SparseDet)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comining.data.seeding import derive_seed
from comining.data.strong_view import FILL
from comining.option_types import Fraction, PositiveFloat
from comining.structures import Boxes

ATTEMPTS = 10


class BoxErasing:
    """Covers a part of one annotated box of each image, drawn at random, with a grey rectangle.

    Source: the code of Suri et al., ICCV 2023, which covers it with black.

    Args:
        area: smallest and largest area of the rectangle, as a share of the box.
        ratio: smallest and largest ratio of its height to its width. A rectangle that does not fit
            into the box is drawn again, up to ten times; then the image stays as it is.
    """

    def __init__(
        self, *, area: tuple[Fraction, Fraction], ratio: tuple[PositiveFloat, PositiveFloat]
    ):
        for name, (smallest, largest) in (("area", area), ("ratio", ratio)):
            if smallest > largest:
                raise ValueError(
                    f"method.erase.{name} must be [smallest, largest], got {[smallest, largest]}"
                )
        self.area, self.ratio = area, ratio

    def __call__(
        self, images: Sequence[Tensor], annotated: Boxes, positions: Sequence[int], seed: int
    ) -> list[Tensor]:
        """Copies of images with a part erased.

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
            if len(own):
                row = int(torch.randint(len(own), (), generator=generator))
                part = self.part(own.boxes[row].tolist(), generator)
                if part is not None:
                    left, top, right, bottom = part
                    picture[:, top:bottom, left:right] = FILL
            pictures.append(picture)
        return pictures

    def part(self, box: Sequence[float], generator: torch.Generator) -> list[int] | None:
        """The rectangle (left, top, right, bottom), whole px, inside a box (x1, y1, x2, y2).

        None if none of the rectangles that were drawn fits.
        """
        left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
        for _ in range(ATTEMPTS):
            area, ratio, along_x, along_y = torch.rand(4, generator=generator).tolist()
            covered = _between(self.area, area) * width * height
            ratio = _between(self.ratio, ratio)
            across, down = (covered / ratio) ** 0.5, (covered * ratio) ** 0.5
            if across < width and down < height:
                x, y = left + along_x * (width - across), top + along_y * (height - down)
                return [max(0, round(side)) for side in (x, y, x + across, y + down)]
        return None


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
