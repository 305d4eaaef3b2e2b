"""The second view of an image. Photometric only: both views share their geometry and boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from comining.data.seeding import derive_seed
from comining.option_types import Fraction, NonNegativeFloat, PositiveFloat


class SecondView(ABC):
    """Makes the augmented copy of an image, which is unchanged with probability ``1 - p``.

    Args:
        p: the probability that an image is changed.
    """

    def __init__(self, p: Fraction):
        self.p = p

    def __call__(
        self, images: Sequence[Tensor], positions: Sequence[int], seed: int
    ) -> list[Tensor]:
        """The second view of every image.

        Args:
            images: B times [3, H, W] uint8, left unchanged.
            positions: B positions in the training stream. With ``seed`` they determine the
                change, so that a resumed run, or another number of workers or ranks, sees the same.
            seed: of the run.
        """
        views = []
        for image, position in zip(images, positions, strict=True):
            generator = torch.Generator().manual_seed(derive_seed("view", seed, position))
            unchanged = torch.rand((), generator=generator).item() >= self.p
            views.append(image if unchanged else self.change(image, generator))
        return views

    @abstractmethod
    def change(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A changed copy of one image [3, H, W] uint8, drawing from ``generator`` alone."""


class NoChange(SecondView):
    """``view=none`` (Table 4, "w/o aug"): both branches see the same image."""

    def __init__(self) -> None:
        super().__init__(p=0.0)

    def change(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return image


class ColorJitter(SecondView):
    """torchvision's ColorJitter, but with parameters drawn for every image by its position.

    Args:
        brightness, contrast, saturation: a factor is drawn from ``1 - x ... 1 + x``, not below 0.
        hue: a shift of the hue circle is drawn from ``-hue ... hue``, at most 0.5.
    """

    def __init__(
        self,
        *,
        brightness: NonNegativeFloat,
        contrast: NonNegativeFloat,
        saturation: NonNegativeFloat,
        hue: Annotated[float, Field(ge=0, le=0.5)],
        p: Fraction,
    ):
        super().__init__(p)
        self.ranges = [
            (max(0.0, 1 - brightness), 1 + brightness),
            (max(0.0, 1 - contrast), 1 + contrast),
            (max(0.0, 1 - saturation), 1 + saturation),
            (-hue, hue),
        ]

    def change(self, image: Tensor, generator: torch.Generator) -> Tensor:
        adjustments = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
        for index in torch.randperm(4, generator=generator).tolist():
            low, high = self.ranges[index]
            amount = low + (high - low) * torch.rand((), generator=generator).item()
            image = adjustments[index](image, amount)
        return image


class GaussianBlur(SecondView):
    """Gaussian blur with a width drawn for every image.

    Args:
        sigma: smallest and largest standard deviation, px.
    """

    def __init__(self, *, sigma: tuple[PositiveFloat, PositiveFloat], p: Fraction):
        super().__init__(p)
        low, high = sigma
        if low > high:
            raise ValueError(f"view.sigma must be [smallest, largest], got {list(sigma)}")
        self.low, self.high = low, high

    def change(self, image: Tensor, generator: torch.Generator) -> Tensor:
        sigma = self.low + (self.high - self.low) * torch.rand((), generator=generator).item()
        radius = min(round(3 * sigma) + 1, *(side - 1 for side in image.shape[-2:]))
        blurred: Tensor = F.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)
        return blurred
