"""Learning-rate schedules as functions of the optimizer step, as a factor on ``optimizer.lr``."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence


class WarmupMultiStep:
    """Linear warm-up, then a drop at every milestone: the paper's schedule.

    Args:
        warmup_steps: steps until the factor reaches 1.
        warmup_start: factor at step 0.
        milestones: steps at which the factor is multiplied with ``gamma``, rising.
        max_steps: length of training; a milestone beyond it is an error.
    """

    def __init__(
        self,
        *,
        warmup_steps: int,
        warmup_start: float,
        milestones: Sequence[int],
        gamma: float,
        max_steps: int,
    ):
        _check_length(max_steps)
        milestones = list(milestones)
        if milestones != sorted(set(milestones)) or (milestones and milestones[0] < 1):
            raise ValueError(f"schedule.milestones must rise and be positive, got {milestones}")
        if milestones and milestones[-1] >= max_steps:
            raise ValueError(
                f"schedule.milestones={milestones} reach beyond trainer.max_steps={max_steps}: set "
                "them together"
            )
        if warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must not be negative, got {warmup_steps}")
        if warmup_steps >= max_steps:
            raise ValueError(
                f"schedule.warmup_steps={warmup_steps} reach beyond trainer.max_steps={max_steps}: "
                "set them together"
            )
        _check_factors(warmup_start=warmup_start, gamma=gamma)
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start
        self.milestones = milestones
        self.gamma = gamma

    def __call__(self, step: int) -> float:
        factor = 1.0
        if step < self.warmup_steps:
            factor = self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps
        return factor * self.gamma ** bisect.bisect_right(self.milestones, step)


class OneCycle:
    """Cosine rise and cosine fall over the whole run (Smith and Topin 2018), for short runs.

    Args:
        rise: share of the run in which the factor rises to 1.
        start, end: the first and the last factor.
        max_steps: length of training.
    """

    def __init__(self, *, rise: float, start: float, end: float, max_steps: int):
        _check_length(max_steps)
        if not 0 < rise < 1:
            raise ValueError(f"schedule.rise must lie between 0 and 1, got {rise}")
        _check_factors(start=start, end=end)
        self.rise, self.start, self.end = rise, start, end
        self.max_steps = max_steps

    def __call__(self, step: int) -> float:
        peak = self.rise * self.max_steps
        if step < peak:
            return _cosine(self.start, 1.0, step / peak)
        return _cosine(1.0, self.end, min(1.0, (step - peak) / (self.max_steps - peak)))


def _check_length(max_steps: int) -> None:
    if max_steps < 1:
        raise ValueError(f"trainer.max_steps must be positive, got {max_steps}")


def _check_factors(**factors: float) -> None:
    for name, factor in factors.items():
        if not 0 <= factor <= 1:
            raise ValueError(f"schedule.{name} must lie in 0 ... 1, got {factor}")


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
