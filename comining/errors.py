"""Errors that a user can mend, told in one line instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig


class UserError(ValueError):
    """Bad input; the message names the file, record or option."""


class ConfigError(UserError):
    """An option is unknown, missing or wrong."""


class DataError(UserError):
    """An annotation file or an image is wrong."""


class CheckpointError(UserError):
    """A file is no checkpoint of ours, or does not fit."""


def one_line_errors(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """End a single run with one line and exit code 2 on a :class:`UserError`.

    In a sweep the error goes on to Hydra, because leaving the process would end the other runs.
    """

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except UserError as error:
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return guarded
