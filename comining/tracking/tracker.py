"""The base class of all loggers, and the group that a run reports to."""

# ruff: noqa: B027  (methods that do nothing are meant: a tracker overrides those that it needs)

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from PIL.Image import Image
from torch import Tensor

from comining.tracking.drawing import Layer

log = logging.getLogger(__name__)


class LabelledImage(NamedTuple):
    """An image with layers of boxes and their classes, as :meth:`Tracker.boxes` gets it."""

    image: Tensor  # [3, H, W] uint8
    layers: Sequence[Layer]
    labels: Sequence[Tensor]  # for each layer [N] int64, the class of each of its boxes


class Tracker(ABC):
    """Base class of the choices of ``logger=``: receives what a run reports during training.

    Only the process with global rank 0 calls these methods: ``start`` once, ``figures``,
    ``picture`` and ``boxes`` as training goes on, ``summary`` at its end, and ``close`` however
    the run ends. A step is the number of optimizer steps done.

    A constructor checks its options and does nothing else. It runs before the data are read, on
    every process; files are opened and connections are made in ``start``.
    """

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        """Begin, or continue after the checkpoint that the run is resumed from.

        Args:
            config: all options of the run, resolved, in plain containers.
            step: of that checkpoint; 0 in a new run.
            rows: calls of :meth:`figures` before that checkpoint; 0 in a new run.
        """

    @abstractmethod
    def figures(self, row: Mapping[str, float], step: int) -> None:
        """Log numbers by name, such as ``train/loss`` and ``val/AP`` (the README lists them)."""

    def picture(self, key: str, picture: Image, step: int) -> None:
        """Log an overview image, with all boxes drawn into it."""

    def boxes(
        self, key: str, images: Sequence[LabelledImage], step: int, class_names: Sequence[str]
    ) -> None:
        """Log what an overview image shows as images and boxes, for interactive display."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Log the final and best figures of a finished run."""

    def close(self, failed: bool) -> None:
        """Flush and disconnect; ``failed`` unless the run finished."""


class NoTracker(Tracker):
    """Logs nothing."""

    def figures(self, row: Mapping[str, float], step: int) -> None:
        pass


class TrackerGroup(Tracker):
    """Several trackers as one, which a ``with`` statement closes.

    Passes every call on to the trackers that have been started, so it is silent before
    :meth:`start`, and on processes that never call it.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers
        self._started: list[Tracker] = []

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        for tracker in self.trackers:
            tracker.start(config, step, rows)
            self._started.append(tracker)

    def figures(self, row: Mapping[str, float], step: int) -> None:
        for tracker in self._started:
            tracker.figures(row, step)

    def picture(self, key: str, picture: Image, step: int) -> None:
        for tracker in self._started:
            tracker.picture(key, picture, step)

    def boxes(
        self, key: str, images: Sequence[LabelledImage], step: int, class_names: Sequence[str]
    ) -> None:
        for tracker in self._started:
            tracker.boxes(key, images, step, class_names)

    def summary(self, values: Mapping[str, float]) -> None:
        for tracker in self._started:
            tracker.summary(values)

    def close(self, failed: bool) -> None:
        """Close every tracker, also where closing another one raises."""
        with ExitStack() as stack:
            while self._started:
                stack.callback(self._started.pop().close, failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close(failed=error is not None)
        except Exception:
            if error is None:
                raise
            # The error that ended the run determines its status and exit code.
            log.exception("a logger could not be closed")
