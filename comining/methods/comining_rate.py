"""Mining on top of the annotation rate: thresholds and a cap that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.detectors.detector import Detector
from comining.methods.annotation_rate import AnnotationRate
from comining.methods.method import RunInfo, Supervision, View
from comining.methods.mining import drop_annotated
from comining.methods.rate_estimator import best_scores
from comining.ops import clip, suppress
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Boxes, Predictions

# What may be mined is used up at once or not at all: no more than this many pseudo-labels of a
# class are saved up.
MOST_SAVED = 50.0


class CoMiningRate(AnnotationRate):
    """Detections that are more likely objects than not become extra ground truth.

    The loss of :class:`AnnotationRate` makes a score p the probability of an object, annotated or
    not. Where nothing is annotated the probability of one is then ``(1 - c) * p / (1 - c * p)``,
    with the annotation rate c of its class. It is above ``probability`` for scores above
    ``probability / (1 - c + c * probability)``: the threshold of the class.

    A cap follows the rate, too. Where objects are annotated by chance, there are ``(1 - c) / c``
    that are not for each one that is, at every score. So for each annotated object that the network
    finds above the threshold, ``(1 - c) / c`` others may be mined, by falling score. What is pasted
    does not count.

    Args:
        mine_from: the part of training, 0 ... 1, before which nothing is mined.
        probability: of an object, that a detection must exceed.
        nms_threshold, overlap_threshold, class_aware, max_per_image, clip_boxes, min_box_size: as
            in :class:`comining.methods.mining.Miner`.
        views, rate, assumed_rate, near_iou, held_back, estimate_from, estimate_until: as in
            :class:`AnnotationRate`. Where there is an estimate, c of threshold and cap is the high
            end of its interval, so that less is mined rather than more; else it is the rate of the
            loss.
    """

    allowed: Tensor  # [K] float64, pseudo-labels that may still be mined

    def __init__(
        self,
        views: Sequence[View],
        *,
        rate: Literal["auto"] | Fraction | Mapping[str, Fraction],
        assumed_rate: Fraction,
        near_iou: Fraction,
        held_back: Fraction,
        estimate_from: Fraction,
        estimate_until: Fraction,
        mine_from: Fraction,
        probability: Fraction,
        nms_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        max_per_image: NonNegativeInt,
        clip_boxes: bool,
        min_box_size: NonNegativeFloat,
    ):
        super().__init__(
            views, rate=rate, assumed_rate=assumed_rate, near_iou=near_iou, held_back=held_back,
            estimate_from=estimate_from, estimate_until=estimate_until,
        )  # fmt: skip
        self.mine_from, self.probability = mine_from, probability
        self.nms_threshold, self.overlap_threshold = nms_threshold, overlap_threshold
        self.class_aware, self.max_per_image = class_aware, max_per_image
        self.clip_boxes, self.min_box_size = clip_boxes, min_box_size

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        super().prepare(detector, data, run)
        self.first_mined_step = round(self.mine_from * run.max_steps)
        nothing = torch.zeros(len(self.names), dtype=torch.float64)
        self.register_buffer("allowed", nothing.to(run.device))

    @torch.no_grad()
    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        supervision = super().supervise(detector, predictions, views, batch, step)
        if step < self.first_mined_step:
            return supervision
        first_view = predictions.split(len(batch.images))[0].detach()
        pseudo_labels, remaining = self._mine(detector, first_view, batch)
        return Supervision(
            dict.fromkeys(self.views, pseudo_labels),
            {self.views[0]: pseudo_labels},
            {self.views[0]: remaining},
        )

    def thresholds(self, rate: Tensor) -> Tensor:
        """The score [K] above which a detection of an unannotated region is mined."""
        return self.probability / (1 - rate + rate * self.probability).clamp(min=1e-9)

    def _rate(self) -> Tensor:
        """c [K] of threshold and cap."""
        high = self.estimate[2]
        return torch.where(high.isnan(), self.class_rates, high).clamp(max=1.0)

    def _mine(
        self, detector: Detector, predictions: Predictions, batch: Batch
    ) -> tuple[Boxes, Tensor]:
        """Pseudo-labels and counts as :class:`comining.methods.mining.Miner` gives them."""
        rate = self._rate()
        thresholds = self.thresholds(rate)
        boxes = detector.candidates(predictions, self.probability)  # no threshold is lower
        boxes = boxes[boxes.known_scores > thresholds[boxes.labels]]
        counts = [boxes.counts_on_device()]
        boxes = suppress(boxes, predictions.num_classes, self.nms_threshold, self.max_per_image)
        counts.append(boxes.counts_on_device())
        if self.clip_boxes:
            boxes = clip(boxes, predictions.image_sizes, self.min_box_size)
        counts.append(boxes.counts_on_device())
        own, _ = batch.own_and_pasted()
        found = _per_class(own.labels[best_scores(own, boxes) > 0], rate)
        others = (1 - rate) / rate.clamp(min=1e-9)
        self.allowed += _of_all_processes(found) * others
        self.allowed.clamp_(max=MOST_SAVED)
        boxes = drop_annotated(boxes, batch.annotated, self.overlap_threshold, self.class_aware)
        boxes = best_of_each_class(boxes, self.allowed / _num_processes())
        self.allowed -= _of_all_processes(_per_class(boxes.labels, rate))
        counts.append(boxes.counts_on_device())
        all_scores = torch.full_like(counts[0], predictions.scores_per_image)
        return boxes, torch.stack([all_scores, *counts], dim=1)


def best_of_each_class(boxes: Boxes, limits: Tensor) -> Boxes:
    """The boxes with the best scores of a batch: of each class no more than its limit.

    Args:
        limits: [K].
    """
    by_score = boxes.known_scores.argsort(descending=True, stable=True)
    order = by_score[boxes.labels[by_score].argsort(stable=True)]  # by class, then by score
    labels = boxes.labels[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(labels, labels)
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order] = rank + 1 <= limits[labels]
    return boxes[kept]


def _per_class(labels: Tensor, like: Tensor) -> Tensor:
    """How many of each class there are, [K] float64."""
    counts = torch.zeros(len(like), dtype=torch.float64, device=like.device)
    return counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))


def _of_all_processes(counts: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
