"""What is known of images and classes, in losses and in mining: by hand, and for every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comining.config import CONFIG_FOLDER
from comining.detectors.dense import DenseDetector
from comining.methods.known import drop_known
from comining.methods.method import RunInfo
from comining.structures import Batch, Boxes, DensePredictions, Images, Knowledge
from tests.helpers import assert_equal, batch_of, boxes, detector, images, method
from tests.helpers import random_predictions as random_outputs

# sparsedet is for two stages, see test_two_stage_methods.py.
METHODS = sorted({path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml")} - {"sparsedet"})
MINING = ("comining", "self_mining", "mean_teacher", "pseudo_label")
NAN = float("nan")
# Three images, the last without annotations.
TRUTH = boxes(
    [(8, 8, 40, 40, 0), (50, 20, 80, 60, 1)], [(10, 5, 30, 35, 1), (50, 20, 80, 60, 2)], []
)


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def known(rate: list[list[float]], ignored: Boxes | None = None, overlap: float = 0.5) -> Knowledge:
    """Knowledge of images from their rates [B, 3] and regions."""
    regions = Boxes.empty(len(rate)) if ignored is None else ignored
    return Knowledge.of(torch.tensor(rate), regions, overlap)


def unknown(ignored: Boxes, overlap: float = 0.5) -> Knowledge:
    """Nothing but regions to ignore."""
    return known([[NAN] * 3] * ignored.num_images, ignored, overlap)


def gradient(
    built: DenseDetector, outputs: DensePredictions, knowledge: Knowledge | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses under TRUTH, and the gradient [B, A, K] of their sum on the logits."""
    logits = outputs.logits.detach().requires_grad_()
    losses = built.losses(replace(outputs, logits=logits), TRUTH, None, knowledge)
    total = torch.stack(list(losses.values())).sum()
    (of_logits,) = torch.autograd.grad(total, logits)
    return losses, of_logits


def own_entries(built: DenseDetector, outputs: DensePredictions, targets: Boxes) -> Tensor:
    """[B, A, K] the classes that anchors are trained to."""
    labels = built.assign(outputs, targets).labels
    return labels.unsqueeze(-1) == torch.arange(outputs.num_classes)


def shares(anchors: Tensor, region: list[float]) -> np.ndarray[Any, Any]:
    """[A] which share of each anchor lies in a region, side by side."""
    left, top, right, bottom = anchors.double().numpy().T
    width = np.clip(np.minimum(right, region[2]) - np.maximum(left, region[0]), 0, None)
    height = np.clip(np.minimum(bottom, region[3]) - np.maximum(top, region[1]), 0, None)
    share: np.ndarray[Any, Any] = width * height / ((right - left) * (bottom - top))
    return share


def silent_by_hand(
    built: DenseDetector, outputs: DensePredictions, knowledge: Knowledge, targets: Boxes
) -> Tensor:
    """[B, A, K] the entries without loss, image by image and region by region."""
    silent = torch.zeros_like(outputs.logits, dtype=torch.bool)
    for image in range(len(outputs)):
        for label in range(outputs.num_classes):
            silent[image, :, label] = bool(knowledge.rate[image, label] == 0)
        regions = knowledge.ignored.of_image(image)
        for region, label in zip(regions.boxes.tolist(), regions.labels.tolist(), strict=True):
            inside = torch.from_numpy(shares(outputs.anchors, region) > knowledge.overlap)
            of_classes = slice(None) if label == -1 else slice(label, label + 1)
            silent[image, inside, of_classes] = True
    return silent & ~own_entries(built, outputs, targets)


def assert_silent_there_and_ordinary_elsewhere(
    built: DenseDetector, knowledge: Knowledge
) -> Tensor:
    """Returns which entries are silent."""
    outputs = random_outputs(built, 3)
    silent = silent_by_hand(built, outputs, knowledge, TRUTH)
    plain, ordinary = gradient(built, outputs, None)
    losses, with_knowledge = gradient(built, outputs, knowledge)
    assert silent.any()
    judged = (built.assign(outputs, TRUTH).labels >= 0).unsqueeze(-1)
    assert ordinary[silent & judged].all()  # they had one
    assert not with_knowledge[silent].any()
    # To the last bit, so that the normaliser is the same, too.
    assert torch.equal(with_knowledge[~silent], ordinary[~silent])
    assert losses.keys() == plain.keys()
    for name in losses.keys() - {"classification"}:
        assert torch.equal(losses[name], plain[name])
    assert losses["classification"] < plain["classification"]
    return silent


# -- losses, by hand ---------------------------------------------------------------------


def test_nothing_known_changes_nothing_to_the_last_bit(built: DenseDetector) -> None:
    outputs = random_outputs(built, 3)
    plain, expected = gradient(built, outputs, None)
    # Complete classes are ordinary where the method says nothing.
    for rate in (NAN, 1.0):
        losses, found = gradient(built, outputs, known([[rate] * 3] * 3))
        assert all(torch.equal(losses[name], plain[name]) for name in plain)
        assert torch.equal(found, expected)
    empty = Knowledge.nothing(3, 3)
    losses, found = gradient(built, outputs, empty)
    assert all(torch.equal(losses[name], plain[name]) for name in plain)


def test_a_class_nobody_looked_for_has_no_background(built: DenseDetector) -> None:
    """Image by image; neither at positives of other classes."""
    knowledge = known([[NAN, 0, NAN], [0, 1, NAN], [NAN, NAN, 0]])
    silent = assert_silent_there_and_ordinary_elsewhere(built, knowledge)
    positive = built.assign(random_outputs(built, 3), TRUTH).positive
    assert (silent[0, :, 1] & positive[0]).any()  # at objects of class 0
    assert not silent[..., 0][0].any()


def test_where_classes_exclude_each_other_objects_are_background_of_the_others(
    built: DenseDetector,
) -> None:
    knowledge = replace(known([[1, 0, NAN], [0, NAN, 0], [NAN, NAN, NAN]]), exclusive=True)
    outputs = random_outputs(built, 3)
    positive = built.assign(outputs, TRUTH).positive
    _, ordinary = gradient(built, outputs, None)
    _, with_knowledge = gradient(built, outputs, knowledge)
    assert positive[:2].any(dim=1).all()
    assert torch.equal(with_knowledge[positive], ordinary[positive])
    silent = (knowledge.rate == 0).unsqueeze(1) & ~positive.unsqueeze(-1)
    assert not with_knowledge[silent].any()
    assert torch.equal(with_knowledge[~silent], ordinary[~silent])


def test_objects_of_a_class_nobody_looked_for_are_learned(built: DenseDetector) -> None:
    """Somebody annotated one in passing, or it was mined."""
    outputs = random_outputs(built, 3)
    _, found = gradient(built, outputs, known([[0, 0, 0]] * 3))
    own = own_entries(built, outputs, TRUTH)
    assert own.any()
    assert found[own].all()
    assert not found[~own].any()


@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.9])
def test_ignored_regions_have_no_loss(built: DenseDetector, overlap: float) -> None:
    """Of a class, of all classes, several, over objects; in their own image only."""
    regions = boxes(
        [(0, 0, 60, 50, 1)], [(5, 3, 90, 60, -1)], [(0, 0, 40, 64, 2), (30, 0, 96, 64, 0)]
    )
    silent = assert_silent_there_and_ordinary_elsewhere(built, unknown(regions, overlap))
    assert silent[0, :, 1].any()
    assert not silent[0][:, [0, 2]].any()
    assert silent[1].all(dim=-1).any()
    assert silent[2, :, 2].any()
    assert silent[2, :, 0].any()
    assert not silent[2, :, 1].any()


def test_both_kinds_of_knowledge_together(built: DenseDetector) -> None:
    regions = boxes([(0, 0, 60, 50, -1)], [], [(0, 0, 40, 64, 0)])
    knowledge = known([[0, NAN, 1], [1, 1, 0], [1, 0, NAN]], regions)
    assert_silent_there_and_ordinary_elsewhere(built, knowledge)


def test_more_than_the_share_must_lie_in_the_region(built: DenseDetector) -> None:
    """An anchor that is halfway in is trained, one a little further in is not."""
    outputs = random_outputs(built, 3)
    # One of 16 px that lies inside of the image; its corners are exact in float32.
    sides = outputs.anchors[:, 2:] - outputs.anchors[:, :2]
    inside = (outputs.anchors[:, 0] > 0) & (outputs.anchors[:, 2] < 96)
    square = (sides[:, 0] == sides[:, 1]) & (sides[:, 0] == sides[:, 0].floor())
    anchor = int((inside & square).nonzero()[0])
    left, top, right, bottom = outputs.anchors[anchor].tolist()
    middle = (left + right) / 2
    for end, silent in ((middle, False), (middle + 0.01, True)):
        region = boxes([], [], [(left, top - 1, end, bottom + 1, 0)])
        _, found = gradient(built, outputs, unknown(region))
        assert bool((found[2, anchor] == 0)[0]) == silent
        assert found[2, anchor, 1:].all()


def test_a_share_of_one_ignores_nothing(built: DenseDetector) -> None:
    """As the authors' code trains: anchors in crowds are background."""
    outputs = random_outputs(built, 3)
    everywhere = boxes(*[[(-99, -99, 999, 999, -1)]] * 3)
    _, expected = gradient(built, outputs, None)
    _, found = gradient(built, outputs, unknown(everywhere, overlap=1.0))
    assert torch.equal(found, expected)


def test_without_any_loss_all_gradients_are_finite(built: DenseDetector) -> None:
    outputs = built.predict(images(2))
    everywhere = boxes(*[[(-99, -99, 999, 999, -1)]] * 2)
    for knowledge in (known([[0, 0, 0]] * 2), unknown(everywhere)):
        losses = built.losses(outputs, boxes([], []), None, knowledge)
        total = torch.stack(list(losses.values())).sum()
        assert total.item() == pytest.approx(0, abs=1e-12)
        total.backward(retain_graph=True)
    for parameter in built.net.head.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


# -- every method ------------------------------------------------------------------------


def ready(name: str, built: DenseDetector) -> Any:
    """A method that has been prepared, and finds something in noise."""
    options: dict[str, Any] = {"score_threshold": 0.008} if name in MINING else {}
    if name == "part_aware":
        options["hierarchy"] = {"a": ["c"], "b": ["c"]}
    if name == "pseudo_label":
        return method(name, use="ignore", **options)
    chosen = method(name, **options)
    data: Any = SimpleNamespace(categories=SimpleNamespace(names=("a", "b", "c")))
    chosen.prepare(built, data, RunInfo(Path("unused"), torch.device("cpu")))
    return chosen


def batch_with(knowledge: Knowledge) -> Batch:
    found = boxes([(60, 2, 90, 40, 2, 0.9)], [(20, 20, 60, 60, 0, 0.8)], [(1, 1, 40, 40, 1, 0.7)])
    shown = Images.of(images(3))
    return replace(batch_of(TRUTH, pseudo_labels=found), knowledge=knowledge, images=shown)


def views_of(chosen: Any, count: int = 3) -> dict[str, list[Tensor]]:
    noise = images(2 * count)
    views = {"original": noise[:count], "augmented": noise[count:]}
    views |= chosen.own_views(noise[:count], batch_with(Knowledge.nothing(3, 3)))
    wanted = {"original", *chosen.views, *chosen.mined_views}
    return {view: shown for view, shown in views.items() if view in wanted}


def losses_of(chosen: Any, built: DenseDetector, knowledge: Knowledge) -> dict[str, Tensor]:
    result = chosen(built, views_of(chosen), batch_with(knowledge), 10**6)
    losses: dict[str, Tensor] = result.losses
    return losses


# These train on views of their own, which no other method has.
OWN_VIEWS = ("costudent", "calibrated_teacher")


@pytest.mark.parametrize("name", sorted({*METHODS} - {*OWN_VIEWS}))
def test_where_all_is_complete_every_method_is_ordinary(built: DenseDetector, name: str) -> None:
    """Nothing is mined, and no background is doubted."""
    chosen = ready(name, built)
    plain = {("original",): "original", ("augmented",): "augmented"}.get(chosen.views, "joint")
    nothing = Knowledge.nothing(3, 3)
    expected = losses_of(ready(plain, built), built, nothing)
    found = losses_of(chosen, built, known([[1, 1, 1]] * 3))
    for key, loss in found.items():
        assert torch.equal(loss, expected.get(key, torch.zeros(()))), key
    assert found.keys() >= expected.keys()
    if name not in ("original", "augmented", "joint"):  # which it would not be otherwise
        before = losses_of(chosen, built, nothing)
        assert any(not torch.equal(before[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_trains_an_entry_without_loss(
    built: DenseDetector, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ready(name, built)
    regions = boxes([(0, 0, 96, 64, 1)], [(40, 10, 96, 64, -1)], [])
    knowledge = known([[0, NAN, 1], [1, NAN, 0], [NAN, 0, NAN]], regions)
    batch, views = batch_with(knowledge), views_of(chosen)
    outputs = built.predict([image for view in chosen.views for image in views[view]])
    outputs.logits = outputs.logits.detach().requires_grad_()
    supervision = chosen.supervise_unknown(built, outputs.detach(), views, batch, 10**6)
    # The teacher of mean_teacher is a copy with a predict of its own.
    monkeypatch.setattr(built, "predict", lambda _: outputs)
    total = chosen(built, views, batch, 10**6).total
    (found,) = torch.autograd.grad(total, outputs.logits)
    for view, branch, of_view in zip(chosen.views, outputs.split(3), found.split(3), strict=True):
        seen, targets = chosen.seen_in(view, batch, supervision.targets(view, TRUTH))
        silent = silent_by_hand(built, branch, seen.knowledge, targets)
        assert silent.any()
        assert not of_view[silent].any()
        assert of_view.any()


DOUBTING = ("background_recalibration", "soft_sampling", "part_aware", "pseudo_label")


@pytest.mark.parametrize("name", DOUBTING)
def test_a_complete_class_is_ordinary_beside_others(built: DenseDetector, name: str) -> None:
    """Whatever the method says of background: in the images where the class is complete."""
    chosen = ready(name, built)
    rate = [[NAN, NAN, 1], [1, NAN, NAN], [NAN, 1, NAN]]
    batch = batch_with(known(rate))
    outputs = random_outputs(built, 3)
    _, ordinary = gradient(built, outputs, None)

    def gradient_of(knowledge: Knowledge) -> Tensor:
        logits = outputs.logits.detach().requires_grad_()
        rule = lambda regions: chosen.background(regions, batch)  # noqa: E731
        losses = built.losses(replace(outputs, logits=logits), TRUTH, rule, knowledge)
        (found,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), logits)
        return found

    found, doubting = gradient_of(known(rate)), gradient_of(Knowledge.nothing(3, 3))
    complete = (torch.tensor(rate) == 1).unsqueeze(1).expand_as(found)
    assert torch.equal(found[complete], ordinary[complete])
    assert torch.equal(found[~complete], doubting[~complete])
    assert not torch.equal(doubting[complete], ordinary[complete])


# -- mining ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MINING)
def test_mining_adds_nothing_where_all_is_complete(built: DenseDetector, name: str) -> None:
    chosen = ready(name, built)
    views = views_of(chosen)
    outputs = built.predict([image for view in chosen.views for image in views[view]])

    def supervise(knowledge: Knowledge) -> Any:
        return chosen.supervise_unknown(built, outputs, views, batch_with(knowledge), 10**6)

    before = supervise(Knowledge.nothing(3, 3))
    assert all(len(found) for found in before.pseudo_labels.values())
    for knowledge in (known([[1, 1, 1]] * 3), unknown(boxes(*[[(-99, -99, 999, 999, -1)]] * 3))):
        after = supervise(knowledge)
        assert after.pseudo_labels.keys() == before.pseudo_labels.keys()
        assert not any(len(found) for found in after.pseudo_labels.values())
        for view in chosen.views:
            assert_equal(after.targets(view, TRUTH), TRUTH)
        for view, remaining in after.remaining_counts.items():
            assert not remaining[:, -1].any()
            assert torch.equal(remaining[:, :-1], before.remaining_counts[view][:, :-1])


@pytest.mark.parametrize("name", MINING)
def test_figures_of_mining_agree_with_what_is_added(built: DenseDetector, name: str) -> None:
    """Class by class and image by image; classes nobody looked for are mined like others."""
    chosen = ready(name, built)
    views = views_of(chosen)
    outputs = built.predict([image for view in chosen.views for image in views[view]])
    before = chosen.supervise_unknown(
        built, outputs, views, batch_with(Knowledge.nothing(3, 3)), 10**6
    )
    rate = torch.tensor([[1, 0, 0], [0, 0, NAN], [NAN, 1, 1]])
    batch = batch_with(known(rate.tolist()))
    after = chosen.supervise_unknown(built, outputs, views, batch, 10**6)
    kept = dropped = 0
    for view, found in before.pseudo_labels.items():
        stays = rate[found.image, found.labels] != 1
        kept, dropped = kept + int(stays.sum()), dropped + int((~stays).sum())
        assert_equal(after.pseudo_labels[view], found[stays])
        if after.remaining_counts:
            counts = after.remaining_counts[view]
            assert counts[:, -1].tolist() == after.pseudo_labels[view].counts
            assert (counts.diff(dim=1) <= 0).all()
    assert kept
    assert dropped
    for view in after.added:
        new = after.targets(view, TRUTH)
        assert len(new) == len(TRUTH) + len(after.added[view])
        assert (rate[after.added[view].image, after.added[view].labels] != 1).all()


def test_boxes_in_a_region_are_not_mined() -> None:
    """More than the share of the box, of its class or of all, in its image."""
    found = boxes(
        [
            (0, 0, 10, 10, 0, 0.9),  # half of it lies in the region: not more
            (0, 0, 9, 10, 0, 0.9),  # 5 of 9
            (0, 0, 9, 10, 1, 0.9),  # of another class
            (40, 40, 50, 50, 2, 0.9),  # in that for all classes
            (40, 40, 50, 50, 0, 0.9),
        ],
        [(0, 0, 9, 10, 0, 0.9)],  # of another image
        [],
    )
    regions = boxes([(0, 0, 5, 20, 0), (30, 30, 60, 60, -1)], [(0, 0, 9, 10, 1)], [])
    kept = drop_known(found, unknown(regions))
    rows = torch.tensor([True, False, True, False, False, True])
    assert_equal(kept, found[rows])
    assert len(drop_known(found, unknown(regions, overlap=0.6))) == 4
    assert len(drop_known(found, unknown(regions, overlap=1.0))) == 6
    assert len(drop_known(boxes([], [], [], scores=True), unknown(regions))) == 0
