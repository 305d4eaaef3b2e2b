"""When a detection touches an annotation (Calibrated Teacher, AAAI 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comining.ops import iou_in_image
from comining.structures import Boxes


@dataclass(frozen=True)
class Touching:
    """A detection touches an annotation of its image if one of three conditions holds.

    Args:
        same_class: they are of one class and their IoU exceeds this;
        any_class: their IoU exceeds this, whatever the classes;
        inside: they are of one class and one holds more than this share of the other's area.
    """

    same_class: float
    any_class: float
    inside: float

    def __call__(self, boxes: Boxes, annotated: Boxes) -> Tensor:
        """Which boxes touch an annotation: [N] bool.

        Args:
            boxes, annotated: of the same B images.
        """
        if len(boxes) == 0 or len(annotated) == 0:
            return torch.zeros_like(boxes.labels, dtype=torch.bool)
        iou, labels = iou_in_image(boxes, annotated)
        same = labels == boxes.labels[:, None]
        touching = (same & (iou > self.same_class)) | (iou > self.any_class)
        touching |= same & (_share_of_smaller(boxes, annotated, iou) > self.inside)
        return touching.any(dim=1)


def _share_of_smaller(boxes: Boxes, annotated: Boxes, iou: Tensor) -> Tensor:
    """The share [N, G] of the smaller of two boxes that lies in the other.

    Args:
        iou: [N, G] of each of N boxes with the padded annotations of its image.
    """
    table = annotated.padded()[0][boxes.image]  # [N, G, 4]
    areas = (table[..., 2:] - table[..., :2]).prod(dim=-1)
    own = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).prod(dim=-1, keepdim=True)
    intersection = iou * (own + areas) / (1 + iou)
    return intersection / torch.minimum(own, areas).clamp(min=torch.finfo(areas.dtype).tiny)
