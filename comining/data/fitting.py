"""Chooses image size, anchors and length of training from the training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet
from comining.option_types import PositiveFloat, PositiveInt

# torchvision pads sides to a multiple of this.
STRIDE = 32
# The smallest anchors are anchor_scale times the finest stride of the pyramid.
FINEST_STRIDE = 8
ANCHOR_SCALES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Given:
    """Options that are given; None for those to choose."""

    min_size: int | None = None
    max_size: int | None = None
    max_steps: int | None = None


class FitToData:
    """Chooses the options that depend on the size of the objects and on the number of images.

    Args:
        small_object: wanted side of a small object (the 10th percentile) after resizing, px.
        least_size, largest_size: bounds of the shorter side of an image, px.
        aspect: largest ratio of the longer to the shorter side.
        batch_size, batches_per_step: of training, ``data.batch_size`` and
            ``trainer.accumulate_grad_batches``.
        epochs: how often training sees every image.
        least_steps, most_steps: bounds of the length of training.
        validations: how often training is interrupted for validation.
    """

    def __init__(
        self,
        *,
        small_object: PositiveFloat,
        least_size: PositiveInt,
        largest_size: PositiveInt,
        aspect: PositiveFloat,
        batch_size: PositiveInt,
        batches_per_step: PositiveInt,
        epochs: PositiveFloat,
        least_steps: PositiveInt,
        most_steps: PositiveInt,
        validations: PositiveInt,
    ):
        if largest_size < least_size:
            raise ValueError(
                f"fit.largest_size={largest_size} is smaller than fit.least_size={least_size}"
            )
        if most_steps < least_steps:
            raise ValueError(
                f"fit.most_steps={most_steps} is smaller than fit.least_steps={least_steps}"
            )
        if aspect < 1:
            raise ValueError(f"fit.aspect={aspect} must be a number of at least 1")
        self.small_object = small_object
        self.least_size, self.largest_size = least_size, largest_size
        self.aspect = aspect
        self.images_per_step = batch_size * batches_per_step
        self.epochs = epochs
        self.least_steps, self.most_steps = least_steps, most_steps
        self.validations = validations

    def values(
        self, annotations: AnnotationSet, objects: NDArray[np.bool_], given: Given
    ) -> dict[str, int | float]:
        """The options that fit a training set, by name.

        Args:
            objects: [M] which annotations are trained on; at least one.
            given: options that are already chosen; the others depend on them.
        """
        # Sides as shares of the shorter side of the image, which becomes data.min_size.
        height, width = annotations.sizes[annotations.image[objects]].T
        boxes = annotations.boxes[objects]
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        shares = sides / np.minimum(height, width)

        max_size = given.max_size
        min_size = given.min_size
        if min_size is None:
            min_size = self._min_size(float(np.quantile(shares, 0.1)))
            min_size = min_size if max_size is None else min(min_size, max_size)
        smallest_anchor = float(np.quantile(shares, 0.05)) * min_size / FINEST_STRIDE
        max_steps = given.max_steps
        if max_steps is None:
            images = len(np.unique(annotations.image[objects]))
            steps = round(images * self.epochs / self.images_per_step)
            max_steps = min(max(steps, self.least_steps), self.most_steps)
        return {
            "data.min_size": min_size,
            "data.max_size": round(min_size * self.aspect) if max_size is None else max_size,
            "head.anchor_scale": min(
                ANCHOR_SCALES, key=lambda scale: abs(math.log(scale / smallest_anchor))
            ),
            "trainer.max_steps": max_steps,
            "trainer.val_check_interval": math.ceil(max_steps / self.validations),
        }

    def _min_size(self, small_share: float) -> int:
        size = math.ceil(self.small_object / small_share / STRIDE) * STRIDE
        return min(max(size, self.least_size), self.largest_size)
