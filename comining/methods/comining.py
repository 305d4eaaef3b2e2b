"""Co-mining (Wang et al., AAAI 2021), Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comining.detectors.dense import DenseDetector
from comining.methods.method import Method, Supervision, View
from comining.methods.mining import clip, drop_annotated, merge, suppress
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Candidates, DensePredictions, Detections, Targets


class CoMining(Method):
    """Every view's confident detections become extra ground truth, for the other view.

    Args:
        views: both for co-mining; ``[original]`` with ``exchange=False`` is the co-generation
            module without the Siamese network (Table 2, second row).
        exchange: a view is supervised by what the *other* one found (Eq. 1); else by its own.
        score_threshold: tau, the class probability that a detection must exceed (Step 1).
        nms_threshold: theta_1 (Step 2).
        overlap_threshold: theta_2, the IoU above which a detection counts as annotated (Step 3).
        class_aware: Step 3 looks at annotations of the detection's own class only.
        max_per_image: pseudo-labels of an image at the most.
        clip_boxes: cut pseudo-labels at the image border and drop those under ``min_box_size``
            px; a box that overlaps no anchor would make all anchors of an image positive.
        start_step: nothing is mined before this optimizer step.
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
        self.exchange = exchange
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.overlap_threshold = overlap_threshold
        self.class_aware = class_aware
        self.max_per_image = max_per_image
        self.clip_boxes = clip_boxes
        self.min_box_size = min_box_size
        self.start_step = start_step

    @torch.no_grad()
    def cogenerate(
        self, detector: DenseDetector, predictions: DensePredictions, targets: Sequence[Targets]
    ) -> tuple[list[Detections], Tensor]:
        """Steps 1-3: what the predictions of each image hold beyond its annotations.

        Returns:
            pseudo-labels of the B images, and [B, 5] int64: the class scores of each image, and
            how many are left after Step 1, Step 2, the image border and Step 3.
        """
        count = len(targets)
        found = detector.decode(predictions, self.score_threshold)
        left = [_per_image(found, count)]
        found = suppress(found, predictions.num_classes, self.nms_threshold, self.max_per_image)
        left.append(_per_image(found, count))
        if self.clip_boxes:
            found = clip(found, predictions.image_sizes, self.min_box_size)
        left.append(_per_image(found, count))
        found = drop_annotated(found, targets, self.overlap_threshold, self.class_aware)
        left.append(_per_image(found, count))
        scores = torch.full_like(left[0], predictions.logits[0].numel())
        return found.per_image(count), torch.stack([scores, *left], dim=1)

    def supervise(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        batch: Batch,
        step: int,
    ) -> Supervision:
        if step < self.start_step:
            return super().supervise(detector, predictions, batch, step)
        targets = batch.targets
        found, passed = self.cogenerate(detector, predictions, [*targets] * len(self.views))
        size = len(targets)
        shares: dict[str, slice] = {
            view: slice(start, start + size)
            for view, start in zip(self.views, range(0, len(found), size), strict=True)
        }
        mined = {view: found[share] for view, share in shares.items()}
        sources = self.views[::-1] if self.exchange else self.views
        supervision: dict[str, list[Targets]] = {
            view: merge(targets, mined[source])
            for view, source in zip(self.views, sources, strict=True)
        }
        return Supervision(
            supervision, mined, {view: passed[share] for view, share in shares.items()}
        )


def _per_image(candidates: Candidates, num_images: int) -> Tensor:
    """[B] int64, without the wait for the device that ``bincount`` costs."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=candidates.image.device)
    return counts.index_add_(0, candidates.image, torch.ones_like(candidates.image))
