"""What annotators state about the classes of an image: looked for or not, complete or not.

docs/knowledge.md says what each format can express.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# What holds for images without fields; `fields` reads them as if their fields of LVIS were empty.
Annotated = Literal["partial", "exhaustive", "fields"]

# Status of a class in an image. Partial: objects may be missing. Unlooked: nobody looked for the
# class. Complete: all its objects are annotated, or it was looked for and is absent.
UNSAID, UNLOOKED, COMPLETE, PARTIAL = -1, 0, 1, 2

Status = NDArray[np.int8]  # [N, K] of the four codes


def status_of_fields(
    looked_for: NDArray[np.bool_], neg: NDArray[np.bool_], not_exhaustive: NDArray[np.bool_]
) -> Status:
    """The status [n, K] of images by the rule of LVIS (Gupta et al., CVPR 2019).

    A class is partial if it is in ``not_exhaustive_category_ids``, else complete if it has a box or
    is in ``neg_category_ids``; otherwise it was not looked for.

    Args:
        looked_for: [n, K] which classes have a box.
        neg, not_exhaustive: [n, K] which classes the fields name.
    """
    status = np.where(looked_for | neg, COMPLETE, UNLOOKED).astype(np.int8)
    return np.where(not_exhaustive, np.int8(PARTIAL), status)


def fields_of_status(
    status: Status, have_boxes: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which classes [n, K] the fields of LVIS name: the reverse of :func:`status_of_fields`.

    A class without a statement becomes partial, the weakest statement that fields can make.

    Args:
        have_boxes: [n, K] which classes have a box.

    Returns:
        The classes in ``neg_category_ids``, and those in ``not_exhaustive_category_ids``.
    """
    return (status == COMPLETE) & ~have_boxes, (status == PARTIAL) | (status == UNSAID)


def resolved(status: Status, otherwise: Literal["partial", "exhaustive"]) -> Status:
    """The status, with UNSAID replaced by what holds there."""
    said = PARTIAL if otherwise == "partial" else COMPLETE
    return np.where(status == UNSAID, np.int8(said), status)


def ignoring(
    labels: NDArray[np.int64], said: Status | None, label: int
) -> tuple[NDArray[np.int64], Status | None]:
    """Labels and status of a set without a class, whose boxes are ignored for every class.

    Args:
        labels: [M]
        said: [N, K]
        label: of the class to remove.

    Returns:
        Labels [M], -1 for annotations of that class, and the status [N, K - 1].
    """
    moved = np.where(labels > label, labels - 1, labels)
    moved[labels == label] = -1
    return moved, None if said is None else np.delete(said, label, axis=1)


def rates(status: Status) -> NDArray[np.float32]:
    """The annotation rates [N, K]: 1 if complete, 0 if nobody looked for it, else NaN."""
    rate = np.full(status.shape, np.nan, dtype=np.float32)
    rate[status == COMPLETE] = 1
    rate[status == UNLOOKED] = 0
    return rate


def counts(status: Status, names: tuple[str, ...]) -> dict[str, Any]:
    """The number of (image, class) pairs with each status, in total and for every class.

    Args:
        status: [N, K], resolved.
        names: K.
    """
    words = {"complete": COMPLETE, "not_looked_for": UNLOOKED, "partial": PARTIAL}
    of_class = {word: (status == code).sum(axis=0) for word, code in words.items()}
    return {
        **{word: int(column.sum()) for word, column in of_class.items()},
        "classes": {
            name: {word: int(column[label]) for word, column in of_class.items()}
            for label, name in enumerate(names)
        },
    }
