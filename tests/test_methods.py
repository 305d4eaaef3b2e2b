"""Who supervises whom, and that mining sends no gradient."""

from typing import Any

import pytest
import torch

from comining.detectors.dense import DenseDetector
from comining.methods.method import Supervision
from comining.structures import DensePredictions
from tests.helpers import assert_equal, batch_of, boxes, detector, images, method

TRUTH = boxes([(8, 8, 40, 40, 0)], [(10, 5, 30, 35, 1), (50, 20, 80, 60, 2)])
BATCH = batch_of(TRUTH)


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def two_views(count: int = 2) -> dict[str, list[torch.Tensor]]:
    noise = images(2 * count)
    return {"original": noise[:count], "augmented": noise[count:]}


def supervise(chosen: Any, built: DenseDetector, outputs: DensePredictions, step: int = 0) -> Any:
    """The supervision of BATCH; none of these methods looks at the images."""
    supervision: Supervision = chosen.supervise(built, outputs, {}, BATCH, step)
    targets = {view: supervision.targets(view, BATCH.annotated) for view in chosen.views}
    return targets, supervision.pseudo_labels, supervision.remaining_counts


def confident(built: DenseDetector, views: int) -> DensePredictions:
    """Every view is sure of one object in each image, each of another: class 0 here, 1 there."""
    with torch.no_grad():
        predictions = built.predict(images(2 * views))
    predictions.logits.fill_(-6)
    predictions.deltas.fill_(2.0 if "centerness" in predictions.auxiliary else 0.0)
    for image in range(2 * views):
        view = image // 2
        centre = torch.tensor([80.0, 8.0]) if view else torch.tensor([64.0, 56.0])
        middle = (predictions.anchors[:, :2] + predictions.anchors[:, 2:]) / 2
        nearest = (middle - centre).square().sum(1).argmin()
        predictions.logits[image, nearest, view] = 4.0
    return predictions


def test_each_view_is_supervised_by_what_the_other_found(built: DenseDetector) -> None:
    predictions = confident(built, 2)
    targets, pseudo_labels, _ = supervise(method("comining"), built, predictions)
    for view, own, other in (("original", 0, 1), ("augmented", 1, 0)):
        for image, of_image in enumerate(targets[view].split()):
            annotated = TRUTH.of_image(image).labels.tolist()
            assert of_image.labels.tolist() == [*annotated, other]
            assert pseudo_labels[view].of_image(image).labels.tolist() == [own]


def test_self_mining_is_supervised_by_what_it_found(built: DenseDetector) -> None:
    chosen = method("self_mining")
    assert chosen.views == ("original",)
    targets, pseudo_labels, _ = supervise(chosen, built, confident(built, 1))
    assert targets["original"].of_image(0).labels.tolist() == [0, 0]
    assert pseudo_labels["original"].of_image(0).labels.tolist() == [0]


def test_two_views_may_mine_for_themselves(built: DenseDetector) -> None:
    chosen = method("comining", exchange=False)
    targets, _, _ = supervise(chosen, built, confident(built, 2))
    assert targets["augmented"].of_image(0).labels.tolist() == [0, 1]


def test_nothing_is_mined_before_the_start_step(built: DenseDetector) -> None:
    chosen = method("comining", start_step=5)
    predictions = confident(built, 2)
    targets, pseudo_labels, remaining = supervise(chosen, built, predictions, step=4)
    assert pseudo_labels == remaining == {}
    assert targets["original"] is TRUTH
    _, pseudo_labels, _ = supervise(chosen, built, predictions, step=5)
    assert pseudo_labels


@pytest.mark.parametrize("name", ["comining", "self_mining"])
def test_without_confident_detections_mining_changes_nothing(
    built: DenseDetector, name: str
) -> None:
    plain = method("joint" if name == "comining" else "original")
    views = two_views()
    expected = plain(built, views, BATCH, 0)
    result = method(name, score_threshold=0.999)(built, views, BATCH, 0)
    assert result.pseudo_labels
    assert all(len(pseudo_labels) == 0 for pseudo_labels in result.pseudo_labels.values())
    assert result.losses.keys() == expected.losses.keys()
    for key, value in result.losses.items():
        assert torch.equal(value, expected.losses[key])


def test_joint_is_the_sum_of_original_and_augmented(built: DenseDetector) -> None:
    """Each branch has its own normaliser, so the branches do not know of each other."""
    views = two_views()
    joint = method("joint")(built, views, BATCH, 0)
    alone = [method(name)(built, views, BATCH, 0) for name in ("original", "augmented")]
    assert joint.losses.keys() == alone[0].losses.keys() | alone[1].losses.keys()
    torch.testing.assert_close(joint.total, alone[0].total + alone[1].total, rtol=1e-4, atol=0)


def test_the_network_runs_once(built: DenseDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    built.net.backbone.register_forward_hook(lambda *_: calls.append(1))
    method("comining")(built, two_views(), BATCH, 0)
    assert len(calls) == 1


def test_mining_sends_no_gradient(built: DenseDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of losses under constant targets."""
    predictions = confident(built, 2)
    leaves = [predictions.logits.requires_grad_(), predictions.deltas.requires_grad_()]
    monkeypatch.setattr(built, "predict", lambda _: predictions)
    chosen = method("comining")
    result = chosen(built, two_views(), BATCH, 0)
    gradient = torch.autograd.grad(result.total, leaves)

    targets, pseudo_labels, _ = supervise(chosen, built, predictions)
    assert sum(map(len, pseudo_labels.values())) == 4
    for view in ("original", "augmented"):
        assert not targets[view].boxes.requires_grad
        assert not pseudo_labels[view].known_scores.requires_grad
    halves = dict(zip(chosen.views, predictions.split(2)))
    total = torch.stack(
        [
            loss
            for view, half in halves.items()
            for loss in built.losses(half, targets[view]).values()
        ]
    ).sum()
    for mine, expected in zip(gradient, torch.autograd.grad(total, leaves)):
        assert torch.equal(mine, expected)


def test_a_pseudo_label_trains_like_an_annotation(built: DenseDetector) -> None:
    """Classification, box and (FCOS) centerness alike, low-quality matches included."""
    predictions = confident(built, 2)
    chosen = method("comining")
    targets, pseudo_labels, _ = supervise(chosen, built, predictions)
    (left, top, right, bottom), *others = pseudo_labels["augmented"].of_image(0).boxes.tolist()
    assert not others
    by_hand = boxes([(8, 8, 40, 40, 0), (left, top, right, bottom, 1)])
    half = predictions.split(2)[0].split(1)[0]
    first = targets["original"].of_image(0)
    assert_equal(first, by_hand)
    ours = built.assign(half, first)
    assert torch.equal(ours.labels, built.assign(half, by_hand).labels)
    without = built.assign(half, TRUTH.of_image(0))
    assert ours.positive.sum() > without.positive.sum()


@pytest.mark.parametrize("empty", ["some", "all"])
@pytest.mark.parametrize("name", ["original", "joint", "comining", "self_mining"])
def test_images_without_annotations_train(built: DenseDetector, name: str, empty: str) -> None:
    truth = TRUTH[TRUTH.image == (1 if empty == "some" else -1)]
    assert truth.counts == [0, 2 if empty == "some" else 0]
    result = method(name)(built, two_views(), batch_of(truth), 0)
    result.total.backward()
    gradients = [p.grad for p in built.net.head.parameters() if p.grad is not None]
    assert torch.isfinite(result.total)
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score_threshold": 1.5}, "method.score_threshold=1.5 must be a number from 0 to 1"),
        ({"overlap_threshold": -0.1}, "method.overlap_threshold=-0.1 must be"),
        ({"start_step": -1}, "method.start_step=-1 must be a whole number of at least 0"),
        ({"views": ["original"]}, "exchange=true needs two views"),
        ({"views": []}, "method.views"),
        ({"views": ["original", "original"]}, "method.views"),
        ({"views": ["original", "sideways"]}, r"method.views\[1\]='sideways' must be one of"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        method("comining", **options)
