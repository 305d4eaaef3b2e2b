"""Data sets of images with their boxes, for training and evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from comining.data.annotations import AnnotationSet
from comining.data.images import load_image
from comining.data.knowledge import PARTIAL, UNLOOKED, counts, rates
from comining.data.pasting import ObjectPaster
from comining.data.sampler import SampleKey
from comining.data.seeding import derive_seed
from comining.data.sparsity import Erasure
from comining.ops import resized_shape
from comining.structures import Batch, Boxes, EvaluationBatch, Images, Knowledge

LoadImage = Callable[[Path, tuple[int, int]], Tensor]


class Sample(NamedTuple):
    """One image of the training stream."""

    key: SampleKey
    image: Tensor  # [3, H, W] uint8, resized and flipped as the boxes are
    annotated: Boxes
    erased: Boxes
    held_back: Boxes
    knowledge: Knowledge
    judged: Tensor  # [K] bool, see :class:`Batch`
    pseudo_labels: Boxes
    image_id: int
    pasted: int = 0  # how many of the annotated boxes, the last ones, were pasted


class TrainingSet(Dataset[Sample]):
    """The images of a sparse set that still have an annotation.

    Args:
        annotations: the full set.
        erasure: the annotations that sparsity erased, and the status afterwards.
        folder: of the images.
        min_size, max_size: shortest and longest side after resizing, px.
        flip: probability of a horizontal flip.
        seed: of the run; with the position it determines the flip.
        ignored_overlap, exclusive_classes: see :class:`Knowledge`.
        paste: maximum number of annotated objects from other images that are pasted into an image.
        load: decodes an image file of a given (height, width) to [3, H, W] uint8.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        erasure: Erasure,
        folder: Path,
        *,
        min_size: int,
        max_size: int,
        flip: float,
        seed: int,
        ignored_overlap: float = 0.5,
        exclusive_classes: bool = False,
        paste: int = 0,
        load: LoadImage = load_image,
    ):
        self.annotations = annotations
        self.folder = folder
        self.min_size, self.max_size = min_size, max_size
        self.flip = flip
        self.seed = seed
        self.load = load
        self.ignored_overlap, self.exclusive = ignored_overlap, exclusive_classes
        self.status = erasure.status
        erased = erasure.erased
        self.knows_truth = bool(erased.any())
        kept = ~erased & ~annotations.crowd
        self.images = np.unique(annotations.image[kept])
        # image id -> boxes in original pixels, attached by a method before training.
        self.pseudo_labels: dict[int, Boxes] = {}
        ignored = annotations.crowd | erasure.ignored
        self.kept, self.ignored, self.paste = kept, ignored, paste
        self.paster = self._paster(kept)
        self.held_back = np.zeros(len(kept), dtype=np.bool_)  # [M], until a position of the stream
        self.held_back_until = 0
        self._other_paster: ObjectPaster | None = None  # of what is not held back
        # Rows of every image, to access items without a search.
        self.kept_rows = _rows_of_image(annotations, kept)
        self.erased_rows = _rows_of_image(annotations, erased & ~erasure.ignored)
        self.ignored_rows = _rows_of_image(annotations, ignored)

    def _paster(self, kept: NDArray[np.bool_]) -> ObjectPaster | None:
        if not self.paste:
            return None
        return ObjectPaster(
            self.annotations, kept, self.ignored, self.folder, self.load, min_size=self.min_size,
            max_size=self.max_size, count=self.paste, flip=self.flip,
        )  # fmt: skip

    def hold_back(self, share: float, until: int) -> NDArray[np.bool_]:
        """Hide a share of the annotations of every class from training for a while.

        They are in :attr:`Batch.held_back` instead of the annotations, and are not pasted.

        Args:
            share: of the annotations of a class, rounded down.
            until: the position in the training stream from which on they are annotations again.

        Returns:
            [M] which.
        """
        self.held_back = held_back_rows(self.annotations, self.kept, share, self.seed)
        self.held_back_until = until
        self._other_paster = self._paster(self.kept & ~self.held_back)
        return self.held_back

    def known(self) -> dict[str, Any]:
        """Counts of what is known about images and classes, and of ignored regions."""
        regions = sum(map(len, self.ignored_rows))
        names = self.annotations.categories.names
        return counts(self.status, names) | {"ignored_regions": regions}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def landscape(self) -> NDArray[np.bool_]:
        """[len] bool, whether an image is wider than high."""
        height, width = self.annotations.sizes[self.images].T
        return np.asarray(width > height)

    def __getitem__(self, key: SampleKey) -> Sample:
        """One image with all its boxes, the same for the same key."""
        image_index = int(self.images[key.item])
        height, width = (int(side) for side in self.annotations.sizes[image_index])
        file = self.folder / self.annotations.file(image_index)
        image = self.load(file, (height, width))
        shape = resized_shape(height, width, self.min_size, self.max_size)
        if shape != (height, width):
            # Without antialiasing, like torchvision's models at inference, so that training and
            # test images are resized alike.
            image = F.resize(image, list(shape), antialias=False)
        scale = torch.tensor([shape[1] / width, shape[0] / height] * 2, dtype=torch.float64)
        flipped = random.Random(derive_seed("flip", self.seed, key.position)).random() < self.flip
        if flipped:
            image = image.flip(-1)

        def move(boxes: Boxes) -> Boxes:
            moved = (boxes.boxes * scale).float()
            if flipped:
                moved[:, [0, 2]] = shape[1] - moved[:, [2, 0]]
            return replace(boxes, boxes=moved)

        image_id = int(self.annotations.image_ids[image_index])
        ignored = move(self._boxes(self.ignored_rows[image_index]))
        rate = torch.from_numpy(rates(self.status[image_index : image_index + 1]))
        kept, paster = self.kept_rows[image_index], self.paster
        held = self.held_back[kept] & (key.position < self.held_back_until)
        if key.position < self.held_back_until:
            paster = self._other_paster
        annotated = move(self._boxes(kept[~held]))
        held_back = move(self._boxes(kept[held]))
        erased = move(self._boxes(self.erased_rows[image_index]))
        pseudo_labels = move(self.pseudo_labels.get(image_id, Boxes.empty(1, scores=True)))
        count = 0
        if paster is not None:
            # Held-back objects may be covered, like unannotated ones.
            pasted = paster(
                image,
                torch.cat([annotated.boxes, ignored.boxes]),
                random.Random(derive_seed("paste", self.seed, key.position)),
            )
            image, count = pasted.image, len(pasted.labels)
            # Hidden objects no longer count as erased annotations or pseudo-labels.
            erased = erased[pasted.visible(erased.boxes)]
            pseudo_labels = pseudo_labels[pasted.visible(pseudo_labels.boxes)]
            annotated = annotated.followed_by(Boxes.of_images([pasted.boxes], [pasted.labels]))
        return Sample(
            key,
            image,
            annotated=annotated,
            erased=erased,
            held_back=held_back,
            knowledge=Knowledge.of(rate, ignored, self.ignored_overlap, self.exclusive),
            judged=self._judged(image_index),
            pseudo_labels=pseudo_labels,
            image_id=image_id,
            pasted=count,
        )

    def _judged(self, image_index: int) -> Tensor:
        """[K] bool, see :class:`Batch`.

        False without erased annotations, or if the file itself says that objects may be missing:
        then no mined box can be called wrong.
        """
        said = self.annotations.said_of_all[image_index]
        sure = (said != PARTIAL) & (said != UNLOOKED)
        return torch.from_numpy(sure & self.knows_truth)

    def annotated_boxes(self, image_index: int) -> Boxes:
        """The annotations of an image that were kept, float32 in original pixels.

        Args:
            image_index: position in the annotation set.
        """
        boxes = self._boxes(self.kept_rows[image_index])
        return replace(boxes, boxes=boxes.boxes.float())

    def _boxes(self, rows: NDArray[np.int64]) -> Boxes:
        """Rows of the annotations of one image, float64 in original pixels."""
        return Boxes.of_images(
            [torch.from_numpy(self.annotations.boxes[rows])],
            [torch.from_numpy(self.annotations.labels[rows])],
        )


def _rows_of_image(
    annotations: AnnotationSet, chosen: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """The rows of the chosen annotations of every image."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(annotations.image[rows], kind="stable")]
    counts = np.bincount(annotations.image[rows], minlength=len(annotations.image_ids))
    return np.split(rows, np.cumsum(counts)[:-1])


def held_back_rows(
    annotations: AnnotationSet, kept: NDArray[np.bool_], share: float, seed: int
) -> NDArray[np.bool_]:
    """[M] a share of the kept annotations of every class, by a hash of their ids."""
    chosen = np.zeros_like(kept)
    for label in range(len(annotations.categories)):
        rows = np.flatnonzero(kept & (annotations.labels == label))
        chance = [derive_seed("held_back", seed, number) for number in annotations.ids[rows]]
        first = np.argsort(np.array(chance, dtype=np.int64), kind="stable")
        chosen[rows[first[: int(len(rows) * share)]]] = True
    return chosen


def collate(samples: list[Sample]) -> Batch:
    """Combine samples of a :class:`TrainingSet` into a :class:`Batch`."""
    return Batch(
        images=Images.of([sample.image for sample in samples]),
        annotated=_flat([sample.annotated for sample in samples]),
        erased=_flat([sample.erased for sample in samples]),
        held_back=_flat([sample.held_back for sample in samples]),
        knowledge=Knowledge.of(
            torch.cat([sample.knowledge.rate for sample in samples]),
            _flat([sample.knowledge.ignored for sample in samples]),
            samples[0].knowledge.overlap,
            samples[0].knowledge.exclusive,
        ),
        judged=torch.stack([sample.judged for sample in samples]),
        pseudo_labels=_flat([sample.pseudo_labels for sample in samples]),
        image_ids=[sample.image_id for sample in samples],
        positions=[sample.key.position for sample in samples],
        pasted=[sample.pasted for sample in samples],
    )


def _flat(of_images: Sequence[Boxes]) -> Boxes:
    """Concatenate boxes of single images into those of a batch."""
    scores = [boxes.scores for boxes in of_images if boxes.scores is not None]
    return Boxes.of_images(
        [boxes.boxes for boxes in of_images],
        [boxes.labels for boxes in of_images],
        scores or None,
    )


class EvaluationSet(Dataset[tuple[int, Tensor]]):
    """Every image of a set at its original size, with its id.

    Args:
        load: decodes an image file of a given (height, width) to [3, H, W] uint8.
    """

    def __init__(self, annotations: AnnotationSet, folder: Path, load: LoadImage = load_image):
        self.annotations = annotations
        self.folder = folder
        self.load = load

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        height, width = (int(side) for side in self.annotations.sizes[index])
        file = self.folder / self.annotations.file(index)
        return int(self.annotations.image_ids[index]), self.load(file, (height, width))


def collate_evaluation(samples: list[tuple[int, Tensor]]) -> EvaluationBatch:
    """Combine image ids and images into a batch."""
    image_ids, images = zip(*samples, strict=True)
    return EvaluationBatch(list(image_ids), Images.of(images))
