"""Sparsity protocols: which annotations of a fully annotated set are erased.

``python -m comining.data.sparsity --help`` writes the same split as a COCO file for other
frameworks.
"""

from __future__ import annotations

import argparse
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from comining.data.annotations import CROWDS_AS_OBJECTS, AnnotationSet, Crowd, OnInvalidBox
from comining.data.category_matching import match_categories, without_category
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED, UNSAID, Status
from comining.errors import DataError
from comining.option_types import Fraction, NonNegativeInt

Mask = NDArray[np.bool_]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class Erasure:
    """The result of a protocol on a set of N images, K classes and M annotations."""

    erased: Mask  # [M] no longer annotated
    ignored: Mask  # [M] those of them that became a region to ignore
    status: Status  # [N, K] the status afterwards, never UNSAID

    @classmethod
    def only(cls, annotations: AnnotationSet, erased: Mask) -> Erasure:
        """Only erased annotations; the status is unchanged."""
        return cls(erased, np.zeros_like(erased), annotations.status)

    def of_images(self, annotations: AnnotationSet, chosen: Mask) -> Erasure:
        """The erasure of some of the images.

        Args:
            annotations: the full set.
            chosen: [N] which images.
        """
        rows = chosen[annotations.image]
        return Erasure(self.erased[rows], self.ignored[rows], self.status[chosen])


class Sparsity(ABC):
    """Chooses annotations to erase. Crowds are never chosen.

    Args:
        regions: share of the erased annotations that become regions to ignore.
        seed: of all random choices.
    """

    def __init__(self, regions: float, seed: int):
        self.regions = regions
        self.seed = seed

    def apply(self, annotations: AnnotationSet) -> Erasure:
        """The erased annotations, and the status afterwards."""
        erased = self.erase(annotations)
        ignored = self.ignore(annotations, erased)
        return Erasure(erased, ignored, self.status(annotations, erased))

    @abstractmethod
    def erase(self, annotations: AnnotationSet) -> Mask:
        """[M] bool, True for erased annotations; False for crowds."""

    def ignore(self, annotations: AnnotationSet, erased: Mask) -> Mask:
        """[M] bool, which of the erased annotations become regions to ignore."""
        rows = np.flatnonzero(erased)
        ids = annotations.ids[rows]
        # Another seed, because the erased annotations of a group are those with the smallest hash.
        order = np.lexsort([ids, _hash(ids, self.seed ^ 2**32)])
        ignored = np.zeros_like(erased)
        ignored[rows[order[: int(np.floor(round(len(rows) * self.regions, 6)))]]] = True
        return ignored

    def status(self, annotations: AnnotationSet, erased: Mask) -> Status:
        """[N, K] the status afterwards; by default erasing makes complete classes partial.

        Exceptions are classes that the file itself states as absent.
        """
        status = annotations.status
        if not erased.any():
            return status
        absent = (annotations.said_of_all == COMPLETE) & ~annotations.have_boxes
        return np.where((status == COMPLETE) & ~absent, np.int8(PARTIAL), status)


class RandomErasure(Sparsity):
    """Erase random annotations by a seed, group by group.

    The choice depends on the seed and on the ids of the annotations, not on their order in the
    file, nor on other groups.

    Args:
        per: what forms a group: ``[image]``, ``[category]`` or ``[image, category]``.
        fraction: erase this share of every group's n annotations, rounded down; or
        count: erase this many of every group.
        keep_at_least: but keep at least this many of every group.
        regions: share of the erased annotations that become regions to ignore.
        seed: of the choice.
    """

    def __init__(
        self,
        *,
        per: Sequence[Literal["image", "category"]],
        fraction: Fraction | None,
        count: NonNegativeInt | None,
        keep_at_least: NonNegativeInt,
        regions: Fraction,
        seed: Seed,
    ):
        super().__init__(regions, seed)
        if not per:
            raise ValueError(f"sparsity.per must name image, category or both, got {list(per)}")
        if (fraction is None) == (count is None):
            raise ValueError("sparsity: set one of fraction and count, and the other to null")
        self.per = tuple(per)
        self.fraction = fraction
        self.count = count
        self.keep_at_least = keep_at_least

    def erase(self, annotations: AnnotationSet) -> Mask:
        candidates = np.flatnonzero(~annotations.crowd)
        columns = {"image": annotations.image, "category": annotations.labels}
        keys = [columns[name][candidates] for name in self.per]
        chance = _hash(annotations.ids[candidates], self.seed)
        # Sorted by group, in random order inside; the ids break ties of the hash.
        order = np.lexsort([annotations.ids[candidates], chance, *keys])
        grouped = np.stack([key[order] for key in keys], axis=1)
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = (grouped[1:] != grouped[:-1]).any(axis=1)
        group = np.cumsum(starts) - 1
        size = np.bincount(group)
        rank = np.arange(len(order)) - np.flatnonzero(starts)[group]
        wanted = (
            np.full_like(size, min(self.count or 0, len(order)))
            if self.fraction is None
            # rounding first: 0.29 * 100 is 28.999999999999996 and must not become 28
            else np.floor(np.round(size * self.fraction, 6)).astype(np.int64)
        )
        kept_of = min(self.keep_at_least, len(order))
        erased_of = np.minimum(wanted, np.maximum(size - kept_of, 0))
        erased = np.zeros(len(annotations.ids), dtype=np.bool_)
        erased[candidates[order[rank < erased_of[group]]]] = True
        return erased


class ClassErasure(Sparsity):
    """In every image, keep the annotations of some classes only: nobody looked for the others.

    Which classes depends on the seed, the id of the image and the name of the class.

    Args:
        fraction: share of the classes that are not looked for in an image, rounded down.
        known: whether training knows which classes were looked for; if not, objects of all classes
            may be missing.
        regions: share of the erased annotations that become regions to ignore.
        seed: of the choice.
    """

    def __init__(self, *, fraction: Fraction, known: bool, regions: Fraction, seed: Seed):
        super().__init__(regions, seed)
        self.fraction = fraction
        self.known = known

    def unlooked(self, annotations: AnnotationSet) -> NDArray[np.bool_]:
        """[N, K] the classes that are not looked for, by image."""
        names = annotations.categories.names
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
        of_class = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)
        with np.errstate(over="ignore"):
            mixed = _hash(annotations.image_ids, self.seed)[:, None] ^ of_class
        chance = _hash(mixed, self.seed)
        rank = chance.argsort(axis=1, kind="stable").argsort(axis=1)
        return np.asarray(rank < int(np.floor(round(len(names) * self.fraction, 6))))

    def erase(self, annotations: AnnotationSet) -> Mask:
        erased = self.unlooked(annotations)[annotations.image, annotations.labels]
        return np.asarray(erased & ~annotations.crowd)

    def status(self, annotations: AnnotationSet, erased: Mask) -> Status:
        if not self.known:
            return super().status(annotations, erased)
        said = annotations.said_of_all
        # The full file is complete, unless it says otherwise itself.
        status = np.where(said == UNSAID, np.int8(COMPLETE), said)
        return np.where(self.unlooked(annotations), np.int8(UNLOOKED), status)


class FromFile(Sparsity):
    """A ready-made sparse file beside the full one, such as the ones the authors link to.

    What the sparse file lacks is erased. Annotations are recognised by image, category and box,
    because others may have renumbered them. What the sparse file says of classes, and its regions
    to ignore, hold.

    Args:
        path: the sparse COCO file.
    """

    def __init__(self, *, path: str):
        super().__init__(regions=0.0, seed=0)
        self.path = path

    def _read(self, annotations: AnnotationSet) -> AnnotationSet:
        # Read like the full set; if that has no crowds, none of the file is a crowd.
        as_objects = CROWDS_AS_OBJECTS in annotations.repairs or not annotations.crowd.any()
        crowd: Crowd = "object" if as_objects else "ignore"
        sparse = read_coco(self.path, on_invalid_box="drop", crowd=crowd)
        if annotations.ignore_category in sparse.categories.names:
            sparse = without_category(sparse, annotations.ignore_category)
        return match_categories(sparse, annotations.categories, annotations.path)

    def apply(self, annotations: AnnotationSet) -> Erasure:
        sparse = self._read(annotations)
        erased = self._erased(annotations, sparse)
        return Erasure(
            erased,
            self._ignored(annotations, erased, sparse),
            self._status(annotations, erased, sparse),
        )

    def erase(self, annotations: AnnotationSet) -> Mask:
        return self._erased(annotations, self._read(annotations))

    def _status(self, annotations: AnnotationSet, erased: Mask, sparse: AnnotationSet) -> Status:
        status = self.status(annotations, erased)
        if sparse.said is None:
            return status
        position = {image_id: n for n, image_id in enumerate(annotations.image_ids.tolist())}
        for n, image_id in enumerate(sparse.image_ids.tolist()):
            if image_id in position:
                said = sparse.said[n]
                row = status[position[image_id]]
                status[position[image_id]] = np.where(said == UNSAID, row, said)
        return status

    def _ignored(self, annotations: AnnotationSet, erased: Mask, sparse: AnnotationSet) -> Mask:
        """Erased annotations that the sparse file still has as regions to ignore."""
        regions = Counter(_content(sparse, row) for row in np.flatnonzero(sparse.crowd).tolist())
        # Those that the full set also has are not erased annotations.
        regions -= Counter(
            _content(annotations, row) for row in np.flatnonzero(annotations.crowd).tolist()
        )
        ignored = np.zeros_like(erased)
        for row in np.flatnonzero(erased).tolist() if regions else ():
            key = _content(annotations, row)
            ignored[row] = regions[key] > 0
            regions[key] -= 1
        return ignored

    def _erased(self, annotations: AnnotationSet, sparse: AnnotationSet) -> Mask:
        wanted = Counter(_content(sparse, row) for row in np.flatnonzero(~sparse.crowd).tolist())
        erased = ~annotations.crowd
        for row in np.flatnonzero(erased).tolist():
            key = _content(annotations, row)
            if wanted[key]:
                wanted[key] -= 1
                erased[row] = False
        for image_id, label, bbox in wanted.elements():
            raise DataError(
                f"{self.path}: image {image_id}, category {sparse.categories.ids[label]}, bbox "
                f"{list(bbox)} is not an annotation of {annotations.path}; sparsity=file needs the "
                "full file as data.train_annotations"
            )
        return erased


def _content(annotations: AnnotationSet, row: int) -> tuple[int, int, tuple[float, ...]]:
    return (
        int(annotations.image_ids[annotations.image[row]]),
        int(annotations.labels[row]),
        tuple(np.round(annotations.bboxes[row], 2).tolist()),
    )


def _hash(ids: NDArray[np.int64] | NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A well-mixed 64-bit number for every id (splitmix64, Steele et al. 2014), in any shape."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return x


# -- command line ------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    # Which import this module.
    from comining.config import CONFIG_FOLDER, instantiate_file
    from comining.data.sparse_split import summary, write_split

    protocols = sorted(file.stem for file in (CONFIG_FOLDER / "sparsity").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog="python -m comining.data.sparsity",
        description="Erase annotations of a COCO file as training would with the same protocol "
        "and seed, and write the rest as a COCO file.",
    )
    parser.add_argument("annotations", type=Path, help="the full COCO annotation file")
    parser.add_argument("output", type=Path, help="the sparse file to write")
    parser.add_argument("--protocol", choices=protocols, required=True)
    parser.add_argument("--seed", type=int, default=0, help="sparsity.seed of training")
    parser.add_argument("--fraction", type=float, help="share to erase instead of the protocol's")
    parser.add_argument(
        "--regions", type=float, help="share of the erased that become regions to ignore"
    )
    parser.add_argument("--sparse-file", help="the ready-made file of --protocol file")
    parser.add_argument("--erased", type=Path, help="write what was erased to this file, too")
    parser.add_argument("--on-invalid-box", choices=("error", "drop"), default="error")
    parser.add_argument("--crowd", choices=("ignore", "object"), default="ignore")
    parser.add_argument(
        "--ignore-category", metavar="NAME", help="a class whose boxes are regions to ignore"
    )
    given = parser.parse_args(arguments)
    overrides: dict[str, Any] = {} if given.protocol == "file" else {"seed": given.seed}
    if given.fraction is not None:
        overrides["fraction"] = given.fraction
    if given.regions is not None:
        overrides["regions"] = given.regions
    if given.sparse_file is not None:
        overrides["path"] = given.sparse_file
    for path in (given.output, given.erased):
        if path is not None and path.resolve() == given.annotations.resolve():
            parser.error(f"{path} is the full annotation file; it will not be overwritten")
    if given.erased is not None and given.erased.resolve() == given.output.resolve():
        parser.error(f"{given.output} cannot hold both what is kept and what is erased")
    on_invalid_box: OnInvalidBox = given.on_invalid_box
    crowd: Crowd = given.crowd
    try:
        sparsity = instantiate_file(
            CONFIG_FOLDER / "sparsity" / f"{given.protocol}.yaml", overrides
        )
        annotations = read_coco(given.annotations, on_invalid_box, crowd)
        if given.ignore_category is not None:
            annotations = without_category(annotations, given.ignore_category)
        erasure = sparsity.apply(annotations)
        write_split(annotations, erasure, given.output, given.erased)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(summary(annotations, erasure))
    print(f"written: {given.output}" + (f", {given.erased}" if given.erased else ""))


if __name__ == "__main__":
    main()
