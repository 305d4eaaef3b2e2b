"""A JSON list that grows row by row, and is written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from comining.errors import ConfigError
from comining.runs.files import replace_file


class RowFile:
    """Rows that are written to the disk at once, so that they take no memory.

    They are appended to a draft beside the file, ``.NAMEl``, as JSON lines, which remain if the
    process is killed.

    Args:
        path: of the JSON list, which :meth:`finish` writes.
    """

    def __init__(self, path: Path):
        self.path = path
        self.draft = path.with_name(f".{path.name}l")
        self._file = self.draft.open("w+b", buffering=0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of plain containers: all of them, or none.

        Raises:
            ValueError: a number is NaN or infinite; nothing is written.
            ConfigError: the disk is full, or has gone.
        """
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        start = self._file.tell()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:  # a signal, too
            self._file.seek(start)
            self._file.truncate()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def finish(self) -> None:
        """Write the list, one row per line, and remove the draft.

        Raises:
            ConfigError: it cannot be written; the draft stays.
        """
        try:
            replace_file(self.path, self._copy)
            self._file.close()
            self.draft.unlink()
        except OSError as error:
            raise self._failed(error) from error

    def _copy(self, target: BinaryIO) -> None:
        target.write(b"[")
        with self.draft.open("rb") as lines:
            for number, line in enumerate(lines):
                target.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
        target.write(b"\n]\n")

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.path}: cannot be written ({error.strerror}); rows so far: {self.draft}"
        )
