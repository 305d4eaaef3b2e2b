"""Co-mining (Wang et al., AAAI 2021), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from comining.detectors.detector import Detector
from comining.methods.method import Method, Supervision, View
from comining.methods.mining import Miner
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Boxes, Predictions


class CoMining(Method):
    """Every view's confident detections become extra ground truth, for the other view.

    Args:
        views: both for co-mining; ``[original]`` with ``exchange=False`` is the co-generation
            module without the Siamese network (Table 2, second row).
        exchange: a view is supervised by what was found in the *other* one (Eq. 1); else by its
            own pseudo-labels.
        start_step: nothing is mined before this optimizer step.
        score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image, clip_boxes,
            min_box_size: see :class:`Miner`.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        exchange: bool,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        max_per_image: NonNegativeInt,
        clip_boxes: bool,
        min_box_size: NonNegativeFloat,
        start_step: NonNegativeInt,
    ):
        super().__init__(views)
        if exchange and len(self.views) != 2:
            raise ValueError("method.exchange=true needs two views in method.views")
        self.miner = Miner(
            score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image,
            clip_boxes, min_box_size,
        )  # fmt: skip
        self.score_threshold = score_threshold
        self.exchange = exchange
        self.start_step = start_step

    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        if step < self.start_step:
            return super().supervise(detector, predictions, views, batch, step)
        mined, remaining = self.miner(
            detector, predictions, batch.annotated.repeat(len(self.views))
        )
        size = batch.annotated.num_images
        pseudo_labels: dict[str, Boxes] = {
            view: mined.of_range(number * size, (number + 1) * size)
            for number, view in enumerate(self.views)
        }
        sources = self.views[::-1] if self.exchange else self.views
        return Supervision(
            # Eq. 1
            {view: pseudo_labels[source] for view, source in zip(self.views, sources, strict=True)},
            pseudo_labels,
            dict(zip(self.views, torch.split(remaining, size), strict=True)),
        )
