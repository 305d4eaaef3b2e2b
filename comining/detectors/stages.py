"""The classification loss of a stage of a two-stage detector, with methods and knowledge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comining.detectors.dense import largest_overlap
from comining.detectors.detector import NO_OBJECT, Background, BackgroundRule, Regions
from comining.detectors.known_entries import in_ignored
from comining.structures import IGNORED, Boxes, Knowledge


class StageRegions(Regions):
    """The sampled anchors or proposals of a stage, as a :data:`BackgroundRule` sees them.

    Args:
        pooled: True for the region proposal network; K is 1.
        predicted: [B, S, 4], the boxes that the regions predict.
        assign: the labels [B, S] that the regions would have under other targets.
    """

    exclusive = True

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        boxes: Tensor,
        targets: Boxes,
        *,
        pooled: bool,
        predicted: Callable[[], Tensor],
        assign: Callable[[Boxes], Tensor],
    ):
        self.logits, self.labels, self.anchors = logits, labels, boxes
        self.targets = targets
        self.pooled = pooled
        self._predicted, self._assign = predicted, assign

    @torch.no_grad()
    def overlap(self, boxes: Boxes) -> Tensor:
        return largest_overlap(self.anchors, boxes)

    @torch.no_grad()
    def predicted_overlap(self, boxes: Boxes) -> Tensor:
        return largest_overlap(self._predicted(), boxes)

    @torch.no_grad()
    def assign(self, boxes: Boxes) -> Tensor:
        return torch.where(self.labels == IGNORED, IGNORED, self._assign(boxes))


@dataclass
class KnownEntries:
    """What is known about the classes of regions, apart from the method.

    Attributes:
        chance: [B, 1 or S, K], the probability that an object has been looked for.
        complete: [B, 1, K] bool, all objects are annotated: the method does not apply.
    """

    chance: Tensor
    complete: Tensor


def left_to_knowledge(labels: list[Tensor], boxes: list[Tensor], known: Knowledge | None,
                      pooled: bool) -> list[Tensor]:  # fmt: skip
    """Labels [n] of each image, -1 at negatives in a region that is ignored.

    Args:
        labels: class, K background, -1.
        boxes: [n, 4] of each image.
        pooled: whether a region that is ignored for one class counts, too, because all classes are
            pooled.
    """
    if known is None or not len(known.ignored):
        return labels
    found = []
    for image, (own, of_image) in enumerate(zip(labels, boxes, strict=True)):
        inside = in_ignored(known, image, of_image)
        silent = inside.any(dim=1) if pooled else inside.all(dim=1)
        num_classes = 1 if pooled else known.rate.shape[1]
        found.append(torch.where(silent & (own == num_classes), IGNORED, own))
    return found


def known_entries(known: Knowledge | None, boxes: Tensor, pooled: bool) -> KnownEntries | None:
    """What is known of the classes of sampled regions [B, S, 4]; None for nothing."""
    if known is None or not (known.some_unlooked or known.some_complete or len(known.ignored)):
        return None
    chance = (known.rate != 0).to(boxes.dtype).unsqueeze(1)  # [B, 1, K]
    complete = (known.rate == 1).unsqueeze(1)
    if pooled:
        # An object of any class: if k of K classes were looked for in an image, the probability
        # that its class was is taken as k / K.
        return KnownEntries(chance.mean(dim=-1, keepdim=True), complete.all(dim=-1, keepdim=True))
    if len(known.ignored):
        inside = torch.stack([in_ignored(known, image, own) for image, own in enumerate(boxes)])
        chance = chance * ~inside
    return KnownEntries(chance, complete)


def classification_loss(
    regions: StageRegions, background: BackgroundRule | None, known: KnownEntries | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy summed over the regions of a batch, and the summed terms of the method.

    The loss of a target is that of torchvision, ``-log(p)`` of its class, and that of background
    ``-log(p_bg + sum of (1 - r_k) * p_k)``, see :class:`Background`. r_k is 1 unless the method
    sets another rate, or nobody looked for the class.
    """
    logits, labels = regions.logits, regions.labels
    said = Background()
    if background is not None:
        said = background(regions if known is None else _open(regions, known))
    rate, weights = said.rate, said.weights
    if weights is not None and weights.dim() == 2:
        weights = weights.unsqueeze(-1)
    if known is not None:
        if rate is not None:
            rate = torch.where(known.complete, 1.0, rate)
        if weights is not None:
            weights = torch.where(known.complete, 1.0, weights)
        rate = known.chance if rate is None else rate * known.chance
    largest = weights
    if weights is not None and weights.shape[-1] > 1:
        largest = weights.amax(dim=-1, keepdim=True)
        ratio = weights / largest.clamp(min=torch.finfo(weights.dtype).tiny)
        rate = ratio if rate is None else rate * ratio

    of_all = F.pad(logits, (1, 0)).logsumexp(dim=-1)  # [B, S]; background has a logit of 0
    allowed = torch.zeros_like(of_all)
    if rate is not None:
        # A rate of 1 leaves background alone: the logarithm is -inf, and its exponential 0.
        unseen = torch.log1p(-rate.to(logits.dtype))
        allowed = F.pad(logits + unseen, (1, 0)).logsumexp(dim=-1)
    own = labels.clamp(0, regions.num_classes - 1).unsqueeze(-1)
    target = logits.gather(-1, own).squeeze(-1)
    loss = of_all - torch.where(regions.positive, target, allowed)
    if weights is not None and largest is not None:
        of_target = weights.expand_as(logits).gather(-1, own).squeeze(-1)
        loss = loss * torch.where(regions.positive, of_target, largest.squeeze(-1))
    return loss.masked_fill(labels == IGNORED, 0.0).sum(), dict(said.terms)


def _open(regions: StageRegions, known: KnownEntries) -> StageRegions:
    """The regions, with entries masked to which the method does not apply."""
    closed = ((known.chance == 0) | known.complete).expand_as(regions.logits)
    own = F.one_hot(regions.labels.clamp(min=0), regions.num_classes + 1)[..., :-1].bool()
    logits = regions.logits.masked_fill(closed & ~own, NO_OBJECT)
    return StageRegions(
        logits, regions.labels, regions.anchors, regions.targets, pooled=regions.pooled,
        predicted=regions._predicted, assign=regions._assign,
    )  # fmt: skip
