"""The baselines' rules on hand-computed values, and that they switch off to the last bit."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comining.data.dataset import TrainingSet
from comining.data.formats.coco import read_coco
from comining.data.sampler import SampleKey
from comining.data.sparsity import Erasure
from comining.detectors.dense import DenseDetector, DenseRegions
from comining.detectors.detector import Background
from comining.errors import ConfigError
from comining.methods.method import RunInfo
from comining.methods.part_aware import mine_parts
from comining.ops import share_inside
from comining.structures import Batch, DensePredictions
from tests.helpers import (
    assert_equal,
    batch_of,
    boxes,
    detector,
    images,
    method,
    random_predictions,
    write_coco,
)

TRUTH = boxes([(8, 8, 40, 40, 0)], [(10, 5, 30, 35, 1), (50, 20, 80, 60, 2)])
NAMES = ("class 1", "class 2", "class 3")


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


class StubData:
    """What part-aware sampling asks of the data: the names of the classes."""

    def __init__(self, names: tuple[str, ...] = NAMES):
        self.categories = type("Categories", (), {"names": names})()


def prepared(name: str, **options: Any) -> Any:
    chosen = method(name, **options)
    if name == "part_aware":
        run = RunInfo(Path("unused"), torch.device("cpu"))
        chosen.prepare(detector("retinanet", 3), StubData(), run)
    return chosen


def background_of(
    chosen: Any, built: DenseDetector, predictions: DensePredictions, batch: Batch
) -> Background:
    """What a method says about the branch that is trained by the annotations of a batch."""
    assignment = built.assign(predictions, batch.annotated)
    regions = DenseRegions(built, predictions, batch.annotated, assignment, predictions.logits)
    background: Background = chosen.background(regions, batch)
    return background


def weights_of(
    chosen: Any, built: DenseDetector, predictions: DensePredictions, batch: Batch
) -> Tensor:
    background = background_of(chosen, built, predictions, batch)
    assert not background.terms
    assert background.weights is not None
    return background.weights


OFF = {
    "soft_sampling": {"floor": 1.0},
    "background_recalibration": {"confusion_iou": 0.0},
    "part_aware": {"hierarchy": {}},
    "pseudo_label": {},
}


@pytest.mark.parametrize("name", OFF)
def test_switched_off_a_baseline_is_original_to_the_last_bit(
    built: DenseDetector, name: str
) -> None:
    views = {"original": images(2)}
    batch = batch_of(TRUTH)
    gradients = []
    for chosen in (method("original"), prepared(name, **OFF[name])):
        built.zero_grad()
        result = chosen(built, views, batch, 0)
        result.total.backward()
        gradients.append(
            (
                result.total.detach(),
                *(p.grad.clone() for p in built.parameters() if p.grad is not None),
            )
        )
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("soft_sampling", {}),
        ("background_recalibration", {}),
        ("part_aware", {"hierarchy": {"class 1": ["class 2"]}}),
    ],
)
def test_switched_on_a_baseline_changes_the_classification_only(
    built: DenseDetector, name: str, options: dict[str, Any]
) -> None:
    views, batch = {"original": images(2)}, batch_of(TRUTH)
    plain = method("original")(built, views, batch, 0).losses
    losses = prepared(name, **options)(built, views, batch, 0).losses
    assert losses["original/classification"] < plain["original/classification"]
    assert torch.equal(losses["original/box"], plain["original/box"])


# -- Soft Sampling -----------------------------------------------------------------------


def test_soft_sampling_weights_by_hand() -> None:
    overlap = torch.tensor([0.0, 0.2, 0.4, 1.0])
    weight = method("soft_sampling").weight(overlap).tolist()
    assert weight == pytest.approx([0.25, 0.55, 0.99, 1.0], abs=0.005)
    assert weight[1] == pytest.approx(0.25 + 0.75 * math.exp(-50 * math.exp(-4)))


def test_soft_sampling_leaves_positives(built: DenseDetector) -> None:
    predictions = random_predictions(built, 2)
    assignment = built.assign(predictions, TRUTH)
    weights = weights_of(method("soft_sampling"), built, predictions, batch_of(TRUTH))
    assert (weights[assignment.positive] == 1).all()
    negative = assignment.labels == 3
    overlap = built.overlap(predictions, TRUTH)
    assert torch.equal(weights[negative], method("soft_sampling").weight(overlap[negative]))
    assert weights[negative].min() == pytest.approx(0.25)


def test_overlap_is_with_the_best_box_of_the_own_image() -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 2)
    anchor = tuple(predictions.anchors[700].tolist())
    overlap = built.overlap(predictions, boxes([(*anchor, 0), (0, 0, 5, 5, 1)], []))
    assert overlap[0, 700] == pytest.approx(1.0)
    assert (overlap[1] == 0).all()


def test_an_fcos_point_overlaps_with_the_box_that_it_predicts() -> None:
    built = detector("fcos", 3)
    predictions = random_predictions(built, 1)
    box = built.decode_boxes(predictions.deltas[0, 5:6], predictions.anchors[5:6])[0]
    overlap = built.overlap(predictions, boxes([(*box.tolist(), 2)]))
    assert overlap[0, 5] == pytest.approx(1.0, abs=1e-5)
    assert overlap[0].isfinite().all()


# -- background recalibration ------------------------------------------------------------


def test_both_branches_of_the_recalibrated_loss_by_hand() -> None:
    logits = torch.tensor([0.2, 0.5, 0.9]).logit()
    got = method("background_recalibration").mirrored(logits).tolist()
    assert got[0] == pytest.approx(0.75 * 0.2**2 * -math.log(0.8), rel=1e-5)
    assert got[1] == pytest.approx(0.75 * 0.5**2 * -math.log(0.5), rel=1e-5)
    assert got[2] == pytest.approx(0.75 * 0.1**2 * -math.log(0.9), rel=1e-5)


def test_recalibration_rewards_confident_strangers() -> None:
    """Above one half the loss falls with the score: the anchor is pulled towards the object."""
    logit = torch.tensor([2.0], requires_grad=True)
    method("background_recalibration").mirrored(logit).sum().backward()
    assert logit.grad is not None
    assert logit.grad.item() < 0


def test_recalibration_takes_strangers_only_times_a_tenth_by_positives() -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 2)
    chosen = method("background_recalibration")
    assignment = built.assign(predictions, TRUTH)
    overlap = built.overlap(predictions, TRUTH)
    stranger = (assignment.labels == 3) & (overlap < 0.1)
    assert stranger.any()
    assert ((assignment.labels == 3) & ~stranger).any()
    rule = partial(chosen.background, batch=batch_of(TRUTH))
    losses = built.losses(predictions, TRUTH, rule)
    positives = assignment.positive.sum()
    expected = 0.1 * chosen.mirrored(predictions.logits)[stranger].sum() / positives
    torch.testing.assert_close(losses["confusion"], expected)
    others = built.losses(predictions, TRUTH, lambda _: Background((~stranger).float()))
    assert torch.equal(losses["classification"], others["classification"])


# -- part-aware sampling -----------------------------------------------------------------


def test_share_inside_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 40, 40]])
    share = share_inside(anchors, torch.tensor([[0.0, 0, 10, 20]]))
    assert share.tolist() == [[1.0, 0.5, 0.0, 0.125]]


def test_a_part_is_ignored_inside_its_subject_only_while_unannotated(built: DenseDetector) -> None:
    subject, part = (0, 0, 96, 64, 0), (30, 20, 50, 40, 1)
    truth = boxes(
        [subject],  # no part annotated
        [subject, part],  # a part annotated
        [(0, 0, 96, 64, 2)],  # no subject
        [],
    )
    predictions = random_predictions(built, 4)
    chosen = prepared("part_aware", hierarchy={"class 1": ["class 2"]})
    weights = weights_of(chosen, built, predictions, batch_of(truth))
    inside = share_inside(predictions.anchors, truth.of_image(0).boxes)[0] > 0.9
    assert inside.any()
    assert not inside.all()
    expected = torch.ones_like(weights)
    expected[0, inside, 1] = 0.0
    assert torch.equal(weights, expected)


def test_every_subject_has_its_own_parts(built: DenseDetector) -> None:
    truth = boxes([(0, 0, 48, 64, 0), (48, 0, 96, 64, 2)])
    predictions = random_predictions(built, 1)
    chosen = prepared("part_aware", hierarchy={"class 1": ["class 2"], "class 3": ["class 1"]})
    weights = weights_of(chosen, built, predictions, batch_of(truth))
    inside = share_inside(predictions.anchors, truth.boxes) > 0.9
    assert (weights[0, inside[0], 1] == 0).all()
    assert (weights[0, inside[1], 1] == 1).all()
    # class 1 is annotated in this image, so that it stays a class like any other
    assert (weights[..., 0] == 1).all()
    assert (weights[..., 2] == 1).all()


def test_an_unknown_class_in_the_hierarchy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method.hierarchy: 'tail' is not a class"):
        prepared("part_aware", hierarchy={"class 1": ["tail"]})
    with pytest.raises(ConfigError, match=r"method.hierarchy: 'dog' is not a class"):
        prepared("part_aware", hierarchy={"dog": ["class 1"]})


def test_parts_are_mined_by_how_often_they_lie_inside(tmp_path: Path) -> None:
    body, head, apart = (0, 0, 40, 40, 1), (5, 5, 10, 10, 2), (45, 5, 10, 10, 2)
    file = write_coco(
        tmp_path, [[body, head]] * 6 + [[body, apart]] * 2 + [[head, (50, 30, 10, 10, 3)]] * 5
    )
    annotations = read_coco(file)
    nothing = np.zeros(len(annotations.ids), dtype=bool)
    table = mine_parts(annotations, nothing, inside=0.9, min_share=0.7, min_count=5)
    assert np.argwhere(table).tolist() == [[0, 1]]  # class 2 in class 1, six of eight
    assert not mine_parts(annotations, nothing, 0.9, min_share=0.8, min_count=5).any()
    assert not mine_parts(annotations, nothing, 0.9, min_share=0.7, min_count=7).any()
    erased = annotations.labels == 1  # what was erased is not known
    assert not mine_parts(annotations, erased, 0.9, 0.7, 5).any()


# -- pseudo labels -----------------------------------------------------------------------


def test_only_confident_boxes_beyond_the_annotations_are_kept() -> None:
    chosen = method("pseudo_label", score_threshold=0.5)
    detections = boxes(
        [
            (0, 0, 10, 10, 0, 0.9),  # annotated
            (0, 0, 10, 10, 1, 0.8),  # another class in that place
            (30, 30, 40, 40, 0, 0.7),
            (50, 50, 60, 60, 0, 0.5),  # not above the threshold
        ]
    )
    kept = chosen.unannotated(detections, boxes([(0, 0, 10, 9, 0)]))
    assert kept.known_scores.tolist() == pytest.approx([0.8, 0.7])


def test_found_boxes_are_positives_or_ignored(built: DenseDetector) -> None:
    predictions = random_predictions(built, 2)
    extra = boxes([(60, 10, 80, 30, 2, 0.9)], [])
    batch = batch_of(TRUTH, pseudo_labels=extra)
    use = method("pseudo_label")
    supervision = use.supervise(built, predictions, {}, batch, 0)
    targets = supervision.targets("original", TRUTH)
    assert targets.of_image(0).labels.tolist() == [0, 2]
    assert_equal(targets.of_image(1), TRUTH.of_image(1))
    assert_equal(supervision.pseudo_labels["original"], extra)
    assert background_of(use, built, predictions, batch).weights is None

    ignore = method("pseudo_label", use="ignore")
    supervision = ignore.supervise(built, predictions, {}, batch, 0)
    assert supervision.targets("original", TRUTH) is TRUTH
    assignment = built.assign(predictions, TRUTH)
    weights = weights_of(ignore, built, predictions, batch)
    would_train = built.assign(predictions, boxes([(60, 10, 80, 30, 2)], [])).positive
    ignored = would_train & ~assignment.positive
    assert ignored.any()
    expected = torch.ones_like(weights)
    expected[..., 2][ignored] = 0
    assert torch.equal(weights, expected)


def test_found_boxes_travel_with_resizing_and_flips(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]]))
    nothing = np.zeros(1, dtype=bool)
    sizes = {"min_size": 96, "max_size": 1333, "seed": 0}
    erasure = Erasure.only(annotations, nothing)
    data = TrainingSet(annotations, erasure, tmp_path / "train", flip=1.0, **sizes)
    data.pseudo_labels = {1: boxes([(1, 2, 11, 14, 1, 0.9)])}
    sample = data[SampleKey(0, 0)]
    assert torch.equal(sample.pseudo_labels.boxes, sample.annotated.boxes)
    assert sample.pseudo_labels.known_scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("soft_sampling", {"floor": 2.0}, "method.floor"),
        ("background_recalibration", {"confusion_iou": -1.0}, "method.confusion_iou"),
        ("part_aware", {"inside": 3.0}, "method.inside"),
        ("part_aware", {"min_count": 0}, "method.min_count"),
        ("pseudo_label", {"score_threshold": 7.0}, "method.score_threshold"),
        ("pseudo_label", {"use": "somehow"}, "method.use"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        method(name, **options)
