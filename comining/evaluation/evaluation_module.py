"""A LightningModule that evaluates a detector as COCO does."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning as L
from torch import Tensor

from comining.data.annotations import AnnotationSet
from comining.detectors.dense import DenseDetector
from comining.evaluation.coco_evaluator import CocoEvaluator, Metrics, metrics_table

log = logging.getLogger(__name__)

ImageBatch = tuple[list[int], list[Tensor]]  # ids, images [3, H, W] uint8 of any size


class EvaluationModule(L.LightningModule):
    """Evaluates a detector on the images of validation and test batches.

    Args:
        annotations: of the splits ``val`` and, where there is one, ``test``.
    """

    def __init__(self, detector: DenseDetector, annotations: Mapping[str, AnnotationSet]):
        super().__init__()
        self.detector = detector
        self.evaluators = {split: CocoEvaluator(one) for split, one in annotations.items()}
        # Of each split that has been evaluated: the 12 numbers, and AP of every class.
        self.metrics: dict[str, Metrics] = {}
        self.class_ap: dict[str, dict[str, float | None]] = {}
        self.metrics_step = -1  # the optimizer step that the validation metrics belong to

    def on_validation_epoch_start(self) -> None:
        self.evaluators["val"].reset()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        image_ids, images = batch
        self.evaluators["val"].update(image_ids, self.detector.detect(images))

    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")
        self.metrics_step = self.global_step
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit":  # others print it
            table = metrics_table(self.metrics["val"])
            log.info("step %d, validation\n%s", self.global_step, table)

    def on_test_epoch_start(self) -> None:
        self.evaluators["test"].reset()

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        image_ids, images = batch
        self.evaluators["test"].update(image_ids, self.detector.detect(images))

    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    def _evaluate(self, split: str) -> None:
        evaluator = self.evaluators[split]
        self.metrics[split] = evaluator.gather()
        self.class_ap[split] = evaluator.class_ap
