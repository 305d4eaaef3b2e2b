"""The losses of one-stage detection as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def focal_background(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits whose target is 0, element by element (Lin et al. 2017, Eq. 5)."""
    return (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)


def focal_foreground(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of logits whose target is 1, element by element."""
    return alpha * (-logits).sigmoid() ** gamma * F.softplus(-logits)


def focal_loss_sum(
    logits: Tensor,
    labels: Tensor,
    alpha: float,
    gamma: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Focal loss summed over anchors and classes, without a one-hot target.

    Every logit first counts as background; at the positives the one entry of the true class is
    then exchanged for its foreground term.

    Args:
        logits: [B, A, K].
        labels: [B, A], class, K for background, -1 for ignored anchors (no loss).
        weights: [B, A] or [B, A, K], a factor on every term; None means 1.
    """
    num_classes = logits.shape[-1]
    factor = (labels >= 0).unsqueeze(-1).to(logits.dtype)
    if weights is not None:
        factor = factor * (weights if weights.dim() == 3 else weights.unsqueeze(-1))
    background = (focal_background(logits, alpha, gamma) * factor).sum()

    positive = (labels >= 0) & (labels < num_classes)
    entry = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    true_logit = logits.gather(-1, entry)
    exchange = focal_foreground(true_logit, alpha, gamma) - focal_background(
        true_logit, alpha, gamma
    )
    factor = factor.expand_as(logits).gather(-1, entry) * positive.unsqueeze(-1)
    return background + (exchange * factor).sum()


def giou_loss(prediction: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """1 - generalized IoU (Rezatofighi et al. 2019) of paired boxes.

    Args:
        prediction, target: [P, 4] distances (left, top, right, bottom) from a shared point, pixels.
        smoothing: added to numerator and denominator of the IoU, px^2. 0 is the textbook value;
            1 lowers the loss of boxes of a few pixels.

    Returns:
        [P]
    """
    pred_left, pred_top, pred_right, pred_bottom = prediction.unbind(-1)
    left, top, right, bottom = target.unbind(-1)
    pred_area = (pred_left + pred_right) * (pred_top + pred_bottom)
    area = (left + right) * (top + bottom)
    # Points of a box share their origin, so the intersection is the smaller of each distance.
    width = torch.minimum(pred_left, left) + torch.minimum(pred_right, right)
    height = torch.minimum(pred_top, top) + torch.minimum(pred_bottom, bottom)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    hull_width = torch.maximum(pred_left, left) + torch.maximum(pred_right, right)
    hull_height = torch.maximum(pred_top, top) + torch.maximum(pred_bottom, bottom)
    eps = torch.finfo(prediction.dtype).eps
    hull = (hull_width * hull_height).clamp(min=eps)
    union = (pred_area + area - intersection).clamp(min=eps)
    iou = (intersection + smoothing) / (union + smoothing)
    return 1 - (iou - (hull - union) / hull)


def centerness_target(distances: Tensor) -> Tensor:
    """How central a point lies in its box (Tian et al. 2019, Eq. 3).

    Args:
        distances: [P, 4] (left, top, right, bottom), all positive.

    Returns:
        [P] in (0, 1].
    """
    left, top, right, bottom = distances.unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()


def normalizer(amount: Tensor, smallest: float) -> Tensor:
    """The divisor of a summed loss: ``amount`` over all ranks, no smaller than ``smallest``.

    With several ranks their gradients are averaged, so the divisor is the mean over ranks: the
    result is then the loss of one process on the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return amount.clamp(min=smallest)
    total = amount.detach().clone()
    dist.all_reduce(total)
    return total.clamp(min=smallest) / dist.get_world_size()
