"""One of nine colour operations: the photometric half of strong augmentation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from comining.data.views import SecondView

# Each takes an image [3, H, W] uint8 and a strength from 0 to 1. The list is that of Soft Teacher
# (Xu et al., ICCV 2021). Ranges: factors of 0.1 ... 1.9 are RandAugment's (Cubuk et al. 2020), as
# is any threshold for solarize; 4 ... 8 bits are AutoAugment's.
OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: F.autocontrast(image),
    "equalize": lambda image, strength: F.equalize(image),
    "solarize": lambda image, strength: F.solarize(image, 255 * strength),
    "posterize": lambda image, strength: F.posterize(image, 4 + min(4, int(5 * strength))),
    "color": lambda image, strength: F.adjust_saturation(image, _factor(strength)),
    "contrast": lambda image, strength: F.adjust_contrast(image, _factor(strength)),
    "brightness": lambda image, strength: F.adjust_brightness(image, _factor(strength)),
    "sharpness": lambda image, strength: F.adjust_sharpness(image, _factor(strength)),
}


def _factor(strength: float) -> float:
    return 0.1 + 1.8 * strength


class ColorOperation(SecondView):
    """Applies one of :data:`OPERATIONS`, drawn with its strength for every image by its position.

    Args:
        p: the probability that an image is changed at all.
    """

    def change(self, image: Tensor, generator: torch.Generator) -> Tensor:
        names = list(OPERATIONS)
        name = names[int(torch.randint(len(names), (), generator=generator))]
        strength = torch.rand((), generator=generator).item()
        return OPERATIONS[name](image, strength)
