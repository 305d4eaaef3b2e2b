"""Predictions of a two-stage detector, and the regions sampled for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from comining.detectors.dense import largest_overlap
from comining.structures import IGNORED, Boxes, Predictions


@dataclass
class TwoStagePredictions(Predictions):
    """The outputs of a region proposal network (RPN), and features to classify its proposals."""

    features: dict[str, Tensor]  # of each level of the pyramid, [B, C, h, w]
    objectness: Tensor  # [B, A] float32, logits of the RPN
    deltas: Tensor  # [B, A, 4] float32, in the encoding of the RPN
    anchors: Tensor  # [A, 4] float32, the same for every image of the padded batch
    proposals: list[Tensor]  # B times [n, 4] float32 without gradient, best first
    proposal_scores: list[Tensor]  # B times [n], the RPN's probability of an object
    image_sizes: list[tuple[int, int]]
    classes: int  # K
    most_candidates: int  # proposals of an image that are candidates for pseudo-labels, at most

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def scores_per_image(self) -> int:
        """Class scores of the candidates for pseudo-labels, in the image with the most."""
        most = max(map(len, self.proposals), default=0)
        return min(most, self.most_candidates) * self.classes

    def detach(self) -> Self:
        return replace(
            self,
            features={name: level.detach() for name, level in self.features.items()},
            objectness=self.objectness.detach(),
            deltas=self.deltas.detach(),
        )

    def split(self, size: int) -> list[Self]:
        # The backward of split fills one tensor; slices would fill a whole one for every part.
        objectness, deltas = torch.split(self.objectness, size), torch.split(self.deltas, size)
        levels = {name: torch.split(level, size) for name, level in self.features.items()}
        return [
            replace(
                self,
                features={name: parts[part] for name, parts in levels.items()},
                objectness=objectness[part],
                deltas=deltas[part],
                proposals=self.proposals[start : start + size],
                proposal_scores=self.proposal_scores[start : start + size],
                image_sizes=self.image_sizes[start : start + size],
            )
            for part, start in enumerate(range(0, len(self), size))
        ]


class Doubtful(NamedTuple):
    """Which regions may be unannotated objects, according to the region proposal network.

    Attributes:
        objectness: the probability of an object exceeds this.
        overlap: and the IoU with every annotation is at most this.
        annotated: the annotations of B images.
        incomplete: which of the B images may contain such objects.
        of_rpn: whether the region proposal network leaves them out, too; else only the RoI head.
    """

    objectness: float
    overlap: float
    annotated: Boxes
    incomplete: Sequence[bool]
    of_rpn: bool = True

    def among(self, boxes: Sequence[Tensor], probability: Sequence[Tensor]) -> list[Tensor]:
        """Masks [n] of boxes [n, 4] with the probabilities [n] of an object, for each image."""
        return [
            (scores > self.objectness)
            & (largest_overlap(own, self.annotated.of_image(image))[0] <= self.overlap)
            & self.incomplete[image]
            for image, (own, scores) in enumerate(zip(boxes, probability, strict=True))
        ]


class Samples(NamedTuple):
    """The sampled regions of a batch, in rows of S for each image."""

    rows: Tensor  # [B, S] int64, into the regions of the image; 0 where an image has fewer
    real: Tensor  # [B, S] bool

    def of(self, values: Tensor) -> Tensor:
        """[B, S, ...] of values [B, A, ...]."""
        rows = self.rows.view(*self.rows.shape, *[1] * (values.dim() - 2))
        return values.gather(1, rows.expand(*self.rows.shape, *values.shape[2:]))


def sample(
    labels: Sequence[Tensor], num_classes: int, count: int, share: float, seeds: Sequence[int]
) -> Samples:
    """Draw regions as torchvision's ``BalancedPositiveNegativeSampler`` does, from seeds.

    Args:
        labels: B times [n]: class, K background, -1 for those that are not drawn.
        num_classes: K.
        count: most regions of an image.
        share: largest share of positives among these; the rest are negatives.
        seeds: B. An image draws from a generator of its own, so that the same labels give the same
            regions, whatever else is in the batch.
    """
    chosen = []
    for of_image, seed in zip(labels, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        positive = ((of_image >= 0) & (of_image < num_classes)).nonzero().squeeze(1)
        negative = (of_image == num_classes).nonzero().squeeze(1)
        positive = _some_of(positive, int(count * share), generator)
        negative = _some_of(negative, count - len(positive), generator)
        chosen.append(torch.cat([positive, negative]).sort().values)
    return padded_rows(chosen)


def count_drawn(labels: Sequence[Tensor], num_classes: int, count: int, share: float) -> int:
    """How many regions :func:`sample` draws in all images together."""
    total = 0
    for of_image in labels:
        positive = int(((of_image >= 0) & (of_image < num_classes)).sum())
        positive = min(positive, int(count * share))
        total += positive + min(int((of_image == num_classes).sum()), count - positive)
    return total


def _some_of(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=generator)
    return rows[order[:count].to(rows.device)]


def padded_rows(chosen: Sequence[Tensor]) -> Samples:
    """Indices [n] of each image as rows of equal length, at least 1."""
    most = max([1, *map(len, chosen)])
    index = chosen[0].new_zeros(len(chosen), most)
    real = torch.zeros(index.shape, dtype=torch.bool, device=index.device)
    for row, mask, own in zip(index, real, chosen, strict=True):
        row[: len(own)] = own
        mask[: len(own)] = True
    return Samples(index, real)


def in_rows(values: Tensor, fill: int = 0, *, real: Tensor) -> Tensor:
    """Values [N, ...] of all images in rows [B, S, ...] by a mask [B, S], padded with ``fill``."""
    table = values.new_full((*real.shape, *values.shape[1:]), fill)
    table[real] = values
    return table


def without(labels: Sequence[Tensor], mask: Sequence[Tensor], background: int) -> list[Tensor]:
    """Labels [n] of each image, -1 at background in a mask [n]."""
    return [
        torch.where(chosen & (own == background), IGNORED, own)
        for own, chosen in zip(labels, mask, strict=True)
    ]


@torch.no_grad()
def match_anchors(
    rpn: RegionProposalNetwork, anchors: Tensor, targets: Boxes
) -> tuple[list[Tensor], list[Tensor]]:
    """The targets of the anchors [A, 4] of each image, as in torchvision.

    Returns:
        labels [A], 0 an object, 1 background, -1 neither, and the matched boxes [A, 4].
    """
    wanted = [{"boxes": own.boxes} for own in targets.split()]
    objects, boxes = rpn.assign_targets_to_anchors([anchors] * len(wanted), wanted)
    return [torch.where(own < 0, IGNORED, 1 - own.long()) for own in objects], boxes


@torch.no_grad()
def match_proposals(
    heads: RoIHeads, proposals: Sequence[Tensor], targets: Boxes, num_classes: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The targets of the proposals [n, 4] of each image, as in torchvision.

    Returns:
        labels [n], class or K for background, and the matched boxes [n, 4].
    """
    labels, matched = [], []
    for boxes, own in zip(proposals, targets.split(), strict=True):
        if not len(own) or not len(boxes):
            labels.append(torch.full_like(boxes[:, 0], num_classes, dtype=torch.int64))
            matched.append(torch.zeros_like(boxes))
            continue
        (index,), (label,) = heads.assign_targets_to_proposals(
            [boxes], [own.boxes], [own.labels + 1]
        )
        labels.append(torch.where(label > 0, label - 1, num_classes))
        matched.append(own.boxes[index])
    return labels, matched
