"""Sparse sets as COCO files for other frameworks, and a summary table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from comining.data.annotations import AnnotationSet
from comining.data.formats.coco import FIELDS
from comining.data.knowledge import UNLOOKED, counts, fields_of_status
from comining.data.record_values import whole
from comining.data.sparsity import Erasure


def write_split(
    annotations: AnnotationSet, erasure: Erasure, output: Path, erased_output: Path | None
) -> None:
    """Write the kept and, on request, the erased annotations as COCO files.

    All images are kept, even those that lost all annotations. Records keep all their fields; crowds
    stay in the kept file, where other frameworks use them as regions to ignore. Erased annotations
    that become regions to ignore stay there, too, with ``ignore: 1``; knowledge about classes is in
    the fields of LVIS of image records. Each file is written completely or not at all.
    """
    content: dict[str, Any] = json.loads(annotations.path.read_text(encoding="utf-8-sig"))
    erased_ids, ignored_ids = (
        set(annotations.ids[rows].tolist()) for rows in (erasure.erased, erasure.ignored)
    )
    kept_ids = set(annotations.ids.tolist()) - erased_ids
    _write(output, {
        **content,
        "images": _with_fields(content["images"], annotations, erasure),
        "annotations": [
            {**record, "ignore": 1} if whole(record["id"]) in ignored_ids else record
            for record in content["annotations"]
            if whole(record["id"]) in kept_ids | ignored_ids
        ],
    })  # fmt: skip
    if erased_output is not None:
        records = [r for r in content["annotations"] if whole(r["id"]) in erased_ids]
        _write(erased_output, {**content, "annotations": records})


def _with_fields(
    records: list[dict[str, Any]], annotations: AnnotationSet, erasure: Erasure
) -> list[dict[str, Any]]:
    """Image records with what is known about classes.

    A file without such fields gets none, unless classes were not looked for: ``data.annotated``
    covers the rest.
    """
    if annotations.said is None and not (erasure.status == UNLOOKED).any():
        return records
    if not erasure.erased.any() and np.array_equal(erasure.status, annotations.status):
        return records
    kept = ~erasure.erased & ~annotations.crowd
    have = np.zeros(erasure.status.shape, dtype=np.bool_)
    have[annotations.image[kept], annotations.labels[kept]] = True
    fields = fields_of_status(erasure.status, have)
    ids = np.array(annotations.categories.ids, dtype=np.int64)
    of_image = {
        image_id: {key: ids[column[n]].tolist() for key, column in zip(FIELDS, fields)}
        for n, image_id in enumerate(annotations.image_ids.tolist())
    }
    return [record | of_image[whole(record["id"])] for record in records]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def summary(annotations: AnnotationSet, erasure: Erasure) -> str:
    """A table of kept and erased annotations per category, and the number of emptied images."""
    erased = erasure.erased
    kept = ~erased & ~annotations.crowd
    before = np.unique(annotations.image[~annotations.crowd])
    emptied = len(before) - len(np.unique(annotations.image[kept]))
    num_classes = len(annotations.categories)
    per_category = [
        np.bincount(annotations.labels[mask], minlength=num_classes) for mask in (kept, erased)
    ]
    width = max(len(name) for name in annotations.categories.names)
    rows = [f"{'category':{width}}  {'kept':>8} {'erased':>8}"]
    for name, left, gone in zip(annotations.categories.names, *per_category, strict=True):
        rows.append(f"{name:{width}}  {left:8d} {gone:8d}")
    rows.append(f"{'all':{width}}  {kept.sum():8d} {erased.sum():8d}")
    rows.append(
        f"images: {len(annotations.image_ids)}, of which {emptied} lost all their annotations and "
        f"{len(annotations.image_ids) - len(before)} had none; crowds set aside: "
        f"{annotations.crowd.sum()}"
    )
    known = counts(erasure.status, annotations.categories.names)
    rows.append(
        f"images x classes: {known['complete']} complete, {known['not_looked_for']} not looked "
        f"for, {known['partial']} partial; erased annotations that are regions to ignore: "
        f"{erasure.ignored.sum()}"
    )
    return "\n".join(rows)
