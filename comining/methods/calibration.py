"""Logistic calibration of scores, refitted on recent detections."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Scores of 0 and 1 have no finite logit.
MARGIN = 1e-6


class Calibration(nn.Module):
    """The probability that a detection is right: ``sigmoid(slope * logit(score) + offset)``.

    Slope 1 and offset 0 leave a score unchanged. The two numbers, and the detections since the last
    fit, are saved in the checkpoint. With several processes, each holds the detections of all.
    """

    slope: Tensor  # [] float32
    offset: Tensor  # [] float32
    fitted: Tensor  # [] bool: a fit has succeeded

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._recent: list[Tensor] = []  # [n, 2] each: score, and 1 where it was right

    def forward(self, scores: Tensor) -> Tensor:
        """Calibrated scores [N] for scores [N]; 0 before a fit has succeeded."""
        logits = scores.clamp(MARGIN, 1 - MARGIN).logit()
        return (self.slope * logits + self.offset).sigmoid() * self.fitted

    def score_of(self, probability: float) -> float | None:
        """The score whose calibrated score is ``probability``; higher scores are worth more.

        Returns:
            None before a fit has succeeded, and if higher scores are not worth more.
        """
        wanted = torch.tensor(probability, dtype=torch.float64).logit()
        score = ((wanted - self.offset.cpu()) / self.slope.cpu()).sigmoid()
        known = bool(self.fitted) and self.slope.item() > 0 and bool(score.isfinite())
        return score.item() if known else None

    def add(self, recent: Tensor) -> None:
        """Keep detections of this process and all others for the next fit.

        Args:
            recent: [n, 2] float32, the score and 1 where the detection was right, else 0.
        """
        self._recent.append(gathered(recent))

    def refit(self) -> None:
        """Fit to the detections since the last call, and forget them.

        If all of them are right, or none is, the earlier fit is kept.
        """
        scores, right = self.recent.unbind(dim=1)
        self._recent = []
        fit = fit_logistic(scores, right > 0)
        if fit is not None:
            self.slope.fill_(fit[0])
            self.offset.fill_(fit[1])
            self.fitted.fill_(True)

    @property
    def recent(self) -> Tensor:
        """[n, 2] float32 on the CPU: the detections since the last fit."""
        return torch.cat([torch.zeros(0, 2), *(rows.cpu() for rows in self._recent)])

    def get_extra_state(self) -> Tensor:
        """The recent detections; no buffer, because their number varies."""
        return self.recent

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the recent detections from a checkpoint."""
        self._recent = [state.clone()]


def fit_logistic(scores: Tensor, right: Tensor) -> tuple[float, float] | None:
    """Slope and offset of the maximum-likelihood logistic function of the logit of scores.

    By Newton's method in float64 on the CPU. The labels are Platt's (1999), 1 and 0 shrunk by one
    observation each, so that a maximum exists even if a threshold separates the labels. The rows
    are sorted first: their order makes no difference.

    Args:
        scores: [n] in 0 ... 1.
        right: [n] bool.

    Returns:
        None if all labels are equal.
    """
    order = right.to("cpu", torch.uint8).argsort(stable=True)
    order = order[scores.cpu()[order].argsort(stable=True)]
    scores, right = scores.cpu().double()[order], right.cpu()[order]
    positives = int(right.sum())
    negatives = len(right) - positives
    if positives == 0 or negatives == 0:
        return None
    wanted = torch.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
    logits = scores.clamp(MARGIN, 1 - MARGIN).logit()
    centre = logits.mean()
    design = torch.stack([logits - centre, torch.ones_like(logits)], dim=1)  # [n, 2]
    ridge = 1e-6 * torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))  # if scores are alike

    def loss(theta: Tensor) -> Tensor:
        value = nn.functional.softplus(design @ theta).sum() - wanted @ (design @ theta)
        return value + theta @ ridge @ theta / 2

    theta = torch.tensor([0.0, positives / len(right)], dtype=torch.float64)
    theta[1] = theta[1].logit()
    for _ in range(100):
        probability = (design @ theta).sigmoid()
        gradient = design.T @ (probability - wanted) + ridge @ theta
        weight = probability * (1 - probability)
        step = torch.linalg.solve((design.T * weight) @ design + ridge, gradient)
        before, length = loss(theta), 1.0
        while loss(theta - length * step) > before and length > 1e-8:
            length /= 2
        theta = theta - length * step
        if step.abs().max() < 1e-10:
            break
    slope = float(theta[0])
    return slope, float(theta[1] - slope * centre)


def gathered(rows: Tensor) -> Tensor:
    """The rows [n, C] of all processes, those of the first one first."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    lengths = [int(count) for count in counts]
    if not any(lengths):
        return rows
    padded = rows.new_zeros(max(lengths), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
