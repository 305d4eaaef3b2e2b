"""Part-aware sampling (Niitani et al., CVPR 2019): no loss for parts nobody annotated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comining.data.annotations import AnnotationSet
from comining.data.datamodule import DetectionData
from comining.detectors.detector import Background, Detector, Regions
from comining.errors import ConfigError
from comining.methods.method import Method, RunInfo, View
from comining.ops import share_inside
from comining.option_types import Fraction, PositiveInt
from comining.structures import Batch

log = logging.getLogger(__name__)


class PartAware(Method):
    """An anchor inside a subject has no loss for that subject's parts, unless these are annotated.

    An anchor lies inside an annotated box of a subject class if more than ``inside`` of its own
    area does. It then contributes no classification loss for the subject's part classes of which
    the image has no annotation. An FCOS point counts as a square with the side of its stride. The
    anchors of a region proposal network have a single class and no background loss there.

    Args:
        hierarchy: part class names of every subject class name; None mines the pairs from the
            annotations that were kept; empty switches the method off.
        inside: share of a box that must lie inside another.
        min_share: of mining: a class is a part if at least this share of its boxes lies inside
            boxes of the subject, in images that annotate both.
        min_count: of mining: and if at least this many boxes do.
    """

    is_part: Tensor  # [K, K] float: subject, part

    def __init__(
        self,
        views: Sequence[View],
        *,
        hierarchy: Mapping[str, Sequence[str]] | None,
        inside: Fraction,
        min_share: Fraction,
        min_count: PositiveInt,
    ):
        super().__init__(views)
        for subject, parts in (hierarchy or {}).items():
            if subject in parts:
                raise ValueError(f"method.hierarchy: {subject!r} cannot be a part of itself")
        self.hierarchy = hierarchy
        self.inside = inside
        self.min_share = min_share
        self.min_count = min_count

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        names = data.categories.names
        if self.hierarchy is None:
            if data.train_set is None or data.erased is None:
                raise RuntimeError("the data have not been set up for training")
            table = mine_parts(
                data.train_set.annotations, data.erased, self.inside, self.min_share, self.min_count
            )
        else:
            table = np.zeros((len(names), len(names)), dtype=np.bool_)
            for subject, parts in self.hierarchy.items():
                for name in (subject, *parts):
                    if name not in names:
                        raise ConfigError(
                            f"method.hierarchy: {name!r} is not a class of the data: {list(names)}"
                        )
                for part in parts:
                    table[names.index(subject), names.index(part)] = True
        pairs = [f"{names[part]} in {names[subject]}" for subject, part in np.argwhere(table)]
        log.info("part-aware sampling: %s", ", ".join(pairs) or "no class is part of another")
        self.register_buffer("is_part", torch.from_numpy(table).float().to(run.device))

    def background(self, regions: Regions, batch: Batch) -> Background:
        if not self.is_part.any():
            return Background()
        boxes, labels = batch.annotated.padded()
        if regions.pooled:  # an object of any class: a part may be one
            shape = (*regions.labels.shape, len(self.is_part))
            weights = regions.logits.new_ones(shape)
        else:
            weights = torch.ones_like(regions.logits)
        for image, row in enumerate(weights):  # one tensor [G, A] at a time
            real = labels[image] >= 0
            subjects = self.is_part[labels[image].clamp(min=0)] * real[:, None]  # [G, K]
            absent = torch.ones_like(row[0]).index_fill_(0, labels[image][real], 0.0)
            anchors = regions.anchors if regions.anchors.dim() == 2 else regions.anchors[image]
            inside = share_inside(anchors, boxes[image]) > self.inside  # [G, A]
            silent = inside.T.to(subjects.dtype) @ (subjects * absent)
            row[silent > 0] = 0.0
        if regions.pooled:
            weights = weights.amin(dim=-1).masked_fill(regions.positive, 1.0)
        return Background(weights)


def mine_parts(
    annotations: AnnotationSet,
    erased: NDArray[np.bool_],
    inside: float,
    min_share: float,
    min_count: int,
) -> NDArray[np.bool_]:
    """Which classes are parts of which, by how often their boxes lie inside those of the other.

    Returns:
        [K, K] bool, subject then part.
    """
    num_classes = len(annotations.categories)
    within = np.zeros((num_classes, num_classes), dtype=np.int64)
    together = np.zeros((num_classes, num_classes), dtype=np.int64)
    rows = np.flatnonzero(~erased & ~annotations.crowd)
    rows = rows[np.argsort(annotations.image[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(annotations.image[rows])) + 1
    for image_rows in np.split(rows, starts):
        labels = annotations.labels[image_rows]
        boxes = torch.from_numpy(annotations.boxes[image_rows])
        lies = (share_inside(boxes, boxes) > inside).numpy()  # [subject, part]
        for position, part in enumerate(labels):
            others = np.arange(len(labels)) != position
            together[np.unique(labels[others]), part] += 1
            within[np.unique(labels[others & lies[:, position]]), part] += 1
    np.fill_diagonal(within, 0)
    return (within >= min_count) & (within >= min_share * np.maximum(together, 1))
