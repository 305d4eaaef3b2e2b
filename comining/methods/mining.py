"""Mining: Steps 1-3 of Algorithm 1 (Wang et al., AAAI 2021), for all methods that mine.

Everything works on all images of a batch at once, without a gradient. Step 1 needs to know how a
detector encodes its boxes and is therefore :meth:`Detector.candidates`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comining.detectors.detector import Detector
from comining.ops import clip, iou_in_image, suppress
from comining.structures import Boxes, Predictions


@dataclass(frozen=True)
class Miner:
    """Confident detections of a batch that its annotations do not cover.

    Args:
        score_threshold: tau, the class probability that a detection must exceed (Step 1).
        nms_threshold: theta_1 (Step 2).
        overlap_threshold: theta_2, the IoU above which a detection counts as annotated (Step 3).
        class_aware: Step 3 looks at annotations of the detection's own class only.
        max_per_image: pseudo-labels of an image at most.
        clip_boxes: cut pseudo-labels at the image border and drop those under ``min_box_size``
            px; a box that overlaps no anchor would make all anchors of an image positive.
    """

    score_threshold: float
    nms_threshold: float
    overlap_threshold: float
    class_aware: bool
    max_per_image: int
    clip_boxes: bool
    min_box_size: float

    @torch.no_grad()
    def __call__(
        self, detector: Detector, predictions: Predictions, annotated: Boxes
    ) -> tuple[Boxes, Tensor]:
        """Steps 1-3.

        Args:
            predictions: of B images.
            annotated: of the same images.

        Returns:
            pseudo-labels of the B images, and [B, 5] int64: the class scores of each image, and
            how many remain after Step 1, Step 2, the image border and Step 3.
        """
        boxes = detector.candidates(predictions, self.score_threshold)
        remaining = [boxes.counts_on_device()]
        boxes = suppress(boxes, predictions.num_classes, self.nms_threshold, self.max_per_image)
        remaining.append(boxes.counts_on_device())
        if self.clip_boxes:
            boxes = clip(boxes, predictions.image_sizes, self.min_box_size)
        remaining.append(boxes.counts_on_device())
        boxes = drop_annotated(boxes, annotated, self.overlap_threshold, self.class_aware)
        remaining.append(boxes.counts_on_device())
        all_scores = torch.full_like(remaining[0], predictions.scores_per_image)
        return boxes, torch.stack([all_scores, *remaining], dim=1)


def drop_annotated(
    boxes: Boxes, annotated: Boxes, overlap_threshold: float, class_aware: bool
) -> Boxes:
    """Step 3: drop boxes that an annotation of their image already covers (IoU > threshold).

    Args:
        class_aware: compare with annotations of the same class only, as the authors' code does.
            Algorithm 1 in the paper compares with all.
    """
    if len(boxes) == 0 or len(annotated) == 0:
        return boxes
    iou, labels = iou_in_image(boxes, annotated)
    covered = iou > overlap_threshold
    if class_aware:
        covered &= labels == boxes.labels[:, None]
    return boxes[~covered.any(dim=1)]
