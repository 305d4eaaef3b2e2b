"""Finds and reads the splits of a data set, and checks them against each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet, Categories
from comining.data.category_matching import match_categories, without_category
from comining.data.formats.annotation_format import AnnotationFormat, ReadOptions, Split
from comining.data.formats.coco import coco_split
from comining.data.image_files import PictureFacts, check_images
from comining.data.images import Exif
from comining.data.knowledge import Annotated
from comining.data.merged_sets import merge
from comining.data.validation_share import validation_share
from comining.errors import DataError

log = logging.getLogger(__name__)

Files = str | Sequence[str] | None
NamedFiles = Mapping[str, tuple[Files, Files]]


class SplitReader:
    """Reads splits: those that a format finds, or COCO files by name.

    Args:
        root: folder of the set.
        format: finds the splits; None uses ``named``.
        named: COCO file and image folder of every split, or lists of them, relative to ``root``;
            None for none.
        options: how annotations are read.
        annotated: for every split, what holds for images without fields; None for ``val``: as for
            ``train`` if it consists of training images, else ``exhaustive``.
        ignore_category: a class whose boxes are regions to ignore.
        val_fraction: share of the training images for validation, if there is no such split.
        missing_val: ``train`` validates on the training images if the files are absent.
        hint: added to the error message if files are missing.
        sizes: whether the sizes of images are compared with their files.
        exif: whether the sizes are those of the turned pictures.

    Raises:
        ValueError: the options contradict each other.
    """

    def __init__(
        self,
        root: Path,
        format: AnnotationFormat | None,
        named: NamedFiles,
        options: ReadOptions,
        *,
        annotated: Mapping[str, Annotated | None],
        ignore_category: str | None,
        val_fraction: float | None,
        missing_val: str,
        hint: str,
        sizes: bool,
        exif: Exif,
    ):
        self.root = root
        self.format = format
        self.options = options
        self.annotated = annotated
        self.ignore_category = ignore_category
        self.val_fraction = val_fraction
        self.missing_val = missing_val
        self.hint = hint
        self.sizes = sizes
        self.exif: Exif = exif
        self.picture_facts: dict[Path, PictureFacts] = {}  # of every split's path that was read
        self._named = self._splits_by_name(named)
        self._splits: dict[str, list[Split]] | None = None
        self._train: tuple[AnnotationSet, Path] | None = None
        self._share: NDArray[np.bool_] | None = None  # [N] of train, which are for validation
        self._categories: Categories | None = None  # by which all splits are labelled
        self._categories_of: str | Path = ""

    def _splits_by_name(self, named: NamedFiles) -> dict[str, list[Split]]:
        splits = {}
        for split, (files, folders) in named.items():
            if (files is None) != (folders is None):
                raise ValueError(f"data.{split}_annotations and data.{split}_images go together")
            if files is None or folders is None:
                continue
            if self.format is not None:
                raise ValueError(
                    f"data.{split}_annotations={files} is for data=custom; the files of "
                    "data.format are found below data.root"
                )
            listed = [files] if isinstance(files, str) else list(files)
            places = [folders] * len(listed) if isinstance(folders, str) else list(folders)
            if not listed:
                raise ValueError(f"data.{split}_annotations names no file")
            if len(places) != len(listed):
                raise ValueError(
                    f"data.{split}_annotations names {len(listed)} files and data.{split}_images "
                    f"{len(places)} folders: give one folder for each file, or one for all"
                )
            if len({os.path.realpath(self.root / file) for file in listed}) < len(listed):
                raise ValueError(f"data.{split}_annotations names a file twice: {listed}")
            splits[split] = [
                coco_split(self.root / file, self.root / folder)
                for file, folder in zip(listed, places, strict=True)
            ]
        if not splits and self.format is None:
            raise ValueError("option data.train_annotations is missing")
        return splits

    @property
    def splits(self) -> dict[str, list[Split]]:
        """The splits by name, each with one part or, for a list of files, several.

        Raises:
            DataError: the format does not find any.
        """
        if self._splits is None:
            self._splits = self._named
            if self.format is not None:
                if not self.root.exists():
                    raise DataError(f"data.root={self.root}: no such folder")
                found = self.format.find_splits(self.root)
                self._splits = {name: [split] for name, split in found.items()}
        return self._splits

    @property
    def has_test(self) -> bool:
        """Whether there is a split that is evaluated after training."""
        return "test" in self.splits

    @property
    def were_read(self) -> bool:
        """Whether a split has been read."""
        return bool(self.picture_facts)

    @property
    def categories(self) -> Categories:
        """The classes of the splits, after the first was read."""
        if self._categories is None:
            raise RuntimeError("setup() has not been called")
        return self._categories

    def use_categories(self, categories: Categories, source: str | Path) -> None:
        """Use the labels of another set for all splits, matching classes by name.

        Otherwise the labels are those of the split that is read first.

        Args:
            source: where the categories are from, for messages.
        """
        self._categories, self._categories_of = categories, source

    def facts_of(self, split: str) -> list[PictureFacts]:
        """What is known about the pictures of the parts of a split that has been read."""
        shared = split == "val" and self.shares_train
        return [self.picture_facts[p.path] for p in self.splits["train" if shared else split]]

    def check_there(self, splits: Sequence[str]) -> None:
        """Refuse splits with a missing file or folder, before any of them is read.

        Raises:
            DataError: naming what is missing.
        """
        if "val" in splits and not self.shares_train:
            self._replace_absent_val()
        for split in splits:
            if not (split == "val" and self.shares_train):
                self._source(split)

    @property
    def shares_train(self) -> bool:
        """Whether images of the training split are kept for validation."""
        return "val" not in self.splits

    @property
    def val_is_train(self) -> bool:
        """Whether validation uses the training images."""
        if self.shares_train:
            return False
        val, train = self.splits["val"], self.splits.get("train", [])
        return len(val) == len(train) and all(map(Split.is_same, val, train))

    def read(self, split: str) -> tuple[AnnotationSet, Path]:
        """Annotations of ``val`` or ``test``, and the folder of their images.

        Raises:
            DataError: something is missing or wrong.
        """
        if split == "val" and self.shares_train:
            annotations, folder, trained_on = self.read_train()
            return self._known("val", annotations.of_images(~trained_on)), folder
        return self._read(split)

    def read_train(self) -> tuple[AnnotationSet, Path, NDArray[np.bool_]]:
        """Annotations of the training split, their image folder, and [N] what is trained on.

        Raises:
            DataError: something is missing or wrong.
        """
        if self._train is None:
            self._train = self._read("train")
        annotations, folder = self._train
        if not self.shares_train:
            return annotations, folder, np.ones(len(annotations.image_ids), dtype=np.bool_)
        if self._share is None:
            self._share = self._validation_share(annotations)
        return annotations, folder, ~self._share

    def _validation_share(self, annotations: AnnotationSet) -> NDArray[np.bool_]:
        if self.val_fraction is None:
            raise DataError(
                f"{annotations.path}: there is no validation split; data.val_fraction=0.2 keeps a "
                "share of the images for it"
            )
        share = validation_share(annotations, self.val_fraction)
        log.info(
            "no validation split: %d of the %d images of %s are kept for it and not trained on "
            "(data.val_fraction=%s, by a hash of the file name)",
            share.sum(),
            len(share),
            annotations.path,
            self.val_fraction,
        )
        return share

    def _replace_absent_val(self) -> None:
        """Use the training split for validation, if ``missing_val`` says so."""
        val, train = self.splits["val"], self.splits.get("train")
        if (
            self.missing_val == "train"
            and train is not None
            and not any(path.exists() for part in val for path in part.required)
            and all(path.exists() for part in train for path in part.required)
        ):
            log.warning(
                "%s is absent: evaluating on the TRAINING images of %s, fully annotated",
                val[0].path,
                train[0].path,
            )
            self.splits["val"] = train

    def _source(self, split: str) -> list[Split]:
        if split not in self.splits:
            found = ", ".join(self.splits) or "none"
            raise DataError(f"missing for {split}: {self.root} has no such split; found: {found}")
        source = self.splits[split]
        required = dict.fromkeys(path for part in source for path in part.required)
        missing = [str(path) for path in required if not path.exists()]
        if missing:
            raise DataError(f"missing for {split}: {' and '.join(missing)}\n{self.hint}".rstrip())
        return source

    def _read(self, split: str) -> tuple[AnnotationSet, Path]:
        source = self._source(split)
        # Only training images need outlines, for pasting.
        options = replace(self.options, outlines=self.options.outlines and split == "train")
        annotations, folder = merge([self._read_part(part, options) for part in source])
        ignored = self.ignore_category
        # An evaluated split may lack the class; if the training split does, it is misspelt.
        if ignored is not None and (split == "train" or ignored in annotations.categories.names):
            annotations = without_category(annotations, ignored)
        if self._categories is None:
            self.use_categories(annotations.categories, annotations.path)
        else:
            annotations = match_categories(
                annotations, self._categories, self._categories_of,
                # Merged training sets may be evaluated on some of their classes only.
                may_lack=split != "train" and len(self.splits.get("train", ())) > 1,
            )  # fmt: skip
        return self._known(split, annotations), folder

    def _read_part(self, part: Split, options: ReadOptions) -> tuple[AnnotationSet, Path]:
        annotations, folder = part.read(options)
        annotations, self.picture_facts[part.path] = check_images(
            annotations, folder, sizes=self.sizes, exif=self.exif
        )
        return annotations, folder

    def _known(self, split: str, annotations: AnnotationSet) -> AnnotationSet:
        """The set, with what holds for images without fields."""
        annotated = self.annotated[split]
        if annotated is None and (self.shares_train or self.val_is_train):
            annotated = self.annotated["train"]
        return annotations.annotated_as(annotated or "exhaustive")
