"""SparseDet (Suri et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from comining.data.box_erasing import BoxErasing
from comining.data.datamodule import DetectionData
from comining.data.views import SecondView
from comining.detectors.detector import Detector
from comining.detectors.faster_rcnn import FasterRCNNDetector
from comining.detectors.known_entries import in_ignored
from comining.detectors.losses import normalizer
from comining.detectors.region_samples import Doubtful, TwoStagePredictions
from comining.methods.method import Method, RunInfo, Supervision
from comining.methods.mining import Miner
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Boxes, Predictions, StepResult


class SparseDet(Method):
    """Proposals that may be objects are not background, and get similar features in two views.

    The network sees the original view and a ``strong`` one of the same geometry. Besides the
    annotations, the strong view is trained on the confident detections of the original one. From a
    given step on, background that the region proposal network takes for an object, far from every
    annotation (a pseudo-positive), is sampled in neither stage, and the head's features of the
    original view's pseudo-positives are drawn together in the two views.

    (The authors' region proposal network looks at the features of both views together, at inference
    too. Here it looks at each view alone, so that the network stays torchvision's, and the anchors
    that pseudo-positives come from are ignored in it. docs/two-stage.md lists what else differs.)

    Args:
        recolour: changes the colours of the strong view.
        erase: erases a part of an annotated object in it.
        start: the part of training, 0 ... 1, before which there are no pseudo-positives.
        objectness: a pseudo-positive's probability of an object exceeds this.
        overlap: its IoU with every annotation is at most this.
        ignore_in_rpn: whether the region proposal network leaves pseudo-positives out, too. False
            trains them as background there, as in the authors' code.
        consistency_weight: of the mean squared difference of features.
        pair_nms_threshold, max_pairs: features are compared for the best pseudo-positives of an
            image after NMS, at most this many.
        score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image, clip_boxes,
            min_box_size: of the detections of the original view, see :class:`Miner`.
    """

    needs = FasterRCNNDetector

    def __init__(
        self,
        *,
        recolour: SecondView,
        erase: BoxErasing,
        start: Fraction,
        objectness: Fraction,
        overlap: Fraction,
        ignore_in_rpn: bool,
        consistency_weight: NonNegativeFloat,
        pair_nms_threshold: Fraction,
        max_pairs: NonNegativeInt,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        max_per_image: NonNegativeInt,
        clip_boxes: bool,
        min_box_size: NonNegativeFloat,
    ):
        super().__init__(["original"])
        self.views = ("original", "strong")
        self.recolour, self.erase = recolour, erase
        self.miner = Miner(
            score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image,
            clip_boxes, min_box_size,
        )  # fmt: skip
        self.score_threshold = score_threshold
        self.start = start
        self.objectness, self.overlap = objectness, overlap
        self.ignore_in_rpn = ignore_in_rpn
        self.consistency_weight = consistency_weight
        self.pair_nms_threshold, self.max_pairs = pair_nms_threshold, max_pairs
        self.started = False  # in the current step
        self.consistency: list[Tensor] = []  # of the current step: one, or none

    @property
    def mined_views(self) -> tuple[str, ...]:
        return ("original",)

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        self.seed = run.seed
        self.first_step = round(self.start * run.max_steps)

    def own_views(self, originals: Sequence[Tensor], batch: Batch) -> dict[str, Sequence[Tensor]]:
        recoloured = self.recolour(originals, batch.positions, self.seed)
        return {"strong": self.erase(recoloured, batch.annotated, batch.positions, self.seed)}

    def forward(
        self,
        detector: Detector,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> StepResult:
        self.started = step >= self.first_step
        self.consistency.clear()
        result = super().forward(detector, views, batch, step)
        for difference in self.consistency:
            result.losses["strong/consistency"] = self.consistency_weight * difference
        self.consistency.clear()
        return result

    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        size = batch.annotated.num_images
        original, strong = predictions.split(size)
        if self.started and self.in_step and self.consistency_weight > 0:
            self.consistency.append(self.feature_difference(detector, original, strong, batch))
        mined, remaining = self.miner(detector, original.detach(), batch.annotated)
        return Supervision({"strong": mined}, {"original": mined}, {"original": remaining})

    def pseudo_positives(self, batch: Batch) -> Doubtful:
        """Which regions of a view are pseudo-positives; none where every class is complete."""
        complete = (batch.knowledge.rate == 1).all(dim=1)
        incomplete = (~complete).tolist()
        return Doubtful(
            self.objectness, self.overlap, batch.annotated, incomplete, self.ignore_in_rpn
        )

    def feature_difference(
        self, detector: Detector, original: Predictions, strong: Predictions, batch: Batch
    ) -> Tensor:
        """The mean squared difference of the features of pseudo-positives in the two views."""
        if not isinstance(detector, FasterRCNNDetector):
            raise TypeError(f"{type(detector).__name__} has no proposals")
        assert isinstance(original, TwoStagePredictions)
        assert isinstance(strong, TwoStagePredictions)
        masks = self.pseudo_positives(batch).among(original.proposals, original.proposal_scores)
        boxes = []
        for image, (own, scores, mask) in enumerate(
            zip(original.proposals, original.proposal_scores, masks, strict=True)
        ):
            chosen = mask & ~in_ignored(batch.knowledge, image, own).all(dim=1)
            best = nms(own[chosen], scores[chosen], self.pair_nms_threshold)[: self.max_pairs]
            boxes.append(own[chosen][best])
        first, second = (detector.box_features(view, boxes) for view in (original, strong))
        count = torch.tensor(float(first.numel()), device=first.device)
        difference = F.mse_loss(first.float(), second.float(), reduction="sum")
        return difference / normalizer(count, smallest=1.0)

    def branch_losses(
        self, detector: Detector, branch: Predictions, targets: Boxes, batch: Batch
    ) -> dict[str, Tensor]:
        if not self.started or not isinstance(detector, FasterRCNNDetector):
            return super().branch_losses(detector, branch, targets, batch)
        assert isinstance(branch, TwoStagePredictions)
        doubtful = self.pseudo_positives(batch)
        return detector.losses(branch, targets, None, batch.knowledge, doubtful)
