"""Pseudo labels (Niitani et al., CVPR 2019): a first detector labels the training images once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from comining.data.datamodule import DetectionData
from comining.data.dataset import EvaluationSet, collate_evaluation
from comining.detectors.dense import DenseDetector
from comining.errors import ConfigError
from comining.evaluation.coco_evaluator import CocoEvaluator
from comining.methods.method import Method, Supervision, View
from comining.methods.mining import drop_annotated, merge
from comining.runs.checkpoint import load_detector
from comining.runs.files import write_json
from comining.runs.neighbours import find_run
from comining.structures import (
    Assignment,
    Batch,
    Candidates,
    DensePredictions,
    Detections,
    Targets,
)

log = logging.getLogger(__name__)


class PseudoLabel(Method):
    """Train on what a teacher found beyond the annotations, or ignore the anchors near it.

    The teacher is a detector trained on the same sparse set. It runs over the training images
    before training begins; its confident detections, without those that cover an annotation of
    their class, are written to ``pseudo_labels.json`` in the run directory.

    Args:
        teacher: a checkpoint; None takes that of a finished run of ``method=original`` beside
            this one whose other options are the same, as a sweep over methods leaves it.
        use: ``positives`` makes the found boxes full ground truth; ``ignore`` takes the anchors
            that they would train out of the loss of their class.
        score_threshold: of the teacher's detections, strict; 1 switches the method off.
        overlap_threshold: IoU above which a detection counts as annotated.
        class_aware: compare with annotations of the same class only.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        teacher: str | None,
        use: Literal["positives", "ignore"],
        score_threshold: float,
        overlap_threshold: float,
        class_aware: bool,
    ):
        super().__init__(views)
        for name, value in (
            ("score_threshold", score_threshold),
            ("overlap_threshold", overlap_threshold),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"method.{name} must lie in 0 ... 1, got {value}")
        self.teacher = teacher
        self.use = use
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold
        self.class_aware = class_aware

    def prepare(self, data: DetectionData, run: Path, device: torch.device) -> None:
        if data.train_set is None:
            raise RuntimeError("the data have not been set up for training")
        teacher = self.teacher or self._teacher_beside(run)
        detector, description = load_detector(teacher)
        if description["category_names"] != list(data.categories.names):
            raise ConfigError(
                f"method.teacher={teacher} detects {description['category_names']}, but the data "
                f"have {list(data.categories.names)}"
            )
        annotations = data.train_set.annotations
        images = Subset(
            EvaluationSet(annotations, data.train_set.folder), data.train_set.images.tolist()
        )
        loader = DataLoader(
            images,
            batch_size=data.val_batch_size,
            num_workers=data.num_workers,
            collate_fn=collate_evaluation,
        )
        detector.to(device)
        position = {int(image_id): n for n, image_id in enumerate(annotations.image_ids)}
        found: dict[int, Detections] = {}
        for image_ids, pictures in loader:
            detections = detector.detect([picture.to(device) for picture in pictures])
            for image_id, one in zip(image_ids, detections, strict=True):
                rows = data.train_set.kept_rows[position[image_id]]
                kept = Targets(
                    torch.from_numpy(annotations.boxes[rows]).float(),
                    torch.from_numpy(annotations.labels[rows]),
                )
                found[image_id] = self.unannotated(one, kept)
        data.train_set.found = found
        count = sum(map(len, found.values()))
        log.info(
            "%s found %d boxes beyond the annotations of %d images", teacher, count, len(found)
        )
        writer = CocoEvaluator(annotations)
        writer.update(list(found), list(found.values()))
        write_json(run / "pseudo_labels.json", writer.results())

    def _teacher_beside(self, run: Path) -> Path:
        beside = find_run(run, {"method": "original"})
        if beside is None:
            raise ConfigError(
                "method.teacher is not set, and no finished run of method=original with the same "
                f"options lies beside {run}: train one first, or give its checkpoint"
            )
        return beside / "checkpoints" / "last.ckpt"

    def unannotated(self, detections: Detections, kept: Targets) -> Detections:
        """The confident detections of one image that cover none of its annotations."""
        sure = detections.scores.cpu() > self.score_threshold
        candidates = Candidates(
            detections.boxes.cpu()[sure],
            detections.labels.cpu()[sure],
            detections.scores.cpu()[sure],
            torch.zeros(int(sure.sum()), dtype=torch.int64),
        )
        left = drop_annotated(candidates, [kept], self.overlap_threshold, self.class_aware)
        return left.per_image(1)[0]

    def supervise(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        batch: Batch,
        step: int,
    ) -> Supervision:
        targets = merge(batch.targets, batch.found) if self.use == "positives" else batch.targets
        return Supervision(
            dict.fromkeys(self.views, targets), dict.fromkeys(self.views, batch.found)
        )

    def weights(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        assignment: Assignment,
        batch: Batch,
    ) -> Tensor | None:
        if self.use == "positives" or not any(map(len, batch.found)):
            return None
        found = [Targets(one.boxes, one.labels) for one in batch.found]
        near = detector.assign(predictions, found)
        classes = torch.arange(near.num_classes, device=near.labels.device)
        ignored = near.labels.unsqueeze(-1) == classes
        # An anchor that trains an annotation trains it, whatever else lies there.
        ignored &= ~assignment.positive.unsqueeze(-1)
        return (~ignored).to(predictions.logits.dtype)
