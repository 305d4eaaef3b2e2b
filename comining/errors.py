"""Errors that a user can fix, reported in one line instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig


class UserError(ValueError):
    """Bad input; the message names the file, record or option."""


class ConfigError(UserError):
    """An option is unknown, missing or wrong."""


class DataError(UserError):
    """An annotation file or an image is wrong."""


class CheckpointError(UserError):
    """A file is not a checkpoint of this package, or does not fit."""


class OutputError(UserError):
    """A file cannot be written."""


class DivergedError(FloatingPointError):
    """Training produced numbers that are not finite.

    Args:
        message: what is not finite.
        facts: the state at that step, for ``result.json``: plain containers only.
    """

    def __init__(self, message: str, facts: Mapping[str, Any]):
        super().__init__(message)
        self.facts = dict(facts)


def one_line(error: Exception) -> str:
    """The message of an error, without the traceback of a data loader's worker."""
    message = str(error)
    if "in DataLoader worker process" in message:
        message = message.strip().splitlines()[-1].split(": ", 1)[-1]
    return message


def shortened(names: Sequence[str], most: int = 20) -> str:
    """Names with commas between them, at most so many; then how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def one_line_errors(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """End a program with one line and exit code 2 on a :class:`UserError`."""

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)

    return guarded
