"""Calibrated Teacher (Wang et al., AAAI 2023)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.data.views import SecondView
from comining.detectors.detector import Background, Detector, Regions
from comining.methods.calibration import Calibration
from comining.methods.method import Method, RunInfo, Supervision
from comining.methods.teacher import Teacher
from comining.methods.touching import Touching
from comining.ops import clip, iou_in_image, suppress
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from comining.structures import Batch, Boxes, Predictions

log = logging.getLogger(__name__)


class CalibratedTeacher(Method):
    """An averaged copy mines the detections whose calibrated scores are high enough.

    The teacher sees the original view. The network is trained on ``recoloured``, the same view with
    other colours, and is the one that is evaluated. The calibration is fitted to those detections
    of the teacher that touch an annotation. They are a biased sample, because annotated objects
    were trained on: on DOTA with 5 % annotated, others measured the method below a plain detector.

    Args:
        recolour: makes the training view.
        momentum, warm_up: of the average, see :class:`Teacher`.
        score_threshold: a detection has at least this class probability (step 1).
        nms_threshold, max_per_image: of the teacher's detections.
        refit_every: optimizer steps between fits of the calibration, and before the first one.
        fitted_overlap, merged_overlap: see ``same_class`` of :class:`Touching`; the first for
            detections that the calibration is fitted to, the second for those that are merged.
        any_class_overlap, inside: the other two rules of :class:`Touching`.
        right_overlap: a detection used for the fit is right if its IoU with an annotation of its
            class exceeds this.
        calibrated_threshold: a detection of at least this calibrated score becomes ground truth,
            unless it touches an annotation (step 2). None does before a fit has succeeded.
        min_box_size: both sides of such a detection must exceed this, px.
        late_part: negatives get weights in this last share of training (step 3); 0: never.
        max_steps: length of training.
        floor, factor, alpha, gamma: of :meth:`negative_weight`.
    """

    teacher: Teacher

    def __init__(
        self,
        *,
        recolour: SecondView,
        momentum: Fraction,
        warm_up: bool,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        max_per_image: NonNegativeInt,
        refit_every: PositiveInt,
        fitted_overlap: Fraction,
        merged_overlap: Fraction,
        any_class_overlap: Fraction,
        inside: Fraction,
        right_overlap: Fraction,
        calibrated_threshold: Fraction,
        min_box_size: NonNegativeFloat,
        late_part: Fraction,
        max_steps: PositiveInt,
        floor: Fraction,
        factor: NonNegativeFloat,
        alpha: NonNegativeFloat,
        gamma: NonNegativeFloat,
    ):
        super().__init__(["original"])
        self.views = ("recoloured",)
        self.recolour = recolour
        self.momentum, self.warm_up = momentum, warm_up
        self.score_threshold: float = score_threshold
        self.nms_threshold, self.max_per_image = nms_threshold, max_per_image
        self.refit_every = refit_every
        self.touches_to_fit = Touching(fitted_overlap, any_class_overlap, inside)
        self.touches_to_merge = Touching(merged_overlap, any_class_overlap, inside)
        self.right_overlap = right_overlap
        self.calibrated_threshold = calibrated_threshold
        self.min_box_size = min_box_size
        self.max_steps = max_steps
        self.late_step = max_steps - round(late_part * max_steps)
        self.floor, self.factor, self.alpha, self.gamma = floor, factor, alpha, gamma
        self.calibration = Calibration()
        self.step = 0  # of the current batch
        self._found_in_step: list[Tensor] = []  # batch by batch, see :meth:`Calibration.add`

    @property
    def mined_views(self) -> tuple[str, ...]:
        return ("original",)

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        self.teacher = Teacher(detector, self.momentum, warm_up=self.warm_up)
        self.seed = run.seed
        if self.refit_every >= self.max_steps and run.rank == 0:
            log.warning(
                "method.refit_every=%d: nothing is merged before the first fit, and training ends "
                "at step %d", self.refit_every, self.max_steps,
            )  # fmt: skip

    def own_views(self, originals: Sequence[Tensor], batch: Batch) -> dict[str, Sequence[Tensor]]:
        return {"recoloured": self.recolour(originals, batch.positions, self.seed)}

    @torch.no_grad()
    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        teacher = self.teacher.detector
        found = self.detections(teacher, teacher.predict(views["original"]))
        self.step = step
        if self.in_step:
            self._found_in_step.append(self.to_fit(found, batch.annotated))
        merged = self.to_merge(found, batch.annotated)
        return Supervision({"recoloured": merged}, {"original": merged})

    def detections(self, teacher: Detector, predictions: Predictions) -> Boxes:
        """The teacher's detections of a batch (step 1), cut at the border of their image."""
        # candidates() needs a score above its threshold; here one equal to it is enough.
        below = torch.nextafter(torch.tensor(self.score_threshold), torch.tensor(-1.0)).item()
        found = teacher.candidates(predictions, max(0.0, below))
        found = suppress(found, predictions.num_classes, self.nms_threshold, self.max_per_image)
        return clip(found, predictions.image_sizes, 0.0)

    def to_fit(self, found: Boxes, annotated: Boxes) -> Tensor:
        """Samples for the calibration (step 1): [n, 2], the score, and 1 if right, else 0."""
        right = torch.zeros_like(found.known_scores)
        if len(found) and len(annotated):
            iou, labels = iou_in_image(found, annotated)
            covers = (iou > self.right_overlap) & (labels == found.labels[:, None])
            right = covers.any(dim=1).to(right.dtype)
        rows = torch.stack([found.known_scores, right], dim=1)
        return rows[self.touches_to_fit(found, annotated)]

    def to_merge(self, found: Boxes, annotated: Boxes) -> Boxes:
        """The detections that become ground truth (step 2)."""
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        chosen = (sides > self.min_box_size).all(dim=1)
        chosen &= ~self.touches_to_merge(found, annotated)
        chosen &= self.calibration(found.known_scores) >= self.calibrated_threshold
        # Uncalibrated scores are not trusted, even with a threshold of 0.
        return found[chosen & self.calibration.fitted]

    def background(self, regions: Regions, batch: Batch) -> Background:
        if self.step < self.late_step:
            return Background()
        weight = self.negative_weight(regions.predicted_overlap(regions.targets))
        return Background(weight.masked_fill(~regions.negative, 1.0))

    def negative_weight(self, overlap: Tensor) -> Tensor:
        """Step 3, element-wise, for the overlap u of the predicted box with a target.

        ``floor + factor * (1 - floor) * (-alpha * u ** gamma * ln(1.00001 - u))``
        """
        focal = -self.alpha * overlap**self.gamma * (1.00001 - overlap).log()
        return self.floor + self.factor * (1 - self.floor) * focal

    def after_step(self, detector: Detector, step: int) -> None:
        self.teacher.update(detector, step)
        self.calibration.add(torch.cat(self._found_in_step))
        self._found_in_step = []
        if step % self.refit_every == 0:
            self.calibration.refit()

    def figures(self) -> dict[str, float]:
        """``threshold/all``: the lowest score of detections that are merged, once it is known."""
        score = self.calibration.score_of(self.calibrated_threshold)
        return {} if score is None else {"threshold/all": max(score, self.score_threshold)}
