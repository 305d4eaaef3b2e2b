"""The types that travel between the floors, with a shape on every field.

Letters: B images of a batch, A anchors (or points) of an image over all pyramid levels,
K classes, G annotated boxes, D detections, M candidates. Boxes are ``xyxy`` in pixels.
Labels are 0 ... K-1; in an :class:`Assignment` K means background and -1 ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IGNORED = -1


@dataclass
class Targets:
    """What one image is supervised by."""

    boxes: Tensor  # [G, 4] float32
    labels: Tensor  # [G] int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Detections:
    """Boxes that a network found in one image, best first."""

    boxes: Tensor  # [D, 4] float32
    labels: Tensor  # [D] int64
    scores: Tensor  # [D] float32

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Candidates:
    """Boxes found in a whole batch, flat, so that one operation serves all images."""

    boxes: Tensor  # [M, 4] float32
    labels: Tensor  # [M] int64
    scores: Tensor  # [M] float32
    image: Tensor  # [M] int64, position of the image in the batch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Candidates:
        return Candidates(
            self.boxes[index], self.labels[index], self.scores[index], self.image[index]
        )

    def per_image(self, num_images: int) -> list[Detections]:
        """Split into one :class:`Detections` an image. The candidates must be sorted by image."""
        counts = torch.bincount(self.image, minlength=num_images).tolist()
        columns = zip(
            torch.split(self.boxes, counts),
            torch.split(self.labels, counts),
            torch.split(self.scores, counts),
        )
        return [Detections(*column) for column in columns]


@dataclass
class DensePredictions:
    """The outputs of a one-stage detector for a batch of images, before any threshold.

    ``anchors`` are boxes for an anchor-based detector; for an anchor-free one they are squares
    around the points with the level's stride as their side, as in torchvision.
    """

    logits: Tensor  # [B, A, K] float32
    deltas: Tensor  # [B, A, 4] float32, in the detector's own encoding
    anchors: Tensor  # [A, 4] float32, the same for every image of the padded batch
    anchors_per_level: list[int]  # sums to A
    image_sizes: list[tuple[int, int]]  # B times (height, width), without the padding
    centerness: Tensor | None = None  # [B, A] float32 logits, FCOS only

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    def detach(self) -> DensePredictions:
        """The same numbers without their graph: mining never sends a gradient."""
        return replace(
            self,
            logits=self.logits.detach(),
            deltas=self.deltas.detach(),
            centerness=None if self.centerness is None else self.centerness.detach(),
        )

    def split(self, size: int) -> list[DensePredictions]:
        """Cut the batch into parts of ``size`` images (the views of one forward)."""
        starts = range(0, len(self), size)
        # The backward of one split fills one table; that of a slice a whole table for every part.
        logits: Sequence[Tensor] = self.logits.split(size)  # type: ignore[no-untyped-call]
        deltas: Sequence[Tensor] = self.deltas.split(size)  # type: ignore[no-untyped-call]
        centerness: Sequence[Tensor | None] = [None] * len(starts)
        if self.centerness is not None:
            centerness = self.centerness.split(size)  # type: ignore[no-untyped-call]
        return [
            replace(
                self,
                logits=logits[part],
                deltas=deltas[part],
                image_sizes=self.image_sizes[start : start + size],
                centerness=centerness[part],
            )
            for part, start in enumerate(starts)
        ]


@dataclass
class Assignment:
    """What every anchor of a batch is trained to."""

    labels: Tensor  # [B, A] int64: class, K background, -1 ignored
    boxes: Tensor  # [B, A, 4] float32: the matched box; meaningless where not positive
    num_classes: int  # K

    @property
    def positive(self) -> Tensor:
        """[B, A] bool."""
        return (self.labels >= 0) & (self.labels < self.num_classes)


@dataclass
class Batch:
    """What the data module hands to the training step: B images of any size."""

    images: list[Tensor]  # B times [3, H, W] uint8, resized and flipped
    targets: list[Targets]  # B: the annotations that were kept
    erased: list[Targets]  # B: those that sparsity erased, for judging what is mined
    found: list[Detections]  # B: what a method attached to the images beforehand; often empty
    image_ids: list[int]  # B ids of the annotation file
    positions: list[int]  # B global positions in the training stream; they seed the second view

    def pin_memory(self) -> Batch:
        """Called by the data loader: page-locked copies, which travel to a GPU unwaited for."""
        for target in (*self.targets, *self.erased):
            target.boxes, target.labels = target.boxes.pin_memory(), target.labels.pin_memory()
        for one in self.found:
            one.boxes, one.labels = one.boxes.pin_memory(), one.labels.pin_memory()
            one.scores = one.scores.pin_memory()
        self.images = [image.pin_memory() for image in self.images]
        return self


@dataclass
class StepResult:
    """What a method makes of a batch. Whoever called it sums, logs and judges."""

    losses: dict[str, Tensor]  # "view/term" -> scalar with gradient
    mined: Mapping[str, list[Detections]] = field(default_factory=dict)
    # view -> B sets of pseudo-labels that this view produced (they supervise another one)
    passed: Mapping[str, Tensor] = field(default_factory=dict)
    # view -> [B, 5] int64: class scores, and how many are left after Step 1, Step 2, the image
    # border and Step 3; for methods that go these steps

    @property
    def total(self) -> Tensor:
        """The plain sum of Eq. 2."""
        return torch.stack(list(self.losses.values())).sum()


def pad_targets(targets: Sequence[Targets], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack the targets of B images.

    Returns:
        boxes [B, G, 4] and labels [B, G] with G the largest count (at least 1); where an image
        has fewer, the box is zero and the label -1.
    """
    most = max([1, *map(len, targets)])
    boxes = torch.zeros(len(targets), most, 4, device=device)
    labels = torch.full((len(targets), most), -1, dtype=torch.int64, device=device)
    for row, target in enumerate(targets):
        boxes[row, : len(target)] = target.boxes
        labels[row, : len(target)] = target.labels
    return boxes, labels
