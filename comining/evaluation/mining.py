"""Judging what is mined: we know what was erased."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

from comining.cogeneration import rank_in_group
from comining.structures import Detections, Targets

# A mined box is right if it covers an erased one of its class by this IoU, as in AP50.
RIGHT_IOU = 0.5


def right_ones(mined: Sequence[Detections], erased: Sequence[Targets]) -> Tensor:
    """Which mined boxes are erased annotations, found again.

    One to one: of several boxes on the same erased annotation, only the best is right.

    Args:
        mined, erased: of the same B images.

    Returns:
        [P] bool for the P mined boxes of all images, image after image.
    """
    device = mined[0].boxes.device
    labels = torch.cat([one.labels for one in mined])
    erased_labels = torch.cat([one.labels for one in erased])
    if not len(labels) or not len(erased_labels):
        return torch.zeros(len(labels), dtype=torch.bool, device=device)
    images = torch.arange(len(mined))
    image = images.repeat_interleave(torch.tensor([len(one) for one in mined])).to(device)
    of = images.repeat_interleave(torch.tensor([len(one) for one in erased])).to(device)
    overlap = box_iou(
        torch.cat([one.boxes for one in mined]), torch.cat([one.boxes for one in erased])
    )
    comparable = (image[:, None] == of) & (labels[:, None] == erased_labels)
    best, claimed = torch.where(comparable, overlap, -1).max(dim=1)
    # Boxes that cover nothing claim a place of their own, so that they do not compete.
    claimed = torch.where(best >= RIGHT_IOU, claimed, len(erased_labels))
    order = torch.cat([one.scores for one in mined]).argsort(descending=True, stable=True)
    order = order[claimed[order].argsort(stable=True)]
    first = rank_in_group(claimed[order]) == 0
    right = torch.zeros_like(first)
    right[order] = first
    return right & (claimed < len(erased_labels))


class MiningScore(Metric):
    """Pseudo-labels per image, their precision, and the recall of erased annotations.

    Every view of an image counts as an image: the figures are means over the views that mine.
    """

    full_state_update = False
    images: Tensor
    mined: Tensor
    right: Tensor
    erased: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "mined", "right", "erased"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mined: Sequence[Detections], erased: Sequence[Targets]) -> None:
        """Add what one view mined in some images."""
        right = right_ones(mined, erased)
        self.images += len(mined)
        self.mined += len(right)
        self.right += right.sum()
        self.erased += sum(map(len, erased))

    def compute(self) -> dict[str, float | None]:
        """None where nothing was mined, or nothing erased, or no image seen."""
        return {
            "pseudo_labels_per_image": _ratio(self.mined, self.images),
            "precision": _ratio(self.right, self.mined),
            "recall": _ratio(self.right, self.erased),
        }


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return (part / whole).item() if whole > 0 else None
