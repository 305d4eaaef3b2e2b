"""How likely a detection is an object that nobody annotated: simulated detectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from comining.completion.probability import HeldOutScores, fit, rates

IMAGES = 200
LEAST = 0.05


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-values)))


def simulated(
    rate: float, objects: int = 400, wrong: int = 3000, classes: int = 3, seed: int = 0
) -> tuple[HeldOutScores, list[NDArray[np.bool_]]]:
    """What a detector finds that misses a seventh of the objects, and which of it is right."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list[NDArray[np.float64]]] = {"annotated": [], "unmatched": []}
    images: dict[str, list[NDArray[np.int64]]] = {"annotated": [], "unmatched": []}
    right = []
    for _ in range(classes):
        scores = sigmoid(generator.normal(1.0, 1.2, objects))
        scores[(generator.random(objects) < 1 / 7) | (scores < LEAST)] = 0
        known = int(objects * rate)
        hidden = scores[known:][scores[known:] > 0]
        false = sigmoid(np.log(LEAST / (1 - LEAST)) + generator.exponential(0.5, wrong))
        columns["annotated"].append(scores[:known])
        columns["unmatched"].append(np.concatenate([hidden, false]))
        right.append(np.arange(len(hidden) + wrong) < len(hidden))
        for name, parts in columns.items():
            images[name].append(generator.integers(IMAGES, size=len(parts[-1])))
    return HeldOutScores(
        columns["annotated"], images["annotated"], columns["unmatched"], images["unmatched"],
        IMAGES, LEAST,
    ), right  # fmt: skip


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8, 0.95])
def test_rates_and_probabilities_are_those_of_the_simulation(rate: float) -> None:
    scores, right = simulated(rate)
    fitted = fit(scores)
    found, low, high = rates(scores, fitted)
    assert np.abs(found / rate - 1).max() < 0.15
    assert (low < found).all()
    assert (found < high).all()
    assert ((low <= rate * 1.03) & (rate * 0.97 <= high)).sum() >= 2
    probability = np.concatenate([fitted(k, scores.unmatched[k]) for k in range(3)])
    truth = np.concatenate(right)
    error = 0.0
    for lower in np.arange(0, 1, 0.1):
        inside = (probability >= lower) & (probability < lower + 0.1)
        if inside.any():
            error += abs(probability[inside].mean() - truth[inside].mean()) * inside.mean()
    assert error < 0.02
    if rate < 0.5:  # else few are right, and fewer among the best
        best = np.argsort(-probability)[: int(truth.sum() * 0.3)]
        assert truth[best].mean() == pytest.approx(probability[best].mean(), abs=0.08)


def test_a_probability_rises_with_the_score() -> None:
    scores, _ = simulated(0.4)
    fitted = fit(scores)
    values = fitted(0, np.linspace(0.01, 0.999, 200))
    assert (np.diff(values) >= 0).all()
    assert 0 <= values[0] < 0.1
    assert 0.85 < values[-1] <= 1


def test_an_image_that_counts_twice_is_two_images() -> None:
    scores, _ = simulated(0.4, classes=1)
    twice = replace(
        scores,
        annotated=[np.tile(scores.annotated[0], 2)],
        annotated_image=[np.tile(scores.annotated_image[0], 2)],
        unmatched=[np.tile(scores.unmatched[0], 2)],
        unmatched_image=[np.tile(scores.unmatched_image[0], 2)],
    )
    weighted = fit(scores, np.full(IMAGES, 2.0))
    assert weighted.missing == pytest.approx(fit(twice).missing)


def test_a_class_without_annotations_and_one_that_is_not_found() -> None:
    scores, _ = simulated(0.4)
    scores = replace(
        scores,
        annotated=[np.zeros(0), np.zeros(50), scores.annotated[2]],
        annotated_image=[
            np.zeros(0, dtype=np.int64), np.zeros(50, dtype=np.int64), scores.annotated_image[2]
        ],
    )  # fmt: skip
    fitted = fit(scores)
    assert np.isnan(fitted.missing).tolist() == [True, True, False]
    assert not fitted(0, scores.unmatched[0]).any()
    assert not fitted(1, scores.unmatched[1]).any()
    found, low, high = rates(scores, fitted)
    for column in (found, low, high):
        assert np.isnan(column).tolist() == [True, True, False]


def test_nothing_is_detected() -> None:
    scores, _ = simulated(0.4, classes=1)
    nothing = np.zeros(0)
    empty = replace(scores, unmatched=[nothing], unmatched_image=[nothing.astype(np.int64)])
    fitted = fit(empty)
    assert fitted.missing[0] == pytest.approx(0, abs=1)
    assert rates(empty, fitted)[0][0] == pytest.approx(1, abs=0.01)


def test_a_detector_that_has_learnt_nothing() -> None:
    """Its wrong detections score as objects do, and are far more: nothing is proposed."""
    generator = np.random.default_rng(0)
    columns = [sigmoid(generator.normal(-2, 0.3, count)) for count in (40, 9000)]
    images = [generator.integers(IMAGES, size=len(column)) for column in columns]
    scores = HeldOutScores([columns[0]], [images[0]], [columns[1]], [images[1]], IMAGES, LEAST)
    fitted = fit(scores)
    assert np.isnan(fitted.missing[0])
    assert not fitted(0, scores.unmatched[0]).any()
