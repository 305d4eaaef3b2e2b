"""A LightningModule that evaluates a detector as COCO does."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning as L

from comining.data.annotations import AnnotationSet
from comining.detectors.detector import Detector
from comining.evaluation.coco_evaluator import CocoEvaluator, Metrics, metrics_table
from comining.structures import EvaluationBatch

log = logging.getLogger(__name__)


class EvaluationModule(L.LightningModule):
    """Evaluates a detector on the images of validation and test batches.

    Args:
        annotations: of the splits ``val`` and, where there is one, ``test``.
    """

    def __init__(self, detector: Detector, annotations: Mapping[str, AnnotationSet]):
        super().__init__()
        self.detector = detector
        self.evaluators = {
            split: CocoEvaluator(of_split) for split, of_split in annotations.items()
        }
        # Of each split that has been evaluated: the 12 numbers, AP of every class, and the recall
        # among the best detections.
        self.metrics: dict[str, Metrics] = {}
        self.class_ap: dict[str, dict[str, float | None]] = {}
        self.recall_among: dict[str, Metrics] = {}
        self.metrics_step = -1  # the optimizer step that the validation metrics belong to

    def on_validation_epoch_start(self) -> None:
        self.evaluators["val"].reset()

    @property
    def deployed(self) -> Detector:
        """The network that is evaluated."""
        return self.detector

    def is_lower_bound(self, split: str) -> bool:
        """Whether objects may be missing in the annotations of a split, so that AP is too low."""
        return self.evaluators[split].annotations.is_partial

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        self._detect("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")
        self.metrics_step = self.global_step
        if self.trainer.is_global_zero and self.trainer.state.fn == "fit":  # others print it
            table = metrics_table(self.metrics["val"], lower_bound=self.is_lower_bound("val"))
            log.info("step %d, validation\n%s", self.global_step, table)

    def on_test_epoch_start(self) -> None:
        self.evaluators["test"].reset()

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        self._detect("test", batch)

    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    def _detect(self, split: str, batch: EvaluationBatch) -> None:
        detections = self.deployed.detect(list(batch.images))
        self.evaluators[split].update(batch.image_ids, detections)

    def _evaluate(self, split: str) -> None:
        evaluator = self.evaluators[split]
        self.metrics[split] = evaluator.gather()
        self.class_ap[split] = evaluator.class_ap
        self.recall_among[split] = evaluator.recall_among
