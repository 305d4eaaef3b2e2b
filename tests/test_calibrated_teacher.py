"""Calibrated Teacher: every step by hand, and that a run resumes and shards exactly."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comining.detectors.dense import DenseDetector, DenseRegions
from comining.methods.calibration import Calibration, fit_logistic
from comining.methods.method import RunInfo
from comining.methods.teacher import Teacher
from comining.methods.touching import Touching
from comining.ops import paired_iou
from comining.structures import Batch, Boxes, Images, Knowledge
from tests.ddp import TWO, train
from tests.helpers import (
    assert_equal,
    batch_of,
    boxes,
    detector,
    images,
    method,
    random_predictions,
)
from tests.test_resume import call, same

RUN = RunInfo(Path("unused"), torch.device("cpu"), seed=3)


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


@pytest.fixture(scope="module")
def stock() -> Any:
    """The method as its yaml builds it, for what has no state."""
    return method("calibrated_teacher")


def ready(built: DenseDetector, **options: Any) -> Any:
    chosen = method("calibrated_teacher", **options)
    chosen.prepare(built, None, RUN)
    return chosen


def batch_with_images(annotated: Boxes) -> Batch:
    return replace(batch_of(annotated), images=Images.of(images(annotated.num_images)))


def views_of(chosen: Any, batch: Batch) -> dict[str, list[Tensor]]:
    original = list(batch.images)
    return {"original": original, **chosen.own_views(original, batch)}


# -- the teacher and its views -----------------------------------------------------------


def test_the_momentum_may_be_full_from_step_0_on() -> None:
    student = nn.Linear(1, 1, bias=False)
    student.weight.data.fill_(1.0)
    teacher = Teacher(student, 0.999, warm_up=False)  # type: ignore[arg-type]
    student.weight.data.fill_(2.0)
    teacher.update(student, 1)  # type: ignore[arg-type]
    assert teacher.detector.weight.item() == pytest.approx(1.001)
    built = detector("retinanet", 3)
    assert ready(built).teacher.warm_up
    assert not ready(built, warm_up=False).teacher.warm_up
    assert ready(built).teacher.momentum == 0.999


def test_the_student_is_trained_on_one_colour_operation_and_evaluated() -> None:
    built = detector("retinanet", 3)
    chosen = ready(built)
    batch = batch_with_images(boxes([], [], [], []))
    views = views_of(chosen, batch)
    assert list(views) == ["original", "recoloured"]
    assert chosen.views == ("recoloured",)
    assert chosen.mined_views == ("original",)
    assert chosen.geometry("recoloured", batch) is None
    pairs = list(zip(*views.values(), strict=True))
    assert any(not torch.equal(one, other) for one, other in pairs)
    assert chosen.deployed(built) is built


# -- step 1: what is fitted --------------------------------------------------------------

ANNOTATED = (0, 0, 20, 20, 0)


@pytest.mark.parametrize(
    ("found", "to_fit", "to_merge"),
    [
        ((0, 0, 20, 10.2, 0), True, True),  # IoU .51, but all of it lies inside
        ((0, 0, 20, 20, 1), True, True),  # IoU 1, another class
        ((0, 0, 20, 15.2, 1), True, True),  # IoU .76, another class
        ((0, 0, 20, 15, 1), False, False),  # IoU .75, another class
        ((5, 5, 10, 10, 0), True, True),  # inside, same class
        ((5, 5, 10, 10, 1), False, False),  # inside, another class
        ((0, 0, 60, 60, 0), True, True),  # it holds the annotation
        ((11, 0, 21, 10, 0), False, False),  # nine tenths lie inside, not more
        ((10.5, 0, 20.5, 10, 0), True, True),  # .95 lie inside
        ((4, 0, 24, 20, 0), True, True),  # IoU .667, same class
        ((6, 0, 26, 20, 0), True, False),  # IoU .538, same class
        ((7, 0, 27, 20, 0), False, False),  # IoU .481, same class
        ((40, 40, 60, 60, 0), False, False),
    ],
)
def test_touching_by_hand(
    stock: Any, found: tuple[float, ...], to_fit: bool, to_merge: bool
) -> None:
    """The two uses differ in the IoU from which on boxes of one class touch: .5 and .6."""
    there = boxes([(40, 40, 60, 60, 2)], [found])  # other images play no part
    annotated = boxes([], [ANNOTATED])
    assert stock.touches_to_fit(there, annotated).tolist() == [False, to_fit]
    assert stock.touches_to_merge(there, annotated).tolist() == [False, to_merge]


def test_nothing_touches_nothing() -> None:
    touching = Touching(0.5, 0.75, 0.9)
    some, nothing = boxes([ANNOTATED]), boxes([])
    assert touching(some, nothing).tolist() == [False]
    assert touching(nothing, some).tolist() == []
    assert touching(nothing, nothing).tolist() == []


def test_what_is_fitted_and_what_is_right_by_hand(stock: Any) -> None:
    found = boxes(
        [
            (0, 0, 20, 15.2, 0, 0.9),  # IoU .76: right
            (0, 0, 20, 15, 0, 0.8),  # IoU .75: not more
            (0, 0, 20, 19, 1, 0.7),  # IoU .95, another class: wrong
            (40, 40, 60, 60, 0, 0.6),  # touches nothing
        ],
        [(0, 0, 20, 20, 0, 0.5)],
    )
    rows = stock.to_fit(found, boxes([ANNOTATED], []))
    expected = torch.tensor([[0.9, 1], [0.8, 0], [0.7, 0]])
    torch.testing.assert_close(rows, expected)
    assert stock.to_fit(found[found.image < 0], boxes([ANNOTATED], [])).shape == (0, 2)
    assert stock.to_fit(found, boxes([], [])).shape == (0, 2)


def test_detections_from_point_four_on(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of exactly .4, too; the best 100 of an image, cut at its border."""
    chosen = ready(built)
    with torch.no_grad():
        predictions = built.predict(images(1))
    threshold = []
    rows = [(0, 10 * n, 9, 10 * n + 8, 0, 0.4 + n / 1000) for n in range(-1, 120)]
    given = boxes(rows)

    def candidates(predictions: object, above: float) -> Boxes:
        threshold.append(above)
        return given[given.known_scores > above]

    monkeypatch.setattr(built, "candidates", candidates)
    predictions.image_sizes = [(2000, 5)]
    found = chosen.detections(built, predictions)
    assert threshold[0] == pytest.approx(0.4)
    assert len(found) == 100
    assert (found.boxes[:, 2] == 5).all()
    given = given[:2]  # of .399 and .4
    assert chosen.detections(built, predictions).known_scores.tolist() == pytest.approx([0.4])


def test_a_fit_by_hand() -> None:
    """With two scores, both are met exactly: 50 of 100 are right at .5, and 90 of 100 at .8."""
    scores = torch.tensor([0.5] * 100 + [0.8] * 100)
    right = torch.tensor([True] * 50 + [False] * 50 + [True] * 90 + [False] * 10)
    fit = fit_logistic(scores, right)
    assert fit is not None
    slope, offset = fit
    # Platt's labels for 140 right ones and 60 wrong ones.
    high, low = 141 / 142, 1 / 62
    at_half, at_eight = 0.5 * high + 0.5 * low, 0.9 * high + 0.1 * low
    assert offset == pytest.approx(math.log(at_half / (1 - at_half)), abs=1e-6)
    met = offset + slope * math.log(4)
    assert met == pytest.approx(math.log(at_eight / (1 - at_eight)), abs=1e-6)


def test_many_calibrated_scores_are_left_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, generator=generator) * 0.6 + 0.4
    right = torch.rand(20_000, generator=generator) < scores
    fit = fit_logistic(scores, right)
    assert fit == pytest.approx((1.0, 0.0), abs=0.06)
    order = torch.randperm(20_000, generator=generator)
    assert fit_logistic(scores[order], right[order]) == fit  # to the last bit


@pytest.mark.parametrize("right", [True, False])
def test_labels_that_are_all_alike_are_not_fitted(right: bool) -> None:
    assert fit_logistic(torch.tensor([0.4, 0.6, 0.9]), torch.tensor([right] * 3)) is None
    assert fit_logistic(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) is None


def test_hard_cases_are_fitted_all_the_same() -> None:
    """Separated by a threshold, one and the same score, scores of 0 and 1, the wrong way round."""
    separated = fit_logistic(torch.tensor([0.4, 0.5, 0.8, 0.9]), torch.arange(4) > 1)
    assert separated is not None
    assert separated[0] > 1
    assert all(map(math.isfinite, separated))
    alike = fit_logistic(torch.tensor([0.7] * 4), torch.arange(4) > 0)
    assert alike is not None
    wanted = (3 * 4 / 5 + 1 / 3) / 4  # the mean of Platt's labels
    value = 1 / (1 + math.exp(-alike[0] * math.log(0.7 / 0.3) - alike[1]))
    assert value == pytest.approx(wanted, abs=1e-6)
    extreme = fit_logistic(torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.arange(4) > 0)
    assert extreme is not None
    assert all(map(math.isfinite, extreme))
    wrong_way = fit_logistic(torch.tensor([0.4, 0.5, 0.8, 0.9]), torch.arange(4) < 2)
    assert wrong_way is not None
    assert wrong_way[0] < 0


# -- the calibration and its state -------------------------------------------------------

MIXED = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.6, 1.0], [0.9, 1.0], [0.9, 1.0], [0.9, 0.0]])


def test_a_fit_is_of_what_came_since_the_last_one() -> None:
    one, other = Calibration(), Calibration()
    assert one(torch.tensor([0.99, 1.0])).tolist() == [0, 0]  # before a fit has succeeded
    one.add(torch.tensor([[0.4, 1.0], [0.5, 0.0], [0.4, 1.0]]))
    one.refit()
    assert len(one.recent) == 0
    for calibration in (one, other):
        calibration.add(MIXED[:2])
        calibration.add(MIXED[2:])
        assert torch.equal(calibration.recent, MIXED)
        calibration.refit()
    scores = torch.tensor([0.4, 0.7, 1.0])
    assert torch.equal(one(scores), other(scores))
    fit = fit_logistic(MIXED[:, 0], MIXED[:, 1] > 0)
    assert fit is not None
    logit = math.log(0.7 / 0.3)
    assert one(scores)[1].item() == pytest.approx(1 / (1 + math.exp(-fit[0] * logit - fit[1])))


def test_a_fit_that_is_skipped_leaves_the_last_one() -> None:
    calibration = Calibration()
    calibration.add(MIXED[2:5])  # all right
    calibration.refit()
    assert not calibration.fitted
    assert len(calibration.recent) == 0
    calibration.add(MIXED)
    calibration.refit()
    before = calibration(MIXED[:, 0])
    assert (before > 0).all()
    calibration.add(MIXED[:2])  # all wrong
    calibration.refit()
    calibration.refit()  # and none at all
    assert torch.equal(calibration(MIXED[:, 0]), before)


def test_the_state_travels(tmp_path: Path) -> None:
    first, second = Calibration(), Calibration()
    first.add(MIXED)
    first.refit()
    first.add(MIXED[:2])
    first.add(MIXED[3:])
    assert all(isinstance(value, Tensor) for value in first.state_dict().values())
    torch.save(first.state_dict(), tmp_path / "state")
    second.add(MIXED)  # which is no longer true
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(second.recent, MIXED[[0, 1, 3, 4, 5]])
    for calibration in (first, second):
        calibration.add(MIXED[2:3])
    assert torch.equal(second.recent, first.recent)
    for calibration in (first, second):
        calibration.refit()
    assert torch.equal(second(MIXED[:, 0]), first(MIXED[:, 0]))


# -- step 2: what is merged --------------------------------------------------------------


def calibrated(chosen: Any, slope: float, offset: float) -> None:
    chosen.calibration.slope.fill_(slope)
    chosen.calibration.offset.fill_(offset)
    chosen.calibration.fitted.fill_(True)


FOUND = (
    (40, 10, 55, 25, 0, 0.7),
    (60, 10, 75, 25, 0, 0.69),
    (40, 40, 50, 60, 1, 0.9),  # 10 px wide
    (60, 40, 70.5, 60, 1, 0.9),
    (6, 0, 26, 20, 0, 0.9),  # IoU .54 with the annotation of its class: allowed
    (0, 0, 20, 18, 0, 0.9),  # IoU .9
)


def test_merging_by_hand() -> None:
    chosen = method("calibrated_teacher")
    found, annotated = boxes(FOUND, []), boxes([ANNOTATED], [])
    assert len(chosen.to_merge(found, annotated)) == 0  # before a fit has succeeded
    calibrated(chosen, 1.0, 1e-6)  # scores are what they say
    assert_equal(chosen.to_merge(found, annotated), boxes([FOUND[0], *FOUND[3:5]], []))
    calibrated(chosen, 1.0, -1.0)  # .9 is worth .77, .7 is worth .46
    assert_equal(chosen.to_merge(found, annotated), boxes(FOUND[3:5], []))
    calibrated(chosen, 1.0, 1.0)
    assert len(chosen.to_merge(found, annotated)) == 4
    assert len(chosen.to_merge(boxes([], [], scores=True), annotated)) == 0


def test_nothing_is_merged_before_a_first_fit_whatever_the_threshold() -> None:
    chosen = method("calibrated_teacher", calibrated_threshold=0.0)
    found, annotated = boxes(FOUND), boxes([ANNOTATED])
    assert len(chosen.to_merge(found, annotated)) == 0
    calibrated(chosen, 1.0, 0.0)
    assert len(chosen.to_merge(found, annotated)) == 4


def test_steps_of_training_by_hand(built: DenseDetector) -> None:
    """Fits at steps 2 and 4; overview images in between add nothing to what is fitted."""
    chosen = ready(built, refit_every=2, max_steps=100)
    annotated = boxes([ANNOTATED], [])
    batch = batch_with_images(annotated)
    far = (60, 30, 80, 50, 1, 0.95)
    right, wrong = (0, 0, 20, 19, 0, 0.9), (0, 0, 20, 14, 0, 0.5)
    chosen.detections = lambda *_: boxes([right, wrong, far], [])
    views = views_of(chosen, batch)
    merged, kept = [], []
    for step in range(5):
        result = chosen(built, views, batch, step)
        merged.append(result.pseudo_labels["original"].labels.tolist())
        with torch.no_grad():
            predictions = built.predict(views["recoloured"])
            chosen.supervise_unknown(built, predictions, views, batch, step)  # a picture
        chosen.after_step(built, step + 1)
        kept.append(len(chosen.calibration.recent))
    assert kept == [2, 0, 2, 0, 2]
    assert merged[:2] == [[], []]
    rows = torch.tensor([[0.9, 1.0], [0.5, 0.0]] * 2)
    fit = fit_logistic(rows[:, 0], rows[:, 1] > 0)
    assert fit is not None
    assert chosen.calibration.slope.item() == pytest.approx(fit[0])
    worth = 1 / (1 + math.exp(-fit[0] * math.log(19) - fit[1]))
    assert worth > 0.7
    assert merged[2:] == [[1]] * 3


def test_several_batches_of_a_step_are_fitted_together(built: DenseDetector) -> None:
    chosen = ready(built, max_steps=100)
    batch = batch_with_images(boxes([ANNOTATED], []))
    chosen.detections = lambda *_: boxes([(0, 0, 20, 19, 0, 0.9)], [])
    for _ in range(3):
        chosen(built, views_of(chosen, batch), batch, 0)
    chosen.after_step(built, 1)
    assert chosen.calibration.recent.shape == (3, 2)


def test_merged_boxes_train_like_annotations_and_known_classes_are_left_alone(
    built: DenseDetector,
) -> None:
    chosen = ready(built)
    calibrated(chosen, 1.0, 1.0)
    batch = batch_with_images(boxes([ANNOTATED], []))
    rate = torch.tensor([[torch.nan, 1.0, torch.nan], [torch.nan] * 3])
    batch = replace(batch, knowledge=Knowledge.of(rate, Boxes.empty(2), 0.5))
    far = (60, 30, 80, 50)
    chosen.detections = lambda *_: boxes([(*far, 1, 0.9)], [(*far, 1, 0.9)])
    views = views_of(chosen, batch)
    result = chosen(built, views, batch, 0)
    assert_equal(result.pseudo_labels["original"], boxes([], [(*far, 1, 0.9)]))
    targets = boxes([ANNOTATED], [(*far, 1)])
    expected = built.losses(built.predict(views["recoloured"]), targets)
    assert {f"recoloured/{name}" for name in expected} == set(result.losses)
    for name, loss in expected.items():
        torch.testing.assert_close(result.losses[f"recoloured/{name}"], loss, rtol=1e-4, atol=1e-6)


# -- step 3: late negatives --------------------------------------------------------------


def test_the_weight_by_hand(stock: Any) -> None:
    """b + k (1 - b) (-a u^g ln(1.00001 - u)) with a .25, g 2, b .5, k 3."""
    weight = stock.negative_weight(torch.tensor([0.0, 0.5, 0.9, 1.0]))
    expected = [0.5, 0.564978, 1.199416, 4.8173]
    torch.testing.assert_close(weight, torch.tensor(expected), atol=2e-3, rtol=0)


def test_the_overlap_is_that_of_the_predicted_boxes(built: DenseDetector) -> None:
    predictions = random_predictions(built, 2)
    targets = boxes([(8, 8, 40, 40, 0), (10, 5, 30, 35, 1)], [])
    assignment = built.assign(predictions, targets)
    regions = DenseRegions(built, predictions, targets, assignment, predictions.logits)
    overlap = regions.predicted_overlap(targets)
    decoded = built.decode_boxes(predictions.deltas[0], predictions.anchors)
    expected = paired_iou(targets.boxes, decoded).amax(dim=0)
    torch.testing.assert_close(overlap[0], expected)
    assert expected.max() > 0.4
    assert (overlap[1] == 0).all()
    of_regions = regions.overlap(targets)
    assert torch.equal(overlap, of_regions) == bool(predictions.auxiliary)  # FCOS has no others


def test_only_negatives_are_weighted_and_only_late(built: DenseDetector) -> None:
    chosen = ready(built, max_steps=1800)
    assert chosen.late_step == 1500
    assert method("calibrated_teacher", max_steps=90_000).late_step == 75_000
    batch = batch_with_images(boxes([(8, 8, 40, 40, 0)], []))
    merged = (50, 20, 80, 60, 1, 0.9)
    chosen.detections = lambda *_: boxes([merged], [])
    calibrated(chosen, 1.0, 1.0)
    views = views_of(chosen, batch)
    early, late = (chosen(built, views, batch, step).losses for step in (1499, 1500))
    for name, loss in early.items():
        same_value = torch.allclose(late[name], loss, rtol=1e-6)
        assert same_value == (name != "recoloured/classification")

    predictions = random_predictions(built, 2)
    targets = boxes([(8, 8, 40, 40, 0), merged[:5]], [])
    assignment = built.assign(predictions, targets)
    regions = DenseRegions(built, predictions, targets, assignment, predictions.logits)
    weights = chosen.background(regions, batch).weights
    assert (weights[~regions.negative] == 1).all()
    expected = chosen.negative_weight(regions.predicted_overlap(targets))
    assert torch.equal(weights[regions.negative], expected[regions.negative])
    without = chosen.negative_weight(regions.predicted_overlap(batch.annotated))
    assert not torch.equal(weights[regions.negative], without[regions.negative])
    assert (weights[1][regions.negative[1]] == 0.5).all()  # no target in the image


def test_no_late_part_is_never(built: DenseDetector) -> None:
    chosen = ready(built, max_steps=10, late_part=0.0)
    batch = batch_with_images(boxes([ANNOTATED]))
    views = views_of(chosen, batch)
    first, last = (chosen(built, views, batch, step).total for step in (0, 9))
    assert torch.equal(first, last)


# -- hostile -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1799])
def test_images_without_annotations_train(built: DenseDetector, step: int) -> None:
    for annotated in (boxes([], []), boxes([], [(10, 5, 30, 35, 1)])):
        chosen = ready(built, max_steps=1800, refit_every=1)
        batch = batch_with_images(annotated)
        result = chosen(built, views_of(chosen, batch), batch, step)
        result.total.backward()
        chosen.after_step(built, step + 1)
        assert torch.isfinite(result.total)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in built.parameters())


def test_a_run_that_ends_before_the_first_fit_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    built = detector("retinanet", 3)
    with caplog.at_level(logging.WARNING):
        ready(built, max_steps=501)
        assert not caplog.records
        ready(built, max_steps=500)
    assert "method.refit_every=500: nothing is merged before the first fit" in caplog.text


# -- runs --------------------------------------------------------------------------------

OPTIONS = (
    "method=calibrated_teacher", "method.score_threshold=0.008", "method.refit_every=2",
    "method.calibrated_threshold=0.0", "method.min_box_size=1.0", "method.right_overlap=0.55",
    "method.late_part=0.5", "checkpoint.every_n_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of 6 steps, with a checkpoint of each."""
    done = train(module_path, "hydra.run.dir=whole", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return module_path


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_and_resumed_equals_never_stopped(folder: Path, step: int) -> None:
    """Also where detections wait for the next fit."""
    run = folder / f"again{step}"
    shutil.copytree(folder / "whole", run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / f"step_{step:06d}.ckpt", checkpoints / "last.ckpt")
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert (len(state["method.calibration._extra_state"]) > 0) == (step % 2 == 1)
    done = call(folder, f"resume=again{step}")
    assert done.returncode == 0, done.stderr
    same(folder / "whole", run)
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert last["state_dict"]["method.calibration.fitted"]
    assert last["comining"]["deployed"] == "detector"
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert result["mining"]["pseudo_labels_per_image"] > 0


@pytest.mark.slow
def test_two_processes_fit_what_one_does(folder: Path) -> None:
    """Up to the first merge: an untrained network then merges 100 boxes an image, in an order that
    rounding decides."""
    done = train(folder, "hydra.run.dir=two", *OPTIONS, *TWO)
    assert done.returncode == 0, done.stderr
    for step in (1, 2, 3):
        one, two = (
            torch.load(folder / run / f"checkpoints/step_{step:06d}.ckpt", weights_only=True)
            for run in ("whole", "two")
        )
        for name in ("_extra_state", "slope", "offset", "fitted"):
            key = f"method.calibration.{name}"
            expected = one["state_dict"][key]
            torch.testing.assert_close(two["state_dict"][key], expected, rtol=1e-4, atol=1e-4)
        assert one["state_dict"]["method.calibration.fitted"] == (step > 1)
        assert (len(one["state_dict"]["method.calibration._extra_state"]) > 0) == (step % 2 == 1)
