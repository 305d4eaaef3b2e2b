"""Co-Student (Wu et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.data.geometry import Geometry
from comining.data.strong_view import StrongView
from comining.detectors.detector import Detector
from comining.methods.method import Method, RunInfo, Supervision
from comining.methods.mining import drop_annotated
from comining.methods.teacher import Teacher
from comining.ops import clip, iou_in_image, suppress
from comining.option_types import Fraction, NonNegativeFloat, NonNegativeInt
from comining.structures import Batch, Boxes, Predictions


class CoStudent(Method):
    """Two views supervise each other with their detections, after a teacher has corrected them.

    The network sees the ``augmented`` view, the paper's weak one, and a ``strong`` one of another
    geometry. The teacher, an averaged copy, sees the original view: its boxes replace those of a
    view that score no higher, and boxes that the view missed are added. The network is the one that
    is evaluated.

    (The paper's teacher sees the picture before the flip. Here all views share the flip, and the
    teacher's boxes need no mapping into the weak one.)

    Args:
        strong: makes the strong view.
        momentum: of the average, see :class:`Teacher`. Parameters only: the statistics of batch
            norm, frozen in the paper, are those of the network.
        score_threshold, teacher_score_threshold: class probability that a detection must exceed
            in the network's views, and the teacher's.
        nms_threshold, max_per_image: of the detections of each view.
        denoise_overlap: IoU above which two boxes are of one object.
        overlap_threshold, class_aware: see :class:`Miner`.
        min_box_size: pseudo-labels are cut at the border of the image, and dropped where a side
            is shorter, px.
    """

    teacher: Teacher

    def __init__(
        self,
        *,
        strong: StrongView,
        momentum: Fraction,
        score_threshold: Fraction,
        teacher_score_threshold: Fraction,
        nms_threshold: Fraction,
        max_per_image: NonNegativeInt,
        denoise_overlap: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
        min_box_size: NonNegativeFloat,
    ):
        super().__init__(["augmented"])
        self.views = ("augmented", "strong")
        self.strong = strong
        self.momentum = momentum
        self.score_threshold: float = score_threshold
        self.teacher_score_threshold = teacher_score_threshold
        self.nms_threshold, self.max_per_image = nms_threshold, max_per_image
        self.denoise_overlap = denoise_overlap
        self.overlap_threshold, self.class_aware = overlap_threshold, class_aware
        self.min_box_size = min_box_size

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        self.teacher = Teacher(detector, self.momentum, average_buffers=False)
        self.seed = run.seed

    def own_views(self, originals: Sequence[Tensor], batch: Batch) -> dict[str, Sequence[Tensor]]:
        return {"strong": self.strong(originals, batch.positions, self.seed)}

    def geometry(self, view: str, batch: Batch) -> Geometry | None:
        if view != "strong":
            return None
        device = batch.annotated.boxes.device
        return self.strong.geometry(batch.images.sizes, batch.positions, self.seed, device)

    @torch.no_grad()
    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        size = batch.annotated.num_images
        students = self.detections(detector, predictions, self.score_threshold)
        weak, strong = students.of_range(0, size), students.of_range(size, 2 * size)
        teacher = self.teacher.detector
        taught = self.detections(
            teacher, teacher.predict(views["original"]), self.teacher_score_threshold
        )
        geometry = self.strong.geometry(
            predictions.image_sizes[:size], batch.positions, self.seed, taught.boxes.device
        )
        taught_in_strong = geometry.visible(geometry.forward(taught))
        found = {
            "augmented": denoise(weak, taught, self.denoise_overlap),
            "strong": geometry.backward(denoise(strong, taught_in_strong, self.denoise_overlap)),
        }
        mined = {
            view: drop_annotated(
                clip(boxes, geometry.sizes, self.min_box_size),
                batch.annotated,
                self.overlap_threshold,
                self.class_aware,
            )
            for view, boxes in found.items()
        }
        return Supervision({"augmented": mined["strong"], "strong": mined["augmented"]}, mined)

    def detections(self, detector: Detector, predictions: Predictions, threshold: float) -> Boxes:
        """The detections of a batch above a class probability (step 1), not cut at the border."""
        found = detector.candidates(predictions, threshold)
        return suppress(found, predictions.num_classes, self.nms_threshold, self.max_per_image)

    def after_step(self, detector: Detector, step: int) -> None:
        self.teacher.update(detector, step)


def denoise(student: Boxes, teacher: Boxes, overlap: float) -> Boxes:
    """The boxes of a student, corrected by those of its teacher (step 2).

    A box of the student takes the place, class and score of the teacher's box with the largest IoU,
    among those whose IoU is above ``overlap`` and whose score is at least as high. Boxes of the
    teacher whose IoU with every box of the student is below ``overlap`` are added. Classes play no
    part.

    Args:
        student, teacher: N and M boxes with scores, of the same B images and in the same geometry.
    """
    if len(teacher) == 0:
        return student
    if len(student) == 0:
        return teacher
    iou, labels = iou_in_image(student, teacher)  # [N, G]
    counts = teacher.counts_on_device()
    first = (counts.cumsum(0) - counts)[student.image]
    column = torch.arange(iou.shape[1], device=iou.device)
    row = (first[:, None] + column).clamp(max=len(teacher) - 1)  # of the teacher's boxes
    sure = teacher.known_scores[row] >= student.known_scores[:, None]
    better = (labels >= 0) & (iou > overlap) & sure
    best = torch.where(better, iou, -1.0).argmax(dim=1, keepdim=True)
    source, replaced = row.gather(1, best).squeeze(1), better.any(dim=1)
    corrected = (
        torch.where(replaced[:, None], teacher.boxes[source], student.boxes),
        torch.where(replaced, teacher.labels[source], student.labels),
        student.image,
        torch.where(replaced, teacher.known_scores[source], student.known_scores),
    )
    alone = teacher[iou_in_image(teacher, student)[0].amax(dim=1) < overlap]
    added = (alone.boxes, alone.labels, alone.image, alone.known_scores)
    boxes, labels, image, scores = (torch.cat(pair) for pair in zip(corrected, added, strict=True))
    together = Boxes(boxes, labels, image, student.num_images, scores)
    return together[image.argsort(stable=True)]
