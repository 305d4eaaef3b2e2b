"""Which files of a folder are pictures, and why others are left out."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from comining.errors import DataError, shortened
from comining.evaluation.picture_kinds import HEAD, foreign_kind, is_picture
from comining.evaluation.picture_names import printable

# Folders that systems create: thumbnails and deleted files. Hidden folders are left out, too.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
SHOWN = 5  # names or kinds in a line; the rest is counted


@dataclass
class PictureFiles:
    """The files of a folder, sorted by kind; paths are relative to it and ``/``-separated."""

    folder: Path
    pictures: list[PurePath] = field(default_factory=list)  # to detect in, sorted
    others: Counter[str] = field(default_factory=Counter)  # not pictures: suffix -> count
    # pictures of a kind that cannot be decoded: kind -> paths
    foreign: defaultdict[str, list[PurePath]] = field(default_factory=lambda: defaultdict(list))
    unreadable: dict[PurePath, str] = field(default_factory=dict)  # files and folders -> why
    hidden: dict[PurePath, int] = field(default_factory=dict)  # folders left out -> files in them
    runs: list[PurePath] = field(default_factory=list)  # folders that hold the output of runs
    repeated: list[PurePath] = field(default_factory=list)  # folders seen under another name
    broken: list[PurePath] = field(default_factory=list)  # links that lead nowhere
    special: list[PurePath] = field(default_factory=list)  # pipes, sockets, devices

    def notes(self) -> list[str]:
        """What was left out: one printable line for each reason."""
        lines = []
        if self.others:
            count = self.others.total()
            are = "1 file is not a picture" if count == 1 else f"{count} files are not pictures"
            kinds = [f"{n} {printable(kind)}" for kind, n in self.others.most_common()]
            lines.append(f"{are}: {shortened(kinds, SHOWN)}")
        for kind, names in sorted(self.foreign.items()):
            count = len(names)
            are = f"1 {kind} picture" if count == 1 else f"{count} {kind} pictures"
            first = shortened(_printable(names), SHOWN)
            lines.append(f"{are} cannot be decoded, convert to JPEG or PNG: {first}")
        files = sum(self.hidden.values())
        inside = f", {files} file{'' if files == 1 else 's'} in all"
        why = [f"{printable(str(name))} ({why})" for name, why in self.unreadable.items()]
        for listed, one, many, shown in (
            (why, "file or folder", "files or folders", "cannot be read"),
            (_printable(self.hidden), "hidden folder", "hidden folders", f"left out{inside}"),
            (_printable(self.runs), "folder", "folders", "with the output of a run left out"),
            (_printable(self.repeated), "folder", "folders", "seen under another name left out"),
            (_printable(self.broken), "broken link", "broken links", "left out"),
            (_printable(self.special), "pipe or device", "pipes or devices", "left out"),
        ):
            if listed:
                what = one if len(listed) == 1 else many
                lines.append(f"{len(listed)} {what} {shown}: {shortened(listed, SHOWN)}")
        return lines


def find_pictures(given: Path, run_marker: str) -> PictureFiles:
    """Find pictures by their content: a single file, or all below a folder.

    Links to files and folders are followed, but no folder is visited twice.

    Args:
        run_marker: a folder below that holds a file of this name is the output of a run.

    Raises:
        DataError: there is no such file or folder, it cannot be read, or holds no picture.
    """
    where = f"images={printable(str(given))}"
    try:
        mode = os.stat(given).st_mode
        if stat.S_ISDIR(mode):
            os.scandir(given).close()
    except FileNotFoundError:
        raise DataError(f"{where}: no such file or folder") from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        found = _Search(given, run_marker).whole()
    elif stat.S_ISREG(mode):
        found = _Search(given.parent, run_marker).single(given.name)
    else:
        raise DataError(f"{where}: neither a file nor a folder")
    if not found.pictures:
        notes = found.notes()
        raise DataError(f"{where}: no pictures: {'; '.join(notes) or 'the folder is empty'}")
    return found


class _Search:
    """One pass over a folder."""

    def __init__(self, folder: Path, run_marker: str):
        self.found = PictureFiles(folder)
        self.run_marker = run_marker
        self.visited: set[tuple[int, int]] = set()  # device and inode of folders
        self.links: list[PurePath] = []  # to folders

    def whole(self) -> PictureFiles:
        # No recursion: a path may be deeper than Python's stack. Links come last, so that a folder
        # is found under its own name if it has one here.
        folders = [PurePath()]
        while folders or self.links:
            folders += self._folder(folders.pop() if folders else self.links.pop(0))
        self.found.pictures.sort()
        return self.found

    def single(self, name: str) -> PictureFiles:
        self._file(PurePath(name))
        return self.found

    def _folder(self, name: PurePath) -> list[PurePath]:
        """Look at a folder's files, and return its folders."""
        found, path, top = self.found, self.found.folder / name, name == PurePath()
        try:
            facts = os.stat(path)
            if (facts.st_dev, facts.st_ino) in self.visited:
                found.repeated.append(name)
                return []
            self.visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable[name] = str(error.strerror)
            return []
        if not top and any(entry.name == self.run_marker for entry in entries):
            found.runs.append(name)
            return []
        folders = []
        for entry in entries:
            if entry.name == self.run_marker:
                continue  # the output of the run that writes into this folder
            below = name / entry.name
            try:
                mode = entry.stat().st_mode
            except FileNotFoundError:
                found.broken.append(below)
                continue
            except OSError as error:
                found.unreadable[below] = str(error.strerror)
                continue
            if stat.S_ISREG(mode):
                self._file(below)
            elif not stat.S_ISDIR(mode):
                found.special.append(below)
            elif entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                found.hidden[below] = sum(len(names) for _, _, names in os.walk(entry.path))
            elif entry.is_symlink():
                self.links.append(below)
            else:
                folders.append(below)
        return folders

    def _file(self, name: PurePath) -> None:
        path = self.found.folder / name
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
        except OSError as error:
            self.found.unreadable[name] = str(error.strerror)
            return
        suffix = name.suffix.lower()
        kind = foreign_kind(head, suffix)
        if kind is not None:
            self.found.foreign[kind].append(name)
        elif is_picture(path, head):
            self.found.pictures.append(name)
        else:
            dotted = "hidden" if name.name.startswith(".") else "without a suffix"
            self.found.others[suffix or dotted] += 1


def _printable(names: Iterable[PurePath]) -> list[str]:
    return [printable(str(name)) for name in names]
