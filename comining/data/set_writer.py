"""A data set that is written before it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod


class SetWriter(ABC):
    """Base class of what ``data.prepare`` may name."""

    @abstractmethod
    def __call__(self, root: str) -> None:
        """Write the set below ``root``, whole or not at all; leave it alone where it is there.

        Raises:
            DataError: ``root`` holds something else.
        """
