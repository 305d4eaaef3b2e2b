"""Class scores without a loss, because of what is known about their images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from comining.ops import share_inside
from comining.structures import Assignment, Knowledge


def silent_entries(knowledge: Knowledge, anchors: Tensor, assignment: Assignment) -> Tensor:
    """Which entries [B, A, K] have no loss.

    An anchor has no background loss for a class that nobody looked for in the image, nor for the
    class of an ignored region that it lies in. The entry of its target class keeps its loss, and if
    classes exclude each other all of its entries do.

    Args:
        anchors: [A, 4], a point as the square around it with the stride as its side.
    """
    size = (*assignment.labels.shape, assignment.num_classes)
    silent = (knowledge.rate == 0).unsqueeze(1).expand(size).contiguous()
    for image, count in enumerate(knowledge.ignored.counts):
        if count:
            silent[image] |= in_ignored(knowledge, image, anchors)
    if knowledge.exclusive:
        return silent & ~assignment.positive.unsqueeze(-1)
    return without_own_entries(silent, assignment)


def in_ignored(knowledge: Knowledge, image: int, anchors: Tensor) -> Tensor:
    """Which anchors [A, 4] lie in an ignored region of an image, by class [A, K]."""
    regions = knowledge.ignored.of_image(image)
    num_classes = knowledge.rate.shape[1]
    inside = share_inside(anchors, regions.boxes) > knowledge.overlap  # [G, A]
    for_all = (regions.labels < 0).unsqueeze(1)
    one_hot = F.one_hot(regions.labels.clamp(min=0), num_classes) * ~for_all  # [G, K]
    of_class = (inside.T.float() @ one_hot.float()) > 0
    return of_class | (inside & for_all).any(dim=0).unsqueeze(1)


def without_own_entries(entries: Tensor, assignment: Assignment) -> Tensor:
    """Remove the entries of the target classes of anchors from ``entries`` [B, A, K], in place."""
    own = assignment.labels.clamp(0, assignment.num_classes - 1).unsqueeze(-1)
    kept = entries.gather(-1, own) & ~assignment.positive.unsqueeze(-1)
    return entries.scatter_(-1, own, kept)
