"""Standard output whose reader has closed it, as after ``| head -1``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from comining.runs.signals import SIGNALS, Interrupted

READER_GONE = 13  # SIGPIPE, which Windows has not


class _Watched:
    """A stream that reports once that its reader is gone, and drops later output."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # The rest of the buffer goes there, too: Python would report it at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        SIGNALS.stop(READER_GONE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def stop_on_closed_pipes() -> Iterator[None]:
    """End a program whose standard output or standard error is closed, as SIGPIPE would.

    A run that trains stops after its step, with a checkpoint, as after any signal (see
    :class:`Signals`). (SIGPIPE itself would kill the process at once, even if another pipe was
    closed.)
    """
    before = sys.stdout, sys.stderr
    watched: Any = tuple(map(_Watched, before))
    sys.stdout, sys.stderr = watched
    try:
        yield
        sys.stdout.flush()
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        with contextlib.suppress(Interrupted):
            watched[0].flush()
        sys.stdout, sys.stderr = before
