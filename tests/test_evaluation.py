"""COCO's numbers as COCO computes them, and the judgement of mined boxes."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from comining.data.annotations import AnnotationSet, read_annotations
from comining.errors import DivergedError
from comining.evaluation.coco import METRICS, CocoEvaluator, metrics_table
from comining.evaluation.mining import MiningScore, right_ones
from comining.structures import Detections
from tests.helpers import edit_json, real_data, targets, write_coco


def detections(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


def noisy(annotations: AnnotationSet, seed: int) -> dict[int, Detections]:
    """Ground truth with jitter, misses, wrong classes and false alarms."""
    rng = np.random.default_rng(seed)
    found = {}
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        rows = np.flatnonzero(annotations.image == position)
        rows = rows[rng.random(len(rows)) < 0.8]
        boxes = annotations.boxes[rows] + rng.normal(0, 3, (len(rows), 4))
        extra = rng.uniform(0, 200, (5, 2))
        boxes = np.concatenate([boxes, np.concatenate([extra, extra + 40], axis=1)])
        labels = np.concatenate([annotations.labels[rows], rng.integers(0, 3, 5)])
        wrong = rng.random(len(labels)) < 0.1
        labels[wrong] = 0
        found[image_id] = Detections(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(rng.random(len(labels))).float(),
        )
    return found


def evaluate(annotations: AnnotationSet, found: dict[int, Detections]) -> dict[str, Any]:
    evaluator = CocoEvaluator(annotations)
    evaluator.update(list(found), list(found.values()))
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
    annotations = read_annotations(path)
    evaluator = CocoEvaluator(annotations)
    found = noisy(annotations, 0)
    evaluator.update(list(found), list(found.values()))
    ours = evaluator.compute()
    theirs = official(path, evaluator.results())
    assert list(ours) == list(METRICS)
    assert [-1 if v is None else v / 100 for v in ours.values()] == pytest.approx(theirs, abs=1e-12)
    assert 5 < ours["AP"] < 80


def test_ground_truth_fed_back_scores_100() -> None:
    """coco128's crowds are regions to ignore, no objects to find."""
    annotations = read_annotations(
        real_data("coco128") / "annotations" / "instances_train2017.json"
    )
    found = {}
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        rows = np.flatnonzero((annotations.image == position) & ~annotations.crowd)
        x, y, w, h = annotations.bboxes[rows].T
        boxes = np.stack([x, y, x + w, y + h], axis=1)
        found[image_id] = Detections(
            torch.from_numpy(boxes),
            torch.from_numpy(annotations.labels[rows]),
            torch.ones(len(rows)),
        )
    metrics = evaluate(annotations, found)
    assert metrics["AP"] == pytest.approx(100)
    assert metrics["AR100"] == pytest.approx(100)


def test_an_annotation_with_id_0_counts(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [[(1, 2, 10, 12, 1)]])
    edit_json(file, lambda c: c["annotations"][0].update(id=0))
    metrics = evaluate(read_annotations(file), {1: detections((1, 2, 11, 14, 0, 0.9))})
    assert metrics["AP"] == pytest.approx(100)


def test_no_detections_is_zero_and_absent_sizes_are_none(tmp_path: Path) -> None:
    annotations = read_annotations(write_coco(tmp_path, [[(1, 2, 10, 12, 1)], []]))
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
    annotations = read_annotations(write_coco(tmp_path, [[]]))
    assert set(evaluate(annotations, {1: detections((1, 1, 5, 5, 0, 0.5))}).values()) == {None}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_box_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    """COCOeval would give a NaN box AP 1.0."""
    evaluator = CocoEvaluator(read_annotations(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]])))
    with pytest.raises(DivergedError, match="image 1"):
        evaluator.update([1], [detections((1, 2, bad, 14, 0, 0.9))])
    with pytest.raises(DivergedError, match="image 1"):
        evaluator.update([1], [detections((1, 2, 11, 14, 0, bad))])


def test_an_image_that_comes_twice_counts_once(tmp_path: Path) -> None:
    annotations = read_annotations(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]]))
    evaluator = CocoEvaluator(annotations)
    for _ in range(2):
        evaluator.update([1], [detections((1, 2, 11, 14, 0, 0.9))])
    assert len(evaluator.results()) == 1
    evaluator.reset()
    assert evaluator.results() == []


def test_results_are_in_cocos_format(tmp_path: Path) -> None:
    evaluator = CocoEvaluator(read_annotations(write_coco(tmp_path, [[(1, 2, 10, 12, 1)]])))
    evaluator.update([1], [detections((1, 2, 11, 14, 2, 0.5))])
    expected = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12], "score": 0.5}
    assert evaluator.results() == [expected]
    json.dumps(evaluator.results())


# -- mining ------------------------------------------------------------------------------


def test_right_is_same_image_same_class_half_overlap_and_only_once() -> None:
    mined = [
        detections(
            (0, 0, 10, 10, 0, 0.7),  # right place, but the next is better
            (0, 0, 10, 11, 0, 0.8),  # right
            (0, 0, 10, 10, 1, 0.9),  # wrong class
            (30, 30, 40, 40, 0, 0.9),  # nothing there
            (50, 50, 60, 59, 2, 0.6),  # right
            (50, 54, 60, 64, 2, 0.5),  # IoU 3/7
        ),
        detections((0, 0, 10, 10, 0, 0.9)),  # erased in the other image
        detections(),
    ]
    erased = [targets((0, 0, 10, 10, 0), (50, 50, 60, 60, 2)), targets(), targets((1, 1, 5, 5, 1))]
    assert right_ones(mined, erased).tolist() == [False, True, False, False, True, False, False]

    score = MiningScore()
    score.update(mined, erased)
    assert score.compute() == {
        "pseudo_labels_per_image": pytest.approx(7 / 3),
        "precision": pytest.approx(2 / 7),
        "recall": pytest.approx(2 / 3),
    }


def test_figures_add_up_over_updates_and_views() -> None:
    score = MiningScore()
    erased = [targets((0, 0, 10, 10, 0))]
    score.update([detections((0, 0, 10, 10, 0, 0.9))], erased)
    score.update([detections()], erased)
    assert score.compute() == {
        "pseudo_labels_per_image": 0.5,
        "precision": 1.0,
        "recall": 0.5,
    }


def test_nothing_mined_and_nothing_erased() -> None:
    score = MiningScore()
    score.update([detections()], [targets()])
    assert score.compute() == {"pseudo_labels_per_image": 0, "precision": None, "recall": None}
