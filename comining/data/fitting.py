"""Chooses image size, anchors and length of training from the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        usual_size: the size is not below this if the images have it (their median), even if their
            objects are large enough at a smaller one.
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
        usual_size: PositiveInt,
        largest_size: PositiveInt,
        aspect: PositiveFloat,
        batch_size: PositiveInt,
        batches_per_step: PositiveInt,
        epochs: PositiveFloat,
        least_steps: PositiveInt,
        most_steps: PositiveInt,
        validations: PositiveInt,
    ):
        for name, size in (("least_size", least_size), ("usual_size", usual_size)):
            if largest_size < size:
                raise ValueError(
                    f"fit.largest_size={largest_size} is smaller than fit.{name}={size}"
                )
        if most_steps < least_steps:
            raise ValueError(
                f"fit.most_steps={most_steps} is smaller than fit.least_steps={least_steps}"
            )
        if aspect < 1:
            raise ValueError(f"fit.aspect={aspect} must be a number of at least 1")
        self.small_object = small_object
        self.least_size, self.largest_size = least_size, largest_size
        self.usual_size = usual_size
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
        max_size = given.max_size
        min_size = given.min_size
        if min_size is None:
            wanted = self._wanted_size(annotations, objects, max_size)
            native = float(np.median(annotations.sizes[annotations.image[objects]].min(axis=1)))
            usual = min(self.usual_size, int(native) // STRIDE * STRIDE)
            min_size = min(max(wanted, usual, self.least_size), self.largest_size)
            min_size = min_size if max_size is None else min(min_size, max_size)
        if max_size is None:
            max_size = round(min_size * self.aspect)
        resized = _resized(annotations, objects, min_size, max_size)
        smallest_anchor = float(np.quantile(resized, 0.05)) / FINEST_STRIDE
        max_steps = given.max_steps
        if max_steps is None:
            images = len(np.unique(annotations.image[objects]))
            steps = round(images * self.epochs / self.images_per_step)
            max_steps = min(max(steps, self.least_steps), self.most_steps)
        return {
            "data.min_size": min_size,
            "data.max_size": max_size,
            "head.anchor_scale": min(
                ANCHOR_SCALES, key=lambda scale: abs(math.log(scale / smallest_anchor))
            ),
            "trainer.max_steps": max_steps,
            "trainer.val_check_interval": math.ceil(max_steps / self.validations),
        }

    def shortfall(
        self,
        annotations: AnnotationSet,
        objects: NDArray[np.bool_],
        given: Given,
        values: Mapping[str, float],
    ) -> str | None:
        """What to say if a limit keeps small objects smaller than wanted; None if none does.

        Args:
            objects, given: as for :meth:`values`.
            values: what that chose.
        """
        if given.min_size is not None:
            return None
        sizes = values["data.min_size"], values["data.max_size"]
        small = float(np.quantile(_resized(annotations, objects, *sizes), 0.1))
        if small > 0.95 * self.small_object:  # sides are rounded
            return None
        limit = "data.max_size" if given.max_size is not None else "fit.largest_size"
        return (
            f"one of ten objects has a side below {small:.1f} px after resizing, where "
            f"{self.small_object:g} px are wanted: {limit} limits the size. Cut the images into "
            f"tiles, or raise {limit}"
        )

    def _wanted_size(
        self, annotations: AnnotationSet, objects: NDArray[np.bool_], max_size: int | None
    ) -> int:
        """``data.min_size`` at which small objects have the wanted side, without limits."""
        shorter, longer, sides = _objects(annotations, objects)
        if max_size is None:  # it grows with the shorter side, and limits pictures that are longer
            shorter = np.maximum(shorter, longer / self.aspect)
        small_share = float(np.quantile(sides / shorter, 0.1))
        return math.ceil(self.small_object / small_share / STRIDE) * STRIDE


def _resized(
    annotations: AnnotationSet, objects: NDArray[np.bool_], min_size: float, max_size: float
) -> NDArray[np.float64]:
    """[M'] the side of each object after resizing, px."""
    shorter, longer, sides = _objects(annotations, objects)
    return sides * np.minimum(min_size / shorter, max_size / longer)


def _objects(
    annotations: AnnotationSet, objects: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[M'] the sides of each object's image, the shorter and the longer, and its own, px."""
    sizes = annotations.sizes[annotations.image[objects]].astype(np.float64)
    boxes = annotations.boxes[objects]
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return sizes.min(axis=1), sizes.max(axis=1), sides
