"""Soft Sampling (Wu et al., BMVC 2019): negatives far from every annotation count less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comining.detectors.detector import Background, Regions
from comining.methods.method import Method, View
from comining.option_types import Fraction, NonNegativeFloat
from comining.structures import Batch


class SoftSampling(Method):
    """Weights the classification loss of negatives by a Gompertz function of their overlap.

    ``w(o) = floor + (1 - floor) * exp(-b * exp(-c * o))``, o the largest IoU with an annotated box.
    Positives and the normaliser are unchanged. The published rule weights the proposals of a
    two-stage detector and leaves its region proposal network alone. In RetinaNet the anchors take
    their place, and in FCOS the boxes that the points predict.

    Args:
        floor: weight of a negative that overlaps nothing; 1 switches the method off.
        b, c: displacement and growth of the function.
    """

    def __init__(
        self, views: Sequence[View], *, floor: Fraction, b: NonNegativeFloat, c: NonNegativeFloat
    ):
        super().__init__(views)
        self.floor, self.b, self.c = floor, b, c

    def weight(self, overlap: Tensor) -> Tensor:
        """w(o), element-wise."""
        return self.floor + (1 - self.floor) * torch.exp(-self.b * torch.exp(-self.c * overlap))

    def background(self, regions: Regions, batch: Batch) -> Background:
        if regions.pooled:
            return Background()
        weight = self.weight(regions.overlap(batch.annotated))
        return Background(weights=weight.masked_fill(regions.positive, 1.0))
