"""COCO's numbers as COCO computes them, and the judgement of mined boxes."""

import contextlib
import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from comining.data.annotations import AnnotationSet
from comining.data.formats.coco import read_coco
from comining.errors import DivergedError
from comining.evaluation import mining_metric
from comining.evaluation.coco_evaluator import METRICS, CocoEvaluator, metrics_table
from comining.evaluation.mining_metric import (
    KINDS,
    MiningScore,
    are_right,
    headline,
    in_other_view,
    judge,
)
from comining.evaluation.recall_among import recall_among_best
from comining.structures import Batch, Boxes, StepResult
from tests.helpers import batch_of, boxes, edit_json, real_data, write_coco


def detections(*rows: tuple[float, float, float, float, int, float]) -> Boxes:
    """Of one image."""
    return boxes(rows, scores=True)


def of_one_image(corners: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Boxes:
    return Boxes.of_images(
        [torch.from_numpy(corners).float()],
        [torch.from_numpy(labels)],
        [torch.from_numpy(scores).float()],
    )


def update(evaluator: CocoEvaluator, of_images: dict[int, Boxes]) -> None:
    """Add the detections of single images, by image id, as those of a batch."""
    parts = of_images.values()
    batch = Boxes.of_images(
        [part.boxes for part in parts],
        [part.labels for part in parts],
        [part.known_scores for part in parts],
    )
    evaluator.update(list(of_images), batch)


def noisy(annotations: AnnotationSet, seed: int) -> dict[int, Boxes]:
    """Ground truth with jitter, misses, wrong classes and false alarms."""
    rng = np.random.default_rng(seed)
    of_images = {}
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        rows = np.flatnonzero(annotations.image == position)
        rows = rows[rng.random(len(rows)) < 0.8]
        corners = annotations.boxes[rows] + rng.normal(0, 3, (len(rows), 4))
        extra = rng.uniform(0, 200, (5, 2))
        corners = np.concatenate([corners, np.concatenate([extra, extra + 40], axis=1)])
        labels = np.concatenate([annotations.labels[rows], rng.integers(0, 3, 5)])
        wrong = rng.random(len(labels)) < 0.1
        labels[wrong] = 0
        of_images[image_id] = of_one_image(corners, labels, rng.random(len(labels)))
    return of_images


def evaluate(annotations: AnnotationSet, of_images: dict[int, Boxes]) -> dict[str, Any]:
    evaluator = CocoEvaluator(annotations)
    update(evaluator, of_images)
    return evaluator.compute()


def official(file: Path, results: list[dict[str, Any]]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco128", "annotations/instances_train2017.json"),  # has crowds and mask areas
        ("bccd", "annotations/instances_test.json"),
    ],
)
def test_the_12_numbers_are_pycocotools_on_the_file_itself(name: str, file: str) -> None:
    path = real_data(name) / file
    annotations = read_coco(path)
    evaluator = CocoEvaluator(annotations)
    update(evaluator, noisy(annotations, 0))
    ours = evaluator.compute()
    theirs = official(path, evaluator.results())
    assert list(ours) == list(METRICS)
    assert list(ours.values()) == [None if v < 0 else 100 * v for v in theirs]
    assert 5 < ours["AP"] < 80


@pytest.mark.parametrize("seed", range(5))
def test_ties_crowds_and_more_than_100_detections_count_as_in_pycocotools(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def records(count: int) -> list[tuple[float, float, float, float, int]]:
        rows = zip(rng.uniform(0, 24, (count, 2)), rng.uniform(2, 24, (count, 2)), strict=True)
        return [(x, y, w, h, int(rng.integers(1, 4))) for (x, y), (w, h) in rows]

    file = write_coco(tmp_path, [records(int(rng.integers(0, 9))) for _ in range(12)])

    def spoil(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["iscrowd"] = int(rng.random() < 0.2)
            one["area"] = float(rng.uniform(0.2, 1) * one["area"])  # as of masks

    annotations = read_coco(edit_json(file, spoil))
    evaluator = CocoEvaluator(annotations)
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        truth = annotations.boxes[annotations.image == position]
        count = int(rng.integers(0, 150))
        corners = rng.uniform(0, 40, (count, 2))
        found = np.concatenate([corners, corners + rng.uniform(2, 24, (count, 2))], axis=1)
        found = np.concatenate([found, truth + rng.normal(0, 1, truth.shape)])
        labels = rng.integers(0, 3, len(found))
        scores = rng.integers(1, 10, len(found)) / 10  # many are equal
        evaluator.update([image_id], of_one_image(found, labels, scores))
    theirs = official(file, evaluator.results())
    ours = list(evaluator.compute().values())
    assert ours == [None if v < 0 else 100 * v for v in theirs]
    of_classes = [value for value in evaluator.class_ap.values() if value is not None]
    assert np.mean(of_classes) == pytest.approx(ours[0])


def test_ground_truth_fed_back_scores_100() -> None:
    """coco128's crowds are regions to ignore, no objects to find."""
    annotations = read_coco(real_data("coco128") / "annotations" / "instances_train2017.json")
    of_images = {}
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        rows = np.flatnonzero((annotations.image == position) & ~annotations.crowd)
        x, y, w, h = annotations.bboxes[rows].T
        of_images[image_id] = Boxes.of_images(
            [torch.from_numpy(np.stack([x, y, x + w, y + h], axis=1))],  # float64
            [torch.from_numpy(annotations.labels[rows])],
            [torch.ones(len(rows))],
        )
    metrics = evaluate(annotations, of_images)
    assert metrics["AP"] == pytest.approx(100)
    assert metrics["AR100"] == pytest.approx(100)


def test_an_annotation_with_id_0_counts(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [[(1, 2, 10, 12, 1)]])
    edit_json(file, lambda c: c["annotations"][0].update(id=0))
    metrics = evaluate(read_coco(file), {1: detections((1, 2, 11, 14, 0, 0.9))})
    assert metrics["AP"] == pytest.approx(100)


@pytest.mark.parametrize("first", [0, 2**53, 2**60])
def test_neighbouring_large_ids_are_not_confused(tmp_path: Path, first: int) -> None:
    """Ids are kept in float64 by the evaluation, which has no 2**53 + 1."""
    boxes = [(1.0, 2.0, 10.0, 12.0, 1), (40.0, 20.0, 20.0, 12.0, 2)]
    file = write_coco(tmp_path, [boxes, boxes[:1], boxes[1:], []])

    def renumber(content: dict[str, Any]) -> None:
        for one in (*content["images"], *content["categories"]):
            one["id"] += first
        for one in content["annotations"]:
            one["image_id"] += first
            one["category_id"] += first

    plain = read_coco(file)
    found = noisy(plain, 0)
    # Detections of the neighbour, which must not count.
    found[3], found[4] = found[4], found[3]
    expected = evaluate(plain, found)
    assert 0 < expected["AP"] < 100
    annotations = read_coco(edit_json(file, renumber))
    of_images = {image_id + first: of_image for image_id, of_image in found.items()}
    assert evaluate(annotations, of_images) == expected
    evaluator = CocoEvaluator(annotations)
    update(evaluator, of_images)
    evaluator.compute()
    assert {row["image_id"] for row in evaluator.results()} == set(of_images)


def test_evaluation_says_nothing_of_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """At every validation it would bury the lines of the run."""
    caplog.set_level(logging.INFO)
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)], []]))
    evaluate(annotations, noisy(annotations, 0))
    assert capsys.readouterr().out == ""
    assert caplog.records == []


def test_no_detections_is_zero_and_absent_sizes_are_none(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)], []]))
    metrics = evaluate(annotations, {1: detections(), 2: detections()})
    assert metrics["AP"] == metrics["APs"] == 0
    assert metrics["APm"] is None
    assert metrics["APl"] is None
    assert metrics_table(metrics).splitlines()[1].split()[:6] == [
        "0.0",
        "0.0",
        "0.0",
        "0.0",
        "-",
        "-",
    ]


def test_a_set_without_annotations_has_no_numbers(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[]]))
    assert set(evaluate(annotations, {1: detections((1, 1, 5, 5, 0, 0.5))}).values()) == {None}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["box", "score"])
def test_detections_that_are_not_finite_are_refused(
    tmp_path: Path, column: str, bad: float
) -> None:
    """COCOeval would give a NaN box AP 1.0. Where processes meet, not on one of them alone."""
    records = [[(1, 2, 10, 12, 1)]] * 3
    evaluator = CocoEvaluator(read_coco(write_coco(tmp_path, records)))
    good = (1, 2, 11, 14, 0, 0.9)
    spoilt = (1, 2, bad, 14, 0, 0.9) if column == "box" else (1, 2, 11, 14, 0, bad)
    evaluator.update([1, 2, 3], boxes([good], [good, spoilt], []))
    with pytest.raises(DivergedError, match=r"detections of image 2 are not finite") as stop:
        evaluator.gather()
    assert stop.value.facts == {"image_id": 2}
    evaluator.update([3], boxes([spoilt]))
    with pytest.raises(DivergedError, match=r"image 2, and of 1 more images, are not finite"):
        evaluator.gather()
    evaluator.reset()
    evaluator.update([1, 2, 3], boxes([good], [good], [good]))
    assert evaluator.gather()["AP"] == pytest.approx(100)


def test_an_image_that_comes_twice_counts_once(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]]))
    evaluator = CocoEvaluator(annotations)
    for _ in range(2):
        evaluator.update([1], detections((1, 2, 11, 14, 0, 0.9)))
    assert len(evaluator.results()) == 1
    evaluator.reset()
    assert evaluator.results() == []


def test_results_are_in_cocos_format(tmp_path: Path) -> None:
    evaluator = CocoEvaluator(read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]])))
    evaluator.update([1], detections((1, 2, 11, 14, 2, 0.5)))
    expected = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12], "score": 0.5}
    assert evaluator.results() == [expected]
    json.dumps(evaluator.results())


def test_sides_of_boxes_are_taken_in_float64(tmp_path: Path) -> None:
    """Here rounding a width to float32 would change AP50 from 100 to 0."""
    detected = torch.tensor([[0.4, 2.0, 50.1, 12.0]])
    left, _, right, _ = detected.double()[0].tolist()
    exact, rounded = right - left, (detected[0, 2] - detected[0, 0]).item()
    assert rounded < exact
    width = exact + rounded  # the overlap with an annotation so wide lies about 0.5
    assert rounded / width < 0.5 <= exact / width
    file = write_coco(tmp_path, [[(left, 2.0, width, 10.0, 1)]], width=128)
    evaluator = CocoEvaluator(read_coco(file))
    one = Boxes.of_images([detected], [torch.tensor([0])], [torch.tensor([0.9])])
    evaluator.update([1], one)
    assert evaluator.results()[0]["bbox"] == [left, 2.0, exact, 10.0]
    assert evaluator.compute()["AP50"] == pytest.approx(100)
    assert detected.dtype == torch.float32
    assert one.boxes.tolist() == detected.tolist()  # what was handed in is not changed


# -- mining ------------------------------------------------------------------------------


SUPERVISED = ("original", "augmented")


def mined_by(**mined: Boxes) -> StepResult:
    return StepResult({}, mined)


def score_of(*steps: tuple[StepResult, Batch], num_classes: int = 3) -> MiningScore:
    score = MiningScore(SUPERVISED, num_classes)
    for result, batch in steps:
        score.update(*score.measure(result, batch))
    return score


def batch_with(erased: Boxes, kept: Boxes | None = None) -> Batch:
    return batch_of(Boxes.empty(erased.num_images) if kept is None else kept, erased)


def test_right_is_same_image_same_class_half_overlap_and_only_once() -> None:
    mined = boxes(
        [
            (0, 0, 10, 10, 0, 0.7),  # right place, but the next is better
            (0, 0, 10, 11, 0, 0.8),  # right
            (0, 0, 10, 10, 1, 0.9),  # wrong class
            (30, 30, 40, 40, 0, 0.9),  # nothing there
            (50, 50, 60, 59, 2, 0.6),  # right
            (50, 54, 60, 64, 2, 0.5),  # IoU 3/7
        ],
        [(0, 0, 10, 10, 0, 0.9)],  # erased in the other image
        [],
    )
    erased = boxes([(0, 0, 10, 10, 0), (50, 50, 60, 60, 2)], [], [(1, 1, 5, 5, 1)])
    assert are_right(mined, erased).tolist() == [False, True, False, False, True, False, False]
    kinds = [KINDS[k] for k in judge(mined, erased, boxes([], [], []))]
    assert kinds == [
        "duplicate", "right", "wrong_class", "background", "right", "poor_localisation",
        "background",
    ]  # fmt: skip
    figures = score_of((mined_by(original=mined), batch_with(erased))).compute()
    assert figures.together["pseudo_labels_per_image"] == pytest.approx(7 / 3)
    assert figures.together["pseudo_labels_max"] == 6
    assert figures.together["precision"] == pytest.approx(2 / 7)
    assert figures.together["recall"] == pytest.approx(2 / 3)
    assert figures.together["score"] == pytest.approx((0.7 + 0.8 + 0.9 * 3 + 0.6 + 0.5) / 7)
    assert sum(figures.together[kind] or 0 for kind in KINDS[1:]) == pytest.approx(5 / 7)
    assert [one["pseudo_labels_per_image"] for one in figures.classes] == [4 / 3, 1 / 3, 2 / 3]
    assert [one["precision"] for one in figures.classes] == [0.25, 0, 0.5]
    assert [one["recall"] for one in figures.classes] == [1, 0, 1]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((0, 0, 10, 10, 0, 0.9), "right"),
        ((20, 20, 30, 30, 1, 0.9), "duplicate"),  # of one that is kept
        ((20, 20, 30, 30, 0, 0.9), "wrong_class"),  # on one that is kept
        ((0, 0, 10, 10, 1, 0.9), "wrong_class"),  # on one that is erased
        ((0, 6, 10, 16, 0, 0.9), "poor_localisation"),  # IoU 1/4 with an erased one
        ((26, 20, 36, 30, 1, 0.9), "poor_localisation"),  # IoU 1/4 with a kept one
        ((0, 6, 10, 16, 1, 0.9), "background"),  # IoU 1/4, and not its class
        ((0, 9, 10, 19, 0, 0.9), "background"),  # IoU 1/19
        ((70, 70, 80, 80, 0, 0.9), "background"),
    ],
)
def test_kinds_of_mined_boxes(box: tuple[float, ...], kind: str) -> None:
    erased, kept = [(0, 0, 10, 10, 0)], [(20, 20, 30, 30, 1)]
    assert KINDS[judge(boxes([box]), boxes(erased), boxes(kept))[0]] == kind
    elsewhere = judge(boxes([], [box]), boxes(erased, []), boxes(kept, []))
    assert KINDS[elsewhere[0]] == "background"  # annotations of another image do not count


@pytest.mark.parametrize(
    ("percent", "of_erased", "of_kept", "of_another_class", "is_agreed"),
    [
        (51, "right", "duplicate", "wrong_class", True),
        (50, "right", "duplicate", "wrong_class", True),
        (49, "poor_localisation", "poor_localisation", "background", False),
        (11, "poor_localisation", "poor_localisation", "background", False),
        (9, "background", "background", "background", False),
    ],
)
def test_how_much_overlap_counts(
    percent: int, of_erased: str, of_kept: str, of_another_class: str, is_agreed: bool
) -> None:
    """From 0.5 on it is the object, as in AP50; from 0.1 on it touches it."""
    truth, nothing = boxes([(0, 0, 100, 100, 0)]), boxes([])
    mined = boxes([(0, 0, 100, percent, 0, 0.9)])
    assert mining_metric.iou_in_image(mined, truth)[0].item() == pytest.approx(percent / 100)
    other = boxes([(0, 0, 100, percent, 1, 0.9)])
    assert KINDS[judge(mined, truth, nothing)] == of_erased
    assert KINDS[judge(mined, nothing, truth)] == of_kept
    assert KINDS[judge(other, truth, nothing)] == of_another_class
    assert are_right(mined, truth).tolist() == [of_erased == "right"]
    assert in_other_view(mined, boxes([(0, 0, 100, 100, 0, 0.4)])).tolist() == [is_agreed]
    figures = score_of((mined_by(original=mined), batch_with(truth))).compute()
    assert figures.together["precision"] == figures.together["recall"] == (of_erased == "right")


def test_of_boxes_on_one_annotation_the_first_of_equal_scores_is_right() -> None:
    mined = boxes([(0, 0, 10, 9, 0, 0.5), (0, 0, 10, 10, 0, 0.5), (0, 0, 10, 10, 0, 0.4)])
    assert are_right(mined, boxes([(0, 0, 10, 10, 0)])).tolist() == [True, False, False]


def test_figures_add_up_over_updates_and_views() -> None:
    erased = boxes([(0, 0, 10, 10, 0)])
    right, missed = detections((0, 0, 10, 10, 0, 0.9)), detections()
    both = mined_by(original=right, augmented=missed)
    together = score_of((both, batch_with(erased))).compute()
    assert headline(together.together) == {
        "pseudo_labels_per_image": 0.5, "precision": 1.0, "recall": 0.5,
    }  # fmt: skip
    assert headline(together.views["original"])["recall"] == 1
    assert headline(together.views["augmented"])["recall"] == 0
    one_by_one = score_of(
        (mined_by(original=right), batch_with(erased)),
        (mined_by(augmented=missed), batch_with(erased)),
    ).compute()
    one_by_one.together["agreement"] = together.together["agreement"]
    assert one_by_one.together == together.together


def test_agreement_is_the_share_that_the_other_view_mined_too() -> None:
    original = boxes([(0, 0, 10, 10, 0, 0.9), (20, 20, 30, 30, 1, 0.9)], [])
    augmented = boxes([(0, 0, 10, 11, 0, 0.8)], [(20, 20, 30, 30, 1, 0.9)])
    result = mined_by(original=original, augmented=augmented)
    figures = score_of((result, batch_with(boxes([], [])))).compute()
    assert figures.views["original"]["agreement"] == 0.5
    assert figures.views["augmented"]["agreement"] == 0.5
    assert figures.together["agreement"] == 0.5
    assert figures.together["share_of_targets"] == 1  # nothing is annotated here


def test_what_each_step_drops_is_counted_per_image() -> None:
    result = mined_by(original=boxes([(0, 0, 9, 9, 0, 0.9)], []))
    result.remaining_counts = {"original": torch.tensor([[100, 9, 4, 3, 1], [100, 5, 2, 2, 0]])}
    kept = boxes([(20, 20, 30, 30, 1)], [])
    figures = score_of((result, batch_with(boxes([], []), kept))).compute().together
    assert figures["dropped_by_score"] == (91 + 95) / 2
    assert figures["dropped_by_nms"] == (5 + 3) / 2
    assert figures["dropped_by_border"] == 1 / 2
    assert figures["dropped_by_annotation"] == (2 + 2) / 2
    assert figures["share_of_targets"] == 0.5


def test_nothing_mined_and_nothing_erased() -> None:
    batch = batch_with(boxes([]))
    figures = score_of((mined_by(original=detections()), batch)).compute()
    assert headline(figures.together) == {
        "pseudo_labels_per_image": 0, "precision": None, "recall": None,
    }  # fmt: skip
    assert set(score_of().compute().together.values()) == {None}


def test_without_float64_on_the_device_scores_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MPS even an assignment of float64 fails."""
    mined = boxes([(0, 0, 10, 10, 0, 0.9), (50, 50, 60, 60, 1, 0.7)])
    step = mined_by(original=mined, augmented=mined), batch_with(boxes([(0, 0, 10, 10, 0)]))
    expected = score_of(step)
    assert expected.sums.dtype == torch.float64
    monkeypatch.setattr(mining_metric, "widest_float", lambda device: torch.float32)
    score = score_of(step)
    measured = score.measure(*step)
    kept = [value for value in vars(score).values() if isinstance(value, torch.Tensor)]
    kept += score._defaults.values()
    assert len(kept) == 6
    for column in (*kept, *measured):
        assert column.dtype == torch.float32
    assert score.compute() == expected.compute()


def test_recall_among_the_best_by_hand() -> None:
    """Of 4 annotated objects right, wrong, right, wrong, wrong, wrong, right: ranks 1, 3 and 7."""
    levels = np.linspace(0, 1, 101)
    precision = np.where(levels <= 0.25, 1, np.where(levels <= 0.5, 2 / 3, 3 / 7))
    precision[levels > 0.75] = 0
    table = np.tile(precision[None, :, None], (10, 1, 3))
    table[:, :, 2] = -1  # a class without annotations
    expected = {0.25: 25, 0.5: 33, 0.75: 50, 1.0: 50, 1.5: 64, 1.75: 75, 32.0: 75}
    for multiple, recall in expected.items():
        found = recall_among_best(table, levels, multiple)
        assert found == pytest.approx(recall, abs=1.01), multiple
    assert recall_among_best(table[:, :, 2:], levels, 1.0) is None


def test_missing_annotations_do_not_change_recall_among_the_objects(tmp_path: Path) -> None:
    """Every second annotation is missing: AP is halved, recall among all objects is not."""
    generator = np.random.default_rng(0)
    rows = [[(10 * n, 2, 8, 8, 1) for n in range(8)] for _ in range(60)]
    complete = read_coco(write_coco(tmp_path / "complete", rows, width=96, height=16))
    half = read_coco(write_coco(tmp_path / "half", [row[::2] for row in rows], width=96, height=16))
    found = {}
    for image_id in complete.image_ids.tolist():
        kept = generator.random(8) < 0.7
        left = torch.arange(0, 80, 10)[torch.from_numpy(kept)].float()
        box = torch.stack([left, torch.full_like(left, 2), left + 8, torch.full_like(left, 10)], 1)
        scores = torch.from_numpy(generator.random(len(left))).float()
        found[image_id] = Boxes.of_images([box], [torch.zeros(len(left)).long()], [scores])
    of_all, of_half = CocoEvaluator(complete), CocoEvaluator(half)
    values = []
    for evaluator in (of_all, of_half):
        evaluator.add(found)
        values.append(evaluator.compute()["AP"])
    assert values[1] == pytest.approx(values[0] / 2, abs=4)
    assert of_half.recall_among["2"] == pytest.approx(of_all.recall_among["1"], abs=6)
    assert of_all.recall_among["1"] == pytest.approx(70, abs=4)
