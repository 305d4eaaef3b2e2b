"""How much is annotated, estimated by annotations that are held back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comining.methods.rate_estimator import (
    BINS,
    PRIOR_SPIES,
    RateEstimate,
    RateEstimator,
    best_scores,
    estimate_rate,
)
from comining.structures import Boxes
from tests.helpers import batch_of, boxes


def counts_of(scores: np.ndarray[Any, Any]) -> Tensor:
    """[1, BINS] of scores from 0 to 1."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return torch.from_numpy(np.bincount(bins, minlength=BINS)).double()[None]


def simulated(
    objects: int, rate: float, held_back: float, wrong: int, seed: int, visits: int = 5
) -> RateEstimate:
    """The estimate of one class whose objects score by chance, some not at all."""
    generator = np.random.default_rng(seed)
    annotated = round(objects * rate)
    spies = int(annotated * held_back)
    # What an object scores is its own, but for a little at each visit.
    ease = generator.beta(2, 1.5, objects - annotated + spies) - 0.1

    def visit(of: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.clip(of + generator.normal(0, 0.05, len(of)), 0, 0.999)

    seen = np.concatenate([visit(ease[:spies]) for _ in range(visits)])
    unknown = np.concatenate([visit(ease) for _ in range(visits)])
    noise = generator.beta(1, 6, wrong * visits)
    found = unknown[unknown > 0.02]
    return estimate_rate(
        counts_of(seen),
        torch.zeros(1, BINS, dtype=torch.float64),
        counts_of(np.concatenate([found, noise])) / visits,
        torch.tensor([annotated]).double(),
        torch.tensor([spies]).double(),
    )


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.75])
def test_the_rate_is_found(rate: float) -> None:
    errors = []
    for seed in range(20):
        found = simulated(round(600 / rate), rate, 0.15, wrong=800, seed=seed)
        errors.append(found.rate.item() / rate - 1)
        assert found.low.item() <= found.rate.item() <= found.high.item()
    assert abs(np.mean(errors)) < 0.1
    assert np.quantile(np.abs(errors), 0.9) < 0.25


def test_the_interval_holds_the_rate() -> None:
    inside = 0
    for seed in range(40):
        found = simulated(1500, 0.4, 0.15, wrong=300, seed=seed)
        inside += found.low.item() <= 0.4 <= found.high.item()
    assert inside >= 32


def test_wrong_detections_make_the_rate_lower() -> None:
    rates = [simulated(1500, 0.4, 0.2, wrong, seed=3).rate.item() for wrong in (0, 3000, 30000)]
    assert rates[0] > rates[2]
    assert rates[2] < 0.42


def test_a_complete_set_has_a_rate_of_1() -> None:
    assert simulated(1000, 1.0, 0.15, wrong=0, seed=0).rate.item() == pytest.approx(1, abs=0.05)


def test_nothing_to_go_by() -> None:
    nothing = torch.zeros(2, BINS, dtype=torch.float64)
    found = estimate_rate(nothing, nothing, nothing, torch.tensor([5.0, 0.0]), torch.zeros(2))
    assert found.rate.isnan().all()
    assert found.low.isnan().all()
    # Spies, of which none is ever found.
    spies = nothing.clone()
    spies[:, 0] = 9
    counts = torch.tensor([50.0, 50.0]), torch.tensor([5.0, 5.0])
    missed = estimate_rate(spies, nothing, nothing, *counts)
    assert missed.rate.isnan().all()


def test_a_class_of_few_spies_borrows_from_the_others() -> None:
    """What a single spy did says little: its class is taken for one like the others."""
    spies = torch.zeros(2, BINS, dtype=torch.float64)
    spies[0, 40], spies[0, 0] = 50, 50  # of 100, half are found
    spies[1, 0] = 1  # one, which is not
    unmatched = torch.zeros(2, BINS, dtype=torch.float64)
    unmatched[0, 40], unmatched[1, 40] = 250, 25
    annotated, num_spies = torch.tensor([500.0, 50.0]), torch.tensor([100.0, 1.0])
    nothing = torch.zeros_like(spies)
    found = estimate_rate(spies, nothing, unmatched, annotated.double(), num_spies.double())
    assert found.rate[0].item() == pytest.approx(500 / (500 + 400), rel=0.02)
    assert 0.4 < found.rate[1].item() < 0.6
    width = found.high - found.low
    assert width[1] > width[0]


def test_a_class_of_few_spies_is_known_by_its_annotated_objects() -> None:
    """Annotated objects of the one class are found twice as often as its many spies.

    Of the other class 0.4 are found, so that a spy is taken to be found with 0.2.
    """
    tables = {name: torch.zeros(2, BINS, dtype=torch.float64) for name in ("s", "a", "u")}
    tables["s"][0, 40], tables["s"][0, 0] = 4e6, 6e6
    tables["a"][0, 40], tables["a"][0, 0] = 8e6, 2e6
    tables["s"][1, 40] = 1
    tables["a"][1, 40], tables["a"][1, 0] = 400, 600
    tables["u"][0, 40], tables["u"][1, 40] = 4000, 200
    num_spies = torch.tensor([10000.0, 1.0]).double()
    found = estimate_rate(*tables.values(), torch.tensor([50000.0, 1000.0]).double(), num_spies)
    recall = (1 + PRIOR_SPIES * 0.2) / (1 + PRIOR_SPIES)
    assert found.rate[1].item() == pytest.approx(1000 / (1000 + 200 / recall - 1), rel=0.02)


# -- counting ----------------------------------------------------------------------------


def test_the_best_detection_of_the_class_finds_an_object() -> None:
    objects = boxes([(0, 0, 10, 10, 0), (30, 30, 40, 40, 1)], [], [(0, 0, 10, 10, 2)])
    detections = boxes(
        [(0, 0, 10, 11, 0, 0.4), (1, 0, 10, 10, 0, 0.7), (0, 0, 10, 10, 1, 0.9)],
        [(30, 30, 40, 40, 1, 0.8)],
        [(0, 0, 10, 2, 2, 0.9)],
    )
    assert best_scores(objects, detections).tolist() == pytest.approx([0.7, 0, 0])
    assert best_scores(objects, Boxes.empty(3, scores=True)).tolist() == [0, 0, 0]
    assert best_scores(boxes([], [], []), detections).tolist() == []


class Detecting:
    """A detector that says what it was told to."""

    def __init__(self, found: Boxes):
        self.found = found

    def candidates(self, predictions: Any, threshold: float) -> Boxes:
        return self.found[self.found.known_scores > threshold]


class Said:
    num_classes = 3
    image_sizes = ((64, 96), (64, 96))


def test_what_belongs_to_no_annotation_is_counted() -> None:
    annotated = boxes([(0, 0, 20, 20, 0)], [])
    held_back = boxes([(40, 0, 60, 20, 1)], [(0, 0, 20, 20, 0)])
    found = boxes(
        [
            (1, 0, 21, 20, 0, 0.9),  # of the annotation
            (5, 0, 25, 20, 1, 0.8),  # of the annotation, by another class
            (40, 0, 60, 21, 1, 0.61),  # the spy
            (70, 40, 90, 60, 2, 0.33),
            (70, 20, 90, 30, 2, 0.05),  # too low
        ],
        [],
    )
    batch: Any = replace(batch_of(annotated), held_back=held_back)
    estimator = RateEstimator(3)
    for _ in range(2):
        estimator.observe(Detecting(found), Said(), batch)  # type: ignore[arg-type]
    assert estimator.images.item() == 4
    expected = torch.zeros(3, BINS, dtype=torch.float64)
    expected[1, 30], expected[2, 16] = 2, 2
    assert torch.equal(estimator.unmatched, expected)
    spies = torch.zeros(3, BINS, dtype=torch.float64)
    spies[1, 30], spies[0, 0] = 2, 2
    assert torch.equal(estimator.spies, spies)
    trained = torch.zeros(3, BINS, dtype=torch.float64)
    trained[0, 45] = 2
    assert torch.equal(estimator.annotated, trained)
    again = RateEstimator(3)
    again.load_state_dict(estimator.state_dict())
    columns = (torch.tensor([5.0, 9, 0]), torch.tensor([1.0, 1, 0]), 2)
    assert str(again.estimate(*columns)) == str(estimator.estimate(*columns))
