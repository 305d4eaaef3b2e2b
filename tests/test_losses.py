"""Losses against torchvision's and against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from comining.detectors import losses
from comining.detectors.losses import (
    centerness_target,
    focal_background,
    focal_foreground,
    focal_loss_sum,
    giou_loss,
    normalizer,
)


def one_hot_focal(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """torchvision's focal loss with the one-hot target that ours avoids."""
    classes = logits.shape[-1]
    wanted = torch.nn.functional.one_hot(labels.clamp(min=0), classes + 1)[..., :classes]
    loss = sigmoid_focal_loss(logits, wanted.to(logits.dtype), alpha=0.25, gamma=2)
    if weights is not None:
        loss = loss * (weights if weights.dim() == 3 else weights.unsqueeze(-1))
    return loss[labels >= 0].sum()


def test_focal_terms_by_hand() -> None:
    logit = torch.tensor(math.log(4.0))  # probability 0.8
    assert focal_background(logit, 0.25, 2).item() == pytest.approx(0.75 * 0.64 * -math.log(0.2))
    assert focal_foreground(logit, 0.25, 2).item() == pytest.approx(0.25 * 0.04 * -math.log(0.8))


@pytest.mark.parametrize("weighted", [None, "anchor", "class"])
def test_focal_loss_and_gradient_equal_torchvision(weighted: str | None) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 300, 7, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.randint(-1, 8, (2, 300))
    weights = {
        None: None,
        "anchor": torch.rand(2, 300, dtype=torch.float64),
        "class": torch.rand(2, 300, 7, dtype=torch.float64),
    }[weighted]
    ours, theirs = (
        focal_loss_sum(logits, labels, 0.25, 2, weights),
        one_hot_focal(logits, labels, weights),
    )
    torch.testing.assert_close(ours, theirs)
    for mine, its in zip(
        torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True
    ):
        torch.testing.assert_close(mine, its)


def plain_focal(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The formula as autograd sees it, on the whole map at once."""
    factor = (labels >= 0).unsqueeze(-1).to(logits.dtype)
    if weights is not None:
        factor = factor * (weights if weights.dim() == 3 else weights.unsqueeze(-1))
    background = (focal_background(logits, 0.25, 2.0) * factor).sum()
    entry = labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)
    true = logits.gather(-1, entry)
    exchange = focal_foreground(true, 0.25, 2.0) - focal_background(true, 0.25, 2.0)
    positive = (labels >= 0) & (labels < logits.shape[-1])
    chosen = factor.expand_as(logits).gather(-1, entry) * positive.unsqueeze(-1)
    return background + (exchange * chosen).sum()


@pytest.mark.parametrize("part", [1, 2000, 2**16])
@pytest.mark.parametrize("weighted", [None, "anchor", "class"])
def test_working_in_parts_changes_no_gradient(
    weighted: str | None, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training depends on gradients alone: a run is the same to the last bit."""
    monkeypatch.setattr(losses, "PART", {"cpu": part})
    torch.manual_seed(0)
    logits = (torch.randn(3, 320, 6) * 3 - 2).requires_grad_()
    labels = torch.randint(-1, 7, (3, 320))
    weights = {None: None, "anchor": torch.rand(3, 320), "class": torch.rand(3, 320, 6)}[weighted]
    ours = focal_loss_sum(logits, labels, 0.25, 2.0, weights)
    plain = plain_focal(logits, labels, weights)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    mine, its = (torch.autograd.grad(loss / 37, logits)[0] for loss in (ours, plain))
    assert torch.equal(mine, its)


def test_a_part_of_a_larger_map_is_worked_on_where_it_lies() -> None:
    """The views of a forward are slices, and a head may lay its output out otherwise."""
    torch.manual_seed(0)
    whole = torch.randn(4, 3, 130).requires_grad_()
    view = whole.transpose(1, 2)[2:]
    labels = torch.randint(-1, 4, (2, 130))
    losses_of_both = [
        focal_loss_sum(view, labels, 0.25, 2.0),
        plain_focal(view.contiguous(), labels, None),
    ]
    gradients = [torch.autograd.grad(loss, whole)[0] for loss in losses_of_both]
    assert gradients[0][:2].abs().sum() == 0
    torch.testing.assert_close(*gradients)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[-1e4, 1e4]]], requires_grad=True)
    for label in (0, 1, 2):
        loss = focal_loss_sum(logits, torch.tensor([[label]]), 0.25, 2)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_ignored_anchors_have_neither_loss_nor_gradient() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = focal_loss_sum(logits, torch.tensor([[-1, 3]]), 0.25, 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().sum() == 0
    assert logits.grad[0, 1].abs().sum() > 0


def test_giou_equals_torchvision_and_smoothing_softens_small_boxes() -> None:
    torch.manual_seed(0)
    prediction, target = torch.rand(50, 4) * 20 + 0.5, torch.rand(50, 4) * 20 + 0.5
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    expected = generalized_box_iou_loss(prediction * sign, target * sign)
    torch.testing.assert_close(giou_loss(prediction, target, 0.0), expected)
    assert (giou_loss(prediction, target, 1.0) < expected).all()
    assert giou_loss(target, target, 0.0).abs().max() < 1e-6


def test_giou_of_an_empty_prediction_has_a_finite_gradient() -> None:
    """FCOS predicts relu(x): all four distances may be zero."""
    prediction = torch.zeros(1, 4, requires_grad=True)
    loss = giou_loss(prediction, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 0.0)
    loss.sum().backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


def test_centerness_by_hand() -> None:
    distances = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 4.0, 2.0], [1.0, 1.0, 4.0, 9.0]])
    expected = [1.0, 0.5, 1 / 6]
    assert centerness_target(distances).tolist() == pytest.approx(expected)


def test_normalizer_without_other_processes_is_the_clamped_amount() -> None:
    assert normalizer(torch.tensor(0.0), 1.0).item() == 1
    assert normalizer(torch.tensor(7.0), 1.0).item() == 7


ANY_LOGITS = (-200.0, -100.0, 0.0, 100.0, 200.0)


def gradient_in_float64(logits: Tensor, alpha: float, gamma: float, *, foreground: bool) -> Tensor:
    """Of the formula of the paper, element by element."""
    leaf = logits.detach().double().requires_grad_()
    wrong = -leaf if foreground else leaf
    weight = alpha if foreground else 1 - alpha
    loss = weight * wrong.sigmoid() ** gamma * torch.nn.functional.softplus(wrong)
    return torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("foreground", [False, True])
def test_gradients_of_focal_terms_are_finite_at_any_logit(foreground: bool, gamma: float) -> None:
    logits = torch.tensor(ANY_LOGITS, requires_grad=True)
    focal = focal_foreground if foreground else focal_background
    (mine,) = torch.autograd.grad(focal(logits, 0.25, gamma).sum(), logits)
    expected = gradient_in_float64(logits, 0.25, gamma, foreground=foreground)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(mine.double(), expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, 1, 2, -1])
def test_gradients_of_the_focal_loss_are_finite_at_any_logit(label: int, gamma: float) -> None:
    """With gamma 0 it is the cross-entropy, weighted by alpha."""
    grid = torch.cartesian_prod(torch.tensor(ANY_LOGITS), torch.tensor(ANY_LOGITS))
    logits = grid.unsqueeze(0).requires_grad_()  # [1, 25, 2]
    loss = focal_loss_sum(logits, torch.full((1, 25), label), 0.25, gamma)
    (mine,) = torch.autograd.grad(loss, logits)
    expected = gradient_in_float64(logits, 0.25, gamma, foreground=False)
    if label == -1:
        expected.zero_()
    elif label < 2:
        true = gradient_in_float64(logits, 0.25, gamma, foreground=True)
        expected[..., label] = true[..., label]
    assert torch.isfinite(expected).all()
    assert torch.isfinite(loss)
    # The entry of the true class is exchanged: what is added and taken away rounds.
    torch.testing.assert_close(mine.double(), expected, rtol=1e-6, atol=1e-6)
