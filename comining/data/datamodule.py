"""The data module: batches for training and validation from annotation files and images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from comining.data.annotations import AnnotationSet, Categories, Crowd, OnInvalidBox
from comining.data.dataset import (
    EvaluationSet,
    LoadImage,
    TrainingSet,
    collate,
    collate_evaluation,
)
from comining.data.folds import fold_of
from comining.data.formats.annotation_format import (
    AnnotationFormat,
    Difficult,
    MissingLabels,
    ReadOptions,
)
from comining.data.image_files import total_counts, warn_of_pictures
from comining.data.images import BitDepth, Exif, load_image
from comining.data.knowledge import Annotated, counts
from comining.data.loading import leave_signals_to_main
from comining.data.sampler import StreamSampler
from comining.data.set_writer import SetWriter
from comining.data.sparsity import Erasure, Sparsity
from comining.data.split_reader import SplitReader
from comining.errors import DataError
from comining.option_types import Fraction, NonNegativeInt, PositiveInt, Share
from comining.structures import Batch, EvaluationBatch

log = logging.getLogger(__name__)


class DetectionData(L.LightningDataModule):
    """Annotations of any format with their images: named COCO files, or splits that a format finds.

    Args:
        sparsity: erases annotations of the training file, once.
        seed: of the order of images and of flips.
        root: base of the relative paths below; the folder of the set for a ``format``.
        format: finds the splits below ``root``; None uses the files that are named here.
        train_annotations, train_images, val_annotations, val_images: COCO files, image folders;
            None for a ``format``. Lists of them are merged by class name; classes that a file lacks
            were not looked for in its images. Without a validation file, ``val_fraction`` applies.
        test_annotations, test_images: of a third split, which is evaluated once, after training,
            and not used for model selection; None for none.
        missing_labels, names: see :class:`comining.data.formats.annotation_format.ReadOptions`.
        annotated: what holds for training images without fields in the file: ``partial``, objects
            may be missing; ``exhaustive``, all are annotated; ``fields``, as if the fields of LVIS
            were present and empty. Sparsity makes it partial.
        val_annotated, test_annotated: the same for the evaluated splits; None for the validation:
            as ``annotated`` if it consists of training images, else ``exhaustive``.
        ignore_category: name of a class whose boxes are regions to ignore; None for none.
        ignored_overlap: an anchor (or a mined box) lies in an ignored region if more than this
            share of its area does; 1 ignores nothing in training.
        exclusive_classes: an annotated object is background for all other classes, including those
            that nobody looked for in its image.
        difficult: see :class:`comining.data.formats.annotation_format.ReadOptions`.
        val_fraction: share of the training images that is kept for validation, and not trained on,
            if there is no validation split; None makes that an error.
        left_out_fold: [i, n] leaves out part i (0 ... n - 1) of n parts of the training images, see
            :func:`comining.data.folds.fold_of`; None for none.
        missing_val: if the validation file and folder are both absent, ``error``, or evaluate on
            the ``train`` images (fully annotated) with a warning.
        hint: added to the error message if files are missing.
        prepare: called with ``root`` before anything is read; may write the set.
        on_invalid_box: see :func:`comining.data.annotations.read_coco`.
        crowd: annotations that are marked as crowds are set aside (``ignore``) or taken as objects
            (``object``).
        exif: pictures with an EXIF orientation are taken as stored (``ignore``), or turned as in a
            viewer (``apply``); the sizes in the annotation file are then those of the turned ones.
        bit_depth: bits that hold values in pictures with more than 8 bits per sample; ``auto``:
            all.
        check: what is checked of image files before training starts: only that they ``exist``, or
            also their ``size`` (reads every header). Sizes are checked again on decoding.
        batch_size: images per batch, over all processes.
        val_batch_size: images per validation batch, in each process.
        num_workers: processes that decode images; 0 decodes in the main process.
        min_size, max_size: shortest and longest side after resizing, px.
        flip: probability of a horizontal flip.
        paste: maximum number of annotated objects from other images that are pasted into each
            training image, where nothing is annotated; see :mod:`comining.data.pasting`. 0 for
            none.
    """

    def __init__(
        self,
        sparsity: Sparsity,
        seed: int,
        *,
        root: str,
        format: AnnotationFormat | None,
        train_annotations: str | Sequence[str] | None,
        train_images: str | Sequence[str] | None,
        val_annotations: str | Sequence[str] | None,
        val_images: str | Sequence[str] | None,
        test_annotations: str | Sequence[str] | None,
        test_images: str | Sequence[str] | None,
        annotated: Annotated,
        val_annotated: Annotated | None,
        test_annotated: Annotated,
        ignore_category: str | None,
        ignored_overlap: Fraction,
        exclusive_classes: bool,
        difficult: Difficult,
        missing_labels: MissingLabels | None,
        names: Sequence[str] | None,
        val_fraction: Share | None,
        left_out_fold: Sequence[NonNegativeInt] | None,
        missing_val: Literal["error", "train"],
        hint: str,
        prepare: SetWriter | None,
        on_invalid_box: OnInvalidBox,
        crowd: Crowd,
        exif: Exif,
        bit_depth: BitDepth,
        check: Literal["exist", "size"],
        batch_size: PositiveInt,
        val_batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        min_size: PositiveInt,
        max_size: PositiveInt,
        flip: Fraction,
        paste: NonNegativeInt,
    ):
        super().__init__()
        if max_size < min_size:
            raise ValueError(f"data.max_size={max_size} is smaller than data.min_size={min_size}")
        if left_out_fold is not None:
            _check_fold(left_out_fold)
        self.left_out_fold = left_out_fold
        self.sparsity = sparsity
        self.seed = seed
        self.root = Path(root).expanduser()
        self.splits = SplitReader(
            self.root,
            format,
            {
                "train": (train_annotations, train_images),
                "val": (val_annotations, val_images),
                "test": (test_annotations, test_images),
            },
            ReadOptions(
                on_invalid_box, crowd, missing_labels, names, difficult, outlines=paste > 0
            ),
            annotated={"train": annotated, "val": val_annotated, "test": test_annotated},
            ignore_category=ignore_category,
            val_fraction=val_fraction,
            missing_val=missing_val,
            hint=hint,
            sizes=check == "size",
            exif=exif,
        )
        self.format = format
        self.prepare = prepare
        self.exif: Exif = exif
        self.bit_depth: BitDepth = bit_depth
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.min_size, self.max_size = min_size, max_size
        self.flip = flip
        self.ignored_overlap, self.exclusive_classes = ignored_overlap, exclusive_classes
        self.paste = paste
        self.train_set: TrainingSet | None = None
        self.val_set: EvaluationSet | None = None
        self.test_set: EvaluationSet | None = None
        self.erased: NDArray[np.bool_] | None = None

    # -- reading -------------------------------------------------------------------------

    def write_set(self) -> None:
        """Write a set that must be written first (``prepare``), before anything of it is read."""
        if not self.splits.were_read and self.prepare is not None:
            self.prepare(str(self.root))

    def setup(self, stage: str | None = None) -> None:
        """Read and check what a stage needs, once.

        Args:
            stage: ``fit`` reads all splits, ``validate`` the validation split, ``test`` the test
                split; None all.

        Raises:
            DataError: something is missing or wrong.
        """
        self.write_set()
        unread = self._unread(stage)
        self.splits.check_there(unread)
        load = partial(load_image, exif=self.exif, bit_depth=self.bit_depth)
        # First, because all splits use the labels of the training split.
        if "train" in unread:
            self._set_up_training(load)
        if "val" in unread:
            self.val_set = EvaluationSet(*self.splits.read("val"), load)
        if "test" in unread:
            self.test_set = EvaluationSet(*self.splits.read("test"), load)
        facts = {id(part): part for split in unread for part in self.splits.facts_of(split)}
        warn_of_pictures(list(facts.values()), self.exif, self.bit_depth)
        if "train" in unread:
            self._warn_of_shared_pictures()

    def _unread(self, stage: str | None) -> list[str]:
        """The splits that a stage needs and that have not been read."""
        unread = []
        if self.train_set is None and stage in (None, "fit"):
            unread.append("train")
        if self.val_set is None and stage != "test":
            unread.append("val")
        if self.test_set is None and self.splits.has_test and stage != "validate":
            unread.append("test")
        return unread

    def annotations_to_train_on(self) -> tuple[AnnotationSet, NDArray[np.bool_]]:
        """The annotations of the training split, before anything else is read.

        Returns:
            The annotations, and which of them are objects for training, [M] bool.

        Raises:
            DataError: something is missing or wrong.
        """
        self.write_set()
        self.splits.check_there(["train"])
        annotations, erasure, _ = self._read_training()
        return annotations, ~erasure.erased & ~annotations.crowd

    def _read_training(self) -> tuple[AnnotationSet, Erasure, Path]:
        annotations, folder, chosen = self.splits.read_train()
        if self.left_out_fold is not None:
            left_out, count = self.left_out_fold
            chosen = chosen & (fold_of(annotations, chosen, count) != left_out)
        # Applied to the whole file, from which a ready-made sparse file was made.
        erasure = self.sparsity.apply(annotations)
        if not chosen.all():
            erasure = erasure.of_images(annotations, chosen)
            annotations = annotations.of_images(chosen)
        if not (~erasure.erased & ~annotations.crowd).any():
            count = len(annotations.ids)
            crowds = (
                f": all {count} annotations are crowds or other regions to ignore; "
                "data.crowd=object takes crowds as objects"
                if count and annotations.crowd.all()
                else ""
            )
            raise DataError(f"{annotations.path}: no image has an annotation to train on{crowds}")
        return annotations, erasure, folder

    def _set_up_training(self, load: LoadImage) -> None:
        annotations, erasure, folder = self._read_training()
        self.erased = erasure.erased
        self.train_set = TrainingSet(
            annotations,
            erasure,
            folder,
            ignored_overlap=self.ignored_overlap,
            exclusive_classes=self.exclusive_classes,
            min_size=self.min_size,
            max_size=self.max_size,
            flip=self.flip,
            paste=self.paste,
            seed=self.seed,
            load=load,
        )

    def _warn_of_shared_pictures(self) -> None:
        """Warn if a format has the same pictures for training and validation."""
        if self.format is None or self.train_set is None or self.val_set is None:
            return
        train, val = (
            {images.folder / name for name in images.annotations.file_names}
            for images in (self.train_set, self.val_set)
        )
        if train & val:
            log.warning(
                "%d of the %d validation images of %s are TRAINING images, too",
                len(train & val),
                len(val),
                self.val_set.annotations.path,
            )

    def use_categories(self, categories: Categories, source: str | Path) -> None:
        """Use the labels of another set for all splits, matching classes by name.

        Otherwise the labels are those of the training split, or of the split that is read first.

        Args:
            source: where the categories are from, for messages.
        """
        self.splits.use_categories(categories, source)

    @property
    def categories(self) -> Categories:
        """The classes of the data, after :meth:`setup`."""
        return self.splits.categories

    @property
    def evaluated(self) -> dict[str, AnnotationSet]:
        """The evaluated splits: ``val`` and, if there is one, ``test``."""
        splits = {"val": self.val_set, "test": self.test_set}
        return {name: images.annotations for name, images in splits.items() if images is not None}

    def summary(self) -> dict[str, Any]:
        """Facts about the data, for the start of a run and for ``result.json``."""
        facts: dict[str, Any] = {}
        if self.train_set is not None and self.erased is not None:
            annotations = self.train_set.annotations
            facts["train"] = {
                "annotations": str(annotations.path),
                "fingerprint": annotations.fingerprint(),
                "images": len(annotations.image_ids),
                "images_trained_on": len(self.train_set),
                "kept": int((~self.erased & ~annotations.crowd).sum()),
                "erased": int(self.erased.sum()),
                "proposed": int(annotations.proposed[self.train_set.kept].sum()),
                "crowds": int(annotations.crowd.sum()),
                "classes": len(annotations.categories),
                "known": self.train_set.known(),
                "repairs": annotations.repairs,
                "pictures": total_counts(self.splits.facts_of("train")),
            }
        if self.val_set is not None:
            annotations = self.val_set.annotations
            facts["val"] = {
                "annotations": str(annotations.path),
                "fingerprint": annotations.fingerprint(),
                "images": len(annotations.image_ids),
                "is_training_set": self.splits.val_is_train,
                **self._evaluation_facts("val", annotations),
            }
            if self.splits.shares_train:
                facts["val"]["share_of_train"] = self.splits.val_fraction
        if self.test_set is not None:
            annotations = self.test_set.annotations
            facts["test"] = {
                "annotations": str(annotations.path),
                "fingerprint": annotations.fingerprint(),
                "images": len(annotations.image_ids),
                **self._evaluation_facts("test", annotations),
            }
        return facts

    def _evaluation_facts(self, split: str, annotations: AnnotationSet) -> dict[str, Any]:
        return {
            "annotated": len(annotations.ids),
            "crowds": int(annotations.crowd.sum()),
            "known": counts(annotations.status, annotations.categories.names)
            | {"ignored_regions": int(annotations.crowd.sum())},
            "repairs": annotations.repairs,
            "pictures": total_counts(self.splits.facts_of(split)),
        }

    # -- loading -------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """The rest of the training stream as one epoch; a step is one batch or several."""
        if self.train_set is None or self.trainer is None:
            raise RuntimeError("setup() has not been called, or no trainer is attached")
        sampler = StreamSampler(
            self.train_set.landscape.tolist(),
            self.batch_size,
            start=self.trainer.global_step * self.trainer.accumulate_grad_batches,
            stop=self.trainer.max_steps * self.trainer.accumulate_grad_batches,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader(self.train_set, batch_sampler=sampler, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every image once; each process takes every n-th, without padding or repeats."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Every image of the third split once."""
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, images: EvaluationSet | None) -> DataLoader[Any]:
        if images is None:
            raise RuntimeError("setup() has not been called, or the data have no such split")
        rank, ranks = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        # A process without an image evaluates one again, which counts once: without a batch it
        # would not take part in gathering the detections.
        share = Subset(images, range(rank, len(images), ranks) or [rank % len(images)])
        return self._loader(share, batch_size=self.val_batch_size, collate_fn=collate_evaluation)

    @property
    def _loader(self) -> partial[DataLoader[Any]]:
        return partial(
            DataLoader,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_main,
            pin_memory=torch.cuda.is_available(),
            # Validation needs its workers again; training is one epoch, however long.
            persistent_workers=self.num_workers > 0,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move the tensors of a batch to a device."""
        if isinstance(batch, Batch | EvaluationBatch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def _check_fold(fold: Sequence[int]) -> None:
    if len(fold) != 2 or fold[1] < 2 or fold[0] >= fold[1]:
        raise ValueError(
            f"data.left_out_fold={[*fold]} must be a part and how many parts there are, such as "
            "[0,2] or [1,2]"
        )
