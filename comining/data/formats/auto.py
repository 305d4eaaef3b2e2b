"""``data=auto``: recognises the format of a folder."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import ClassVar

import yaml

from comining.config import CONFIG_FOLDER, locate
from comining.data.formats.annotation_format import AnnotationFormat, Split
from comining.errors import DataError, shortened

log = logging.getLogger(__name__)


class Auto(AnnotationFormat):
    """The format that a folder is recognised as, which is logged in one line.

    Raises:
        DataError: no format matches, or several; the message says what was found, and how to
            choose.
    """

    title: ClassVar[str] = "auto"

    def recognise(self, root: Path) -> str | None:
        return None  # not a format of its own

    def find_splits(self, root: Path) -> dict[str, Split]:
        name, shown = recognise(root)
        found = known_formats()[name]
        splits = found.find_splits(root)
        where = ", ".join(
            f"{split} in {os.path.relpath(one.path, root)}" for split, one in splits.items()
        )
        log.info(
            "data=auto: %s looks like %s (data=%s), by %s: %s",
            root,
            found.title,
            name,
            shown,
            where,
        )
        return splits


def recognise(root: Path) -> tuple[str, str]:
    """The name of a folder's format, as in ``data=NAME``, and what shows it.

    Raises:
        DataError: no format matches, or several.
    """
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    shows = {name: one.recognise(root) for name, one in known_formats().items()}
    found = {name: shown for name, shown in shows.items() if shown is not None}
    if len(found) == 1:
        return next(iter(found.items()))
    choices = ", ".join(f"data={name}" for name in found or shows)
    if found:
        seen = " and ".join(
            f"{known_formats()[name].title} ({shown})" for name, shown in found.items()
        )
        raise DataError(f"{root}: looks like {seen}; choose one of {choices}")
    entries = (
        sorted(one.name + "/" * one.is_dir() for one in root.iterdir()) if root.is_dir() else []
    )
    seen = shortened(entries, most=8) or "nothing"
    raise DataError(
        f"{root}: no format is recognised; it holds {seen}; choose one of {choices}, or name COCO "
        "files with data=custom"
    )


@functools.cache
def known_formats() -> dict[str, AnnotationFormat]:
    """The formats that files of ``conf/data`` name, by the name of the file."""
    found: dict[str, AnnotationFormat] = {}
    for file in sorted((CONFIG_FOLDER / "data").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        described = content.get("format")
        if described:
            one = locate(described["_target_"], f"{file}: format")()
            if not isinstance(one, Auto):
                found[file.stem] = one
    return found
