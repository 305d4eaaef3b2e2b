"""A metric to compare detectors on incomplete annotations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Detections per annotated object.
MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


def recall_among_best(
    precision: NDArray[np.float64], levels: NDArray[np.float64], multiple: float
) -> float | None:
    """The share of the annotated objects that is found among the best detections, 0-100.

    For each class the best detections of the whole split count, ``multiple`` times as many as it
    has annotated objects. Missing annotations do not lower the metric, as long as those that are
    there are a fair sample; wrong detections do, because they take the place of right ones. With a
    multiple of 1 it is the R-precision of information retrieval.

    A recall of r with a precision of p takes r / p detections per annotated object.

    Args:
        precision: [10 IoUs, R, K] at each recall level, -1 where nothing is annotated.
        levels: [R] of recall, ascending.

    Returns:
        The mean over IoUs and classes; None where nothing is annotated.
    """
    known = (precision > -1).all(axis=(0, 1))
    if not known.any():
        return None
    reached = precision[:, :, known] * multiple >= levels[:, None]
    # At a recall of 0 there are no detections, and precision only falls.
    best = np.where(reached & (precision[:, :, known] > 0), levels[:, None], 0).max(axis=1)
    return 100 * float(best.mean())
