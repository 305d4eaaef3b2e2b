"""The seam between methods and everything above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.detectors.dense import DenseDetector
from comining.structures import (
    Assignment,
    Batch,
    DensePredictions,
    Detections,
    StepResult,
    Targets,
)

View = Literal["original", "augmented"]
Mined = Mapping[str, list[Detections]]


class Supervision(NamedTuple):
    """What every view is trained by, and what it mined."""

    targets: Mapping[str, Sequence[Targets]]  # view -> B
    mined: Mined = MappingProxyType({})  # view -> B sets of pseudo-labels that this view produced
    passed: Mapping[str, Tensor] = MappingProxyType(
        {}
    )  # view -> [B, 5] int64, see :class:`StepResult`


class Method:
    """Supervise every view of an image by its annotations: what all methods start from.

    All views go through the network in one forward. A method differs in the targets of a view
    (:meth:`supervise`), in how much an anchor's loss counts (:meth:`weights`), or in the losses of
    a branch altogether (:meth:`branch_losses`).

    Args:
        views: the views that are trained on, each a branch of the shared network.
    """

    def __init__(self, views: Sequence[View]):
        if not views or len(set(views)) != len(views):
            raise ValueError(f"method.views must name different views, got {list(views)}")
        self.views = tuple(views)

    def prepare(self, data: DetectionData, run: Path, device: torch.device) -> None:
        """What is to be done once, after the data are read and before training begins.

        Args:
            run: the run directory, for what the method wants to leave there.
            device: of this process, for work of the method's own.
        """

    def __call__(
        self,
        detector: DenseDetector,
        images: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> StepResult:
        """Losses of one batch.

        Args:
            images: for every view of :attr:`views` B images [3, H, W] uint8 of equal geometry.
            batch: annotations of the B images, shared by the views.
            step: optimizer steps done so far.
        """
        predictions = detector.predict([image for view in self.views for image in images[view]])
        supervision = self.supervise(detector, predictions, batch, step)
        branches = zip(self.views, predictions.split(len(batch.targets)), strict=True)
        losses = {
            f"{view}/{term}": loss
            for view, branch in branches
            for term, loss in self.branch_losses(
                detector, branch, supervision.targets[view], batch
            ).items()
        }
        return StepResult(losses, supervision.mined, supervision.passed)

    def supervise(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        batch: Batch,
        step: int,
    ) -> Supervision:
        """The targets of every view, and the pseudo-labels that each view produced.

        Args:
            predictions: of all views, V * B images, view after view.
            batch: annotations of the B images.
        """
        return Supervision(dict.fromkeys(self.views, batch.targets))

    def branch_losses(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        targets: Sequence[Targets],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """The losses of one branch under its targets."""
        assignment = detector.assign(predictions, targets)
        weights = self.weights(detector, predictions, assignment, batch)
        return detector.losses(predictions, assignment, weights)

    def weights(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        assignment: Assignment,
        batch: Batch,
    ) -> Tensor | None:
        """A factor [B, A] or [B, A, K] on the classification loss; None counts all alike.

        Never sends a gradient.
        """
        return None
