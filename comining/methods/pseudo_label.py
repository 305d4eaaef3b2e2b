"""Pseudo labels (Niitani et al., CVPR 2019): a first detector labels the training images once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from comining.data.datamodule import DetectionData
from comining.data.dataset import EvaluationSet, TrainingSet, collate_evaluation
from comining.data.loading import leave_signals_to_main
from comining.detectors.detector import Background, Detector, Regions
from comining.errors import ConfigError, UserError
from comining.evaluation.coco_evaluator import CocoEvaluator
from comining.methods.method import Method, RunInfo, Supervision, View
from comining.methods.mining import drop_annotated
from comining.option_types import Fraction
from comining.runs.checkpoint import load_detector
from comining.runs.files import write_json
from comining.runs.neighbours import find_run
from comining.structures import Batch, Boxes, Predictions

log = logging.getLogger(__name__)


class PseudoLabel(Method):
    """Train on a teacher's detections beyond the annotations, or ignore the anchors near them.

    The teacher is a detector trained on the same sparse set. It runs over the training images
    before training begins; its confident detections, without those that cover an annotation of
    their class, are written to ``pseudo_labels.json`` in the run directory.

    Args:
        teacher: a checkpoint; None takes that of a finished run of ``method=original`` with the
            same other options in the same folder, as a sweep over methods leaves it.
        use: ``positives`` makes its boxes full ground truth; ``ignore`` excludes the anchors that
            they would train from the loss of their class.
        score_threshold: of the teacher's detections, strict; 1 switches the method off.
        overlap_threshold: IoU above which a detection counts as annotated.
        class_aware: compare with annotations of the same class only.
    """

    score_threshold: float

    def __init__(
        self,
        views: Sequence[View],
        *,
        teacher: str | None,
        use: Literal["positives", "ignore"],
        score_threshold: Fraction,
        overlap_threshold: Fraction,
        class_aware: bool,
    ):
        super().__init__(views)
        self.teacher = teacher
        self.use = use
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold
        self.class_aware = class_aware

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        train_set = data.train_set
        if train_set is None:
            raise RuntimeError("the data have not been set up for training")
        checkpoint = self.teacher or self._teacher_beside(run.folder)
        teacher, description = load_detector(checkpoint)
        if description["category_names"] != list(data.categories.names):
            raise ConfigError(
                f"method.teacher={checkpoint} detects {description['category_names']}, but the "
                f"data have {list(data.categories.names)}"
            )
        images = Subset(
            EvaluationSet(train_set.annotations, train_set.folder, train_set.load),
            train_set.images[run.rank :: run.world_size].tolist(),
        )
        loader = DataLoader(
            images,
            batch_size=data.val_batch_size,
            num_workers=data.num_workers,
            worker_init_fn=leave_signals_to_main,
            collate_fn=collate_evaluation,
        )
        pseudo_labels = shared_among_ranks(
            lambda: self.label(teacher.to(run.device), loader, train_set), run.world_size
        )
        train_set.pseudo_labels = pseudo_labels
        if run.rank == 0:
            count = sum(map(len, pseudo_labels.values()))
            log.info(
                "%s found %d boxes beyond the annotations of %d images",
                checkpoint, count, len(pseudo_labels),
            )  # fmt: skip
            writer = CocoEvaluator(train_set.annotations)
            writer.add(pseudo_labels)
            write_json(run.folder / "pseudo_labels.json", writer.results())

    def label(
        self, teacher: Detector, loader: DataLoader[Any], train_set: TrainingSet
    ) -> dict[int, Boxes]:
        """The teacher's pseudo-labels in the images of a loader: image id to boxes on the CPU."""
        position = {int(image_id): n for n, image_id in enumerate(train_set.annotations.image_ids)}
        pseudo_labels = {}
        for batch in loader:
            detections = teacher.detect(list(batch.images.to(teacher.device))).to("cpu")
            for image_id, of_image in zip(batch.image_ids, detections.split(), strict=True):
                annotated = train_set.annotated_boxes(position[image_id])
                pseudo_labels[image_id] = self.unannotated(of_image, annotated)
        return pseudo_labels

    def _teacher_beside(self, run: Path) -> Path:
        beside = find_run(run, {"method": "original"})
        if beside is None:
            raise ConfigError(
                "method.teacher is not set, and no finished run of method=original with the same "
                f"options is in the folder of {run}: train one first, or give its checkpoint"
            )
        return beside / "checkpoints" / "last.ckpt"

    def unannotated(self, detections: Boxes, annotated: Boxes) -> Boxes:
        """The confident detections of one image that cover none of its annotations."""
        confident = detections[detections.known_scores > self.score_threshold]
        return drop_annotated(confident, annotated, self.overlap_threshold, self.class_aware)

    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        found: dict[str, Boxes] = dict.fromkeys(self.views, batch.pseudo_labels)
        return Supervision(found if self.use == "positives" else {}, found)

    def background(self, regions: Regions, batch: Batch) -> Background:
        if self.use == "positives" or not len(batch.pseudo_labels):
            return Background()
        near = regions.assign(batch.pseudo_labels)
        classes = torch.arange(regions.num_classes, device=near.device)
        ignored = near.unsqueeze(-1) == classes
        # An anchor matched to an annotation keeps its loss, whatever else lies there.
        ignored &= ~regions.positive.unsqueeze(-1)
        return Background((~ignored).to(regions.logits.dtype))


def shared_among_ranks(work: Callable[[], dict[int, Boxes]], world_size: int) -> dict[int, Boxes]:
    """The results of ``work`` on all processes, merged on each of them.

    If it fails on one process, all stop: the others would wait for it forever.
    """
    if world_size == 1:
        return work()
    mine: dict[int, Boxes] | None = None
    failure: Exception | None = None
    try:
        mine = work()
    except Exception as error:
        failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, (mine, message))
    if failure is not None:
        raise failure
    for rank, (_, problem) in enumerate(shares):
        if problem is not None:
            raise UserError(f"process {rank} could not label its images: {problem}")
    return {image_id: boxes for part, _ in shares for image_id, boxes in part.items()}
