"""The one LightningModule: it calls the method, sums, logs and evaluates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import Parameter

from comining.data.annotations import AnnotationSet
from comining.data.views import SecondView
from comining.detectors.base import DenseDetector
from comining.errors import DivergedError
from comining.evaluation.coco import CocoEvaluator, Metrics, metrics_table
from comining.evaluation.mining import MiningScore
from comining.methods.base import Method
from comining.structures import Batch

log = logging.getLogger(__name__)

# result.json judges the mining of the last part of training, when it has settled.
FINAL_PART = 0.25


class EvaluationModule(L.LightningModule):
    """Evaluates a detector as COCO does.

    Args:
        annotations: of the images that validation batches hold.
    """

    def __init__(self, detector: DenseDetector, annotations: AnnotationSet):
        super().__init__()
        self.detector = detector
        self.evaluator = CocoEvaluator(annotations)
        self.metrics: Metrics = {}
        self.metrics_step = -1  # the optimizer step that the metrics belong to

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def validation_step(self, batch: tuple[list[int], list[Tensor]], batch_idx: int) -> None:
        image_ids, images = batch
        self.evaluator.update(image_ids, self.detector.detect(images))

    def on_validation_epoch_end(self) -> None:
        self.evaluator.gather()
        self.metrics = self.evaluator.compute()
        self.metrics_step = self.global_step
        self.log_dict(
            {f"val/{name}": value for name, value in self.metrics.items() if value is not None}
        )
        log.info("step %d\n%s", self.global_step, metrics_table(self.metrics))


class DetectionModule(EvaluationModule):
    """Trains a detector by a method.

    Args:
        view: makes the second view, where the method wants one.
        optimizer: given the parameters to train, returns the optimizer.
        schedule: step to factor on the learning rate.
        validation: annotations of the images that validation batches hold.
        seed: of the run.
        description: what a checkpoint tells about itself: plain containers only.
    """

    def __init__(
        self,
        detector: DenseDetector,
        method: Method,
        view: SecondView,
        optimizer: Callable[[Iterable[Parameter]], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        validation: AnnotationSet,
        seed: int,
        description: dict[str, Any],
    ):
        super().__init__(detector, validation)
        self.method = method
        self.view = view
        self.optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.description = description
        self.recent_mining = MiningScore()
        self.final_mining = MiningScore()
        # Of the last quarter of training; None for methods that do not mine.
        self.mining: dict[str, float | None] = dict.fromkeys(
            ("pseudo_labels_per_image", "precision", "recall")
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.global_step
        images = {"original": batch.images}
        if "augmented" in self.method.views:
            images["augmented"] = self.view(batch.images, batch.positions, self.seed)
        result = self.method(self.detector, images, batch, step)
        loss = result.total
        if not torch.isfinite(loss):
            terms = {name: str(value.item()) for name, value in result.losses.items()}  # "nan"
            found = {v: sum(map(len, m)) / len(m) for v, m in result.mined.items()}
            facts = {
                "step": step,
                "losses": terms,
                "pseudo_labels_per_image": found,
                "image_ids": batch.image_ids,
            }
            raise DivergedError(f"the loss at step {step} is not finite: {terms}", facts)
        for mined in result.mined.values():
            self.recent_mining.update(mined, batch.erased)
            if step >= int((1 - FINAL_PART) * self.trainer.max_steps):
                self.final_mining.update(mined, batch.erased)
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector
            self._log_step(loss, result.losses)
        return loss

    def _log_step(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.recent_mining.update_called:
            figures = self.recent_mining.compute()
            self.log_dict({f"mining/{k}": v for k, v in figures.items() if v is not None})
            self.recent_mining.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_end(self) -> None:
        # The sums still lie on the device here, where processes can add them up.
        if self.final_mining.update_called:
            self.mining = self.final_mining.compute()
        # The last step may have ruined the weights; no further loss would tell.
        for name, parameter in self.detector.named_parameters():
            if not torch.isfinite(parameter).all():
                facts = {"step": self.global_step, "parameter": name}
                raise DivergedError(f"{name} is not finite after the last step", facts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["comining"] = self.description
