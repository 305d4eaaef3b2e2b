"""A validation split from the training images, for a set without one."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet
from comining.errors import DataError


def validation_share(annotations: AnnotationSet, fraction: float) -> NDArray[np.bool_]:
    """[N] bool, which images are for validation.

    Each file name decides independently, so that an image stays in its split when others are added
    or removed; the share is therefore only met on average. Each split has at least one image.

    Args:
        fraction: wanted, between 0 and 1.

    Raises:
        DataError: there is one image only.
    """
    chance = np.array([chance_of(name) for name in annotations.file_names])
    if len(chance) < 2:
        raise DataError(
            f"{annotations.path}: one image cannot be shared by training and validation; add "
            "images, or a validation split"
        )
    chosen = chance < fraction
    # In a small set all images may be in one split.
    chosen[chance.argmin()] = True
    chosen[chance.argmax()] = False
    return np.asarray(chosen)


def chance_of(name: str) -> float:
    """A number from 0 to 1 for a file name, the same on every file system."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
