"""Folders with COCO files in one of the usual layouts."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import ClassVar

from comining.data.annotations import AnnotationSet
from comining.data.formats.annotation_format import (
    SPLIT_NAMES,
    AnnotationFormat,
    ReadOptions,
    Split,
    split_folders,
    split_of,
)
from comining.data.formats.coco import read_coco
from comining.errors import DataError

ROBOFLOW = "_annotations.coco.json"
# A COCO file with one of these names is the split `train`, unless others are named after splits.
UNNAMED = ("default", "annotations", "instances", "_annotations.coco", "labels", "result", "coco")
HEAD = 65_536


class CocoFolder(AnnotationFormat):
    """COCO files that are found by their names: those of COCO 2017, Roboflow, CVAT, and others.

    * ``annotations/instances_train2017.json`` with ``train2017/``
    * ``train/_annotations.coco.json`` with the pictures beside it
    * ``annotations/instances_default.json`` with ``images/``
    * ``annotations/train.json`` or ``train.json`` with ``train/``, ``images/train/`` or ``images/``

    and likewise for the other splits. Ids are those of the files.
    """

    title: ClassVar[str] = "COCO"

    def recognise(self, root: Path) -> str | None:
        files = _annotation_files(root)
        return ", ".join(str(file.relative_to(root)) for file in files[:4]) or None

    def find_splits(self, root: Path) -> dict[str, Split]:
        files = _annotation_files(root)
        if not files:
            raise DataError(f"{root}: no COCO file in annotations/, train/ or the folder itself")
        found: dict[str, Path] = {}
        unclear = []
        for file in files:
            split = _split_of_file(file)
            if split is None:
                unclear.append(file)
            elif split in found:
                raise DataError(
                    f"{root}: {_names([found[split], file], root)} both hold the split {split}; "
                    f"{CHOOSE}"
                )
            else:
                found[split] = file
        if not found and len(unclear) == 1:
            found, unclear = {"train": unclear[0]}, []
        if unclear:
            raise DataError(
                f"{root}: it is not clear which splits {_names(unclear, root)} hold; {CHOOSE}"
            )
        return {
            split: Split(
                found[split],
                (found[split],),
                functools.partial(_read_split, root, found[split], split),
            )
            for split in dict.fromkeys(SPLIT_NAMES.values())
            if split in found
        }


CHOOSE = "choose with data=custom data.train_annotations=FILE data.train_images=FOLDER"


def _names(files: list[Path], root: Path) -> str:
    return ", ".join(str(file.relative_to(root)) for file in files[:6])


def _annotation_files(root: Path) -> list[Path]:
    """The COCO files of a folder, of its ``annotations`` or of its splits' folders."""
    roboflow = [folder / ROBOFLOW for folder in split_folders(root).values()]
    roboflow = [file for file in roboflow if file.is_file()]
    if roboflow:
        return sorted(roboflow)
    for folder in (root / "annotations", root):
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        # COCO has captions and keypoints next to the boxes.
        instances = [file for file in files if file.name.startswith("instances_")]
        files = [file for file in instances or files if _looks_like_coco(file)]
        if files:
            return files
    return []


def _looks_like_coco(file: Path) -> bool:
    """Whether a file begins like a COCO file; False if it cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        return False
    if _split_of_file(file) is not None:
        return re.search(rb'"(shapes|imagePath)"\s*:', head) is None
    return re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head) is not None


def _split_of_file(file: Path) -> str | None:
    """The split that a file, or its folder (Roboflow), is named after; None for none."""
    if file.name == ROBOFLOW:
        return split_of(file.parent.name) or "train"
    stem = file.stem.removeprefix("instances_")
    if stem.lower() in UNNAMED:
        return None
    return split_of(stem) or next(
        (split for part in re.split(r"[_.-]", stem) if (split := split_of(part))), None
    )


def _read_split(
    root: Path, file: Path, split: str, options: ReadOptions
) -> tuple[AnnotationSet, Path]:
    if options.names is not None:
        raise DataError(f"{file}: names its classes itself; data.names is for other formats")
    annotations = read_coco(file, options.on_invalid_box, options.crowd, outlines=options.outlines)
    subset = file.stem.removeprefix("instances_")
    folders = [root / subset, root / "images" / subset]
    folders += [folder for folder in (split_folders(root).get(split),) if folder is not None]
    images = root / "images"
    if images.is_dir():
        folders += [one for one in (split_folders(images).get(split),) if one is not None]
    folders += [images, file.parent, root]
    first = annotations.file(0)
    there = [folder for folder in folders if (folder / first).is_file()]
    if not there:
        looked = ", ".join(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))
        raise DataError(f"{file}: no picture {first}; looked in {looked}; {CHOOSE}")
    return annotations, there[0]
