"""Training by the likelihood of not being annotated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from comining.detectors.dense import DenseDetector
from comining.detectors.losses import focal_loss_sum, unannotated_focal
from comining.errors import ConfigError
from comining.methods.method import RunInfo
from comining.structures import Knowledge
from tests.helpers import batch_of, boxes, detector, method, random_predictions

FORMS = ["fading", "likelihood"]
TRUTH = boxes([(8, 8, 40, 40, 0), (50, 20, 80, 60, 1)], [(10, 5, 30, 35, 1)])


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def ready(names: tuple[str, ...] = ("a", "b", "c"), **options: Any) -> Any:
    chosen = method("annotation_rate", **options)
    data: Any = SimpleNamespace(categories=SimpleNamespace(names=names))
    chosen.prepare(None, data, RunInfo(Path("unused"), torch.device("cpu")))
    return chosen


# -- the loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("probability", [1e-6, 0.01, 0.5, 0.99])
def test_the_loss_of_an_entry(rate: float, probability: float) -> None:
    logit = torch.tensor(probability, dtype=torch.float64).logit()
    annotated = rate * probability
    expected = 0.75 * annotated**2 * -math.log1p(-annotated)
    assert unannotated_focal(logit, rate, 0.25, 2.0).item() == pytest.approx(expected, rel=1e-9)


def test_float32_keeps_the_loss_of_small_probabilities() -> None:
    logits = torch.linspace(-12, 12, 49)
    for rate in (0.01, 0.25, 0.99):
        exact = unannotated_focal(logits.double(), rate, 0.25, 1.0)
        assert torch.allclose(unannotated_focal(logits, rate, 0.25, 1.0).double(), exact, rtol=1e-3)


def test_on_objects_the_loss_is_least_where_the_rate_says() -> None:
    """Of objects that are annotated with a chance of 0.5, by cross-entropy."""
    logits = torch.linspace(-6, 9, 3001, dtype=torch.float64)
    of_annotated = torch.nn.functional.softplus(-logits)
    for rate, best in ((1.0, 0.5), (0.75, 2 / 3), (0.5, 1.0), (0.2, 1.0)):
        of_others = unannotated_focal(logits, rate, 0.0, 0.0)
        least = logits[(0.5 * of_annotated + 0.5 * of_others).argmin()].sigmoid().item()
        assert least == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_sum_and_its_gradient(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3000, 5, generator=generator) * 6
    labels = torch.randint(-1, 6, (2, 3000), generator=generator)
    rate = torch.rand(2, 3000, 5, generator=generator)
    rate[..., 0], rate[..., 1] = 0, 1
    weights = torch.rand(2, 3000, generator=generator)
    positive = (labels >= 0) & (labels < 5)
    own = labels.clamp(0, 4).unsqueeze(-1)
    ones = torch.where(positive.unsqueeze(-1), 1.0, rate.gather(-1, own))
    rate.scatter_(-1, own, ones)

    def by_hand(values: Tensor) -> Tensor:
        target = torch.zeros_like(values).scatter_(-1, own, positive.unsqueeze(-1).double())
        probability = values.sigmoid()
        foreground = 0.25 * (1 - probability) ** gamma * torch.nn.functional.softplus(-values)
        background = unannotated_focal(values, rate.double(), 0.25, gamma)
        counted = ((labels >= 0) * weights).unsqueeze(-1).double()
        return (torch.where(target > 0, foreground, background) * counted).sum()

    ours, exact = (v.clone().requires_grad_() for v in (logits, logits.double()))
    total = focal_loss_sum(ours, labels, 0.25, gamma, weights, rate)
    expected = by_hand(exact)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    expected.backward()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()
    assert torch.allclose(ours.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def test_confident_regions_are_let_go_and_nothing_is_pulled_up() -> None:
    logits = torch.linspace(-15, 15, 301, dtype=torch.float64, requires_grad=True)
    unannotated_focal(logits, 0.25, 0.25, 2.0).sum().backward()
    assert logits.grad is not None
    assert (logits.grad >= 0).all()
    assert logits.grad[-1] < 1e-6 < logits.grad.max()


# -- the method --------------------------------------------------------------------------


def gradient(built: DenseDetector, rule: Any, knowledge: Knowledge | None = None) -> Tensor:
    """The gradient [2, A, 3] of the classification loss on the logits."""
    outputs = random_predictions(built, 2)
    logits = outputs.logits.detach().requires_grad_()
    losses = built.losses(replace(outputs, logits=logits), TRUTH, rule, knowledge)
    (found,) = torch.autograd.grad(losses["classification"], logits)
    return found


def rule_of(chosen: Any) -> Any:
    return lambda regions: chosen.background(regions, batch_of(TRUTH))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_near_an_annotation_is_ordinary(built: DenseDetector, form: str) -> None:
    outputs = random_predictions(built, 2)
    labels = built.assign(outputs, TRUTH).labels
    near = built.overlap(outputs, TRUTH) >= 0.1
    ordinary, found = gradient(built, None), gradient(built, rule_of(ready(form=form)))
    sure = near | (labels != 3)
    assert torch.allclose(found[sure], ordinary[sure], rtol=1e-3, atol=1e-7)
    assert (found[~sure] < ordinary[~sure]).all()
    assert (found[~sure] > 0).all()
    known = gradient(built, rule_of(ready(form=form, rate=1.0)))
    assert torch.allclose(known, ordinary, rtol=1e-3, atol=1e-7)
    everywhere = gradient(built, rule_of(ready(form=form, near_iou=0.0)))
    assert torch.allclose(everywhere, ordinary, rtol=1e-3, atol=1e-7)
    assert not gradient(built, rule_of(ready(form=form, rate=0.0)))[~sure].any()


@pytest.mark.parametrize("form", FORMS)
def test_classes_have_rates_of_their_own(built: DenseDetector, form: str) -> None:
    mixed = gradient(built, rule_of(ready(form=form, rate={"c": 0.1, "a": 0.25, "b": 1.0})))
    for label, rate in enumerate((0.25, 1.0, 0.1)):
        alone = gradient(built, rule_of(ready(form=form, rate=rate)))
        assert torch.equal(mixed[..., label], alone[..., label])


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_background_fades_by_the_probability_of_an_object(
    built: DenseDetector, rate: float
) -> None:
    """Times c (1 - p) ** ((1 - c) / c), which is a factor without a gradient of its own."""
    outputs = random_predictions(built, 2)
    labels = built.assign(outputs, TRUTH).labels
    unsure = (built.overlap(outputs, TRUTH) < 0.1) & (labels == 3)
    ordinary, found = (
        gradient(built, rule) for rule in (None, rule_of(ready(form="fading", rate=rate)))
    )
    factor = rate * (1 - outputs.logits.double().sigmoid()) ** ((1 - rate) / rate)
    expected = ordinary.double() * factor
    assert torch.allclose(found[unsure].double(), expected[unsure], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("rate", [0.0, 1e-30, 0.2, 1.0])
def test_fading_is_finite_whatever_the_logits(built: DenseDetector, rate: float) -> None:
    outputs = random_predictions(built, 2)
    extremes = torch.tensor([-300.0, -100.0, 0.0, 100.0, 300.0])
    logits = extremes[torch.arange(outputs.logits.numel()) % 5].view_as(outputs.logits)
    logits.requires_grad_()
    chosen = rule_of(ready(form="fading", rate=rate))
    losses = built.losses(replace(outputs, logits=logits), TRUTH, chosen)
    (found,) = torch.autograd.grad(losses["classification"], logits)
    assert torch.isfinite(losses["classification"])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_known_comes_first(built: DenseDetector, form: str) -> None:
    nan = math.nan
    rate = torch.tensor([[1, nan, 0], [nan, 0, 1]])
    found = gradient(built, rule_of(ready(form=form)), Knowledge.of(rate, boxes([], []), 0.5))
    doubting, ordinary = gradient(built, rule_of(ready(form=form))), gradient(built, None)
    entries = rate.unsqueeze(1).expand_as(found)
    assert torch.allclose(found[entries == 1], ordinary[entries == 1], rtol=1e-3, atol=1e-7)
    assert torch.equal(found[entries.isnan()], doubting[entries.isnan()])
    own = torch.nn.functional.one_hot(built.assign(random_predictions(built, 2), TRUTH).labels % 4)
    assert not found[(entries == 0) & (own[..., :3] == 0)].any()


def test_a_class_without_a_rate_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method.rate: no rate for the class 'b'"):
        ready(rate={"a": 0.5, "c": 0.5})
    with pytest.raises(ConfigError, match=r"method.rate: 'dog' is not a class of the data"):
        ready(rate={"a": 0.5, "b": 0.5, "c": 0.5, "dog": 0.5})
