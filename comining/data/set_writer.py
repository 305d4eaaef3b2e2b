"""A data set that is written before it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod


class SetWriter(ABC):
    """Base class for ``data.prepare``."""

    @abstractmethod
    def __call__(self, root: str) -> None:
        """Write the set below ``root``, completely or not at all; keep an existing one.

        Raises:
            DataError: ``root`` holds something else.
        """
