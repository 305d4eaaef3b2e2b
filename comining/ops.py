"""Pure functions of tensors that several modules use: ranks, overlaps, suppression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from comining.structures import Boxes

# One NMS over all images compares all pairs of the batch: for 32 images with 8 / 64 / 300 / 1,000
# boxes each it takes 0.2 / 3.8 / 96 / 1,900 ms on a CPU, image by image 1.9 / 2.3 / 5 / 50 ms.
MAX_BOXES_OF_ONE_NMS = 1_000


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The (height, width) px that torchvision's detection models resize an image to.

    The shortest side becomes ``min_size``, unless the longest would exceed ``max_size``. No side
    becomes shorter than 1 px, for which torchvision fails.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no wider one (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def rank_in_group(group: Tensor) -> Tensor:
    """Position of every element inside its group.

    Args:
        group: [M] int64, sorted.

    Returns:
        [M] int64, 0 for the first of each group.
    """
    first = torch.searchsorted(group, group)
    return torch.arange(len(group), device=group.device) - first


def suppress(boxes: Boxes, num_classes: int, iou_threshold: float, max_per_image: int) -> Boxes:
    """Class-wise non-maximum suppression, then the best ``max_per_image`` of each image.

    Boxes of different classes (and images) are moved apart, so that one NMS handles them all. The
    shift reaches millions of pixels, where float32 no longer resolves single pixels; hence float64,
    on the CPU if the device has none.

    Returns:
        Boxes with scores, sorted by image and then by descending score.
    """
    if len(boxes) == 0:
        return boxes
    if len(boxes) <= MAX_BOXES_OF_ONE_NMS:
        keep = _separated_nms(boxes, boxes.image * num_classes + boxes.labels, iou_threshold)
        keep = keep[boxes.image[keep].argsort(stable=True)]  # nms returns descending scores
    else:
        first, parts = 0, []
        for position, count in enumerate(boxes.counts):
            if count:
                of_image = boxes.of_image(position)
                parts.append(first + _separated_nms(of_image, of_image.labels, iou_threshold))
            first += count
        keep = torch.cat(parts)
    kept = boxes[keep]
    return kept[rank_in_group(kept.image) < max_per_image]


def _separated_nms(boxes: Boxes, group: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that NMS keeps in their group [N], by descending score."""
    device = boxes.boxes.device
    work = torch.device("cpu") if widest_float(device) == torch.float32 else device
    corners = boxes.boxes.to(work).double()
    extent = corners.max() - corners.min() + 1
    moved = corners + (group.to(work) * extent).unsqueeze(-1)
    keep: Tensor = nms(moved, boxes.known_scores.to(work).double(), iou_threshold)
    return keep.to(device)


def clip(boxes: Boxes, image_sizes: Sequence[tuple[int, int]], min_size: float) -> Boxes:
    """Cut boxes at the border of their image and drop those with a side under ``min_size`` px."""
    if len(boxes) == 0:
        return boxes
    sizes = torch.tensor(image_sizes, dtype=torch.float32).to(boxes.boxes.device)
    limit = sizes[boxes.image][:, [1, 0, 1, 0]]
    corners = torch.minimum(boxes.boxes.clamp(min=0), limit)
    large = ((corners[:, 2:] - corners[:, :2]) >= min_size).all(dim=1)
    return Boxes(corners, boxes.labels, boxes.image, boxes.num_images, boxes.scores)[large]


def iou_in_image(boxes: Boxes, others: Boxes) -> tuple[Tensor, Tensor]:
    """IoU of every box with all ``others`` of its own image.

    Memory: N times the largest number of others in an image, not the square of the batch.

    Args:
        boxes: N boxes of B images.
        others: of the same B images; at most G in one.

    Returns:
        IoU [N, G], 0 where there is no box, and the labels [N, G] of the others, -1 there.
    """
    table, labels = others.padded()
    other, other_labels = table[boxes.image], labels[boxes.image]  # [N, G, 4], [N, G]
    own = boxes.boxes.unsqueeze(1)  # [N, 1, 4]
    corner = torch.maximum(own[..., :2], other[..., :2])
    intersection = (torch.minimum(own[..., 2:], other[..., 2:]) - corner).clamp(min=0).prod(dim=-1)
    own_area, other_area = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (own, other))
    iou = intersection / (own_area + other_area - intersection)
    return torch.where((other_labels >= 0) & (intersection > 0), iou, 0), other_labels


def share_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The share of each anchor [A, 4] that lies in each box [G, 4]: [G, A]; 0 if it is empty."""
    corner = torch.maximum(boxes[:, None, :2], anchors[:, :2])
    end = torch.minimum(boxes[:, None, 2:], anchors[:, 2:])
    shared = (end - corner).clamp(min=0).prod(dim=-1)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1)
    return shared / area.clamp(min=torch.finfo(area.dtype).tiny)


def paired_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes [..., G, 4] with anchors [A, 4]: [..., G, A]; 0 for empty boxes.

    Memory: at most three tensors of that shape.
    """
    left, top, right, bottom = boxes.unsqueeze(-2).unbind(-1)  # [..., G, 1]
    # Coordinate by coordinate: with the anchors innermost the work is done in long vectors.
    anchor_left, anchor_top, anchor_right, anchor_bottom = anchors.t().contiguous()
    intersection = torch.minimum(right, anchor_right)
    intersection.sub_(torch.maximum(left, anchor_left)).clamp_(min=0)
    height = torch.minimum(bottom, anchor_bottom)
    height.sub_(torch.maximum(top, anchor_top)).clamp_(min=0)
    intersection.mul_(height)
    del height
    area = (right - left) * (bottom - top)
    union = area + (anchor_right - anchor_left) * (anchor_bottom - anchor_top)
    union.sub_(intersection).clamp_(min=torch.finfo(union.dtype).tiny)
    return intersection.div_(union)
