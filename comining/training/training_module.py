"""The LightningModule that trains: it calls the method and sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from comining.data.annotations import AnnotationSet
from comining.data.views import SecondView
from comining.detectors.dense import DenseDetector
from comining.evaluation.evaluation_module import EvaluationModule
from comining.methods.method import Method
from comining.structures import Batch, StepResult


class DetectionModule(EvaluationModule):
    """Trains a detector by a method.

    Args:
        view: makes the second view, where the method wants one.
        optimizer: given the parameters to train, returns the optimizer.
        schedule: step to factor on the learning rate.
        annotations: of the splits ``val`` and, where there is one, ``test``.
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
        annotations: Mapping[str, AnnotationSet],
        seed: int,
        description: dict[str, Any],
    ):
        super().__init__(detector, annotations)
        self.method = method
        self.view = view
        self.optimizer = optimizer
        self.schedule = schedule
        self.seed = seed
        self.description = description
        self.result: StepResult | None = None  # of the latest step, for callbacks

    def views(self, batch: Batch) -> dict[str, list[Tensor]]:
        """The images of every view that the method wants: B times [3, H, W] uint8 each."""
        images = {"original": batch.images}
        if "augmented" in self.method.views:
            images["augmented"] = self.view(batch.images, batch.positions, self.seed)
        return images

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.result = self.method(self.detector, self.views(batch), batch, self.global_step)
        return self.result.total

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["comining"] = self.description
