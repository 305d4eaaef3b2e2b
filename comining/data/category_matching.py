"""Labels of several annotation files that number the same classes differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from comining.data.annotations import AnnotationSet, Categories
from comining.errors import DataError


def match_categories(
    annotations: AnnotationSet, categories: Categories, source: str | Path
) -> AnnotationSet:
    """The set with the labels of other categories, which are recognised by their names.

    Its category ids stay its own. A root that was left out because nothing of the set has it comes
    back where the other categories have it.

    Args:
        source: where the other categories are from, for messages.

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
        if name not in id_of
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
        raise DataError(f"the categories of {annotations.path} and {source} differ: {differences}")
    label_of = {name: label for label, name in enumerate(categories.names)}
    labels = np.array([label_of[name] for name in own.names], dtype=np.int64)
    return replace(
        annotations,
        categories=Categories(tuple(id_of[name] for name in categories.names), categories.names),
        labels=labels[annotations.labels],
    )
