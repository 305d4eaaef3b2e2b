"""A mean teacher that mines (after Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.detectors.detector import Detector
from comining.methods.method import Method, RunInfo, Supervision, View
from comining.methods.mining import Miner
from comining.methods.teacher import Teacher
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Predictions


class MeanTeacher(Method):
    """An averaged copy of the network mines in the original view; the network learns from it.

    Args:
        views: on which the network (the student) is trained, all under the same targets:
            annotations and the teacher's pseudo-labels.
        momentum: of the average, see :class:`Teacher`.
        deploy: which of the two is evaluated, and loaded from the run's checkpoints.
        start_step: nothing is mined before this optimizer step; the average begins at once.
        score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image, clip_boxes,
            min_box_size: see :class:`Miner`.
    """

    teacher: Teacher

    def __init__(
        self,
        views: Sequence[View],
        *,
        momentum: Fraction,
        deploy: Literal["teacher", "student"],
        start_step: NonNegativeInt,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        max_per_image: NonNegativeInt,
        clip_boxes: bool,
        min_box_size: NonNegativeFloat,
    ):
        super().__init__(views)
        self.miner = Miner(
            score_threshold, nms_threshold, overlap_threshold, class_aware, max_per_image,
            clip_boxes, min_box_size,
        )  # fmt: skip
        self.score_threshold = score_threshold
        self.momentum = momentum
        self.deploy = deploy
        self.start_step = start_step

    @property
    def mined_views(self) -> tuple[str, ...]:
        return ("original",)

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        self.teacher = Teacher(detector, self.momentum)

    @torch.no_grad()
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
        teacher = self.teacher.detector
        pseudo_labels, remaining = self.miner(
            teacher, teacher.predict(views["original"]), batch.annotated
        )
        return Supervision(
            dict.fromkeys(self.views, pseudo_labels),
            {"original": pseudo_labels},
            {"original": remaining},
        )

    def after_step(self, detector: Detector, step: int) -> None:
        self.teacher.update(detector, step)

    def deployed(self, detector: Detector) -> Detector:
        return self.teacher.detector if self.deploy == "teacher" else detector
