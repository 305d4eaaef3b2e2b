"""Merges annotation files, each of which was annotated for its own classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet, Categories
from comining.data.category_matching import match_categories
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED, UNSAID
from comining.data.outlines import Outlines
from comining.errors import DataError

# Of two statements about the same class of the same picture, the one that is later here holds: a
# class that one file looked for was looked for.
STRENGTH = (UNLOOKED, UNSAID, PARTIAL, COMPLETE)


def merge(sets: Sequence[tuple[AnnotationSet, Path]]) -> tuple[AnnotationSet, Path]:
    """One set with all images and all classes, matched by name, and the folder of its pictures.

    Classes that a file lacks were not looked for in its images. A picture that several files name
    is one image with the annotations of all of them; the same box of the same class counts once.
    Ids are kept if they are unique, else those of later files are renumbered.

    Raises:
        DataError: two files give different sizes of the same picture.
    """
    if len(sets) == 1:
        return sets[0]
    categories = _all_categories([one for one, _ in sets])
    matched = [match_categories(one, categories, "", may_lack=True) for one, _ in sets]
    folder = Path(os.path.commonpath([os.path.abspath(path) for _, path in sets]))
    repairs: Counter[str] = Counter()
    position_of: dict[str, int] = {}
    file_names: list[str] = []
    image_ids: list[int] = []
    sizes: list[list[int]] = []
    own_positions = []
    for one, (_, path) in zip(matched, sets, strict=True):
        base = Path(os.path.relpath(os.path.abspath(path), folder))
        names = [os.path.normpath(base / one.file(image)) for image in range(len(one.image_ids))]
        taken = set(image_ids)
        new_ids = [i for i, name in zip(one.image_ids.tolist(), names) if name not in position_of]
        clash = not taken.isdisjoint(new_ids)
        next_id = max(taken, default=0) + 1
        positions = np.empty(len(one.image_ids), dtype=np.int64)
        for image, (image_id, name) in enumerate(zip(one.image_ids.tolist(), names, strict=True)):
            size = one.sizes[image].tolist()
            if name in position_of:
                positions[image] = position_of[name]
                _check_same_size(one, image_id, name, sizes[position_of[name]], size)
                repairs["pictures of several annotation files"] += 1
                continue
            positions[image] = position_of[name] = len(file_names)
            file_names.append(name)
            sizes.append(size)
            image_ids.append(next_id if clash else image_id)
            next_id += clash
        own_positions.append(positions)
    joined = _joined(matched, own_positions, image_ids, file_names, sizes, repairs)
    return replace(joined, categories=categories), folder


def _all_categories(sets: Sequence[AnnotationSet]) -> Categories:
    """All classes, in the order of their first appearance, with the id that they have there."""
    ids: dict[str, int] = {}
    for one in sets:
        for name, category_id in zip(one.categories.names, one.categories.ids, strict=True):
            if name not in ids:
                free = category_id not in ids.values()
                ids[name] = category_id if free else max(ids.values()) + 1
    return Categories(tuple(ids.values()), tuple(ids))


def _check_same_size(
    one: AnnotationSet, image_id: int, name: str, before: list[int], size: list[int]
) -> None:
    if before != size:
        raise DataError(
            f"{one.path}: image {image_id} ({name}) is {size[1]}x{size[0]} px, and "
            f"{before[1]}x{before[0]} in another file that is merged with it"
        )


def _joined(
    sets: Sequence[AnnotationSet],
    positions: Sequence[NDArray[np.int64]],
    image_ids: list[int],
    file_names: list[str],
    sizes: list[list[int]],
    repairs: Counter[str],
) -> AnnotationSet:
    """The columns of all sets, concatenated.

    Args:
        positions: of each set's images among all images.
    """
    first = sets[0]
    said = np.full((len(image_ids), len(first.categories)), UNLOOKED, dtype=np.int8)
    rank = np.zeros(4, dtype=np.int64)
    rank[list(STRENGTH)] = range(4)  # UNSAID is the last element
    ids: list[NDArray[np.int64]] = []
    rows: list[NDArray[np.int64]] = []  # of each set, without repeated ones
    seen: set[tuple[float, ...]] = set()
    for one, of_set in zip(sets, positions, strict=True):
        content = np.column_stack([of_set[one.image], one.labels, one.crowd, one.bboxes]).tolist()
        keys = list(map(tuple, content))
        rows.append(np.array([n for n, key in enumerate(keys) if key not in seen], dtype=np.int64))
        seen.update(keys)
        if len(keys) > len(rows[-1]):
            repairs["annotations of several files, counted once"] += len(keys) - len(rows[-1])
        theirs, ours = one.said_of_all, said[of_set]
        said[of_set] = np.where(rank[theirs] > rank[ours], theirs, ours)
        own = one.ids[rows[-1]]
        before = np.concatenate(ids) if ids else own[:0]
        if np.isin(own, before).any():
            own = before.max() + 1 + np.arange(len(own))
        ids.append(own)
        repairs.update(one.repairs)
    parts = list(zip(sets, rows, strict=True))
    return replace(
        first,
        path=Path(" and ".join(str(one.path) for one in sets)),
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=file_names,
        sizes=np.array(sizes, dtype=np.int64),
        ids=np.concatenate(ids),
        image=np.concatenate(
            [p[one.image[r]] for (one, r), p in zip(parts, positions, strict=True)]
        ),
        labels=np.concatenate([one.labels[r] for one, r in parts]),
        bboxes=np.concatenate([one.bboxes[r] for one, r in parts]),
        boxes=np.concatenate([one.boxes[r] for one, r in parts]),
        areas=np.concatenate([one.areas[r] for one, r in parts]),
        crowd=np.concatenate([one.crowd[r] for one, r in parts]),
        proposed=np.concatenate([one.proposed[r] for one, r in parts]),
        repairs=dict(repairs),
        unused_root=None,
        found_as={},
        said=said,
        outlines=None
        if first.outlines is None
        else Outlines.joined(
            [one.outlines.of_rows(r) for one, r in parts if one.outlines is not None]
        ),
    )
