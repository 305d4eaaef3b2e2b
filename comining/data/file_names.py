"""Finds image files that an annotation file spells slightly differently."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

# Repairs made here, as named in the log.
ROOTS = "absolute file names taken relative to the folder that they share"
BACKSLASHES = "file names with \\ read as /"
OWN_FOLDER = "file names that begin with the image folder"
LETTERS = "file names with letters composed in another way"
SUFFIXES = "file names with a suffix in the other case"

# The root of any system: /, \, C:\ or s3://
_ROOT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?[/\\]+")
# Limit of folders that are searched for a hint.
MOST_FOLDERS = 300


def without_roots(names: Sequence[str], repairs: Counter[str]) -> list[str]:
    """Names with absolute paths made relative to their common folder.

    They come from another machine, of whose folders only those below the common one can exist here.

    Args:
        repairs: counts the names that change.
    """
    absolute = {name for name in names if _ROOT.match(name)}
    if not absolute:
        return list(names)
    parts_of = {name: _parts(_ROOT.sub("", name, count=1)) for name in absolute}
    folders = sorted(parts[:-1] for parts in parts_of.values())
    # The common parts of the first and the last in order are common to all between them.
    pairs = zip(folders[0], folders[-1], strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    repairs[ROOTS] += sum(name in absolute for name in names)
    return ["/".join(parts_of[name][shared:]) if name in absolute else name for name in names]


class FileFinder:
    """Finds files of a folder by names that are spelt differently.

    Only unambiguous differences are accepted: ``\\`` for ``/``, the folder's own name in front,
    accented letters as one character or two (file systems of a Mac store two), a suffix in the
    other case. Folders are listed once, when the first file is not found directly.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._own_parts = [_composed(part) for part in Path(os.path.abspath(folder)).parts]
        self._listings: dict[str, _Listing] = {}

    def find(self, name: str) -> tuple[str, list[str]] | None:
        """The name of a file in the folder, and the repairs to find it; None if there is none."""
        for parts, repairs in self._readings(name):
            found = self._spelt(parts)
            if found is not None:
                return found[0], repairs + found[1]
        return None

    def _readings(self, name: str) -> Iterator[tuple[list[str], list[str]]]:
        """The parts of a name, as written and without the image folder in front, with repairs."""
        parts = _parts(name)
        repairs = [BACKSLASHES] if "\\" in name else []
        yield parts, repairs
        for count in range(1, len(parts)):
            if [_composed(part) for part in parts[:count]] == self._own_parts[-count:]:
                yield parts[count:], [*repairs, OWN_FOLDER]

    def _spelt(self, parts: Sequence[str]) -> tuple[str, list[str]] | None:
        place: list[str] = []
        repairs: list[str] = []
        for number, part in enumerate(parts, start=1):
            folder = "/".join(place)
            if folder not in self._listings:
                self._listings[folder] = _Listing(self.folder / folder)
            found = self._listings[folder].find(part, is_file=number == len(parts))
            if found is None:
                return None
            place.append(found[0])
            repairs += [repair for repair in found[1:] if repair not in repairs]
        return ("/".join(place), repairs) if place else None


class _Listing:
    """The entries of one folder, by the ways in which their names may be spelt."""

    def __init__(self, folder: Path):
        self.names: set[str] = set()
        self.by_letters: dict[str, list[str]] = {}
        self.by_suffix: dict[tuple[str, str], list[str]] = {}
        try:
            self.names.update(os.listdir(folder))
        except OSError:  # no such folder, or not readable: nothing can be found in it
            return
        for name in sorted(self.names):
            self.by_letters.setdefault(_composed(name), []).append(name)
            self.by_suffix.setdefault(_without_case(name), []).append(name)

    def find(self, name: str, is_file: bool) -> tuple[str, ...] | None:
        """The entry for a name, and the repairs to find it; None if none or several match."""
        if name in self.names:
            return (name,)
        entries = self.by_letters.get(_composed(name), [])
        if entries:
            return (entries[0], LETTERS) if len(entries) == 1 else None
        entries = self.by_suffix.get(_without_case(name), []) if is_file else []
        return (entries[0], SUFFIXES) if len(entries) == 1 else None


def folder_of(name: str, near: Path, beside: bool) -> Path | None:
    """Search below a folder for the folder of a file; None if it is not found.

    Links are not followed, and at most :data:`MOST_FOLDERS` folders are searched.

    Args:
        beside: also search in the folder's parent, and below that.
    """
    waiting = [near, near.parent] if beside else [near]
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return None
        folder = waiting.pop(0)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # a hint is not worth an error
            continue
        if any(entry.name == name for entry in entries):
            return folder
        inside = (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        waiting += [path for path in inside if path != near]
    return None


def _parts(name: str) -> list[str]:
    return list(PurePosixPath(name.replace("\\", "/")).parts)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _without_case(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(_composed(name))
    return stem, suffix.lower()
