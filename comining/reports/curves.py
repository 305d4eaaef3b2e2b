"""AP and pseudo-labels over the steps of a run."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

Curve = list[tuple[int, float]]  # (step, value), in the order of the steps

# Curve -> its column in metrics.csv and its name in the history of a result.
CURVES = {
    "ap": ("val/AP", "AP"),
    "mined": ("mining/pseudo_labels_per_image", "pseudo_labels_per_image"),
}
MOST_POINTS = 240  # of a curve: more of them are no wider than a pixel


def read_curves(folder: Path, history: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The curves of a run, by the keys of :data:`CURVES`.

    Args:
        folder: the run directory, whose ``metrics.csv`` has every logged step.
        history: of the run's result, a row per validation; used for a curve that the file does not
            have, or if results were collected without the file.

    Returns:
        At most :data:`MOST_POINTS` points each; an empty list where nothing is known.
    """
    rows: list[dict[str, Any]] = []
    file = folder / "metrics.csv"
    if file.is_file():
        try:
            with file.open(newline="", encoding="utf-8", errors="replace") as lines:
                rows = list(csv.DictReader(lines))
        except csv.Error as error:
            log.warning("%s: cannot be read (%s); only validations are drawn", file, error)
    return {
        name: thinned(_points(rows, column) or _points(history, key))
        for name, (column, key) in CURVES.items()
    }


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """A curve of at most ``most`` points: means over neighbouring ones."""
    if len(curve) <= most:
        return curve
    parts = np.array_split(np.array(curve), most)
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> Curve:
    points = {}
    for row in rows:
        step, value = _number(row.get("step")), _number(row.get(column))
        if step is not None and value is not None:
            points[int(step)] = value  # a run that was resumed by hand may repeat a step
    return sorted(points.items())


def _number(text: Any) -> float | None:
    """A finite number; None for an empty cell, and for half a row that a killed run left."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
