"""Parts of the training images, each of which can be left out in turn (cross-fitting)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet
from comining.data.validation_share import chance_of


def fold_of(annotations: AnnotationSet, chosen: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """[N] the fold of every image, 0 ... count - 1, and -1 for images that are not chosen.

    Determined by a hash of the file name, so that it does not depend on the order of a file. The
    sizes of folds differ by at most one image.

    Args:
        chosen: [N] the images to distribute.
    """
    rows = np.flatnonzero(chosen)
    chance = np.array([chance_of(annotations.file_names[row]) for row in rows])
    folds = np.full(len(chosen), -1, dtype=np.int64)
    folds[rows[np.argsort(chance, kind="stable")]] = np.arange(len(rows)) % count
    return folds
