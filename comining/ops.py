"""Pure functions of tensors that several parts use."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_in_group(group: Tensor) -> Tensor:
    """Position of every element inside its group.

    Args:
        group: [M] int64, sorted.

    Returns:
        [M] int64, 0 for the first of each group.
    """
    first = torch.searchsorted(group, group)
    return torch.arange(len(group), device=group.device) - first


def paired_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes [..., G, 4] with anchors [A, 4] as a table [..., G, A]; 0 for empty boxes.

    Three tables of that shape are in use at the most.
    """
    left, top, right, bottom = boxes.unsqueeze(-2).unbind(-1)  # [..., G, 1]
    # Coordinate by coordinate: tables with the anchors innermost are worked on in long vectors.
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
