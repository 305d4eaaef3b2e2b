"""An averaged copy of the detector (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from comining.detectors.detector import Detector


class Teacher(nn.Module):
    """A detector whose weights are the exponential moving average of another one's.

    It has no gradient and is always in evaluation mode. As a submodule of a method it is saved in
    the checkpoint.

    Args:
        detector: copied as it is now.
        momentum: m in ``teacher = m * teacher + (1 - m) * detector``. In the first steps it is
            smaller, ``min(m, 1 - 1 / (step + 1))``, so that the initial weights are forgotten.
        warm_up: False for the full momentum from the first step on.
        average_buffers: whether the statistics of batch norm are averaged as the parameters are;
            False takes those of the detector as they are now. Frozen ones are the same either way.
    """

    def __init__(
        self,
        detector: Detector,
        momentum: float,
        *,
        warm_up: bool = True,
        average_buffers: bool = True,
    ):
        super().__init__()
        self.detector = copy.deepcopy(detector).requires_grad_(False)
        self.momentum = momentum
        self.warm_up = warm_up
        self.average_buffers = average_buffers
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    @torch.no_grad()
    def update(self, detector: Detector, step: int) -> None:
        """Update the average with the weights of the detector, without waiting for the device.

        Args:
            step: optimizer steps done; 1 takes half of the detector's weights.
        """
        momentum = min(self.momentum, 1 - 1 / (step + 1)) if self.warm_up else self.momentum
        for mine, theirs, averaged in (
            (self.detector.parameters(), detector.parameters(), True),
            (self.detector.buffers(), detector.buffers(), self.average_buffers),
        ):
            for average, value in zip(mine, theirs, strict=True):
                if averaged and average.is_floating_point():
                    average.lerp_(value, 1 - momentum)
                else:  # counters of batch norm, too
                    average.copy_(value)
