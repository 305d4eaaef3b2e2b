"""Who supervises whom, and that mining sends no gradient."""

from typing import Any

import pytest
import torch

from comining.detectors.dense import DenseDetector
from comining.structures import DensePredictions, Targets
from tests.helpers import batch_of, detector, images, method, targets

TRUTH = [targets((8, 8, 40, 40, 0)), targets((10, 5, 30, 35, 1), (50, 20, 80, 60, 2))]
BATCH = batch_of(TRUTH)


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def two_views(count: int = 2) -> dict[str, list[torch.Tensor]]:
    noise = images(2 * count)
    return {"original": noise[:count], "augmented": noise[count:]}


def confident(built: DenseDetector, views: int) -> DensePredictions:
    """Every view is sure of one object in each image, each of another: class 0 here, 1 there."""
    with torch.no_grad():
        predictions = built.predict(images(2 * views))
    predictions.logits.fill_(-6)
    if predictions.centerness is not None:
        predictions.deltas.fill_(2.0)
    else:
        predictions.deltas.fill_(0.0)
    for image in range(2 * views):
        view = image // 2
        centre = torch.tensor([80.0, 8.0]) if view else torch.tensor([64.0, 56.0])
        middle = (predictions.anchors[:, :2] + predictions.anchors[:, 2:]) / 2
        nearest = (middle - centre).square().sum(1).argmin()
        predictions.logits[image, nearest, view] = 4.0
    return predictions


def test_each_view_is_supervised_by_what_the_other_found(built: DenseDetector) -> None:
    predictions = confident(built, 2)
    supervision, mined, _ = method("comining").supervise(built, predictions, BATCH, step=0)
    for view, own, other in (("original", 0, 1), ("augmented", 1, 0)):
        for image, target in enumerate(supervision[view]):
            annotated = TRUTH[image].labels.tolist()
            assert target.labels.tolist() == [*annotated, other]
            assert mined[view][image].labels.tolist() == [own]


def test_self_mining_is_supervised_by_what_it_found(built: DenseDetector) -> None:
    chosen = method("self_mining")
    assert chosen.views == ("original",)
    supervision, mined, _ = chosen.supervise(built, confident(built, 1), BATCH, step=0)
    assert supervision["original"][0].labels.tolist() == [0, 0]
    assert mined["original"][0].labels.tolist() == [0]


def test_two_views_may_mine_for_themselves(built: DenseDetector) -> None:
    chosen = method("comining", exchange=False)
    supervision, _, _ = chosen.supervise(built, confident(built, 2), BATCH, step=0)
    assert supervision["augmented"][0].labels.tolist() == [0, 1]


def test_nothing_is_mined_before_the_start_step(built: DenseDetector) -> None:
    chosen = method("comining", start_step=5)
    predictions = confident(built, 2)
    supervision, mined, _ = chosen.supervise(built, predictions, BATCH, step=4)
    assert mined == {}
    assert supervision["original"] is TRUTH
    assert chosen.supervise(built, predictions, BATCH, step=5)[1]


@pytest.mark.parametrize("name", ["comining", "self_mining"])
def test_without_confident_detections_mining_changes_nothing(
    built: DenseDetector, name: str
) -> None:
    plain = method("joint" if name == "comining" else "original")
    views = two_views()
    expected = plain(built, views, BATCH, 0)
    result = method(name, score_threshold=0.999)(built, views, BATCH, 0)
    assert all(len(one) == 0 for found in result.mined.values() for one in found)
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

    supervision, mined, _ = chosen.supervise(built, predictions, BATCH, 0)
    assert sum(len(one) for found in mined.values() for one in found) == 4
    for view in ("original", "augmented"):
        assert not any(t.boxes.requires_grad for t in supervision[view])
    halves = dict(zip(chosen.views, predictions.split(2)))
    total = torch.stack(
        [
            loss
            for view, half in halves.items()
            for loss in built.losses(half, built.assign(half, supervision[view])).values()
        ]
    ).sum()
    for mine, expected in zip(gradient, torch.autograd.grad(total, leaves)):
        assert torch.equal(mine, expected)


def test_a_pseudo_label_trains_like_an_annotation(built: DenseDetector) -> None:
    """Classification, box and (FCOS) centerness alike, low-quality matches included."""
    predictions = confident(built, 2)
    chosen = method("comining")
    supervision, mined, _ = chosen.supervise(built, predictions, BATCH, 0)
    found = mined["augmented"][0]
    by_hand = Targets(
        torch.cat([TRUTH[0].boxes, found.boxes]), torch.cat([TRUTH[0].labels, found.labels])
    )
    half = predictions.split(2)[0].split(1)[0]
    ours = built.assign(half, [supervision["original"][0]])
    assert torch.equal(ours.labels, built.assign(half, [by_hand]).labels)
    without = built.assign(half, [TRUTH[0]])
    assert ours.positive.sum() > without.positive.sum()


@pytest.mark.parametrize("empty", ["some", "all"])
@pytest.mark.parametrize("name", ["original", "joint", "comining", "self_mining"])
def test_images_without_annotations_train(built: DenseDetector, name: str, empty: str) -> None:
    truth = [targets(), targets() if empty == "all" else TRUTH[1]]
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
