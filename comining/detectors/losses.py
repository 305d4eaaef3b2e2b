"""The losses of one-stage detection as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def focal_background(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Element-wise focal loss of logits whose target is 0 (Lin et al. 2017, Eq. 5)."""
    return (1 - alpha) * _power(logits.sigmoid(), gamma) * F.softplus(logits)


def unannotated_focal(logits: Tensor, rate: Tensor | float, alpha: float, gamma: float) -> Tensor:
    """Element-wise focal loss of not being annotated.

    An object is annotated with probability c, the ``rate``, so a region of probability p is
    annotated with probability q = c * p: ``(1 - alpha) * q ** gamma * -log(1 - q)``. With a rate of
    1 it is :func:`focal_background`, with 0 it is 0.

    Args:
        rate: in 0 ... 1, broadcast against ``logits``.
    """
    rate = torch.as_tensor(rate, dtype=logits.dtype, device=logits.device)
    # 1 - c * sigmoid(x) as a quotient, which is accurate for a sigmoid near 1.
    likelihood = F.softplus(logits) - F.softplus(logits + torch.log1p(-rate))
    return (1 - alpha) * _power(rate * logits.sigmoid(), gamma) * likelihood


def focal_foreground(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Element-wise focal loss of logits whose target is 1."""
    return alpha * _power((-logits).sigmoid(), gamma) * F.softplus(-logits)


def _power(probability: Tensor, exponent: float) -> Tensor:
    """``probability ** exponent`` with a finite gradient at 0, to which float32 may round."""
    if exponent < 1:
        probability = probability.clamp(min=torch.finfo(probability.dtype).tiny)
    return probability**exponent


def focal_loss_sum(
    logits: Tensor,
    labels: Tensor,
    alpha: float,
    gamma: float,
    weights: Tensor | None = None,
    rate: Tensor | None = None,
) -> Tensor:
    """Focal loss summed over anchors and classes, without a one-hot target.

    Every logit first counts as background; at the positives, the entry of the true class is then
    replaced by its foreground term.

    Args:
        logits: [B, A, K].
        labels: [B, A], class, K for background, -1 for ignored anchors (no loss).
        weights: [B, A] or [B, A, K], a factor on every term; None means 1.
        rate: [B, A, K], the probability that an object is annotated: background counts as in
            :func:`unannotated_focal`; 1 at the entries of positives. None means 1.
    """
    num_classes = logits.shape[-1]
    factor = (labels >= 0).unsqueeze(-1).to(logits.dtype)
    if weights is not None:
        factor = factor * (weights if weights.dim() == 3 else weights.unsqueeze(-1))
    positive = (labels >= 0) & (labels < num_classes)
    entry = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    if torch.compiler.is_compiling():  # the compiler does the work of the functions below
        background = (
            focal_background(logits, alpha, gamma)
            if rate is None
            else unannotated_focal(logits, rate, alpha, gamma)
        )
        background = (background * factor).sum()
        true_logit = logits.gather(-1, entry)
    elif rate is not None:
        background = _UnannotatedSum.apply(logits, factor, rate, alpha, gamma)
        true_logit = logits.gather(-1, entry)
    else:
        background, true_logit = _BackgroundSum.apply(logits, entry, factor, alpha, gamma)
    exchange = focal_foreground(true_logit, alpha, gamma) - focal_background(
        true_logit, alpha, gamma
    )
    factor = factor.expand_as(logits).gather(-1, entry) * positive.unsqueeze(-1)
    return background + (exchange * factor).sum()


class _BackgroundSum(torch.autograd.Function):
    """The sum of :func:`focal_background`, and the logits of the true classes.

    The values, and the gradients to the last bit, equal those of the plain formula. But all
    operations run on parts of the map that fit the cache, one tensor instead of three is kept for
    the backward, the gradient overwrites that tensor, and the gradient of the true classes is added
    in place. (Autograd refuses a second backward through the same graph, because the tensor is gone
    by then.)
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, entry: Tensor, factor: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor]:
        """Sum, and [B, A, 1] for logits [B, A, K], entry [B, A, 1], factor [B, A, 1 or K]."""
        softplus = torch.empty_like(logits, memory_format=torch.contiguous_format)
        total = logits.new_zeros(())
        for logit, weight, kept in _parts(logits, factor, softplus):
            torch.ops.aten.softplus.out(logit, 1, 20, out=kept)
            term = logit.sigmoid().pow_(gamma).mul_(1 - alpha).mul_(kept)
            total += term.mul_(weight).sum()
        ctx.save_for_backward(logits, entry, factor, softplus)
        ctx.alpha, ctx.gamma = alpha, gamma
        return total, logits.gather(-1, entry)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_sum: Tensor, of_true: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        logits, entry, factor, softplus = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        # Allocating a tensor of this size costs a CPU more time in page faults than the arithmetic.
        parts = _parts(logits, factor * of_sum, softplus, entry, of_true)
        for logit, weight, kept, true, of_entry in parts:
            probability = logit.sigmoid()
            inner = (weight * kept).mul_(1 - alpha)
            inner.mul_(_power(probability, gamma - 1).mul_(gamma))
            modulated = probability.pow(gamma).mul_(1 - alpha).mul_(weight)
            torch.ops.aten.softplus_backward.grad_input(modulated, logit, 1, 20, grad_input=kept)
            kept.scatter_add_(1, true, of_entry)
            kept.add_(torch.ops.aten.sigmoid_backward(inner, probability))
        return softplus, None, None, None, None


class _UnannotatedSum(torch.autograd.Function):
    """The sum of :func:`unannotated_focal`; part by part, as :class:`_BackgroundSum` does it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, factor: Tensor, rate: Tensor, alpha: float, gamma: float
    ) -> Tensor:
        """Sum, for logits and rate [B, A, K], factor [B, A, 1 or K]."""
        total = logits.new_zeros(())
        likelihood = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for logit, weight, chance, kept in _parts(logits, factor, rate, likelihood):
            annotated = logit.sigmoid().mul_(chance)
            # With a rate of 1 the other form is inaccurate for p near 1.
            torch.where(chance == 1, F.softplus(logit), torch.log1p(-annotated).neg_(), out=kept)
            term = annotated.pow_(gamma).mul_(1 - alpha).mul_(kept)
            total += term.mul_(weight).sum()
        ctx.save_for_backward(logits, factor, rate, likelihood)
        ctx.alpha, ctx.gamma = alpha, gamma
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, factor, rate, likelihood = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        for logit, weight, chance, kept in _parts(logits, factor * of_sum, rate, likelihood):
            probability = logit.sigmoid()
            annotated = probability * chance
            others = logit.neg().sigmoid_()  # 1 - p, accurate for p near 1
            # q^g * q (1 - p) / (1 - q) + g * q^(g-1) * q (1 - p) * likelihood; with c = 1 the first
            # is q^g * p. The gradient overwrites the likelihood.
            slope = torch.where(chance == 1, probability, annotated * others / (1 - annotated))
            kept.mul_(others).mul_(gamma).add_(slope)
            kept.mul_(annotated.pow_(gamma)).mul_(weight).mul_(1 - alpha)
        return likelihood, None, None, None, None


# Elements of a part, by type of device: what the cache holds, or what a kernel launch is worth.
PART = {"cpu": 2**16, "cuda": 2**26}


def _parts(first: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Cut tensors [B, A, any] into the same rows, about :data:`PART` elements of the first each."""
    tables = [table.reshape(-1, table.shape[-1]) for table in (first, *others)]
    # Whole SIMD vectors: the remainder at an end is rounded differently.
    rows = max(1, PART.get(first.device.type, 2**26) // max(1, first.shape[-1]) // 64) * 64
    for start in range(0, len(tables[0]), rows):
        yield [table[start : start + rows] for table in tables]


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

    The gradients of several ranks are averaged, so the divisor is the mean over ranks: the result
    equals the loss of one process on the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return amount.clamp(min=smallest)
    total = amount.detach().clone()
    dist.all_reduce(total)
    return total.clamp(min=smallest) / dist.get_world_size()
