"""Names of picture files, which may hold any bytes: for messages, for JSON, and for drawings."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import PurePath

# Bytes that Linux, macOS and Windows allow for a name, and Linux for a path.
LONGEST_NAME, LONGEST_PATH = 255, 4095


def printable(text: str) -> str:
    """A text on one line: line ends, controls and undecodable bytes become escapes."""
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8, as Python holds it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def json_name(name: PurePath) -> str:
    """A path for JSON, with ``/``: valid Unicode, bytes that are no UTF-8 written as ``\\xff``."""
    return os.fsencode(name.as_posix()).decode("utf-8", "backslashreplace")


class DrawingNames:
    """Names for drawings, relative to their folder, that no file system confuses.

    ``a/b.jpg`` becomes ``a/b.jpg.png``; the suffix stays, since ``b.jpg`` and ``b.png`` are two
    pictures. A name that is too long, or differs from an earlier one only in case or in how its
    letters are composed, is replaced by one with a hash.

    Args:
        folder: absolute path that the names will be relative to.
    """

    def __init__(self, folder: PurePath):
        self._room = LONGEST_PATH - len(os.fsencode(folder)) - 1
        self._taken: set[str] = set()

    def plain(self, name: PurePath) -> PurePath:
        """The name for the drawing of a picture."""
        wanted = name.with_name(name.name + ".png")
        too_long = len(os.fsencode(wanted.name)) > LONGEST_NAME
        if too_long or len(os.fsencode(wanted)) > self._room or _same(wanted) in self._taken:
            return self.hashed(name)
        self._taken.add(_same(wanted))
        return wanted

    def hashed(self, name: PurePath) -> PurePath:
        """Another name, which every file system accepts: in no folder, short, plain letters."""
        start = "".join(
            c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name.name
        )
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()
        for length in range(12, len(digest) + 1):
            wanted = PurePath(f"{start[:40].strip('.')}~{digest[:length]}.png")
            if _same(wanted) not in self._taken:
                break
        self._taken.add(_same(wanted))
        return wanted


def _same(name: PurePath) -> str:
    """A key that is equal for two names which some file system treats as the same."""
    return unicodedata.normalize("NFC", str(name).casefold())
