"""Writing exported sets to the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from comining.data.set_export import Export
from comining.errors import DataError


def _link(picture: Path, place: Path) -> None:
    try:
        # A symbolic link would point outside the set, which readers refuse.
        os.link(os.path.realpath(picture), place)
    except OSError as error:
        raise DataError(
            f"{place}: cannot be linked to {picture} ({error.strerror}); --images copy copies it"
        ) from None


PUT: dict[str, Callable[[Path, Path], object]] = {
    "copy": shutil.copyfile,
    "link": _link,
    "none": lambda picture, place: None,
}


def write_export(export: Export, output: Path, images: str) -> None:
    """Write a set, whole or not at all.

    Args:
        output: the folder to make; it may exist if it is empty.
        images: ``copy``, ``link`` (hard links, on one file system) or ``none``.

    Raises:
        DataError: the folder is not empty, or a picture cannot be linked.
        OSError: the disk is full, or a picture cannot be read.
    """
    check_output(output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        for name, text in export.text_files.items():
            place = draft / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for name, picture in export.pictures.items():
            place = draft / name
            if images != "none":
                place.parent.mkdir(parents=True, exist_ok=True)
            PUT[images](picture, place)
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_output(output: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        DataError: it is not empty, or it is a file.
    """
    if output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output}: is not empty; nothing is overwritten")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file")
