"""The base class of all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from comining.data.datamodule import DetectionData
from comining.data.geometry import Geometry
from comining.detectors.detector import Background, Detector, Regions
from comining.errors import ConfigError
from comining.methods.known import drop_known
from comining.structures import Batch, Boxes, Predictions, StepResult

View = Literal["original", "augmented"]


class RunInfo(NamedTuple):
    """The facts about a run that :meth:`Method.prepare` gets."""

    folder: Path  # the run directory, for what the method wants to leave there
    device: torch.device  # of this process
    rank: int = 0
    world_size: int = 1
    seed: int = 0  # determines random choices, with the position of an image
    max_steps: int = 0  # optimizer steps of the whole run
    images_per_step: int = 0  # positions of the training stream, of all processes


class Supervision(NamedTuple):
    """The targets of every view besides its annotations, and the pseudo-labels that were found."""

    # view -> further targets of its B images, in the coordinates of the original view
    added: Mapping[str, Boxes] = MappingProxyType({})
    pseudo_labels: Mapping[str, Boxes] = MappingProxyType({})  # see :class:`StepResult`
    remaining_counts: Mapping[str, Tensor] = MappingProxyType({})  # see :class:`StepResult`

    def targets(self, view: str, annotated: Boxes) -> Boxes:
        """All targets of a view, in the coordinates of the original one."""
        return annotated.followed_by(self.added[view]) if view in self.added else annotated


class Method(nn.Module):
    """Base class of all methods: supervises every view of an image by its annotations.

    All views go through the network in one forward. A method changes the targets of a view
    (:meth:`supervise`), or how regions without a target count (:meth:`background`). Its state
    (parameters without gradient, buffers) is saved in the checkpoint: what must survive a resume
    belongs in a buffer or a submodule, not in a plain attribute.

    Args:
        views: the training views, each a branch of the shared network.
    """

    score_threshold: float | None = None  # tau, of methods that have one
    needs: type | None = None  # the class of detectors that the method is for; None: all

    def __init__(self, views: Sequence[View]):
        super().__init__()
        if not views or len(set(views)) != len(views):
            raise ValueError(f"method.views must name different views, got {list(views)}")
        self.views: tuple[str, ...] = tuple(views)
        # Whether :meth:`supervise` is called in a training step. The overview images call it, too,
        # on one process only: counting, and sharing with other processes, belong in a step.
        self.in_step = False

    @property
    def mines(self) -> bool:
        """Whether it looks for objects that are not annotated."""
        return self.score_threshold is not None

    def check_detector(self, kind: object, method: str, detector: str) -> None:
        """Refuse a detector that the method cannot be used with.

        Args:
            kind: the class of the detector, or a function that makes one.
            method, detector: their names in the configuration.

        Raises:
            ConfigError: naming both.
        """
        if self.needs and isinstance(kind, type) and not issubclass(kind, self.needs):
            raise ConfigError(
                f"method={method} cannot be used with detector={detector}: it needs a "
                f"{self.needs.__name__} (detector=faster_rcnn)"
            )

    @property
    def mined_views(self) -> tuple[str, ...]:
        """The views in which the method looks for pseudo-labels, if it does."""
        return self.views

    def own_views(self, originals: Sequence[Tensor], batch: Batch) -> dict[str, Sequence[Tensor]]:
        """Views that this method makes besides the original and the augmented one, by name.

        Args:
            originals: B images [3, H, W] uint8, to be left unchanged.
            batch: of the same images; its positions seed random choices.
        """
        return {}

    def geometry(self, view: str, batch: Batch) -> Geometry | None:
        """The geometry of a view relative to the original one; None if it is the same."""
        return None

    def seen_in(self, view: str, batch: Batch, boxes: Boxes) -> tuple[Batch, Boxes]:
        """A batch, and other boxes of its images, in the coordinates of a view."""
        geometry = self.geometry(view, batch)
        if geometry is None:
            return batch, boxes
        return geometry.batch(batch), geometry.objects(boxes)

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        """Prepare the method once, before training begins or is resumed.

        Called on every process, after the data are read and processes can communicate, and before a
        checkpoint is loaded to resume from: submodules and buffers that are made here get its
        state.
        """

    def forward(
        self,
        detector: Detector,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> StepResult:
        """Losses of one batch.

        Args:
            views: for every view B images [3, H, W] uint8 of equal size.
            batch: annotations of the B images, in the coordinates of the original view.
            step: optimizer steps done so far.
        """
        predictions = detector.predict([image for view in self.views for image in views[view]])
        self.in_step = True
        try:
            supervision = self.supervise_unknown(detector, predictions, views, batch, step)
        finally:
            self.in_step = False
        losses: dict[str, Tensor] = {}
        for view, branch in zip(self.views, predictions.split(len(batch.images)), strict=True):
            targets = supervision.targets(view, batch.annotated)
            seen, targets = self.seen_in(view, batch, targets)
            of_view = self.branch_losses(detector, branch, targets, seen)
            losses |= {f"{view}/{term}": loss for term, loss in of_view.items()}
        return StepResult(losses, supervision.pseudo_labels, supervision.remaining_counts)

    def branch_losses(
        self, detector: Detector, branch: Predictions, targets: Boxes, batch: Batch
    ) -> dict[str, Tensor]:
        """The losses of one view by name.

        Args:
            branch: predictions of the B images of the view.
            targets: of the same images.
            batch: in the coordinates of the view.
        """
        background = partial(self.background, batch=batch)
        return detector.losses(branch, targets, background, batch.knowledge)

    def supervise_unknown(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        """:meth:`supervise`, without targets of a class that is complete, and without those in an
        ignored region.
        """
        supervision = self.supervise(detector, predictions, views, batch, step)
        known = batch.knowledge
        if not known.some_complete and not len(known.ignored):
            return supervision
        added, pseudo_labels = (
            {view: drop_known(boxes, known) for view, boxes in column.items()}
            for column in (supervision.added, supervision.pseudo_labels)
        )
        remaining = {
            view: torch.cat([counts[:, :-1], pseudo_labels[view].counts_on_device()[:, None]], 1)
            for view, counts in supervision.remaining_counts.items()
        }
        return Supervision(added, pseudo_labels, remaining)

    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        """The targets of every view besides its annotations, and the pseudo-labels that were found.

        Args:
            predictions: of all training views, V * B images, view after view.
            views, batch, step: see :meth:`forward`.
        """
        return Supervision()

    def background(self, regions: Regions, batch: Batch) -> Background:
        """How the regions of a branch count that have no target; as background by default.

        Args:
            regions: under the targets of :meth:`supervise`.
            batch: in the coordinates of the branch's view.
        """
        return Background()

    def after_step(self, detector: Detector, step: int) -> None:
        """Called after each optimizer step.

        Args:
            step: optimizer steps done, this one included.
        """

    def figures(self) -> dict[str, float]:
        """Figures of the method by name, to be logged with those of training."""
        return {}

    def outcome(self) -> dict[str, Any]:
        """Facts about the method for ``result.json``, by fields of its record."""
        return {}

    def closing_lines(self) -> list[str]:
        """Lines about the method that are printed at the end of a run."""
        return []

    def deployed(self, detector: Detector) -> Detector:
        """The network that is evaluated, and loaded from a checkpoint: a part of the training
        module, ``detector`` itself or one that the method holds."""
        return detector
