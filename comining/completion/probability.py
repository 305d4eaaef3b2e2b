"""How likely a detection shows an object that nobody annotated.

Detections of images that their detector was not trained on. Annotated and unannotated objects are
alike if annotators left out what they left out by chance; then detections of both score alike, and
how annotated objects score is known. The detections that belong to no annotation are a mixture of
two kinds: H unannotated objects with those scores, and wrong ones, which are the fewer the higher
the score. H, the number of missing objects, and the share of the first kind at each score, the
probability, follow from a fit (compare Elkan and Noto, KDD 2008, and Garg et al., NeurIPS 2021).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Scores are compared by their logit, in bins of equal width.
BINS = 24
HIGHEST_SCORE = 0.98
# How scores of a class are distributed is drawn towards all classes, by so many objects.
PRIOR_OBJECTS = 60.0
# Standard deviation in bins by which a distribution is smoothed.
SMOOTHING = 1.2
STEPS = 300
STEPS_AGAIN = 100  # from an end that is known
# Missing objects for each annotated one from which the fit starts; the best end counts.
STARTS = (0.1, 0.5, 2.0, 8.0)
# Of a class of which a smaller share of the annotated objects is found, nothing is estimated.
LEAST_FOUND = 0.1
# Nor where there would be more missing objects than this for each annotated one: a detector that
# has learnt nothing gives wrong detections the scores of objects.
MOST_MISSING = 50.0
RESAMPLES = 100
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class HeldOutScores:
    """What detectors found in images that they were not trained on.

    Args:
        annotated: for every class, of each annotated object the score of its best detection, 0
            where none covers it.
        annotated_image: for every class the image of each of them, 0 ... N - 1.
        unmatched: for every class, the scores of detections that belong to no annotation.
        unmatched_image: for every class the image of each of them.
        num_images: N.
        least_score: no detection scores less.
    """

    annotated: Sequence[Floats]
    annotated_image: Sequence[NDArray[np.int64]]
    unmatched: Sequence[Floats]
    unmatched_image: Sequence[NDArray[np.int64]]
    num_images: int
    least_score: float


@dataclass(frozen=True)
class Mixture:
    """The two kinds of detections of each class, by bins of the score.

    Args:
        centres: [BINS] of the bins, as logits.
        missing: [K] objects without an annotation, found or not; NaN for a class of which nothing
            is estimated.
        probability: [K, BINS] of being one of them, rising.
    """

    centres: Floats
    missing: Floats
    probability: Floats

    def __call__(self, label: int, scores: Floats) -> Floats:
        """The probability of detections of a class that belong to no annotation."""
        return np.asarray(np.interp(_logit(scores), self.centres, self.probability[label]))


def fit(
    scores: HeldOutScores, weights: Floats | None = None, near: Mixture | None = None
) -> Mixture:
    """Tell objects from wrong detections.

    Args:
        weights: [N] how often each image counts; None: once.
        near: the fit begins at its missing objects, and ends sooner.
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
    pooled = _smooth(found.sum(axis=0)) / max(objects.sum(), 1.0)
    centres = (edges[1:] + edges[:-1]) / 2
    missing = np.full(count, np.nan)
    probability = np.zeros((count, BINS))
    for label in range(count):
        if found[label].sum() <= LEAST_FOUND * objects[label]:
            continue
        own = _smooth(found[label]) + PRIOR_OBJECTS * pooled
        shape = own / (objects[label] + PRIOR_OBJECTS)
        starts = [start * objects[label] for start in STARTS]
        if near is not None and np.isfinite(near.missing[label]):
            starts = [max(float(near.missing[label]), 1e-3)]
        steps = STEPS if near is None else STEPS_AGAIN
        number, right = _two_kinds(seen[label], shape, centres, starts, steps)
        if number > MOST_MISSING * objects[label]:
            continue
        missing[label] = number
        probability[label] = np.maximum.accumulate(right)
    return Mixture(centres, missing, probability)


def rates(scores: HeldOutScores, mixture: Mixture) -> tuple[Floats, Floats, Floats]:
    """Which share of the objects of each class is annotated: [K], and an interval of 90 %, 2 x [K].

    The interval is that of fits to images drawn anew (the bootstrap).
    """
    objects = np.array([float(len(one)) for one in scores.annotated])
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(scores.num_images, size=scores.num_images)
        weights = np.bincount(chosen, minlength=scores.num_images).astype(np.float64)
        number = np.array([weights[image].sum() for image in scores.annotated_image])
        drawn.append(_share(number, fit(scores, weights, mixture).missing))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a class without an estimate
        low, high = np.nanquantile(np.stack(drawn), INTERVAL, axis=0)
    rate = _share(objects, mixture.missing)
    return rate, np.minimum(low, rate), np.maximum(high, rate)


def _share(annotated: Floats, missing: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return annotated / (annotated + missing)


def _two_kinds(
    seen: Floats, shape: Floats, centres: Floats, starts: Sequence[float], steps: int
) -> tuple[float, Floats]:
    """Fit ``seen = H * shape + exp(a + b * centre)``, with b <= 0, by expectation maximisation.

    Args:
        seen: [BINS] detections of a class.
        shape: [BINS] the share of objects whose best detection is in the bin.
        starts: where H begins; the best end counts.

    Returns:
        H, and [BINS] the share of objects in each bin.
    """
    best: tuple[float, float, Floats] | None = None
    for start in starts:
        number = start
        level, slope = np.log(seen.sum() / len(seen) + 1e-3), -1.0
        for _ in range(steps):
            right = number * shape
            wrong = np.exp(np.clip(level + slope * centres, -30, 30))
            share = right / (right + wrong + 1e-12)
            number = float((seen * share).sum() / max(shape.sum(), 1e-9))
            level, slope = _log_linear(seen * (1 - share), centres, level, slope)
        expected = number * shape + np.exp(np.clip(level + slope * centres, -30, 30))
        likelihood = float((seen * np.log(expected + 1e-12) - expected).sum())
        if best is None or likelihood > best[0]:
            best = (likelihood, number, share)
    if best is None:
        raise ValueError("there is no start")
    return best[1], best[2]


def _log_linear(counts: Floats, centres: Floats, level: float, slope: float) -> tuple[float, float]:
    """One Newton step of a Poisson regression of counts on centres, with a slope of at most 0."""
    expected = np.exp(np.clip(level + slope * centres, -30, 30))
    rest = counts - expected
    gradient = np.array([rest.sum(), (rest * centres).sum()])
    curvature = np.array(
        [
            [expected.sum(), (expected * centres).sum()],
            [(expected * centres).sum(), (expected * centres**2).sum()],
        ]
    )
    step = np.linalg.solve(curvature + 1e-6 * np.eye(2), gradient)
    step *= min(1.0, 1.0 / max(np.abs(step).max(), 1e-12))
    level, slope = level + step[0], slope + step[1]
    if slope > 0:  # then the level alone
        level, slope = float(np.log(counts.mean() + 1e-12)), 0.0
    return float(level), float(slope)


def _logit(scores: Floats) -> Floats:
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def _binned(scores: Floats, weights: Floats, edges: Floats) -> Floats:
    """Weights of scores in each bin; what is above the last edge is in the last bin."""
    values = np.minimum(_logit(scores), edges[-1] - 1e-9)
    return np.histogram(values, edges, weights=weights)[0].astype(np.float64)


def _smooth(counts: Floats) -> Floats:
    reach = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (reach / SMOOTHING) ** 2)
    padded = np.pad(counts, 4, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), "valid")
