"""Both stages of Faster R-CNN: mined targets, every weight rule, what is known; by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comining.data.box_erasing import BoxErasing
from comining.data.strong_view import FILL
from comining.detectors.detector import Background, Regions
from comining.detectors.faster_rcnn import FasterRCNNDetector
from comining.detectors.region_samples import Doubtful
from comining.detectors.stages import (
    StageRegions,
    classification_loss,
    known_entries,
    left_to_knowledge,
)
from comining.errors import ConfigError
from comining.methods.method import RunInfo
from comining.structures import Boxes, Knowledge
from tests.helpers import batch_of, boxes, detector, images, method
from tests.test_baselines import StubData
from tests.test_faster_rcnn import TRUTH, faster_rcnn

nan = math.nan


@pytest.fixture
def built() -> FasterRCNNDetector:
    return faster_rcnn()


def regions_of(
    logits: list[list[float]], labels: list[int], where: list[list[float]], pooled: bool = False
) -> StageRegions:
    """Regions of one image, with logits of each class over a logit of 0 for background."""
    return StageRegions(
        torch.tensor([logits], requires_grad=True), torch.tensor([labels]), torch.tensor([where]),
        TRUTH.of_image(0), pooled=pooled, predicted=lambda: torch.tensor([where]),
        assign=lambda others: torch.tensor([labels]),
    )  # fmt: skip


# Three regions: on the annotation of class 0 at (8, 8, 40, 40), near it, and far from both.
ON, NEAR, FAR = [8.0, 8.0, 40.0, 40.0], [8.0, 8.0, 40.0, 20.0], [70.0, 2.0, 90.0, 12.0]
LOGITS = [[2.0, -1.0, 0.0], [1.0, 0.5, -3.0], [-0.5, 3.0, 0.2]]
BATCH = batch_of(TRUTH.of_image(0))


def stage(pooled: bool = False) -> StageRegions:
    if pooled:
        return regions_of([[2.0], [1.0], [3.0]], [0, 1, 1], [ON, NEAR, FAR], pooled=True)
    return regions_of(LOGITS, [0, 3, 3], [ON, NEAR, FAR])


def loss_of(regions: StageRegions, chosen: Any, known: Any = None) -> tuple[float, dict[str, Any]]:
    def rule(asked: Regions) -> Background:
        said: Background = chosen.background(asked, BATCH)
        return said

    loss, terms = classification_loss(regions, rule, known)
    return loss.item(), {name: term.item() for name, term in terms.items()}


def probabilities(regions: StageRegions) -> tuple[Tensor, Tensor]:
    """Of background [S], and of the classes [S, K]."""
    logits = regions.logits.detach()[0]
    all_of = torch.cat([torch.zeros(len(logits), 1), logits], dim=1).softmax(dim=1)
    return all_of[:, 0], all_of[:, 1:]


def cross_entropies(regions: StageRegions) -> list[float]:
    background, classes = probabilities(regions)
    return [
        -math.log(classes[0, 0]), -math.log(background[1]), -math.log(background[2])
    ]  # fmt: skip


def prepared(name: str, **options: Any) -> Any:
    chosen = method(name, **options)
    if name in ("annotation_rate", "part_aware"):
        data: Any = StubData()
        chosen.prepare(detector("retinanet", 3), data, RunInfo(Path("unused"), torch.device("cpu")))
    return chosen


# -- weight rules ------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_without_a_word_it_is_cross_entropy(pooled: bool) -> None:
    regions = stage(pooled)
    loss, terms = loss_of(regions, method("original"))
    assert loss == pytest.approx(sum(cross_entropies(regions)), rel=1e-5)
    assert terms == {}


def test_soft_sampling_weights_proposals_and_leaves_the_rpn_alone() -> None:
    chosen = method("soft_sampling")
    on, near, far = cross_entropies(stage())
    # The near one covers 12 of 32 px in height: an IoU of 0.375.
    weights = chosen.weight(torch.tensor([0.375, 0.0])).tolist()
    loss, _ = loss_of(stage(), chosen)
    assert loss == pytest.approx(on + weights[0] * near + weights[1] * far, rel=1e-5)
    assert weights[1] == pytest.approx(0.25)
    loss, _ = loss_of(stage(pooled=True), chosen)
    assert loss == pytest.approx(sum(cross_entropies(stage(pooled=True))), rel=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_background_recalibration_is_mirrored_where_a_class_is_likelier_than_not(
    pooled: bool,
) -> None:
    regions = stage(pooled)
    on, near, far = cross_entropies(regions)
    _, classes = probabilities(regions)
    likeliest = classes[2].amax().item()
    assert likeliest > 0.5
    loss, terms = loss_of(regions, method("background_recalibration"))
    assert loss == pytest.approx(on + near, rel=1e-5)
    assert terms["confusion"] == pytest.approx(-0.1 * math.log(likeliest), rel=1e-5)
    _, terms = loss_of(regions, method("background_recalibration", confusion_score=0.97))
    assert terms["confusion"] == pytest.approx(0.1 * far, rel=1e-5)


def test_the_likelihood_of_not_being_annotated() -> None:
    rates = {"class 1": 0.5, "class 2": 0.25, "class 3": 1.0}
    chosen = prepared("annotation_rate", form="likelihood", rate=rates)
    regions = stage()
    on, near, _ = cross_entropies(regions)
    background, classes = probabilities(regions)
    unseen = background[2] + 0.5 * classes[2, 0] + 0.75 * classes[2, 1]
    loss, _ = loss_of(regions, chosen)
    assert loss == pytest.approx(on + near - math.log(unseen), rel=1e-5)
    # The anchors know one class: the smallest of the rates.
    regions = stage(pooled=True)
    on, near, _ = cross_entropies(regions)
    background, classes = probabilities(regions)
    loss, _ = loss_of(regions, chosen)
    unseen = 1 - 0.25 * classes[2, 0]
    assert loss == pytest.approx(on + near - math.log(unseen), rel=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_fading_background(pooled: bool) -> None:
    regions = stage(pooled)
    on, near, far = cross_entropies(regions)
    background, classes = probabilities(regions)
    loss, _ = loss_of(regions, prepared("annotation_rate", rate=0.25))
    assert loss == pytest.approx(on + near + far * 0.25 * background[2].item() ** 3, rel=1e-4)
    rates = {"class 1": 0.5, "class 2": 0.25, "class 3": 1.0}
    exponents = torch.tensor([1.0, 3.0, 0.0])
    fading = 0.25 * background[2].item() ** 3 * far
    if not pooled:
        exponent = ((classes[2] * exponents).sum() / classes[2].sum()).item()
        # The largest rate is the weight, and the others are taken relative to it.
        unseen = background[2] + 0.5 * classes[2, 0] + 0.75 * classes[2, 1]
        fading = -(background[2].item() ** exponent) * math.log(unseen)
    loss, _ = loss_of(regions, prepared("annotation_rate", rate=rates))
    assert loss == pytest.approx(on + near + fading, rel=1e-4)


def test_no_gradient_goes_through_the_fading_factor() -> None:
    regions = stage()
    rule: Any = prepared("annotation_rate", rate=0.25).background
    loss, _ = classification_loss(regions, lambda asked: rule(asked, BATCH), None)
    (gradient,) = torch.autograd.grad(loss, regions.logits)
    background, classes = probabilities(regions)
    expected = 0.25 * classes[2] * background[2] ** 3
    torch.testing.assert_close(gradient[0, 2], expected, rtol=1e-4, atol=1e-7)


def test_a_class_of_weight_zero_is_no_background_and_others_are() -> None:
    """Part-aware sampling: class 3 is part of class 1 and nobody annotated it, class 2 somebody."""
    chosen = prepared("part_aware", hierarchy={"class 1": ["class 2", "class 3"]}, inside=0.9)
    regions = stage()
    on, _, far = cross_entropies(regions)
    background, classes = probabilities(regions)
    loss, _ = loss_of(regions, chosen)
    assert loss == pytest.approx(on - math.log(background[1] + classes[1, 2]) + far, rel=1e-5)
    regions = stage(pooled=True)
    on, _, far = cross_entropies(regions)
    loss, _ = loss_of(regions, chosen)
    assert loss == pytest.approx(on + far, rel=1e-5)  # an anchor inside may be the part


@pytest.mark.parametrize("pooled", [False, True])
def test_pseudo_labels_that_are_ignored(pooled: bool) -> None:
    chosen = method("pseudo_label", use="ignore")
    regions = stage(pooled)
    found = torch.tensor([[0, 1, 0 if pooled else 1]]) if pooled else torch.tensor([[0, 3, 1]])
    regions._assign = lambda others: found
    on, near, _far = cross_entropies(regions)
    background, classes = probabilities(regions)
    batch = batch_of(TRUTH.of_image(0), pseudo_labels=boxes([(70, 2, 90, 12, 1, 0.9)]))
    loss, _ = classification_loss(regions, lambda asked: chosen.background(asked, batch), None)
    last = 0.0 if pooled else -math.log(background[2] + classes[2, 1])
    assert loss.item() == pytest.approx(on + near + last, rel=1e-5)


def test_weights_and_terms_of_both_stages_reach_the_losses(built: FasterRCNNDetector) -> None:
    predictions = built.predict(images(3))
    plain = built.losses(predictions, TRUTH)
    asked: list[Regions] = []

    def rule(regions: Regions) -> Background:
        asked.append(regions)
        weights = torch.full(regions.labels.shape, 0.5)
        return Background(weights, terms={"further": regions.positive.sum().float()})

    losses = built.losses(predictions, TRUTH, rule)
    assert [(regions.pooled, regions.num_classes) for regions in asked] == [(True, 1), (False, 3)]
    for name in ("rpn_objectness", "classification"):
        torch.testing.assert_close(losses[name], plain[name] / 2)
    for name in ("rpn_box", "box"):
        assert torch.equal(losses[name], plain[name])
    assert losses["further"] > 0
    assert losses["rpn_further"] > 0
    for regions in asked:
        assert torch.equal(regions.assign(TRUTH), regions.labels)
        assert regions.overlap(TRUTH).shape == regions.labels.shape
        assert regions.predicted_overlap(TRUTH).shape == regions.labels.shape
        on_target = regions.positive & (regions.overlap(TRUTH) > 0.99)
        assert regions.pooled or on_target.any()  # targets are proposals


# -- what is known -----------------------------------------------------------------------


def knowledge(rate: list[float], *ignored: tuple[float, ...]) -> Knowledge:
    return Knowledge.of(torch.tensor([rate]), boxes([*ignored]), 0.5)


def test_ignored_regions_leave_both_samplers() -> None:
    known = knowledge([nan] * 3, (68, 0, 95, 20, -1))
    where = [torch.tensor([ON, NEAR, FAR])]
    (anchors,) = left_to_knowledge([torch.tensor([0, 1, 1])], where, known, pooled=True)
    assert anchors.tolist() == [0, 1, -1]
    (proposals,) = left_to_knowledge([torch.tensor([0, 3, 3])], where, known, pooled=False)
    assert proposals.tolist() == [0, 3, -1]
    # A target in it stays one.
    (kept,) = left_to_knowledge([torch.tensor([0, 3, 2])], where, known, pooled=False)
    assert kept.tolist() == [0, 3, 2]


def test_a_region_ignored_for_one_class_is_no_background_of_it() -> None:
    known = knowledge([nan] * 3, (68, 0, 95, 20, 1))
    where = [torch.tensor([ON, NEAR, FAR])]
    (anchors,) = left_to_knowledge([torch.tensor([0, 1, 1])], where, known, pooled=True)
    assert anchors.tolist() == [0, 1, -1]  # the anchor may be an object of that class
    (proposals,) = left_to_knowledge([torch.tensor([0, 3, 3])], where, known, pooled=False)
    assert proposals.tolist() == [0, 3, 3]
    regions = stage()
    entries = known_entries(known, regions.anchors, pooled=False)
    on, near, _ = cross_entropies(regions)
    background, classes = probabilities(regions)
    loss, _ = loss_of(regions, method("original"), entries)
    assert loss == pytest.approx(on + near - math.log(background[2] + classes[2, 1]), rel=1e-5)


def test_a_class_nobody_looked_for_is_no_background_of_the_image() -> None:
    known = knowledge([nan, 0.0, nan])
    regions = stage()
    background, classes = probabilities(regions)
    on, _, _ = cross_entropies(regions)
    entries = known_entries(known, regions.anchors, pooled=False)
    loss, _ = loss_of(regions, method("original"), entries)
    expected = on - sum(math.log(background[n] + classes[n, 1]) for n in (1, 2))
    assert loss == pytest.approx(expected, rel=1e-5)
    # Anchors: two of three classes were looked for.
    regions = stage(pooled=True)
    on, _, _ = cross_entropies(regions)
    _, classes = probabilities(regions)
    entries = known_entries(known, regions.anchors, pooled=True)
    loss, _ = loss_of(regions, method("original"), entries)
    expected = on - sum(math.log(1 - 2 / 3 * classes[n, 0]) for n in (1, 2))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", ["background_recalibration", "annotation_rate", "soft_sampling"])
def test_where_all_is_annotated_a_method_has_nothing_to_say(name: str, pooled: bool) -> None:
    regions = stage(pooled)
    entries = known_entries(knowledge([1.0] * 3), regions.anchors, pooled)
    loss, terms = loss_of(regions, prepared(name), entries)
    assert loss == pytest.approx(sum(cross_entropies(regions)), rel=1e-5)
    assert all(term == pytest.approx(0, abs=1e-6) for term in terms.values())


def test_nothing_is_sampled_from_an_ignored_region(built: FasterRCNNDetector) -> None:
    predictions = built.predict(images(3))
    seen: list[Regions] = []

    def rule(regions: Regions) -> Background:
        seen.append(regions)
        return Background()

    known = Knowledge.of(torch.full((3, 3), nan), boxes([], [], [(0, 0, 96, 64, -1)]), 0.5)
    built.losses(predictions, TRUTH, rule, known)
    for regions in seen:
        real = regions.labels >= 0
        inside = regions.anchors[2][real[2]]
        # What is left lies for the most part outside of the picture.
        outside = (inside[:, 0] < 0) | (inside[:, 1] < 0) | (inside[:, 2:] > 60).any(dim=1)
        assert outside.all()
        assert real[0].sum() > 20
    assert not (seen[1].labels[2] >= 0).any()


def test_what_is_ignored_in_one_image_leaves_the_losses_of_others(
    built: FasterRCNNDetector,
) -> None:
    """Fewer regions are sampled then, and each counts as much as before."""
    predictions = built.predict(images(3))
    nothing = Knowledge.of(torch.full((3, 3), nan), boxes([], [], []), 0.5)
    whole = [(-999, -999, 999, 999, -1)]
    most = Knowledge.of(torch.full((3, 3), nan), boxes([], whole, whole), 0.5)
    before = built.losses(predictions, TRUTH, knowledge=nothing)
    after = built.losses(predictions, TRUTH, knowledge=most)
    for name in ("box", "rpn_box"):  # positives stay
        torch.testing.assert_close(after[name], before[name])
    for name in ("classification", "rpn_objectness"):
        assert 0.1 * before[name] < after[name] < before[name]
    doubtful = Doubtful(-1.0, 1.0, TRUTH, [True] * 3)
    unsure = built.losses(predictions, TRUTH, doubtful=doubtful)
    torch.testing.assert_close(unsure["rpn_box"], before["rpn_box"])


def test_nothing_is_sampled_in_the_whole_batch(built: FasterRCNNDetector) -> None:
    """A method may ask all the same."""
    predictions = built.predict(images(2))
    whole = [(-999, -999, 999, 999, -1)]
    known = Knowledge.of(torch.full((2, 3), nan), boxes(whole, whole), 0.5)
    seen: list[tuple[int, ...]] = []

    def rule(regions: Regions) -> Background:
        asked = regions.overlap, regions.predicted_overlap
        seen.extend(tuple(overlap(TRUTH.of_image(0)).shape[:1]) for overlap in asked)
        assert not (regions.assign(boxes([(1, 1, 9, 9, 0)], [])) >= 0).any()
        return Background()

    losses = built.losses(predictions, boxes([], []), rule, known)
    assert len(seen) == 4
    assert all(loss == 0 for loss in losses.values())


# -- mining ------------------------------------------------------------------------------


def sure_of(built: FasterRCNNDetector, monkeypatch: pytest.MonkeyPatch, box: list[float]) -> None:
    """The RoI head is sure of class 2 in the proposals that lie on a box, of background elsewhere.

    Its boxes are the proposals; the box is the best of them.
    """
    original = FasterRCNNDetector.classify

    def classify(self: Any, predictions: Any, given: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = original(self, predictions, given)
        if torch.is_grad_enabled():
            return logits, deltas
        on = (torch.cat(given) - torch.tensor(box)).abs().amax(dim=1) < 0.5
        certain = torch.tensor([[5.0, 0, 0, 0]]).repeat(len(logits), 1)
        certain[on] = torch.tensor([0.0, 0.0, 0.0, 5.0])
        return certain, torch.zeros_like(deltas)

    forward = FasterRCNNDetector._forward

    def with_box(self: Any, padded: Tensor, sizes: Any) -> Any:
        predictions = forward(self, padded, sizes)
        half = len(sizes) // 2  # in the augmented view only
        for image in range(half, len(sizes)):
            row = torch.tensor([box])
            predictions.proposals[image] = torch.cat([row, predictions.proposals[image]])
            scores = predictions.proposal_scores[image]
            predictions.proposal_scores[image] = torch.cat([torch.ones(1), scores])
        return predictions

    monkeypatch.setattr(FasterRCNNDetector, "classify", classify)
    monkeypatch.setattr(FasterRCNNDetector, "_forward", with_box)


def test_what_a_view_finds_trains_both_stages_of_the_other(
    built: FasterRCNNDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = [50.0, 33.0, 82.0, 64.0]  # near an anchor, but no proposal of the other view
    sure_of(built, monkeypatch, box)
    calls: list[int] = []
    built.net.backbone.register_forward_hook(lambda *_: calls.append(1))
    seen: list[Regions] = []
    chosen = method("comining")

    def background(regions: Regions, batch: Any) -> Background:
        seen.append(regions)
        return Background()

    monkeypatch.setattr(chosen, "background", background)
    noise = images(2)
    truth = boxes([(8, 8, 40, 40, 0)])
    views = {"original": noise[:1], "augmented": noise[1:]}
    result = chosen(built, views, batch_of(truth), 0)
    assert len(calls) == 1  # one backbone forward for all views
    assert [len(result.pseudo_labels[view]) for view in ("original", "augmented")] == [0, 1]
    found = result.pseudo_labels["augmented"]
    assert found.boxes.tolist() == [box]
    assert found.labels.tolist() == [2]
    rpn, roi, other_rpn, other_roi = seen  # of the original view, and of the augmented one
    for regions, expected in ((rpn, 0), (roi, 2)):
        near = regions.positive & (regions.overlap(found) > 0.7)
        assert near.any()
        assert set(regions.labels[near].tolist()) == {expected}
    for regions in (other_rpn, other_roi):
        assert not (regions.positive & (regions.overlap(found) > 0.7)).any()
    assert found.known_scores.item() == pytest.approx(math.exp(5) / (3 + math.exp(5)), rel=1e-4)


def test_candidates_are_detections_above_the_class_probability(built: FasterRCNNDetector) -> None:
    built.eval()
    built.net.roi_heads.score_thresh = 0.3
    built.net.roi_heads.nms_thresh = 1.0
    built.net.roi_heads.detections_per_img = 10_000
    built.candidate_proposals = 10_000
    with torch.no_grad():
        predictions = built.predict(images(2))
        found = built.candidates(predictions, 0.3)
        logits, deltas = built.classify(predictions, predictions.proposals)
        expected = built.net.roi_heads.postprocess_detections(
            logits, deltas.flatten(1), predictions.proposals, predictions.image_sizes
        )
    for image, own in enumerate(found.split()):
        assert len(own) == len(expected[0][image])
        scores = own.known_scores.sort(descending=True).values
        torch.testing.assert_close(scores, expected[1][image].sort(descending=True).values)
    assert len(built.candidates(predictions, 1.0)) == 0
    predictions.most_candidates = built.candidate_proposals = 4
    assert len(built.candidates(predictions, 0.0)) == 2 * 4 * 3
    assert predictions.scores_per_image == 4 * 3


# -- SparseDet ---------------------------------------------------------------------------


def sparsedet(**options: Any) -> Any:
    chosen = method("sparsedet", **options)
    data: Any = None
    run = RunInfo(Path("unused"), torch.device("cpu"), seed=3, max_steps=90)
    chosen.prepare(faster_rcnn(), data, run)
    return chosen


def test_what_is_doubtful_is_sampled_in_neither_stage(built: FasterRCNNDetector) -> None:
    predictions = built.predict(images(3))
    drawn: list[list[int]] = []

    def rule(regions: Regions) -> Background:
        drawn.append([int(regions.positive.sum()), int(regions.negative.sum())])
        return Background()

    built.losses(predictions, TRUTH, rule)
    # No annotation is near, and every region is an object to the RPN.
    every = Doubtful(-1.0, 1.0, TRUTH, [True] * 3)
    built.losses(predictions, TRUTH, rule, doubtful=every)
    none = Doubtful(1.0, 1.0, TRUTH, [True] * 3)
    built.losses(predictions, TRUTH, rule, doubtful=none)
    (rpn, roi), (no_rpn, no_roi), (same_rpn, same_roi) = zip(*[iter(drawn)] * 2)
    assert (no_rpn, no_roi[1]) == ([rpn[0], 0], 0)  # positives stay, background is gone
    assert no_roi[0] == roi[0] > 0
    assert (same_rpn, same_roi) == (rpn, roi)
    closed = Doubtful(-1.0, 1.0, TRUTH, [False] * 3)
    built.losses(predictions, TRUTH, rule, doubtful=closed)
    assert drawn[-2:] == [rpn, roi]  # where all is annotated, nothing is doubtful
    of_roi = Doubtful(-1.0, 1.0, TRUTH, [True] * 3, of_rpn=False)
    built.losses(predictions, TRUTH, rule, doubtful=of_roi)
    assert drawn[-2:] == [rpn, no_roi]  # background to the first stage, as in the authors' code


def test_doubtful_means_sure_and_far_from_annotations() -> None:
    doubt = Doubtful(0.8, 0.2, boxes([(0, 0, 10, 10, 0)], []), [True, True])
    rows = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 2], [0, 0, 10, 2.1], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.9, 0.9, 0.8])
    masks = doubt.among([rows, rows], [scores, scores])
    assert masks[0].tolist() == [False, True, False, False]
    assert masks[1].tolist() == [True, True, True, False]


def test_sparsedet_begins_after_half_of_training(built: FasterRCNNDetector) -> None:
    chosen = sparsedet(objectness=0.0)
    batch = batch_of(TRUTH)
    views = {"original": images(3), **chosen.own_views(images(3), batch)}
    assert chosen.first_step == 45
    before = chosen(built, views, batch, 44)
    assert "strong/consistency" not in before.losses
    assert list(before.pseudo_labels) == ["original"]  # mined from the first step on
    after = chosen(built, views, batch, 45)
    assert after.losses["strong/consistency"] > 0
    assert list(after.pseudo_labels) == ["original"]
    plain = method("original")(built, {"original": views["original"]}, batch, 0)
    for name, loss in plain.losses.items():
        torch.testing.assert_close(before.losses[name], loss, rtol=1e-4, atol=1e-5)
    assert sparsedet(ignore_in_rpn=False).pseudo_positives(batch).of_rpn is False
    # Far background is gone, and with it the reason for low scores.
    assert after.losses["original/rpn_objectness"] != before.losses["original/rpn_objectness"]


def test_the_same_features_in_both_views_differ_by_nothing(built: FasterRCNNDetector) -> None:
    chosen = sparsedet(objectness=0.0)
    same = built.predict(images(3) * 2).split(3)
    assert chosen.feature_difference(built, *same, batch_of(TRUTH)) < 1e-10
    other = built.predict([*images(3), *images(6)[3:]]).split(3)
    difference = chosen.feature_difference(built, *other, batch_of(TRUTH))
    assert difference > 1e-8
    (gradient,) = torch.autograd.grad(difference, [built.net.roi_heads.box_head.fc6.weight])
    assert gradient.abs().sum() > 0
    nothing = sparsedet(objectness=1.0)
    assert nothing.feature_difference(built, *other, batch_of(TRUTH)) == 0


def test_features_are_compared_for_the_best_proposals_after_nms(built: FasterRCNNDetector) -> None:
    views = built.predict([*images(3), *images(6)[3:]]).split(3)
    batch = batch_of(TRUTH)
    (masks,) = [
        sparsedet(objectness=0.0).pseudo_positives(batch).among(one.proposals, one.proposal_scores)
        for one in views[:1]
    ]
    compared: list[list[int]] = []
    features = built.box_features

    def spied(predictions: Any, given: list[Tensor]) -> Tensor:
        compared.append([len(own) for own in given])
        return features(predictions, given)

    built.box_features = spied  # type: ignore[method-assign]
    for overlap, most in ((1.0, 1000), (0.3, 1000), (0.3, 2)):
        chosen = sparsedet(objectness=0.0, pair_nms_threshold=overlap, max_pairs=most)
        chosen.feature_difference(built, *views, batch)
    everything, apart, few = compared[::2]
    assert everything == [int(mask.sum()) for mask in masks]
    assert all(2 < some < every for some, every in zip(apart, everything, strict=True))
    assert few == [2, 2, 2]


def test_features_in_a_region_to_ignore_are_not_compared(built: FasterRCNNDetector) -> None:
    chosen = sparsedet(objectness=0.0)
    views = built.predict([*images(3), *images(6)[3:]]).split(3)
    batch = batch_of(TRUTH)
    everywhere = boxes(*[[(-999, -999, 999, 999, -1)]] * 3)
    known = Knowledge.of(torch.full((3, 3), nan), everywhere, 0.5)
    assert chosen.feature_difference(built, *views, batch) > 0
    assert chosen.feature_difference(built, *views, replace(batch, knowledge=known)) == 0
    # For one class of three only: an object of the others may be there.
    one = boxes(*[[(-999, -999, 999, 999, 1)]] * 3)
    known = Knowledge.of(torch.full((3, 3), nan), one, 0.5)
    assert chosen.feature_difference(built, *views, replace(batch, knowledge=known)) > 0


def test_a_part_of_one_box_is_erased_and_nothing_else() -> None:
    erase = BoxErasing(area=(0.5, 0.5), ratio=(2.0, 2.0))
    truth = boxes([(10, 10, 30, 50, 0)], [])
    noise = [torch.zeros(3, 64, 96, dtype=torch.uint8)] * 2
    first, second = erase(noise, truth, [4, 5], 0)
    changed = (first == FILL).all(dim=0).nonzero()
    # Half of 20 x 40 px, twice as high as wide: 28.3 x 14.1.
    assert (changed.amax(dim=0) - changed.amin(dim=0) + 1 - torch.tensor([28, 14])).abs().max() <= 1
    assert (changed >= 10).all()
    assert (changed < torch.tensor([50, 30])).all()
    assert torch.equal(second, noise[1])
    assert torch.equal(noise[0], torch.zeros_like(noise[0]))
    assert torch.equal(erase(noise[:1], truth.of_image(0), [4], 0)[0], first)
    # Of several boxes one, and every one at some time.
    two = boxes([(0, 0, 20, 20, 0), (50, 30, 90, 60, 1)])
    hit = set()
    square = BoxErasing(area=(0.5, 0.5), ratio=(1.0, 1.0))
    for position in range(20):
        (picture,) = square(noise[:1], two, [position], 0)
        parts = [
            bool((picture[0, :20, :20] == FILL).any()),
            bool((picture[0, 30:, 50:] == FILL).any()),
        ]
        assert parts.count(True) == 1
        hit.add(parts.index(True))
    assert hit == {0, 1}
    # Twelve times as high as the box allows: never fits.
    high = BoxErasing(area=(0.5, 0.5), ratio=(12.0, 12.0))
    assert torch.equal(high(noise, truth, [4, 5], 0)[0], noise[0])
    with pytest.raises(ValueError, match=r"method.erase.area must be \[smallest, largest\]"):
        BoxErasing(area=(0.6, 0.5), ratio=(1.0, 1.0))


def test_a_detector_without_proposals_is_refused() -> None:
    chosen = method("sparsedet")
    chosen.check_detector(FasterRCNNDetector, "sparsedet", "faster_rcnn")
    kind = type(detector("fcos", 3))
    words = r"method=sparsedet cannot be used with detector=fcos: .* \(detector=faster_rcnn\)"
    with pytest.raises(ConfigError, match=words):
        chosen.check_detector(kind, "sparsedet", "fcos")
    method("comining").check_detector(kind, "comining", "fcos")


def test_boxes_of_a_batch_have_no_common_place(built: FasterRCNNDetector) -> None:
    """A proposal is matched with the targets of its own image alone."""
    predictions = built.predict(images(2))
    only: Boxes = boxes([(8, 8, 40, 40, 0)], [])
    seen: list[Regions] = []

    def rule(regions: Regions) -> Background:
        seen.append(regions)
        return Background()

    built.losses(predictions, only, rule)
    for regions in seen:
        assert regions.positive[0].any()
        assert not regions.positive[1].any()
