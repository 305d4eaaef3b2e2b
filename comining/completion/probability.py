"""The probability that a detection shows an unannotated object.

It applies to detections in images that the detector was not trained on. If annotators left out
objects at random, annotated and unannotated objects are alike: detections of both have the same
distribution of scores, which is known for annotated objects. If a share r of the annotated objects
has a detection with a score of at least t, and U detections of that score belong to no annotation,
at most U / r objects are missing, and hardly fewer if t is so high that hardly any detection is
wrong (best bin estimation, Garg et al., NeurIPS 2021; compare Elkan and Noto, KDD 2008). The number
of missing objects gives the share of objects among the detections of each score, which is the
probability.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Number of bins of equal width in the logit of the score.
BINS = 24
HIGHEST_SCORE = 0.98
# The distribution of scores of a class is shrunk towards that of all classes, with the weight of
# this many objects.
PRIOR_OBJECTS = 60.0
# Standard deviation, in bins, of the smoothing of a distribution.
SMOOTHING = 1.2
# Standard errors between an estimate and its upper bound; the lowest upper bound is chosen.
CAREFUL = 1.0
# Of the scores whose upper bound is at most this times the lowest, the lowest score is taken: it
# has more detections, and the lowest of many bounds is too low by chance.
AS_GOOD = 1.15
# Scores at which a smaller share of the annotated objects is found are not used.
LEAST_SHARE = 0.2
# No estimate for a class of which a smaller share of the annotated objects is found.
LEAST_FOUND = 0.1
# No estimate either with more missing objects than this for each annotated one: a detector that has
# learnt nothing gives wrong detections the scores of objects.
MOST_MISSING = 50.0
RESAMPLES = 100
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of detections in images that the detectors were not trained on.

    Args:
        annotated: for every class, the score of the best detection of each annotated object, 0 if
            none covers it.
        annotated_image: for every class the image of each of them, 0 ... N - 1.
        unmatched: for every class, the scores of detections that belong to no annotation.
        unmatched_image: for every class the image of each of them.
        num_images: N.
        least_score: the lowest score of detections.
    """

    annotated: Sequence[Floats]
    annotated_image: Sequence[NDArray[np.int64]]
    unmatched: Sequence[Floats]
    unmatched_image: Sequence[NDArray[np.int64]]
    num_images: int
    least_score: float


@dataclass(frozen=True)
class ObjectScores:
    """Which detections of each class are objects, by bins of the score.

    Args:
        centres: [BINS] of the bins, as logits.
        missing: [K] number of objects without an annotation, found or not; NaN for a class without
            an estimate.
        probability: [K, BINS] of being one of them, ascending.
    """

    centres: Floats
    missing: Floats
    probability: Floats

    def __call__(self, label: int, scores: Floats) -> Floats:
        """The probability of detections of a class that belong to no annotation."""
        return np.asarray(np.interp(_logit(scores), self.centres, self.probability[label]))


def fit(scores: HeldOutScores, weights: Floats | None = None) -> ObjectScores:
    """Fit the share of objects among the detections of each score.

    Args:
        weights: [N] how often each image counts; None for once.
    """
    once = np.ones(scores.num_images) if weights is None else weights
    edges = np.linspace(
        _logit(np.array(scores.least_score)), _logit(np.array(HIGHEST_SCORE)), BINS + 1
    )
    count = len(scores.annotated)
    objects = np.array([once[image].sum() for image in scores.annotated_image])
    found, seen = (
        np.stack([_binned(s, once[i], edges) for s, i in zip(of_class, images, strict=True)])
        for of_class, images in (
            (scores.annotated, scores.annotated_image),
            (scores.unmatched, scores.unmatched_image),
        )
    )
    pooled = found.sum(axis=0) / max(objects.sum(), 1.0)
    missing = np.full(count, np.nan)
    probability = np.zeros((count, BINS))
    for label in range(count):
        if found[label].sum() <= LEAST_FOUND * objects[label]:
            continue
        number_seen = objects[label] + PRIOR_OBJECTS
        shape = (found[label] + PRIOR_OBJECTS * pooled) / number_seen
        number = _missing(seen[label], shape, number_seen)
        if number > MOST_MISSING * objects[label]:
            continue
        missing[label] = number
        smooth = _smooth(seen[label])
        right = number * _smooth(shape) / np.maximum(smooth, 1e-12)
        probability[label] = _rising(np.minimum(right, 1.0), smooth + 1e-12)
    return ObjectScores((edges[1:] + edges[:-1]) / 2, missing, probability)


def rates(scores: HeldOutScores, fitted: ObjectScores) -> tuple[Floats, Floats, Floats]:
    """The annotated share of the objects of each class, [K], and an interval of 90 %, 2 x [K].

    The interval is computed with the bootstrap over images.
    """
    objects = np.array([float(len(one)) for one in scores.annotated])
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(scores.num_images, size=scores.num_images)
        weights = np.bincount(chosen, minlength=scores.num_images).astype(np.float64)
        number = np.array([weights[image].sum() for image in scores.annotated_image])
        drawn.append(_share(number, fit(scores, weights).missing))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a class without an estimate
        low, high = np.nanquantile(np.stack(drawn), INTERVAL, axis=0)
    rate = _share(objects, fitted.missing)
    return rate, np.minimum(low, rate), np.maximum(high, rate)


def _share(annotated: Floats, missing: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return annotated / (annotated + missing)


def _missing(seen: Floats, shape: Floats, number_seen: float) -> float:
    """The number of missing objects, from the most informative scores.

    Args:
        seen: [BINS] detections that belong to no annotation.
        shape: [BINS] the share of objects whose best detection is in the bin.
        number_seen: number of objects that the share is computed from.
    """
    above = np.cumsum(seen[::-1])[::-1]
    share = np.cumsum(shape[::-1])[::-1]
    usable = share >= min(LEAST_SHARE, share[0] / 2)
    above, share = above[usable], share[usable]
    error = np.sqrt(1 / (share * number_seen) + 1 / (above + 1))
    upper = (above + 1) / share * np.exp(CAREFUL * error)
    best = int(np.flatnonzero(upper <= AS_GOOD * upper.min())[0])
    return float(above[best] / share[best])


def _rising(values: Floats, weights: Floats) -> Floats:
    """The ascending values nearest to ``values`` (isotonic regression, pool adjacent violators)."""
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while means and means[-1] > value:
            mean, mass = means.pop(), masses.pop()
            value = (mean * mass + value * weight) / (mass + weight)
            weight += mass
            length += lengths.pop()
        means.append(value)
        masses.append(weight)
        lengths.append(length)
    return np.repeat(means, lengths)


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def _binned(scores: Floats, weights: Floats, edges: Floats) -> Floats:
    """Weights of scores in each bin; scores above the last edge are in the last bin."""
    values = np.minimum(_logit(scores), edges[-1] - 1e-9)
    return np.histogram(values, edges, weights=weights)[0].astype(np.float64)


def _smooth(counts: Floats) -> Floats:
    reach = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (reach / SMOOTHING) ** 2)
    padded = np.pad(counts, 4, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), "valid")
