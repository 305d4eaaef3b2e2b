"""Mining on top of the annotation rate, with thresholds derived from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.detectors.detector import Detector
from comining.methods.annotation_rate import AnnotationRate, Form
from comining.methods.method import RunInfo, Supervision, View
from comining.methods.mining import drop_annotated
from comining.methods.rate_estimator import at_least, best_scores
from comining.methods.teacher import Teacher
from comining.ops import clip, suppress
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Boxes, Predictions

BINS = 100  # of the score
# Decay of the running counts: for batches of 8 images their half-life is some 35 batches.
MEMORY = 0.98


class CoMiningRate(AnnotationRate):
    """The best detections become extra ground truth, as many as the annotation rate implies.

    An averaged copy of the network (:class:`Teacher`) detects them in the training view. The
    network itself would briefly detect a class everywhere in some steps.

    Objects are annotated at random, with the annotation rate c of their class. So if the teacher
    finds F annotated objects with a score of at least t, it finds about ``F * (1 - c) / c``
    unannotated ones. Let V detections of that score belong to no annotation. If V is larger, the
    excess is wrong. The threshold of a class is the lowest t at which ``precision * V`` is not
    larger, by running counts. Wrong detections raise it, so that mining cannot collapse: no more
    than ``F * (1 - c) / c / precision`` are mined, whatever is detected.

    Annotated objects score higher than others, because they are trained on, and the threshold tends
    to be too low; c is therefore chosen too high rather than too low. A class with an unknown rate
    mines nothing.

    Args:
        momentum: of the teacher.
        mine_from: the part of training, 0 ... 1, before which nothing is mined.
        precision: the wanted share of right pseudo-labels.
        least_score: detections of a lower score are not mined.
        nms_threshold, overlap_threshold, class_aware, max_per_image, clip_boxes, min_box_size: as
            in :class:`comining.methods.mining.Miner`.
        views, form, rate, assumed_rate, near_iou, held_back, estimate_from, estimate_until: as in
            :class:`AnnotationRate`. c is the upper end of the interval of the estimate, or the
            given rate.
    """

    teacher: Teacher
    found: Tensor  # [K, BINS] float64: annotated objects, by the score of their best detection
    unmatched: Tensor  # [K, BINS] float64: detections that belong to no annotation

    def __init__(
        self,
        views: Sequence[View],
        *,
        form: Form,
        rate: Literal["auto"] | Fraction | Mapping[str, Fraction],
        assumed_rate: Fraction,
        near_iou: Fraction,
        held_back: Fraction,
        estimate_from: Fraction,
        estimate_until: Fraction,
        momentum: Fraction,
        mine_from: Fraction,
        precision: Fraction,
        least_score: Fraction,
        nms_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        max_per_image: NonNegativeInt,
        clip_boxes: bool,
        min_box_size: NonNegativeFloat,
    ):
        super().__init__(
            views, form=form, rate=rate, assumed_rate=assumed_rate, near_iou=near_iou,
            held_back=held_back, estimate_from=estimate_from, estimate_until=estimate_until,
        )  # fmt: skip
        self.momentum = momentum
        self.mine_from, self.precision, self.least_score = mine_from, precision, least_score
        self.nms_threshold, self.overlap_threshold = nms_threshold, overlap_threshold
        self.class_aware, self.max_per_image = class_aware, max_per_image
        self.clip_boxes, self.min_box_size = clip_boxes, min_box_size

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        super().prepare(detector, data, run)
        self.teacher = Teacher(detector, self.momentum)
        self.first_mined_step = round(self.mine_from * run.max_steps)
        for name in ("found", "unmatched"):
            nothing = torch.zeros(len(self.names), BINS, dtype=torch.float64)
            self.register_buffer(name, nothing.to(run.device))

    @property
    def mines(self) -> bool:
        return True

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
        teacher = self.teacher.detector
        images = views[self.views[0]]
        pseudo_labels, remaining = self._mine(teacher, teacher.predict(images), batch)
        return Supervision(
            dict.fromkeys(self.views, pseudo_labels),
            {self.views[0]: pseudo_labels},
            {self.views[0]: remaining},
        )

    def after_step(self, detector: Detector, step: int) -> None:
        super().after_step(detector, step)
        self.teacher.update(detector, step)

    def known_rates(self) -> Tensor:
        """c [K] of the thresholds; NaN for a class with an unknown rate."""
        return self.estimate[2] if self.rate == "auto" else self.class_rates

    def thresholds(self) -> Tensor:
        """The lowest score [K] of mined detections; infinite for a class that mines none."""
        rate = self.known_rates().to(self.found.dtype).unsqueeze(1)
        expected = at_least(self.found) * (1 - rate) / rate.clamp(min=1e-9)
        seen = at_least(self.unmatched)
        scores = torch.arange(BINS, device=seen.device) / BINS
        few = (self.precision * seen <= expected) & (expected > 0) & (scores >= self.least_score)
        return torch.where(few, scores, torch.inf).amin(dim=1)

    def figures(self) -> dict[str, float]:
        """Those of the rates, and ``threshold/NAME`` of every class that is mined."""
        known = zip(self.names, self.thresholds().tolist(), strict=True)
        chosen = {f"threshold/{name}": score for name, score in known if score < math.inf}
        return super().figures() | chosen

    def _mine(
        self, teacher: Detector, predictions: Predictions, batch: Batch
    ) -> tuple[Boxes, Tensor]:
        """Pseudo-labels and counts as :class:`comining.methods.mining.Miner` gives them."""
        boxes = teacher.candidates(predictions, self.least_score)
        counts = [boxes.counts_on_device()]
        boxes = suppress(boxes, predictions.num_classes, self.nms_threshold, self.max_per_image)
        counts.append(boxes.counts_on_device())
        if self.clip_boxes:
            boxes = clip(boxes, predictions.image_sizes, self.min_box_size)
        counts.append(boxes.counts_on_device())
        own, _ = batch.own_and_pasted()
        found = binned(own.labels, best_scores(own, boxes), self.found)
        boxes = drop_annotated(boxes, batch.annotated, self.overlap_threshold, self.class_aware)
        unmatched = binned(boxes.labels, boxes.known_scores, self.unmatched)
        if self.in_step:
            for mean, latest in ((self.found, found), (self.unmatched, unmatched)):
                mean.lerp_(_of_all_processes(latest), 1 - MEMORY)
        boxes = boxes[boxes.known_scores >= self.thresholds()[boxes.labels]]
        counts.append(boxes.counts_on_device())
        all_scores = torch.full_like(counts[0], predictions.scores_per_image)
        return boxes, torch.stack([all_scores, *counts], dim=1)


def binned(labels: Tensor, scores: Tensor, like: Tensor) -> Tensor:
    """How many objects of each class have a score in each bin, [K, bins]; scores of 0 in none."""
    bins = like.shape[1]
    counts = torch.zeros_like(like)
    column = (scores * bins).long().clamp(0, bins - 1)
    counts.view(-1).index_add_(0, labels * bins + column, (scores > 0).to(counts.dtype))
    return counts


def _of_all_processes(counts: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
