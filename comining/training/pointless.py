"""Warnings, before the first step, of data that make training or its evaluation pointless."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet
from comining.data.datamodule import DetectionData
from comining.data.dataset import TrainingSet
from comining.data.knowledge import COMPLETE
from comining.data.pasting import LARGEST_SHARE, SMALLEST_SIDE
from comining.detectors.detector import Detector
from comining.detectors.faster_rcnn import FasterRCNNDetector
from comining.errors import shortened
from comining.ops import resized_shape
from comining.training.training_module import DetectionModule

log = logging.getLogger(__name__)

# A box whose longer side is below this share of the smallest anchor has an IoU of at most a quarter
# with any anchor, and lies between the points of a detector that has points.
SMALL = 0.5
# The share of small boxes from which on a warning is given.
MOST = 0.9
NAMED = 5  # classes
# The names of the localisation losses of all detectors.
PLACING = ("box", "centerness")


def pointless(data: DetectionData, detector: Detector, mines: bool = False) -> Iterator[str]:
    """Warnings for the user before training begins, one sentence each, with file and option.

    Args:
        data: after ``setup("fit")``.
        mines: whether the method looks for objects that are not annotated.
    """
    train = data.train_set
    if train is None or data.erased is None:
        raise RuntimeError("setup() has not been called")
    if len(train) < data.batch_size:
        yield (
            f"{train.annotations.path}: only {len(train)} images to train on, fewer than "
            f"data.batch_size={data.batch_size}: each batch repeats images"
        )
    kept = ~data.erased & ~train.annotations.crowd
    yield from _missing_classes(train.annotations, kept, "to train on", "are never learned")
    if mines and (train.status == COMPLETE).all():
        yield (
            f"{train.annotations.path}: all classes are complete in all images (data.annotated="
            "exhaustive, or fields of the file): there is nothing to mine"
        )
    yield from _too_small(train, kept, detector.smallest_region)
    if mines and isinstance(detector, FasterRCNNDetector):
        yield from _crowded(train, kept, detector.candidate_proposals)
    yield from _never_pasted(train)
    for split, evaluated in data.evaluated.items():
        judged = ~evaluated.crowd
        if not judged.any():
            yield f"{evaluated.path}: no annotation for {split}: its AP will be null"
        elif evaluated.path != train.annotations.path:  # else it has been said
            yield from _missing_classes(evaluated, judged, f"for {split}", "have no AP there")


def _missing_classes(
    annotations: AnnotationSet, chosen: NDArray[np.bool_], purpose: str, outcome: str
) -> Iterator[str]:
    # Regions that are ignored for every class have the label -1.
    counts, before = (
        np.bincount(annotations.labels[rows], minlength=len(annotations.categories))
        for rows in (chosen, annotations.labels >= 0)
    )
    missing = [
        repr(name) + (f" ({total} erased or crowds)" if total else "")
        for name, count, total in zip(annotations.categories.names, counts, before.tolist())
        if not count
    ]
    if missing:
        yield (
            f"{annotations.path}: classes without a box {purpose}: {shortened(missing, NAMED)}; "
            f"they {outcome}"
        )


def _never_pasted(train: TrainingSet) -> Iterator[str]:
    """Classes with annotations, none of which can be pasted."""
    if train.paster is None or not train.paster.never_pasted:
        return
    names = [repr(train.annotations.categories.names[k]) for k in train.paster.never_pasted]
    yield (
        f"{train.annotations.path}: data.paste={train.paster.count} pastes nothing of the classes "
        f"{shortened(names, NAMED)}: all their boxes are proposed ones that nobody "
        f"has corrected, or, after resizing, have a side below {SMALLEST_SIDE} px or cover more "
        f"than {LARGEST_SHARE:.0%} of their image"
    )


def _too_small(train: TrainingSet, kept: NDArray[np.bool_], smallest: float) -> Iterator[str]:
    """Boxes that no anchor fits, after resizing."""
    annotations = train.annotations
    scales = np.array(
        [
            [resized_shape(h, w, train.min_size, train.max_size)[side] / (h, w)[side]
             for side in (1, 0)]
            for h, w in annotations.sizes.tolist()
        ]
    )  # fmt: skip
    boxes = annotations.boxes[kept]
    sides = (boxes[:, 2:] - boxes[:, :2]) * scales[annotations.image[kept]]
    small = sides.max(axis=1) < SMALL * smallest
    if small.any() and small.mean() >= MOST:
        of_image = annotations.sizes[annotations.image[kept][small]]
        by_longer = train.max_size / of_image.max(axis=1) < train.min_size / of_image.min(axis=1)
        limit = "data.max_size" if by_longer.mean() > 0.5 else "data.min_size"
        yield (
            f"{annotations.path}: {small.sum()} of {len(boxes)} boxes are below "
            f"{SMALL * smallest:g} px after resizing (data.min_size={train.min_size}, "
            f"data.max_size={train.max_size}), but the smallest anchor is {smallest:g} px: hardly "
            f"any can be learned; raise {limit}"
        )


def _crowded(train: TrainingSet, kept: NDArray[np.bool_], candidates: int) -> Iterator[str]:
    """Images whose annotated objects leave few of the mined proposals to others."""
    annotations = train.annotations
    most = int(np.bincount(annotations.image[kept]).max(initial=0))
    most += 0 if train.paster is None else train.paster.count
    if 2 * most > candidates:
        yield (
            f"{annotations.path}: an image has up to {most} annotated and pasted objects, and "
            f"only its {candidates} best proposals are mined: raise detector.candidate_proposals"
        )


class ZeroLossWarning(L.Callback):
    """Warns once if the localisation losses have been exactly 0 since training began.

    No region has had a target then: all boxes are too small.

    Args:
        after: batches before the warning.
    """

    def __init__(self, after: int):
        self.after = after
        self.batches = 0
        self._largest = torch.zeros(())

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if not isinstance(pl_module, DetectionModule) or pl_module.result is None:
            raise TypeError("no step of a detector has been taken")
        placing = [
            loss.detach().abs()
            for name, loss in pl_module.result.losses.items()
            if name.rpartition("/")[2] in PLACING
        ]
        if self.batches >= self.after or not placing:
            return
        self._largest = torch.stack([self._largest.to(placing[0]), *placing]).amax()
        self.batches += 1
        last = batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches
        if (self.batches == self.after or last) and not self._largest.any():
            self._warn(trainer)

    def _warn(self, trainer: L.Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        if trainer.is_global_zero:
            log.warning(
                "%s: the localisation losses were 0 in all of the first %d batches: no anchor is "
                "matched to any box; the boxes may be too small after resizing "
                "(data.min_size=%d, data.max_size=%d)",
                data.train_set.annotations.path, self.batches, data.min_size, data.max_size,
            )  # fmt: skip
