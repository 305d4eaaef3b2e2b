"""The types that are passed between subpackages, with a shape on every field.

Letters: B images of a batch, A regions (anchors or points) of an image over all pyramid levels,
K classes, N boxes of a batch. Boxes are ``xyxy`` in pixels. Labels are 0 ... K-1; in an
:class:`Assignment` K means background and -1 ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

IGNORED = -1


@dataclass
class Boxes:
    """Boxes of a batch of images in flat columns: annotations, candidates or detections.

    Rows are sorted by image. The layout is flat, so that one operation handles the whole batch, and
    a batch is sent between processes in a few tensors: with a tensor for every image, 128 images
    exhaust the 1,024 file descriptors that a process may open by default.
    """

    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64; -1 in ignored regions: every class
    image: Tensor  # [N] int64 position in the batch, ascending
    num_images: int  # B
    scores: Tensor | None = None  # [N] float32, of detections
    # B, the number of boxes of each image; set if the host knows it without a synchronisation.
    known_counts: list[int] | None = field(default=None, repr=False)

    @classmethod
    def empty(
        cls, num_images: int, device: torch.device | str = "cpu", *, scores: bool = False
    ) -> Self:
        """No boxes in ``num_images`` images."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(
            torch.zeros(0, 4, device=device),
            nothing,
            nothing,
            num_images,
            torch.zeros(0, device=device) if scores else None,
            [0] * num_images,
        )

    @classmethod
    def of_images(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        scores: Sequence[Tensor] | None = None,
    ) -> Self:
        """Concatenate boxes [n, 4], labels [n] and scores [n] of each of B images."""
        counts = [len(of_image) for of_image in labels]
        device = labels[0].device
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
        return cls(
            torch.cat(list(boxes)),
            torch.cat(list(labels)),
            image,
            len(counts),
            None if scores is None else torch.cat(list(scores)),
            counts,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Self:
        """Some rows, by a mask [N] or by indices that keep the images in order."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            image=self.image[rows],
            scores=None if self.scores is None else self.scores[rows],
            known_counts=None,
        )

    @property
    def known_scores(self) -> Tensor:
        """[N] scores; ValueError if the boxes have none."""
        if self.scores is None:
            raise ValueError("these boxes have no scores")
        return self.scores

    @property
    def counts(self) -> list[int]:
        """The number of boxes of each of the B images; synchronises with the device if unknown."""
        if self.known_counts is None:
            self.known_counts = torch.bincount(self.image, minlength=self.num_images).tolist()
        return self.known_counts

    def counts_on_device(self) -> Tensor:
        """The counts as [B] int64 on the device, without synchronising as :attr:`counts` may."""
        counts = torch.zeros(self.num_images, dtype=torch.int64, device=self.image.device)
        return counts.index_add_(0, self.image, torch.ones_like(self.image))

    def of_image(self, position: int) -> Self:
        """The boxes of one image, as a batch of one."""
        return self.of_range(position, position + 1)

    def of_range(self, start: int, stop: int) -> Self:
        """The boxes of the images ``start`` ... ``stop - 1``, as a batch of them."""
        counts = self.counts
        rows = slice(sum(counts[:start]), sum(counts[:stop]))
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            image=self.image[rows] - start,
            num_images=stop - start,
            scores=None if self.scores is None else self.scores[rows],
            known_counts=counts[start:stop],
        )

    def split(self) -> list[Self]:
        """The boxes of every image, each as a batch of one."""
        return [self.of_image(position) for position in range(self.num_images)]

    def repeat(self, times: int) -> Self:
        """The same boxes for ``times`` copies of the batch, copy after copy."""
        shift = torch.arange(times, device=self.image.device).repeat_interleave(len(self))
        return replace(
            self,
            boxes=self.boxes.repeat(times, 1),
            labels=self.labels.repeat(times),
            image=self.image.repeat(times) + shift * self.num_images,
            num_images=self.num_images * times,
            scores=None if self.scores is None else self.scores.repeat(times),
            known_counts=None if self.known_counts is None else self.known_counts * times,
        )

    def followed_by(self, other: Boxes) -> Self:
        """For every image, these boxes followed by those of ``other``; scores are dropped."""
        image = torch.cat([self.image, other.image])
        order = image.argsort(stable=True)
        known = None
        if self.known_counts is not None and other.known_counts is not None:
            pairs = zip(self.known_counts, other.known_counts, strict=True)
            known = [first + second for first, second in pairs]
        return replace(
            self,
            boxes=torch.cat([self.boxes, other.boxes])[order],
            labels=torch.cat([self.labels, other.labels])[order],
            image=image[order],
            scores=None,
            known_counts=known,
        )

    def padded(self) -> tuple[Tensor, Tensor]:
        """Boxes [B, G, 4] and labels [B, G], where G is the largest count of an image (at least 1).

        Padding consists of zero boxes with the label -1.
        """
        counts = self.counts
        most = max([1, *counts])
        device = self.labels.device
        boxes = torch.zeros(self.num_images, most, 4, dtype=self.boxes.dtype, device=device)
        labels = torch.full((self.num_images, most), -1, dtype=torch.int64, device=device)
        first = torch.tensor([0, *counts[:-1]], dtype=torch.int64).cumsum(0).to(device)
        column = torch.arange(len(self), device=device) - first[self.image]
        boxes[self.image, column] = self.boxes
        labels[self.image, column] = self.labels
        return boxes, labels

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """On another device."""
        return replace(
            self,
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            image=self.image.to(device, non_blocking=non_blocking),
            scores=None
            if self.scores is None
            else self.scores.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, which can be copied to a GPU asynchronously."""
        return replace(
            self,
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            image=self.image.pin_memory(),
            scores=None if self.scores is None else self.scores.pin_memory(),
        )


@dataclass
class Images(Sequence[Tensor]):
    """Images of any size in one flat tensor, for the same reason as :class:`Boxes`.

    Behaves as a sequence of B images [3, H, W] uint8, which share its memory.
    """

    pixels: Tensor  # [sum of 3 * H * W] uint8, image after image
    sizes: list[tuple[int, int]]  # B times (height, width)

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> Self:
        """Flatten B images [3, H, W] uint8 into one tensor."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return cls(torch.cat([image.reshape(-1) for image in images]), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, position: int) -> Tensor:  # type: ignore[override]  # no slices
        height, width = self.sizes[position]
        position = range(len(self))[position]
        start = sum(3 * h * w for h, w in self.sizes[:position])
        return self.pixels[start : start + 3 * height * width].view(3, height, width)

    def __iter__(self) -> Iterator[Tensor]:
        lengths = [3 * height * width for height, width in self.sizes]
        for pixels, (height, width) in zip(
            torch.split(self.pixels, lengths), self.sizes, strict=True
        ):
            yield pixels.view(3, height, width)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """On another device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """In page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass
class Knowledge:
    """What is known about B images beyond their annotations.

    It is applied by the detector and by :meth:`Method.forward`, so that no method can forget it: a
    class that nobody looked for has no background loss in the image, an ignored region has no loss,
    and nothing is mined where all objects are annotated.
    """

    # [B, K] float32, the annotation rate: 1 all objects of the class are annotated, 0 nobody looked
    # for it, nan some may be missing
    rate: Tensor
    ignored: Boxes  # regions without any loss; label -1: for every class
    # A region of the detector is ignored if more than this share of its area lies in an ignored
    # one.
    overlap: float
    # Classes exclude each other: an object that is annotated as one is background of all others,
    # also of those that nobody looked for.
    exclusive: bool
    # Whether any rate is 0, and whether any is 1; kept on the host to avoid a synchronisation.
    some_unlooked: bool
    some_complete: bool

    @classmethod
    def of(cls, rate: Tensor, ignored: Boxes, overlap: float, exclusive: bool = False) -> Self:
        """Create an instance from tensors on the CPU."""
        some_unlooked, some_complete = bool((rate == 0).any()), bool((rate == 1).any())
        return cls(rate, ignored, overlap, exclusive, some_unlooked, some_complete)

    @classmethod
    def nothing(cls, num_images: int, num_classes: int, device: torch.device | str = "cpu") -> Self:
        """No knowledge: objects of every class may be missing in every image."""
        rate = torch.full((num_images, num_classes), torch.nan, device=device)
        return cls(rate, Boxes.empty(num_images, device), 0.5, False, False, False)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """On another device."""
        return replace(
            self,
            rate=self.rate.to(device, non_blocking=non_blocking),
            ignored=self.ignored.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """In page-locked memory."""
        return replace(self, rate=self.rate.pin_memory(), ignored=self.ignored.pin_memory())


@dataclass
class Batch:
    """The input of the training step: B images of any size."""

    images: Images  # resized and flipped
    annotated: Boxes  # the annotations that were kept: the targets
    erased: Boxes  # those that sparsity erased, for judging pseudo-labels; empty on a user's data
    held_back: Boxes  # annotations that training does not see for now, see TrainingSet.hold_back
    knowledge: Knowledge
    # [B, K] bool: `annotated` and `erased` together are all objects of the class, so that
    # pseudo-labels can be judged
    judged: Tensor
    pseudo_labels: Boxes  # with scores: attached by a method before training; often empty
    image_ids: list[int]  # B ids of the annotation file
    positions: list[int]  # B global positions in the training stream; they seed the second view
    # B, how many boxes at the end of each image's annotated ones were pasted; empty: none
    pasted: list[int] = field(default_factory=list)

    def own_and_pasted(self) -> tuple[Boxes, Boxes]:
        """The boxes that are annotated in the images themselves, and those that were pasted."""
        counts = self.annotated.counts
        pasted = self.pasted or [0] * len(counts)
        own = [
            number < count - last
            for count, last in zip(counts, pasted, strict=True)
            for number in range(count)
        ]
        chosen = torch.tensor(own, dtype=torch.bool, device=self.annotated.labels.device)
        return self.annotated[chosen], self.annotated[~chosen]

    def _boxes_and_images(self) -> dict[str, Boxes | Images | Knowledge | Tensor]:
        names = (
            "images",
            "annotated",
            "erased",
            "held_back",
            "knowledge",
            "judged",
            "pseudo_labels",
        )
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """On another device."""
        moved = {
            name: part.to(device, non_blocking=non_blocking)
            for name, part in self._boxes_and_images().items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def pin_memory(self) -> Self:
        """Called by the data loader."""
        pinned = {name: part.pin_memory() for name, part in self._boxes_and_images().items()}
        return replace(self, **pinned)  # type: ignore[arg-type]


@dataclass
class EvaluationBatch:
    """The input of validation and test: B images at their original size."""

    image_ids: list[int]  # B
    images: Images

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """On another device."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Called by the data loader."""
        return replace(self, images=self.images.pin_memory())


class Predictions(ABC):
    """The outputs of a detector for a batch of images, before any threshold."""

    image_sizes: list[tuple[int, int]]  # B times (height, width), without the padding

    def __len__(self) -> int:
        return len(self.image_sizes)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K."""

    @property
    @abstractmethod
    def scores_per_image(self) -> int:
        """How many class scores an image has: regions times classes."""

    @abstractmethod
    def detach(self) -> Self:
        """The same predictions without their graph."""

    @abstractmethod
    def split(self, size: int) -> list[Self]:
        """Cut the batch into parts of ``size`` images (the views of one forward)."""


@dataclass
class DensePredictions(Predictions):
    """Predictions of a one-stage detector: a row for every location of the pyramid.

    ``anchors`` are boxes for an anchor-based detector; for an anchor-free one they are squares
    around the points with the level's stride as their side, as in torchvision.
    """

    logits: Tensor  # [B, A, K] float32
    deltas: Tensor  # [B, A, 4] float32, in the detector's own encoding
    anchors: Tensor  # [A, 4] float32, the same for every image of the padded batch
    anchors_per_level: list[int]  # sums to A
    image_sizes: list[tuple[int, int]]
    # further maps by name, [B, A] float32 each, such as the centerness logits of FCOS
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    @property
    def scores_per_image(self) -> int:
        return self.logits.shape[1] * self.logits.shape[2]

    def detach(self) -> Self:
        return replace(
            self,
            logits=self.logits.detach(),
            deltas=self.deltas.detach(),
            auxiliary={name: m.detach() for name, m in self.auxiliary.items()},
        )

    def split(self, size: int) -> list[Self]:
        starts = range(0, len(self), size)
        # The backward of split fills one tensor; slices would fill a whole one for every part.
        logits, deltas = torch.split(self.logits, size), torch.split(self.deltas, size)
        auxiliary = {name: torch.split(m, size) for name, m in self.auxiliary.items()}
        return [
            replace(
                self,
                logits=logits[part],
                deltas=deltas[part],
                image_sizes=self.image_sizes[start : start + size],
                auxiliary={name: parts[part] for name, parts in auxiliary.items()},
            )
            for part, start in enumerate(starts)
        ]


@dataclass
class Assignment:
    """The training target of every anchor of a batch."""

    labels: Tensor  # [B, A] int64: class, K background, -1 ignored
    boxes: Tensor  # [B, A, 4] float32: the matched box; meaningless where not positive
    num_classes: int  # K
    # [B, A], the largest IoU of the anchor with a target, 0 if there is none; None if the matching
    # does not use it
    overlap: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """[B, A] bool."""
        return (self.labels >= 0) & (self.labels < self.num_classes)


@dataclass
class StepResult:
    """The output of a method for a batch; its caller sums the losses, logs and judges."""

    losses: dict[str, Tensor]  # "view/term" -> scalar with gradient
    # view -> the pseudo-labels that were found in this view (they may supervise another one), in
    # the coordinates of the original view
    pseudo_labels: Mapping[str, Boxes] = field(default_factory=dict)
    # view -> [B, 5] int64: class scores, and how many remain after Step 1, Step 2, the image
    # border and Step 3 (and what is known); for methods that go these steps
    remaining_counts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of all losses (Eq. 2)."""
        return torch.stack(list(self.losses.values())).sum()
