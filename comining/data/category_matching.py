"""Matches the labels of annotation files that number the same classes differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from comining.data.annotations import AnnotationSet, Categories
from comining.data.knowledge import UNLOOKED, UNSAID, ignoring
from comining.errors import DataError


def without_category(annotations: AnnotationSet, name: str) -> AnnotationSet:
    """The set without a class, whose boxes become regions that are ignored for every class.

    Raises:
        DataError: there is no such class, or it is the only one.
    """
    categories = annotations.categories
    if name not in categories.names:
        raise DataError(
            f"data.ignore_category={name} is not among the classes of {annotations.path}: "
            f"{', '.join(categories.names)}"
        )
    label = categories.names.index(name)
    kept = [number for number in range(len(categories)) if number != label]
    if not kept:
        raise DataError(f"{annotations.path}: no class but data.ignore_category={name}")
    labels, said = ignoring(annotations.labels, annotations.said, label)
    return replace(
        annotations,
        categories=Categories(
            tuple(categories.ids[number] for number in kept),
            tuple(categories.names[number] for number in kept),
        ),
        labels=labels,
        crowd=annotations.crowd | (labels < 0),
        said=said,
        ignore_category=name,
    )


def match_categories(
    annotations: AnnotationSet,
    categories: Categories,
    source: str | Path,
    *,
    may_lack: bool = False,
) -> AnnotationSet:
    """The set with the labels of other categories, matched by name.

    It keeps its own category ids. An unused root that was left out is restored if the other
    categories have it.

    Args:
        source: of the other categories, for messages.
        may_lack: the set may lack categories; nobody has looked for them in its images.

    Raises:
        DataError: naming the first category that one of them lacks.
    """
    own = annotations.categories
    if own.names == categories.names:
        return annotations
    id_of = dict(zip(own.names, own.ids, strict=True))
    root = annotations.unused_root
    if root is not None and root[1] in categories.names:
        id_of.setdefault(root[1], root[0])
    only = [
        (name, category_id, source)
        for name, category_id in zip(categories.names, categories.ids, strict=True)
        if name not in id_of and not may_lack
    ][:1]
    only += [
        (name, category_id, annotations.path)
        for name, category_id in id_of.items()
        if name not in categories.names
    ][:1]
    if only:
        differences = ", ".join(
            f"{name!r} (id {category_id}) is in {file} only" for name, category_id, file in only
        )
        ours, theirs = ({name.casefold() for name in names} for names in (id_of, categories.names))
        alike = all(name.casefold() in ours & theirs for name, *_ in only)
        advice = "; they differ in capital letters only: rename one" if alike else ""
        raise DataError(
            f"the categories of {annotations.path} and {source} differ: {differences}{advice}"
        )
    label_of = {name: label for label, name in enumerate(categories.names)}
    # The label -1 (every class) is unchanged.
    labels = np.array([*(label_of[name] for name in own.names), -1], dtype=np.int64)
    lacking = [name for name in categories.names if name not in id_of]
    unused = max([*own.ids, *categories.ids]) + 1
    id_of |= {name: unused + number for number, name in enumerate(lacking)}
    said = annotations.said
    if said is not None or lacking:
        before = annotations.said_of_all
        said = np.full((len(before), len(categories)), UNSAID, dtype=np.int8)
        said[:, labels[:-1]] = before
        said[:, [label_of[name] for name in lacking]] = UNLOOKED
    return replace(
        annotations,
        categories=Categories(tuple(id_of[name] for name in categories.names), categories.names),
        labels=labels[annotations.labels],
        said=said,
    )
