"""Training by the likelihood of not being annotated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.detectors.detector import Background, Detector, Regions
from comining.errors import ConfigError
from comining.methods.method import Method, RunInfo, Supervision, View
from comining.methods.rate_estimator import RateEstimator
from comining.option_types import Fraction
from comining.structures import Batch, Predictions

Form = Literal["fading", "likelihood"]

# The largest exponent of the fading form.
MOST_FADING = 1e4
# For the estimate, detections are counted in every second step.
EVERY = 2


class AnnotationRate(Method):
    """Regions far from every annotation are trained as not annotated, not as background.

    An object is annotated with probability c, the annotation rate of its class. Where nothing is
    annotated, the background loss has one of two forms. Both stop suppressing a region whose object
    probability p is near 1, and neither raises p; with a rate of 1 they are the ordinary loss.

    * ``fading``: the focal loss of background, times ``c * (1 - p) ** ((1 - c) / c)``. For each
      annotated object there are (1 - c) / c unannotated ones: the fewer are annotated, the less
      background counts, and the sooner a region is no longer suppressed. No gradient flows through
      the factor.
    * ``likelihood``: an object is annotated with probability q = c * p, and the focal loss of
      background uses q in place of p: ``(1 - alpha) * q ** gamma * -log(1 - q)``. It also weakens
      the loss of confident background, by c ** (gamma + 1). For objects its minimum is at p =
      ``min(1, true rate / c)``.

    Where classes exclude each other (proposals of a two-stage detector), the loss is
    cross-entropy: ``-log(p_bg + sum of (1 - c_k) * p_k)``, or ``-log(p_bg)`` times
    ``c * (1 - p) ** ((1 - c) / c)``, p the probability of any object. If classes have different
    rates, the exponent is the mean over the classes, weighted by their probabilities, and each
    class has its own factor (see :class:`comining.detectors.detector.Background`). The anchors of a
    region proposal network have a single class, object, with the smallest of the rates.

    The rate of the loss need not be the true one: a rate that is too low does little harm, while
    one that is too high suppresses the scores of objects. What is known about a class in an image
    (see :class:`comining.structures.Knowledge`) takes precedence.

    With ``rate=auto`` the loss uses ``assumed_rate`` for every class. The annotated share is
    estimated separately, from annotations that are held back for a part of training: see
    :class:`RateEstimator`.

    No source; compare MMA (Cermelli et al., CVPRW 2022), whose background is "background or an old
    class", and Teisseyre et al. (ICCS 2020) for classifiers.

    Args:
        form: form of the loss.
        rate: c of the loss, for all classes or by class name, or ``auto``.
        assumed_rate: c of the loss with ``auto``.
        near_iou: a negative whose IoU with an annotation is at least this is ordinary background:
            annotators have looked at its neighbourhood.
        held_back: with ``auto``, the share of the annotations of a class that is held back; 0
            disables the estimate.
        estimate_from, estimate_until: with ``auto``, the part of training, 0 ... 1, in which
            detections are counted. After it the held-back annotations are trained on, too.
    """

    class_rates: Tensor  # [K] float32, of the loss
    estimate: Tensor  # [3, K] float32: estimated rate, low and high end of its interval; or NaN

    def __init__(
        self,
        views: Sequence[View],
        *,
        form: Form,
        rate: Literal["auto"] | Fraction | Mapping[str, Fraction],
        assumed_rate: Fraction,
        near_iou: Fraction,
        held_back: Fraction,
        estimate_from: Fraction,
        estimate_until: Fraction,
    ):
        super().__init__(views)
        if estimate_from > estimate_until:
            raise ValueError(
                f"method.estimate_from={estimate_from} is larger than "
                f"method.estimate_until={estimate_until}"
            )
        self.form = form
        self.rate = rate
        self.assumed_rate = assumed_rate
        self.near_iou = near_iou
        self.held_back = held_back if rate == "auto" else 0.0
        self.estimate_from, self.estimate_until = estimate_from, estimate_until
        self.names: tuple[str, ...] = ()
        self.true_rates: list[float] | None = None  # [K], where it is known what is missing
        self.estimates = False  # whether anything is estimated

    def prepare(self, detector: Detector, data: DetectionData, run: RunInfo) -> None:
        self.names = data.categories.names
        rates = torch.tensor(self._rates_by_name(), dtype=torch.float32)
        self.register_buffer("class_rates", rates.to(run.device))
        # Finite, because a product with infinity may be NaN; a rate of 0 has a factor of 0, and
        # does not fade what other classes of a softmax say.
        exponents = ((1 - self.class_rates) / self.class_rates).clamp(max=MOST_FADING)
        self.exponents = exponents.masked_fill(self.class_rates == 0, 0.0)
        nothing = torch.full((3, len(self.names)), torch.nan)
        self.register_buffer("estimate", nothing.to(run.device))
        self.first_step, self.last_step = (
            round(part * run.max_steps) for part in (self.estimate_from, self.estimate_until)
        )
        self.estimates = self.held_back > 0 and self.first_step < self.last_step
        if not self.estimates:
            return
        if data.train_set is None or data.erased is None:
            raise RuntimeError("the data have not been set up for training")
        train = data.train_set
        spies = train.hold_back(self.held_back, self.last_step * run.images_per_step)
        labels, count = train.annotations.labels, len(self.names)
        kept, held, erased = (
            np.bincount(labels[rows], minlength=count) for rows in (train.kept, spies, data.erased)
        )
        self.annotated, self.num_spies = (torch.from_numpy(n).double() for n in (kept, held))
        self.num_images = len(train)
        if erased.any():
            self.true_rates = (kept / np.maximum(kept + erased, 1)).tolist()
        self.estimator = RateEstimator(count).to(run.device)

    def _rates_by_name(self) -> list[float]:
        if isinstance(self.rate, Mapping):
            for name in (*self.rate, *self.names):
                if name not in self.names:
                    raise ConfigError(
                        f"method.rate: {name!r} is not a class of the data: {list(self.names)}"
                    )
                if name not in self.rate:
                    raise ConfigError(f"method.rate: no rate for the class {name!r}")
            return [self.rate[name] for name in self.names]
        return [self.assumed_rate if self.rate == "auto" else self.rate] * len(self.names)

    def supervise(
        self,
        detector: Detector,
        predictions: Predictions,
        views: Mapping[str, Sequence[Tensor]],
        batch: Batch,
        step: int,
    ) -> Supervision:
        in_time = self.first_step <= step < self.last_step and step % EVERY == 0
        if self.in_step and self.estimates and in_time:
            first_view = predictions.split(len(batch.images))[0].detach()
            self.estimator.observe(detector, first_view, batch)
        return Supervision()

    def after_step(self, detector: Detector, step: int) -> None:
        if self.estimates and step == self.last_step:
            device = self.estimate.device
            annotated, num_spies = (n.to(device) for n in (self.annotated, self.num_spies))
            found = self.estimator.estimate(annotated, num_spies, self.num_images)
            self.estimate.copy_(torch.stack(list(found)))

    def background(self, regions: Regions, batch: Batch) -> Background:
        unsure = regions.negative & (regions.overlap(batch.annotated) < self.near_iou)
        unsure = unsure.unsqueeze(-1)
        # The class of an object is unknown here: it may be the one with the smallest rate.
        rates = self.class_rates.amin().unsqueeze(0) if regions.pooled else self.class_rates
        if self.form == "likelihood":
            rate = torch.where(unsure, rates, 1.0)
            return Background(rate=rate.to(regions.logits.dtype))
        fading = regions.faded(self.exponents) * rates
        return Background(weights=torch.where(unsure, fading, 1.0))

    # -- reporting -------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        found = self._estimated()
        together = self._of_all(found)
        if together is None:
            return {}
        named = {name: rate for name, (rate, _, _) in found.items()}
        return {f"rate/{name}": rate for name, rate in {"all": together, **named}.items()}

    def outcome(self) -> dict[str, Any]:
        found = self._estimated()
        if not found:
            return {}
        true = self.true_rates
        return {
            "rate": {
                "estimated": {name: rate for name, (rate, _, _) in found.items()},
                "interval": {name: [low, high] for name, (_, low, high) in found.items()},
                "true": None if true is None else dict(zip(self.names, true, strict=True)),
            }
        }

    def closing_lines(self) -> list[str]:
        found = self._estimated()
        together = self._of_all(found)
        if together is None:
            return []
        of_class = ", ".join(f"{name} {rate:.0%}" for name, (rate, _, _) in found.items())
        return [f"about {together:.0%} of the objects are annotated: {of_class}"]

    def _estimated(self) -> dict[str, tuple[float, float, float]]:
        """Rate, lower and upper end of its interval, for the classes with an estimate."""
        columns = zip(self.names, self.estimate.T.tolist(), strict=True)
        return {
            name: (rate, low, high) for name, (rate, low, high) in columns if not math.isnan(rate)
        }

    def _of_all(self, found: Mapping[str, tuple[float, float, float]]) -> float | None:
        """The share of all objects that is annotated."""
        counts = (
            {
                name: int(number)
                for name, number in zip(self.names, self.annotated.tolist(), strict=True)
                if name in found
            }
            if found
            else {}
        )
        objects = sum(number / found[name][0] for name, number in counts.items())
        return sum(counts.values()) / objects if objects else None
