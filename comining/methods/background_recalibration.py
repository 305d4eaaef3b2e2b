"""Background recalibration loss, BRL (Zhang et al., ICASSP 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from comining.detectors.detector import Background, Regions
from comining.detectors.losses import focal_background, focal_foreground
from comining.methods.method import Method, View
from comining.option_types import Fraction, NonNegativeFloat
from comining.structures import Batch


class BackgroundRecalibration(Method):
    """Negatives far from every annotation that look like objects are treated as objects.

    A negative whose overlap with all annotations is below ``confusion_iou`` leaves the ordinary
    classification loss. It gets the mirrored one, times ``loss_weight``: the focal loss of
    background up to a probability of ``confusion_score``, and above it the focal loss of
    foreground with the same factor.

    The rule is published for RetinaNet's anchors; in FCOS the box that a point predicts stands for
    its anchor. Where classes exclude each other (both stages of a two-stage detector) the loss is
    cross-entropy, so that its mirror is, too: ``-log(p_bg)`` while no class has a probability above
    ``confusion_score``, else ``-log(p)`` of the likeliest class, without ``alpha`` and ``gamma``.

    Args:
        confusion_iou: 0 switches the method off.
        alpha, gamma: of both branches; alpha weights foreground, so that 1 - alpha is theirs.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        confusion_iou: Fraction,
        confusion_score: Fraction,
        loss_weight: NonNegativeFloat,
        alpha: Fraction,
        gamma: NonNegativeFloat,
    ):
        super().__init__(views)
        self.confusion_iou = confusion_iou
        self.confusion_score = confusion_score
        self.loss_weight = loss_weight
        self.alpha, self.gamma = alpha, gamma

    def mirrored(self, logits: Tensor) -> Tensor:
        """Element-wise loss of every class of a confusing anchor, without ``loss_weight``."""
        background = focal_background(logits, self.alpha, self.gamma)
        foreground = focal_foreground(logits, 1 - self.alpha, self.gamma)
        return torch.where(logits.sigmoid() > self.confusion_score, foreground, background)

    def mirrored_exclusive(self, logits: Tensor) -> Tensor:
        """The same [B, A, 1] of regions whose classes [B, A, K] exclude each other."""
        of_all = F.pad(logits, (1, 0)).logsumexp(dim=-1, keepdim=True)  # background has logit 0
        likeliest = logits.amax(dim=-1, keepdim=True)
        foreground = of_all - likeliest
        return torch.where((-foreground).exp() > self.confusion_score, foreground, of_all)

    def background(self, regions: Regions, batch: Batch) -> Background:
        far = regions.overlap(batch.annotated) < self.confusion_iou
        confusing = (regions.negative & far).to(regions.logits.dtype)
        mirror = self.mirrored_exclusive if regions.exclusive else self.mirrored
        mirrored = (mirror(regions.logits) * confusing.unsqueeze(-1)).sum()
        return Background(1 - confusing, terms={"confusion": self.loss_weight * mirrored})
