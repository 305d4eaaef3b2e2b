"""The precision of faster-coco-eval, rounded as pycocotools rounds it.

Both divide the right detections by all, but pycocotools adds the float spacing at 1 to the divisor.
It is lost in rounding unless the divisor is 1: then precision is 1 - 2e-16 instead of 1. Means over
few objects differ in their last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The precision after a first detection that is right.
ONE_OF_ONE = 1 / (1 + np.spacing(1))


def accumulate(evaluation: Any, num_objects: NDArray[np.int64]) -> None:
    """Evaluate and accumulate, with the precision that pycocotools has.

    A precision of 1 belongs to the first detection alone if it is not reached with two right
    detections. Therefore the recall of two right detections is also evaluated.

    Args:
        evaluation: a new ``COCOeval_faster``.
        num_objects: [K, 4] how many objects that are not ignored have which class, in the order of
            the category ids, and area range.
    """
    levels = evaluation.params.recThrs
    level_of_two = {int(n): _level_of_two(levels, n) for n in np.unique(num_objects) if n > 1}
    more = np.unique([*levels, *level_of_two.values()])
    evaluation.params.recThrs = more
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.params.recThrs = levels
    found = np.asarray(evaluation.eval["precision"])  # [10 IoUs, levels, K, 4 areas, 3 limits]
    precision = np.ascontiguousarray(found[:, np.searchsorted(more, levels)])
    for (category, area), count in np.ndenumerate(num_objects):
        column = precision[:, :, category, area]
        ones = column == 1
        if count > 1:
            level = np.searchsorted(more, level_of_two[int(count)])
            ones &= found[:, level, category, area][:, None] != 1
        column[ones] = ONE_OF_ONE
    evaluation.eval["precision"] = precision


def _level_of_two(levels: NDArray[np.float64], count: int) -> float:
    """A recall that two of ``count`` objects reach and one does not, of ``levels`` if possible."""
    between = levels[(levels > 1 / count) & (levels <= 2 / count)]
    return float(between[0]) if len(between) else 2 / count
