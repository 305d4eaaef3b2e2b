"""Checks that the image files of an annotation set exist, and reads their headers."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from comining.data.annotations import AnnotationSet
from comining.data.file_names import FileFinder, folder_of
from comining.data.images import (
    BitDepth,
    Exif,
    check_size,
    is_deep,
    largest_value,
    open_image,
    orientation,
    pages,
)
from comining.errors import DataError

log = logging.getLogger(__name__)

# Number of headers that are read if not all are, and of deep pictures decoded to see their range.
SAMPLED_HEADERS = 64
SAMPLED_PICTURES = 8


@dataclass
class PictureFacts:
    """Facts from the headers of a split's pictures that decoding does not show."""

    headers: int = 0  # how many were read
    turned: list[Path] = field(default_factory=list)  # with an EXIF orientation
    paged: list[Path] = field(default_factory=list)  # with several pages or frames
    first_pages: int = 1  # of the first of these
    deep: list[Path] = field(default_factory=list)  # with more than 8 bits of unknown use

    def counts(self) -> dict[str, int]:
        """The facts as numbers, for ``result.json``."""
        return {
            "headers_read": self.headers,
            "with_exif_orientation": len(self.turned),
            "with_several_pages": len(self.paged),
            "with_more_than_8_bits": len(self.deep),
        }


def total_counts(parts: Sequence[PictureFacts]) -> dict[str, int]:
    """The facts of all parts of a split as numbers."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.counts())
    return dict(total)


def check_images(
    annotations: AnnotationSet, folder: str | Path, sizes: bool, exif: Exif = "ignore"
) -> tuple[AnnotationSet, PictureFacts]:
    """Check that every image of the file exists and, if ``sizes``, has the size the file says.

    Only headers of images are read: all of them if ``sizes``, else a few. ``folder`` may be a link;
    a link below it may not lead out of it, so that an annotation file cannot access other files of
    the machine.

    Args:
        exif: see :func:`comining.data.images.check_size`.

    Returns:
        The set, with the names of files that are spelt differently in the folder, and the facts
        from the headers.

    Raises:
        DataError: naming the annotation file, the image id and the image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder (images of {annotations.path})")
    annotations = _found(annotations, folder)
    count = len(annotations.image_ids)
    facts = PictureFacts()
    sample = np.unique(np.linspace(0, count - 1, min(SAMPLED_HEADERS, count)).astype(int))
    for position in range(count) if sizes else sample.tolist():
        file = folder / annotations.file(position)
        where = f"{annotations.path}: image {annotations.image_ids[position]}: {file}"
        with open_image(file, where) as image:
            if sizes:
                height, width = annotations.sizes[position].tolist()
                check_size(image, (height, width), where, exif)
            facts.headers += 1
            if orientation(image) != 1:
                facts.turned.append(file)
            if is_deep(image):
                facts.deep.append(file)
            if (number := pages(image)) > 1:
                facts.first_pages = facts.first_pages if facts.paged else number
                facts.paged.append(file)
    return annotations, facts


def warn_of_pictures(splits: Sequence[PictureFacts], exif: Exif, bit_depth: BitDepth) -> None:
    """Warn once, over all splits, of properties of the pictures that users may not know."""
    headers = sum(facts.headers for facts in splits)
    turned = [file for facts in splits for file in facts.turned]
    if turned and exif == "ignore":
        log.warning(
            "%d of %d pictures have an EXIF orientation, the first is %s: viewers turn them, here "
            "they are taken as stored; data.exif=apply turns them, if the boxes were drawn in a "
            "viewer", len(turned), headers, turned[0],
        )  # fmt: skip
    paged = [facts for facts in splits if facts.paged]
    if paged:
        log.warning(
            "%d of %d pictures have several pages or frames, only the first is used: %s is "
            "the first of %d", sum(len(facts.paged) for facts in paged), headers,
            paged[0].paged[0], paged[0].first_pages,
        )  # fmt: skip
    deep = [file for facts in splits for file in facts.deep]
    if deep:
        _warn_of_range(deep, bit_depth)


def _warn_of_range(deep: list[Path], bit_depth: BitDepth) -> None:
    """Decode some of the pictures with more than 8 bits, and warn if they use a small range."""
    chosen = deep[:: -(-len(deep) // SAMPLED_PICTURES)]
    values = [(*largest_value(file, bit_depth), file) for file in chosen]
    largest, limit, file = max(values, key=lambda found: found[0] / found[1])
    if largest > limit:
        log.warning(
            "data.bit_depth=%s: %s has values up to %d, and what exceeds %d becomes white",
            bit_depth, file, largest, limit,
        )  # fmt: skip
    elif largest < (limit + 1) // 8:
        log.warning(
            "%d pictures have more than 8 bits a sample, and use little of them: no value of %s "
            "exceeds %d of %d, which is nearly black; data.bit_depth=%d takes the lower %d bits",
            len(deep), file, largest, limit, *[max(8, largest.bit_length())] * 2,
        )  # fmt: skip


def _found(annotations: AnnotationSet, folder: Path) -> AnnotationSet:
    """The set, with the names of files that are spelt differently in the folder."""
    inside: dict[Path, bool] = {}  # folders that were checked
    finder = FileFinder(folder)
    found_as: dict[int, str] = {}
    repairs: Counter[str] = Counter()
    missing: list[int] = []
    for position, name in enumerate(annotations.file_names):
        where = f"{annotations.path}: image {annotations.image_ids[position]}: {folder / name}"
        try:
            mode = _mode(folder / name)
            if mode is None and (found := finder.find(name)) is not None:
                mode = _mode(folder / found[0])
                found_as[position] = name = found[0]
                repairs.update(found[1])
            if mode is None:
                missing.append(position)
                continue
            file = folder / name
            if file.parent not in inside:
                inside[file.parent] = _lies_in(file.parent, folder)
            if not inside[file.parent] or (file.is_symlink() and not _lies_in(file, folder)):
                raise DataError(f"{where}: a link that leaves the image folder")
            if not stat.S_ISREG(mode):
                raise DataError(f"{where}: not a file")
        except OSError as error:  # a name that is too long, links in a circle
            raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    if missing:
        raise DataError(_missing(annotations, folder, missing))
    if not found_as:
        return annotations
    summary = "; ".join(f"{what}: {number}" for what, number in sorted(repairs.items()))
    log.warning("%s: %s", annotations.path, summary)
    mended = replace(annotations, found_as=found_as, repairs={**annotations.repairs, **repairs})
    mended.check_file_names()
    return mended


def _mode(file: Path) -> int | None:
    """The mode of a path, as in :func:`os.stat`; None if it does not exist.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _missing(annotations: AnnotationSet, folder: Path, missing: list[int]) -> str:
    first, count = missing[0], len(annotations.image_ids)
    name = annotations.file_names[first]
    # If some exist, one of the same name in another folder is another picture.
    base = PurePosixPath(name.replace("\\", "/")).name
    elsewhere = folder_of(base, folder, beside=len(missing) == count)
    hint = "" if elsewhere is None else f"; a file of that name lies in {elsewhere}"
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{annotations.path}: {len(missing)} of {count} images {verb} missing, the first is image "
        f"{annotations.image_ids[first]}: {folder / name}{hint}"
    )


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
