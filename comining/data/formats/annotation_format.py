"""Base class of annotation formats: which splits a folder holds, and how one is read.

Ids that a format does not have are numbered by one rule: images 1 ... N in the order of their file
names, annotations 1 ... M in the order of the images and, within an image, of its file, categories
1 ... K. So a set that is converted to COCO and read again is the same set.
"""

from __future__ import annotations

import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import (
    AnnotationSet,
    Categories,
    Crowd,
    OnInvalidBox,
)
from comining.data.record_values import is_text, short
from comining.errors import DataError

MissingLabels = Literal["empty", "skip", "error"]
# How objects that VOC marks as difficult are read: like all others, or as regions to ignore.
Difficult = Literal["object", "ignore"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading, for all formats.

    Args:
        on_invalid_box: see :class:`comining.data.annotation_builder.AnnotationBuilder`.
        crowd: annotations that are marked as crowds are set aside (``ignore``) or taken as objects
            (``object``).
        missing_labels: how a picture without a label file is read: as ``empty``, without objects;
            as not annotated, to ``skip``; or as an ``error``. None for the default of the format.
        names: class names in the order of their labels, for formats without such a list, or to
            replace it. None uses the format's own.
        difficult: objects that VOC marks as difficult are read like all others (``object``), or
            are regions to ignore (``ignore``), as in its own evaluation.
        outlines: whether the outlines of objects are kept, if the format has them.
    """

    on_invalid_box: OnInvalidBox = "error"
    crowd: Crowd = "ignore"
    missing_labels: MissingLabels | None = None
    names: Sequence[str] | None = None
    difficult: Difficult = "object"
    outlines: bool = False


@dataclass(frozen=True)
class Split:
    """One split of a set, not yet read.

    Args:
        path: of the file or folder with its annotations, for messages.
        required: files and folders that must exist.
        read: returns the annotations, and the folder that their file names are relative to.
    """

    path: Path
    required: tuple[Path, ...]
    read: functools.partial[tuple[AnnotationSet, Path]]  # called with ReadOptions

    def is_same(self, other: Split) -> bool:
        """Whether both splits read the same from the same files."""
        ours, theirs = (
            (one.path, one.required, one.read.func, one.read.args, one.read.keywords)
            for one in (self, other)
        )
        return ours == theirs


class AnnotationFormat(ABC):
    """A format of annotations in a folder.

    A further format is one file in this folder with a subclass, and one yaml in ``conf/data`` that
    names it in ``format``; ``data=auto`` and ``comining.data.convert`` find it by that yaml.
    """

    title: ClassVar[str]  # for messages

    @abstractmethod
    def recognise(self, root: Path) -> str | None:
        """What in ``root`` shows that it has this format; None if nothing does.

        Looks at names and at the beginning of a few files; does not validate.
        """

    @abstractmethod
    def find_splits(self, root: Path) -> dict[str, Split]:
        """The splits of ``root`` by name: those of ``train``, ``val`` and ``test`` that it has.

        Raises:
            DataError: ``root`` does not have this format, or its splits are ambiguous.
        """


def keeps_unlabelled(
    builder: AnnotationBuilder,
    rule: MissingLabels,
    label_file: Path,
    picture: Path,
) -> bool:
    """Whether a picture without a label file belongs to the set; counts it in the repairs.

    Args:
        label_file: the missing file.

    Raises:
        DataError: ``rule`` is ``error``.
    """
    if rule == "error":
        raise DataError(
            f"{label_file}: no such label file, of the picture {picture}; data.missing_labels says "
            "what that means: empty (nothing to be seen), skip (nobody has looked)"
        )
    done = {"empty": "read as empty", "skip": "left out"}[rule]
    builder.repairs[f"pictures without a label file, {done} (data.missing_labels)"] += 1
    return rule == "empty"


def split_of(name: str) -> str | None:
    """The split that a name stands for (``valid``, ``Test``, ``train2017``); None for none."""
    return SPLIT_NAMES.get(re.sub(r"[\d_-]+$", "", name.lower()))


def split_folders(root: Path) -> dict[str, Path]:
    """The folders directly below ``root`` that are named after a split.

    Raises:
        DataError: two folders are named after the same one.
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()):
        split = split_of(folder.name) if folder.is_dir() else None
        if split in found:
            raise DataError(
                f"{root}: {found[split].name} and {folder.name} are both named after the split "
                f"{split}; keep one of them, or name files with data=custom"
            )
        if split is not None:
            found[split] = folder
    return found


def numbered_categories(names: Iterable[str], where: str) -> Categories:
    """Categories with the ids 1 ... K.

    Args:
        where: the words that name the list in an error.

    Raises:
        DataError: a name is not a text or occurs twice, or there is none.
    """
    names = tuple(names)
    for position, name in enumerate(names):
        if not is_text(name):
            raise DataError(f"{where}: class {position} must be a word, got {short(name)}")
        if name in names[:position]:
            raise DataError(f"{where}: class {name!r} occurs twice")
    if not names:
        raise DataError(f"{where}: no classes")
    return Categories(tuple(range(1, len(names) + 1)), names)


def px(value: float) -> float:
    """A coordinate or side, px, rounded to six decimals.

    Files have corners instead of sides, and 523.1 - 385.07 is 138.03000000000003. Six decimals
    restore the written value, and are finer than any annotation.
    """
    return round(value, 6) + 0.0  # and -0.0 becomes 0.0


def enclosing(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The box xywh, px, around points (x, y); NaN if one of them is not finite."""
    if not all(math.isfinite(value) for point in points for value in point):
        return math.nan, math.nan, math.nan, math.nan
    xs, ys = zip(*points, strict=True)
    return px(min(xs)), px(min(ys)), px(max(xs) - min(xs)), px(max(ys) - min(ys))
