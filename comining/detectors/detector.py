"""The base class of all detectors, and how a method changes their background loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comining.structures import Boxes, Knowledge, Predictions

# The logit of entries without loss: its probability is 0, so that the background loss vanishes, and
# it is finite, so that no gradient is NaN.
NO_OBJECT = -100.0


class Regions(ABC):
    """The regions of a batch that a detector classifies, with the targets of one branch.

    Attributes:
        logits: [B, A, K] with gradient; :data:`NO_OBJECT` where knowledge takes precedence over the
            method: a class that nobody looked for, one that is complete, an ignored region.
        targets: of the branch.
        labels: [B, A] int64, the target of each region: class, K background, -1 ignored.
        anchors: [A, 4] or [B, A, 4], the regions before prediction; a point is the square around it
            with the stride as its side.
        exclusive: the classes exclude each other and background: probabilities are a softmax over
            the logits and a 0 for background. Otherwise every class has its own sigmoid.
        pooled: K is 1 and stands for an object of any class: the anchors of a region proposal
            network.
    """

    logits: Tensor
    targets: Boxes
    labels: Tensor
    anchors: Tensor
    exclusive: bool = False
    pooled: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits.shape[-1]

    @property
    def positive(self) -> Tensor:
        """[B, A] bool: trained to a target."""
        return (self.labels >= 0) & (self.labels < self.num_classes)

    @property
    def negative(self) -> Tensor:
        """[B, A] bool: trained as background."""
        return self.labels == self.num_classes

    def faded(self, exponents: Tensor) -> Tensor:
        """``(1 - p) ** exponent``, a weight without gradient that falls with the probability p.

        Args:
            exponents: one for each class of the data; if classes are pooled, the largest counts.

        Returns:
            [B, A, K], p the probability of each class. Where classes exclude each other [B, A, 1]:
            p is the probability of any object, and the exponent the mean over the classes,
            weighted by their probabilities.
        """
        logits = self.logits.detach()
        if not self.exclusive:
            # log(1 - p), accurate for p near 1
            return (F.logsigmoid(-logits) * exponents).exp()
        if self.pooled:
            exponents = exponents.amax().unsqueeze(0)
        log_background = -F.pad(logits, (1, 0)).logsumexp(dim=-1, keepdim=True)
        exponent = (logits.softmax(dim=-1) * exponents).sum(dim=-1, keepdim=True)
        return (log_background * exponent).exp()

    @abstractmethod
    def overlap(self, boxes: Boxes) -> Tensor:
        """The largest IoU [B, A] of each region with a box, 0 in images without boxes."""

    def predicted_overlap(self, boxes: Boxes) -> Tensor:
        """The largest IoU [B, A] of the box that each region predicts with a box.

        Without a gradient. In a detector that predicts no boxes, the IoU of the region itself.
        """
        return self.overlap(boxes)

    @abstractmethod
    def assign(self, boxes: Boxes) -> Tensor:
        """The labels [B, A] that the regions would have if these boxes were the targets."""


@dataclass
class Background:
    """How a method changes the classification loss of a branch; by default not at all.

    Soft Sampling weights negatives, background recalibration replaces their loss, part-aware
    sampling silences classes. Neither part sends a gradient through boxes.

    Where classes exclude each other (:attr:`Regions.exclusive`), the loss of background is
    ``-w * log(p_bg + sum of (1 - r_k) * p_k)``, r_k the rate of a class. With weights [B, A, K], w
    is the largest of them, and r_k is multiplied by the ratio of the class's weight to w: a class
    of weight 0 is neither raised nor suppressed by background. Targets count with the weight of
    their class.
    """

    weights: Tensor | None = None  # [B, A] or [B, A, K], a factor on the classification loss
    # [B, A, K], the probability that an object is annotated, 1 at positives; None: background is
    # known
    rate: Tensor | None = None
    # further losses by name, summed over the batch; the detector divides by its positives
    terms: Mapping[str, Tensor] = field(default_factory=dict)


BackgroundRule = Callable[[Regions], Background]


class Detector(nn.Module, ABC):
    """A torchvision model that is trained with explicit targets.

    ``self.net`` is the torchvision model and the only place with parameters: its state dict loads
    into the plain torchvision model.
    """

    net: Any  # torchvision ships no types

    @property
    def smallest_region(self) -> float:
        """Side of the smallest region, px; 0 if regions have no fixed size."""
        return 0.0

    @abstractmethod
    def predict(self, images: Sequence[Tensor]) -> Predictions:
        """One forward for all images (of all views), in training or evaluation mode.

        Args:
            images: B times [3, H, W] uint8, already resized for the network.
        """

    def seed_samples(self, seeds: Sequence[int]) -> None:
        """Set the seeds of random choices in the next losses, for detectors that make any.

        Args:
            seeds: of the B images of a branch.
        """

    @abstractmethod
    def candidates(self, predictions: Any, threshold: float) -> Boxes:
        """The candidates for mining (Step 1): boxes whose class probability exceeds ``threshold``.

        Returns:
            Boxes with the scores by which NMS ranks them, not clipped, not suppressed.
        """

    @abstractmethod
    def losses(
        self,
        predictions: Any,
        targets: Boxes,
        background: BackgroundRule | None = None,
        knowledge: Knowledge | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one branch, summed over its batch and divided by its positives.

        (torchvision averages per-image ratios instead, which is not the same number.)

        Args:
            predictions: of the B images of the branch, with their graph.
            targets: of the same images.
            background: the rule of the method; called once, with the regions of the branch.
            knowledge: about the same images; takes precedence over the method.
        """

    @abstractmethod
    def detect(self, images: Sequence[Tensor]) -> Boxes:
        """Inference, as torchvision's own forward does it.

        Args:
            images: B times [3, H, W] uint8 of any size; the model resizes them itself.

        Returns:
            Boxes with scores, in pixels of the images as they were given, best first.
        """

    def parameter_groups(
        self, backbone_lr_factor: float, decay_norms_and_biases: bool
    ) -> list[dict[str, Any]]:
        """The parameters that are trained, as groups for an optimizer.

        Args:
            backbone_lr_factor: factor on the learning rate, for the backbone's body (not its
                pyramid).
            decay_norms_and_biases: False exempts parameters of one dimension from weight decay.

        Returns:
            Groups with ``params`` and ``lr_factor``, and with ``weight_decay: 0`` where exempt. A
            single group if both arguments treat all parameters alike.
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self._trained_parameters():
            slower = name.startswith("net.backbone.body.") and backbone_lr_factor != 1
            exempt = parameter.dim() <= 1 and not decay_norms_and_biases
            groups.setdefault((slower, exempt), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr_factor": backbone_lr_factor if slower else 1.0,
                **({"weight_decay": 0.0} if exempt else {}),
            }
            for (slower, exempt), parameters in groups.items()
        ]

    def _trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.parameters()).device
