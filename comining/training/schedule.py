"""Learning-rate schedules as functions of the optimizer step, as a factor on ``optimizer.lr``."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from comining.option_types import Fraction, NonNegativeInt, PositiveInt


class WarmupMultiStep:
    """Linear warm-up, then a drop at every milestone: the paper's schedule.

    Args:
        warmup_steps: steps until the factor reaches 1.
        warmup_start: factor at step 0.
        milestones: ascending steps at which the factor is multiplied by ``gamma``.
        max_steps: length of training; a milestone beyond it is an error.
    """

    def __init__(
        self,
        *,
        warmup_steps: NonNegativeInt,
        warmup_start: Fraction,
        milestones: Sequence[PositiveInt],
        gamma: Fraction,
        max_steps: PositiveInt,
    ):
        milestones = list(milestones)
        if milestones != sorted(set(milestones)):
            raise ValueError(f"schedule.milestones must be increasing, got {milestones}")
        if milestones and milestones[-1] >= max_steps:
            raise ValueError(
                f"schedule.milestones={milestones} reach beyond trainer.max_steps={max_steps}: set "
                "them together"
            )
        if warmup_steps >= max_steps:
            raise ValueError(
                f"schedule.warmup_steps={warmup_steps} reach beyond trainer.max_steps={max_steps}: "
                "set them together"
            )
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

    def __init__(
        self,
        *,
        rise: Annotated[float, Field(gt=0, lt=1)],
        start: Fraction,
        end: Fraction,
        max_steps: PositiveInt,
    ):
        self.rise, self.start, self.end = rise, start, end
        self.max_steps = max_steps

    def __call__(self, step: int) -> float:
        peak = self.rise * self.max_steps
        if step < peak:
            return _cosine(self.start, 1.0, step / peak)
        return _cosine(1.0, self.end, min(1.0, (step - peak) / (self.max_steps - peak)))


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
