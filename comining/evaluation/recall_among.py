"""A number by which detectors can be compared on annotations that are not complete."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# How many detections are looked at for each annotated object.
MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


def recall_among_best(
    precision: NDArray[np.float64], levels: NDArray[np.float64], multiple: float
) -> float | None:
    """The share of the annotated objects that is found among the best detections, 0-100.

    Of each class as many detections of the whole split are looked at as it has annotated objects,
    times ``multiple``. Objects that are missing in the annotations do not lower it, as long as
    those that are there are a fair sample; wrong detections do, because they take the place of
    right ones. With a multiple of 1 it is the R-precision of information retrieval.

    At a recall of r with a precision of p, r / p detections have been looked at for each annotated
    object.

    Args:
        precision: [10 IoUs, R, K] at each recall level, -1 where nothing is annotated.
        levels: [R] of recall, rising.

    Returns:
        The mean over IoUs and classes; None where nothing is annotated.
    """
    known = (precision > -1).all(axis=(0, 1))
    if not known.any():
        return None
    reached = precision[:, :, known] * multiple >= levels[:, None]
    # At a recall of 0 nothing is looked at, and precision only falls.
    best = np.where(reached & (precision[:, :, known] > 0), levels[:, None], 0).max(axis=1)
    return 100 * float(best.mean())
