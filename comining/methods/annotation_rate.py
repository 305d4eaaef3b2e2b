"""Training by the likelihood of not being annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from comining.data.datamodule import DetectionData
from comining.detectors.detector import Background, Detector, Regions
from comining.errors import ConfigError
from comining.methods.method import Method, RunInfo, View
from comining.option_types import Fraction
from comining.structures import Batch


class AnnotationRate(Method):
    """Regions far from every annotation are trained as not annotated, not as background.

    An object is annotated with a chance c, the annotation rate of its class. A region of which the
    network says that it shows an object with probability p is then annotated with q = c * p. Where
    nothing is annotated, the focal loss of background is taken of q in place of p:
    ``(1 - alpha) * q ** gamma * -log(1 - q)``. Its gradient vanishes where p is near 1, so that a
    confident region is let go, and nothing is pulled up. With a rate of 1 it is the ordinary loss.

    The rate of the loss need not be the true one: on an object its minimum is at ``min(1, true rate
    / rate)``, so that too low a rate does no harm there, while too high a rate holds scores down.
    What is known of a class in an image (see :class:`comining.structures.Knowledge`) comes first.

    No source; compare MMA (Cermelli et al., CVPRW 2022), whose background is "background or an old
    class", and Teisseyre et al. (ICCS 2020) for classifiers.

    Args:
        rate: c of the loss, of all classes or by their names.
        near_iou: a negative that overlaps an annotation by at least this is ordinary background:
            its neighbourhood has been looked at.
    """

    class_rates: torch.Tensor  # [K] float32

    def __init__(
        self,
        views: Sequence[View],
        *,
        rate: Fraction | Mapping[str, Fraction],
        near_iou: Fraction,
    ):
        super().__init__(views)
        self.rate = rate
        self.near_iou = near_iou

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        names = data.categories.names
        of_class = self.rate if isinstance(self.rate, Mapping) else dict.fromkeys(names, self.rate)
        for name in (*of_class, *names):
            if name not in names or name not in of_class:
                raise ConfigError(
                    f"method.rate: {name!r} is not a class of the data: {list(names)}"
                    if name not in names
                    else f"method.rate: the class {name!r} has none"
                )
        rates = torch.tensor([of_class[name] for name in names], dtype=torch.float32)
        self.register_buffer("class_rates", rates.to(run.device))

    def background(self, regions: Regions, batch: Batch) -> Background:
        unsure = regions.negative & (regions.overlap(batch.annotated) < self.near_iou)
        rate = torch.where(unsure.unsqueeze(-1), self.class_rates, 1.0)
        return Background(rate=rate.to(regions.logits.dtype))
