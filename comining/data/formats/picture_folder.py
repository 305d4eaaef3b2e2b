"""Pictures and their sizes, for formats that identify pictures by their location."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from comining.data.images import open_image
from comining.errors import DataError

# File suffixes of `comining.data.images.FORMATS`. In some layouts label files are next to the
# pictures, so pictures are recognised by suffix, not by opening every file.
PICTURE_SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


def is_picture(file: Path) -> bool:
    """Whether a file is named like a picture."""
    return file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their paths relative to it.

    Hidden files and folders are left out, as are links to folders.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return in_order(found, folder)


def in_order(files: Iterable[Path], folder: Path) -> list[Path]:
    """Files in the order of their names relative to a folder: that of image ids."""
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def common_folder(files: Iterable[Path]) -> Path:
    """The innermost folder that holds all of some files."""
    return Path(os.path.commonpath([file.parent for file in files]))


def size_of(file: Path, where: str) -> tuple[int, int]:
    """(height, width) of a picture, from its header.

    Args:
        where: the words that name the picture in an error.

    Raises:
        DataError: the file is absent or not a readable picture.
    """
    if not file.is_file():
        raise DataError(f"{where}: {file}: no such file")
    with open_image(file, f"{where}: {file}") as image:
        return image.height, image.width


def by_stem(pictures: Iterable[Path]) -> dict[Path, list[Path]]:
    """Pictures by their path without the suffix."""
    found: dict[Path, list[Path]] = {}
    for picture in pictures:
        found.setdefault(picture.with_suffix(""), []).append(picture)
    return found
