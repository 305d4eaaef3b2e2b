"""From annotation files and image folders to the batches of training and validation."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from comining.data.annotations import (
    AnnotationSet,
    Categories,
    Crowd,
    OnInvalidBox,
)
from comining.data.category_matching import match_categories
from comining.data.dataset import (
    EvaluationSet,
    LoadImage,
    TrainingSet,
    collate,
    collate_evaluation,
)
from comining.data.formats.coco import read_coco
from comining.data.image_files import PictureFacts, check_images, warn_of_pictures
from comining.data.images import BitDepth, Exif, load_image
from comining.data.sampler import StreamSampler
from comining.data.set_writer import SetWriter
from comining.data.sparsity import Sparsity
from comining.errors import DataError
from comining.option_types import Fraction, NonNegativeInt, PositiveInt
from comining.structures import Batch, EvaluationBatch

log = logging.getLogger(__name__)


class DetectionData(L.LightningDataModule):
    """Any COCO annotation file with its image folder.

    Args:
        sparsity: erases annotations of the training file, once.
        seed: of the order of images and of flips.
        root: paths that follow are relative to it.
        train_annotations, train_images, val_annotations, val_images: COCO files, image folders.
        test_annotations, test_images: of a third split, which is evaluated once, when training has
            ended, so that nothing is chosen by it; None where there is none.
        missing_val: where the validation file and folder are both absent, ``error``, or evaluate
            on the ``train`` images (fully annotated) and say so.
        hint: what to tell a user whose files are missing.
        prepare: called with ``root`` before anything is read; may write the set.
        on_invalid_box: see :func:`comining.data.annotations.read_coco`.
        crowd: annotations that are marked as crowds are set aside (``ignore``) or taken as objects
            (``object``).
        exif: pictures with an EXIF orientation are taken as stored (``ignore``), or turned as in a
            viewer (``apply``); the sizes in the annotation file are then those of the turned ones.
        bit_depth: bits that hold values in pictures with more than 8 bits a sample; ``auto``: all.
        check: what is checked of image files before training starts: only that they ``exist``, or
            also their ``size`` (reads every header). Sizes are checked again on decoding.
        batch_size: images of a step, over all processes.
        val_batch_size: images of a validation step, of each process.
        num_workers: processes that decode images; 0 decodes in the main process.
        min_size, max_size: shortest and longest side that the network sees, px.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        sparsity: Sparsity,
        seed: int,
        *,
        root: str,
        train_annotations: str,
        train_images: str,
        val_annotations: str,
        val_images: str,
        test_annotations: str | None,
        test_images: str | None,
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
    ):
        super().__init__()
        if max_size < min_size:
            raise ValueError(f"data.max_size={max_size} is smaller than data.min_size={min_size}")
        self.sparsity = sparsity
        self.seed = seed
        self.root = Path(root).expanduser()
        self.paths = {
            "train": (self.root / train_annotations, self.root / train_images),
            "val": (self.root / val_annotations, self.root / val_images),
        }
        if (test_annotations is None) != (test_images is None):
            raise ValueError("data.test_annotations and data.test_images go together")
        if test_annotations is not None and test_images is not None:
            self.paths["test"] = (self.root / test_annotations, self.root / test_images)
        self.missing_val = missing_val
        self.hint = hint
        self.prepare = prepare
        self.on_invalid_box: OnInvalidBox = on_invalid_box
        self.crowd: Crowd = crowd
        self.exif: Exif = exif
        self.bit_depth: BitDepth = bit_depth
        self.check = check
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.min_size, self.max_size = min_size, max_size
        self.flip = flip
        self.train_set: TrainingSet | None = None
        self.val_set: EvaluationSet | None = None
        self.test_set: EvaluationSet | None = None
        self.picture_facts: dict[str, PictureFacts] = {}  # of every split that has been read
        self._categories: Categories | None = None  # by which all splits are labelled
        self._categories_of: str | Path = ""
        self.erased: np.ndarray[Any, np.dtype[np.bool_]] | None = None

    # -- reading -------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check what a stage needs, once.

        Args:
            stage: ``fit`` reads all splits, ``validate`` the validation split, ``test`` the test
                split; None all.

        Raises:
            DataError: something is missing or wrong.
        """
        if not self.picture_facts and self.prepare is not None:
            self.prepare(str(self.root))
        if (
            self.val_set is None
            and stage != "test"
            and self.missing_val == "train"
            and not any(path.exists() for path in self.paths["val"])
            and all(path.exists() for path in self.paths["train"])
        ):
            log.warning(
                "%s is absent: evaluating on the TRAINING images of %s, fully annotated",
                self.paths["val"][0],
                self.paths["train"][0],
            )
            self.paths["val"] = self.paths["train"]
        unread = self._unread(stage)
        for split in unread:
            self._check_there(split)
        load = partial(load_image, exif=self.exif, bit_depth=self.bit_depth)
        # First, because the labels of all are those of the training split.
        if "train" in unread:
            self._set_up_training(load)
        if "val" in unread:
            self.val_set = EvaluationSet(self._read("val"), self.paths["val"][1], load)
        if "test" in unread:
            self.test_set = EvaluationSet(self._read("test"), self.paths["test"][1], load)
        facts_of = {self.paths[split]: self.picture_facts[split] for split in unread}
        warn_of_pictures(list(facts_of.values()), self.exif, self.bit_depth)

    def _unread(self, stage: str | None) -> list[str]:
        """The splits that a stage needs and that have not been read."""
        unread = []
        if self.train_set is None and stage in (None, "fit"):
            unread.append("train")
        if self.val_set is None and stage != "test":
            unread.append("val")
        if self.test_set is None and "test" in self.paths and stage != "validate":
            unread.append("test")
        return unread

    def _set_up_training(self, load: LoadImage) -> None:
        annotations = self._read("train")
        self.erased = self.sparsity.erase(annotations)
        self.train_set = TrainingSet(
            annotations,
            self.erased,
            self.paths["train"][1],
            min_size=self.min_size,
            max_size=self.max_size,
            flip=self.flip,
            seed=self.seed,
            load=load,
        )
        if not len(self.train_set):
            count = len(annotations.ids)
            crowds = (
                f": all {count} annotations are marked as crowds, which are set aside; "
                "data.crowd=object takes them as objects"
                if count and annotations.crowd.all()
                else ""
            )
            raise DataError(f"{annotations.path}: no image has an annotation to train on{crowds}")

    def _check_there(self, split: str) -> None:
        missing = [str(path) for path in self.paths[split] if not path.exists()]
        if missing:
            raise DataError(f"missing for {split}: {' and '.join(missing)}\n{self.hint}".rstrip())

    def _read(self, split: str) -> AnnotationSet:
        file, folder = self.paths[split]
        annotations = read_coco(file, self.on_invalid_box, self.crowd)
        if self._categories is None:
            self.use_categories(annotations.categories, file)
        else:
            annotations = match_categories(annotations, self._categories, self._categories_of)
        annotations, self.picture_facts[split] = check_images(
            annotations, folder, sizes=self.check == "size", exif=self.exif
        )
        return annotations

    def use_categories(self, categories: Categories, source: str | Path) -> None:
        """Label all splits as another set does, whose classes are recognised by their names.

        Otherwise the labels are those of the training split, or of the one that is read first.

        Args:
            source: where the categories are from, for messages.
        """
        self._categories, self._categories_of = categories, source

    @property
    def categories(self) -> Categories:
        """The classes of the data, after :meth:`setup`."""
        if self._categories is None:
            raise RuntimeError("setup() has not been called")
        return self._categories

    @property
    def evaluated(self) -> dict[str, AnnotationSet]:
        """The splits that are evaluated: ``val`` and, where there is one, ``test``."""
        splits = {"val": self.val_set, "test": self.test_set}
        return {name: images.annotations for name, images in splits.items() if images is not None}

    def summary(self) -> dict[str, Any]:
        """What was read, for the start of a run and for ``result.json``."""
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
                "crowds": int(annotations.crowd.sum()),
                "classes": len(annotations.categories),
                "repairs": annotations.repairs,
                "pictures": self.picture_facts["train"].counts(),
            }
        if self.val_set is not None:
            annotations = self.val_set.annotations
            facts["val"] = {
                "annotations": str(annotations.path),
                "fingerprint": annotations.fingerprint(),
                "images": len(annotations.image_ids),
                "is_training_set": self.paths["val"] == self.paths["train"],
                **self._evaluation_facts("val", annotations),
            }
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
            "repairs": annotations.repairs,
            "pictures": self.picture_facts[split].counts(),
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
        # A process for which there is no image evaluates one again, which counts once: without a
        # batch it would not take part in bringing the detections together.
        share = Subset(images, range(rank, len(images), ranks) or [rank % len(images)])
        return self._loader(share, batch_size=self.val_batch_size, collate_fn=collate_evaluation)

    @property
    def _loader(self) -> partial[DataLoader[Any]]:
        return partial(
            DataLoader,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Those of the validation are wanted again; training is one epoch, however long.
            persistent_workers=self.num_workers > 0,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move tensors; lists of ids stay where they are."""
        if isinstance(batch, Batch | EvaluationBatch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
