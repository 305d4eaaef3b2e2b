"""The annotated share of objects, estimated without knowing what is missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from comining.detectors.detector import Detector
from comining.ops import clip, iou_in_image, suppress
from comining.structures import Batch, Boxes, Predictions

BINS = 50
# Detections of a lower score are not used.
LOWEST_SCORE = 0.1
# Low, like the two that follow: it counts that an object is found, not how well it is localised.
NMS_THRESHOLD = 0.3
MAX_PER_IMAGE = 100
# A detection belongs to an annotation if it overlaps it by more than this, whatever the classes.
TOUCHING_IOU = 0.3
# A spy is found by a detection of its class with at least this IoU.
FOUND_IOU = 0.3
# The prior for the recall of a class counts as much as this many spies.
PRIOR_SPIES = 200.0
# Scores at which a smaller share of the objects is found are not used.
LEAST_FOUND = 0.2
# Standard deviations of the upper bound by which the score is chosen.
CARE = 3.0
# The estimate is the mean over the scores whose upper bound is within this factor of the lowest.
AS_GOOD = 1.15
# Standard deviations on each side of an interval of 90 %, and the relative deviation that is left
# with any number of spies: by wrong detections, and by objects that are found by halves.
DEVIATIONS = 1.645
OWN_DEVIATION = 0.15


class RateEstimate(NamedTuple):
    """The annotated share of the objects of every class; NaN if none is annotated."""

    rate: Tensor  # [K]
    low: Tensor  # [K] of an interval of 90 %
    high: Tensor  # [K]


class RateEstimator(nn.Module):
    """Estimates rates from held-back annotations, the spies (Liu et al., ICML 2002).

    Training treats the spies like objects that nobody annotated, so both are found equally often.
    If a share r of the spies has a detection with a score of at least t, and u detections of that
    score belong to no annotation, then there are about u / r objects that training does not know,
    spies included. There are fewer if some of the u are wrong: the estimated rate tends to be too
    low.

    A class may have few spies. It has more annotated objects, but these are found too often,
    because they are trained on. The excess is estimated from all classes together: r is shrunk
    towards the recall of the class's annotated objects, times the recall of all spies over that of
    all annotated objects. Pasted objects do not count.

    Args:
        num_classes: K.
    """

    spies: Tensor  # [K, BINS] float64: visits of spies, by the score of their best detection
    annotated: Tensor  # [K, BINS] float64: the same of objects that training knows
    unmatched: Tensor  # [K, BINS] float64: detections that belong to no annotation
    images: Tensor  # [] float64: images looked at

    def __init__(self, num_classes: int):
        super().__init__()
        shape = (num_classes, BINS)
        for name in ("spies", "annotated", "unmatched"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("images", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, detector: Detector, predictions: Predictions, batch: Batch) -> None:
        """Count what is detected in a batch of images.

        Args:
            predictions: of the B images of the batch.
        """
        boxes = detector.candidates(predictions, LOWEST_SCORE)
        boxes = suppress(boxes, predictions.num_classes, NMS_THRESHOLD, MAX_PER_IMAGE)
        boxes = clip(boxes, predictions.image_sizes, 1.0)
        own, _ = batch.own_and_pasted()
        if len(own):
            _count(self.annotated, own.labels, best_scores(own, boxes))
        if len(boxes) and len(batch.annotated):
            overlap, _ = iou_in_image(boxes, batch.annotated)
            boxes = boxes[overlap.amax(dim=1) <= TOUCHING_IOU]
        _count(self.unmatched, boxes.labels, boxes.known_scores)
        spies = batch.held_back
        if len(spies):
            _count(self.spies, spies.labels, best_scores(spies, boxes))
        self.images += batch.annotated.num_images

    def estimate(self, annotated: Tensor, num_spies: Tensor, num_images: int) -> RateEstimate:
        """The rates from all counts, on all processes.

        Args:
            annotated: [K] annotations of the set, spies included.
            num_spies: [K] how many of them are spies.
            num_images: of the set.
        """
        tables = (self.spies, self.annotated, self.unmatched, self.images)
        columns = [table.clone() for table in tables]
        if dist.is_available() and dist.is_initialized():
            for column in columns:
                dist.all_reduce(column)
        spies, trained, unmatched, images = columns
        visits = (images / num_images).clamp(min=1e-9)  # of each image, on average
        return estimate_rate(spies, trained, unmatched / visits, annotated, num_spies)


def best_scores(objects: Boxes, detections: Boxes) -> Tensor:
    """The best score [N] of a detection that covers an object of its class, 0 where none does."""
    if len(detections) == 0:
        return torch.zeros(len(objects), device=objects.labels.device)
    overlap, labels = iou_in_image(objects, detections)
    scores = torch.zeros_like(overlap)
    first = torch.searchsorted(detections.image, detections.image)
    column = torch.arange(len(detections), device=first.device) - first
    table = torch.zeros(
        detections.num_images, overlap.shape[1], dtype=overlap.dtype, device=overlap.device
    )
    table[detections.image, column] = detections.known_scores.to(overlap.dtype)
    scores = table[objects.image]
    covers = (overlap >= FOUND_IOU) & (labels == objects.labels[:, None])
    return torch.where(covers, scores, 0).amax(dim=1)


def _count(table: Tensor, labels: Tensor, scores: Tensor) -> None:
    bins = (scores * BINS).long().clamp(0, BINS - 1)
    ones = torch.ones_like(scores, dtype=table.dtype)
    table.view(-1).index_add_(0, labels * BINS + bins, ones)


def estimate_rate(
    spies: Tensor, trained: Tensor, unmatched: Tensor, annotated: Tensor, num_spies: Tensor
) -> RateEstimate:
    """The annotation rate of every class.

    Args:
        spies: [K, BINS] how often a spy's best detection fell into a bin of the score.
        trained: [K, BINS] the same of annotated objects that are trained on.
        unmatched: [K, BINS] detections that belong to no annotation, in one pass over the set.
        annotated: [K] annotations of the set, spies included.
        num_spies: [K] number of distinct spies; repeated visits of one add no evidence.
    """
    own, of_all = _recall(spies), _recall(spies.sum(dim=0))
    trained_own, trained_of_all = _recall(trained), _recall(trained.sum(dim=0))
    too_often = (of_all / trained_of_all.clamp(min=1e-9)).clamp(max=1)
    expected = torch.where(trained.sum(dim=1, keepdim=True) > 0, trained_own * too_often, of_all)
    weight = num_spies.to(own.dtype).unsqueeze(1)
    recall = (own * weight + PRIOR_SPIES * expected) / (weight + PRIOR_SPIES)
    detections = at_least(unmatched)
    hidden = detections / recall.clamp(min=1e-9)  # objects that training does not know
    # Relative variances of the counts: spies, annotated objects of the class, detections.
    number = annotated.unsqueeze(1).clamp(min=1)
    drawn = PRIOR_SPIES / (weight + PRIOR_SPIES)
    of_one = (1 - recall).clamp(min=0) / recall.clamp(min=1e-9)
    of_recall = of_one * (1 / (weight + PRIOR_SPIES) + drawn**2 / number)
    deviation = (of_recall + 1 / detections.clamp(min=1)).sqrt()
    # The score with the lowest conservative upper bound: below it detections are wrong, above it
    # few. A tighter bound would choose scores at which spies were found by luck.
    scores = torch.arange(BINS, device=spies.device) / BINS
    usable = (scores >= LOWEST_SCORE) & (recall >= LEAST_FOUND)
    upper = torch.where(usable, hidden * (1 + CARE * deviation), torch.inf)
    best = upper.amin(dim=1, keepdim=True)
    as_good = usable & (upper <= AS_GOOD * best)
    number = as_good.sum(dim=1).clamp(min=1)
    chosen, spread = (
        torch.where(as_good, column, 0).sum(dim=1) / number for column in (hidden, deviation)
    )
    unknown = ~usable.any(dim=1)

    def rate(factor: Tensor) -> Tensor:
        missing = (chosen * factor - num_spies).clamp(min=0)
        known = annotated / (annotated + missing).clamp(min=1e-9)
        return known.masked_fill(unknown | (annotated == 0), torch.nan)

    spread = DEVIATIONS * (spread**2 + OWN_DEVIATION**2).sqrt()
    return RateEstimate(
        rate(torch.ones_like(spread)), rate(1 + spread), rate((1 - spread).clamp(min=0))
    )


def _recall(scores: Tensor) -> Tensor:
    """The share of objects that is found at each score, from counts by their best score."""
    return at_least(scores) / scores.sum(dim=-1, keepdim=True).clamp(min=1)


def at_least(counts: Tensor) -> Tensor:
    """For each bin, the counts of it and all bins above it."""
    return counts.flip(-1).cumsum(-1).flip(-1)
