"""Evaluation and figures where it is known what was looked for, and where it is not."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import logging
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comining.config import instantiate
from comining.data.annotations import AnnotationSet
from comining.data.category_matching import without_category
from comining.data.datamodule import DetectionData
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED
from comining.data.sampler import SampleKey
from comining.errors import ConfigError
from comining.evaluation.coco_evaluator import (
    LOWER_BOUND,
    METRICS,
    CocoEvaluator,
    metrics_table,
)
from comining.evaluation.mining_metric import KINDS, MiningScore, headline
from comining.structures import Boxes, StepResult
from comining.training.callbacks.figures import TrainingFigures
from comining.training.callbacks.pictures import WrongPseudoLabels
from comining.training.callbacks.progress import Progress
from comining.training.callbacks.saving import StepCheckpoint
from comining.training.training_module import DetectionModule
from tests.helpers import batch_of, boxes, composed, edit_json, write_coco
from tests.test_evaluation import evaluate, noisy, official, update
from tests.test_train import evaluate as evaluate_checkpoint
from tests.test_train import train

Content = dict[str, Any]
# Where the first of two recall levels is reached, of the 101 that AP is a mean over.
HALF = 100 * 51 / 101


def known(file: Path, *fields: tuple[list[int], list[int]]) -> AnnotationSet:
    """A file with neg_category_ids and not_exhaustive_category_ids of its first images."""

    def change(content: Content) -> None:
        for record, (neg, not_exhaustive) in zip(content["images"], fields):
            record |= {
                "neg_category_ids": neg, "not_exhaustive_category_ids": not_exhaustive,
            }  # fmt: skip

    return read_coco(edit_json(file, change))


def ap_of_classes(annotations: AnnotationSet, *rows: Any) -> list[float | None]:
    """AP of every class, for the rows (x1, y1, x2, y2, label, score) of images 1, 2, ..."""
    evaluator = CocoEvaluator(annotations)
    evaluator.update(list(range(1, len(rows) + 1)), boxes(*rows, scores=True))
    evaluator.compute()
    return list(evaluator.class_ap.values())


# -- the rules, by hand ------------------------------------------------------------------


def test_detections_of_a_class_nobody_looked_for_are_left_out(tmp_path: Path) -> None:
    """Class 2 is looked for in image 1 and absent; class 3 is not looked for."""
    file = write_coco(tmp_path, [[(1, 2, 10, 12, 1)], [(1, 2, 10, 12, 2), (30, 2, 10, 12, 3)]])
    annotations = known(file, ([2], []), ([], []))
    right = [(1, 2, 11, 14, 1, 0.5), (30, 2, 40, 14, 2, 0.5)]
    wrong = [(20, 20, 30, 30, 1, 0.9), (20, 20, 30, 30, 2, 0.9), (1, 2, 11, 14, 0, 0.5)]
    assert ap_of_classes(annotations, wrong, right) == pytest.approx([100, 50, 100])
    plain = replace(annotations, said=None)
    assert ap_of_classes(plain, wrong, right) == pytest.approx([100, 50, 50])
    left_out = CocoEvaluator(annotations)
    left_out.update([1], boxes(wrong))
    assert len(left_out.results()) == 3  # what is written for others is not changed


@pytest.mark.parametrize("how", ["iscrowd", "ignore"])
def test_a_region_to_ignore_is_a_crowd_of_its_class(tmp_path: Path, how: str) -> None:
    records = [[(1, 2, 10, 12, 1), (1, 30, 10, 12, 2), (20, 20, 20, 20, 1)]]
    file = write_coco(tmp_path, records)
    edit_json(file, lambda content: content["annotations"][2].update({how: 1}))
    annotations = read_coco(file)
    found = [(1, 2, 11, 14, 0, 0.5), (1, 30, 11, 42, 1, 0.5)]

    def inside(left: float, label: int) -> list[tuple[float, ...]]:
        """A better scored box of 10 px, and as good a second one."""
        return [(left, 25, left + 10, 35, label, score) for score in (0.8, 0.9)]

    assert ap_of_classes(annotations, found) == pytest.approx([100, 100, None])
    assert ap_of_classes(annotations, found + inside(25, 0)) == pytest.approx([100, 100, None])
    assert ap_of_classes(annotations, found + inside(25, 1)) == pytest.approx([100, 100 / 3, None])
    # Of its own area 49 % lie inside: wrong at all ten thresholds.
    assert ap_of_classes(annotations, found + inside(35.1, 0))[0] == pytest.approx(100 / 3)
    # 60 % lie inside: ignored at 0.5, 0.55 and 0.6.
    third = ap_of_classes(annotations, found + inside(34, 0))[0]
    assert third == pytest.approx((3 * 100 + 7 * 100 / 3) / 10)


def test_a_region_of_a_category_to_ignore_is_a_crowd_of_every_class(tmp_path: Path) -> None:
    records = [[(1, 2, 10, 12, 1), (1, 30, 10, 12, 2), (20, 20, 20, 20, 3)]]
    annotations = without_category(read_coco(write_coco(tmp_path, records)), "class 3")
    assert annotations.labels.tolist() == [0, 1, -1]
    found = [(1, 2, 11, 14, 0, 0.5), (1, 30, 11, 42, 1, 0.5)]
    inside = [(25, 25, 35, 35, label, 0.9) for label in (0, 1)]
    assert ap_of_classes(annotations, found + inside) == pytest.approx([100, 100])
    outside = [(45, 25, 55, 35, label, 0.9) for label in (0, 1)]
    assert ap_of_classes(annotations, found + outside) == pytest.approx([50, 50])
    assert ap_of_classes(annotations, []) == [0, 0]  # it is no object to be found


def test_a_class_that_is_not_exhaustive_has_no_wrong_detections(tmp_path: Path) -> None:
    records = [[(1, 2, 10, 12, 1), (40, 2, 10, 12, 1), (1, 30, 10, 12, 2)], [(1, 2, 10, 12, 1)]]
    annotations = known(write_coco(tmp_path, records), ([], [1]), ([], []))
    both = [(1, 2, 11, 14, 0, 0.5), (40, 2, 50, 14, 0, 0.5), (1, 30, 11, 42, 1, 0.5)]
    other = [(1, 2, 11, 14, 0, 0.5)]
    extra = [(20, 20 + n, 30, 30 + n, 0, 0.9) for n in range(5)]
    # Half of it, and more, lies outside of the image; and one has no area.
    extra += [(-30, -40, 20, 10, 0, 0.9), (20, 20, 20, 30, 0, 0.95)]
    assert ap_of_classes(annotations, both + extra, other) == pytest.approx([100, 100, None])
    of_image_2 = [(20, 20, 30, 30, 0, 0.9)]
    # Where it is exhaustive, a wrong one counts.
    assert ap_of_classes(annotations, both, other + of_image_2)[0] == pytest.approx(75)
    # And what is annotated is still to be found.
    assert ap_of_classes(annotations, both[:1] + extra, other)[0] == pytest.approx(100 * 67 / 101)
    with_wrong = [*both, (20, 20, 30, 30, 1, 0.9)]
    assert ap_of_classes(annotations, with_wrong, other)[1] == pytest.approx(50)


def test_a_class_in_no_list_is_known_by_an_option(tmp_path: Path) -> None:
    """`fields`: as if the lists were there and empty."""
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 10, 12, 1)], [(1, 2, 10, 12, 2)]]))
    right, wrong = (1, 2, 11, 14, 0, 0.5), (20, 20, 30, 30, 0, 0.9)
    found = [right], [wrong, (1, 2, 11, 14, 1, 0.5)]
    assert ap_of_classes(annotations, *found)[0] == pytest.approx(50)
    for option in ("partial", "exhaustive"):
        assert ap_of_classes(annotations.annotated_as(option), *found)[0] == pytest.approx(50)
    assert ap_of_classes(annotations.annotated_as("fields"), *found)[0] == pytest.approx(100)


# -- oracles -----------------------------------------------------------------------------


def federated(root: Path, seed: int) -> AnnotationSet:
    """Twelve images with random boxes, of which most have random lists of classes."""
    rng = np.random.default_rng(seed)

    def records(count: int) -> list[tuple[float, float, float, float, int]]:
        rows = zip(rng.uniform(0, 150, (count, 2)), rng.uniform(8, 140, (count, 2)), strict=True)
        return [(x, y, w, h, int(rng.integers(1, 4))) for (x, y), (w, h) in rows]

    file = write_coco(
        root, [records(int(rng.integers(0, 7))) for _ in range(12)], width=300, height=300
    )
    fields = []
    for number in range(1, 13):
        have = {
            one["category_id"]
            for one in json.loads(file.read_text())["annotations"]
            if one["image_id"] == number
        }
        neg = [k for k in (1, 2, 3) if k not in have and rng.random() < 0.4]
        fields.append((neg, [k for k in (1, 2, 3) if k not in neg and rng.random() < 0.3]))
    return known(file, *fields)


def found_in(annotations: AnnotationSet, seed: int) -> dict[int, Boxes]:
    """Jittered ground truth and false alarms, of all sizes and classes."""
    rng = np.random.default_rng(seed)
    of_images = {}
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        rows = np.flatnonzero(annotations.image == position)
        rows = rows[rng.random(len(rows)) < 0.9]
        corners = annotations.boxes[rows] + rng.normal(0, 4, (len(rows), 4))
        extra = rng.uniform(0, 150, (9, 2))
        extra = np.concatenate([extra, extra + rng.uniform(8, 140, (9, 2))], axis=1)
        labels = np.concatenate([annotations.labels[rows], rng.integers(0, 3, 9)])
        of_images[image_id] = Boxes.of_images(
            [torch.from_numpy(np.concatenate([corners, extra])).float()],
            [torch.from_numpy(labels)],
            [torch.from_numpy(rng.random(len(labels))).float()],
        )
    return of_images


def by_the_published_rule(file: Path, results: list[Content]) -> list[float]:
    """The 12 numbers by the rule of LVIS (Gupta et al., CVPR 2019, section 3), on pycocotools.

    A class is evaluated on the images of its positive and negative set alone; where it is not
    exhaustively annotated, detections that match nothing are left out.
    """
    content = json.loads(file.read_text())
    precisions, recalls = [], []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        found = truth.loadRes(results)
        for category in content["categories"]:
            k = category["id"]
            positive = {a["image_id"] for a in content["annotations"] if a["category_id"] == k}
            negative = {i["id"] for i in content["images"] if k in i["neg_category_ids"]}
            in_part = {i["id"] for i in content["images"] if k in i["not_exhaustive_category_ids"]}
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.params.catIds = [k]
            evaluation.params.imgIds = sorted(positive | negative)
            evaluation.evaluate()
            for one in evaluation.evalImgs:
                if one is not None and one["image_id"] in in_part:
                    one["dtIgnore"] = np.logical_or(one["dtIgnore"], one["dtMatches"] == 0)
            evaluation.accumulate()
            precisions.append(evaluation.eval["precision"])
            recalls.append(evaluation.eval["recall"])
        evaluation.eval["precision"] = np.concatenate(precisions, axis=2)
        evaluation.eval["recall"] = np.concatenate(recalls, axis=1)
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(6))
def test_the_12_numbers_are_those_of_the_published_rule(tmp_path: Path, seed: int) -> None:
    annotations = federated(tmp_path, seed)
    assert annotations.said is not None
    assert {UNLOOKED, COMPLETE, PARTIAL} <= set(annotations.said.flatten().tolist())
    evaluator = CocoEvaluator(annotations)
    update(evaluator, found_in(annotations, seed))
    ours = evaluator.compute()
    theirs = by_the_published_rule(tmp_path / "train.json", evaluator.results())
    assert list(ours.values()) == pytest.approx([100 * value for value in theirs], abs=1e-9)
    # The rule matters: without it there are other numbers.
    plain = CocoEvaluator(replace(annotations, said=None))
    update(plain, found_in(annotations, seed))
    assert ours["AP"] is not None
    assert ours["AP"] > (plain.compute()["AP"] or 0) + 1


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_the_lvis_package(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("cv2") is None:  # of its module for drawing alone
        monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # which it still uses
    annotations = federated(tmp_path, seed)
    edit_json(
        tmp_path / "train.json", lambda c: [one.update(frequency="f") for one in c["categories"]]
    )
    evaluator = CocoEvaluator(annotations)
    update(evaluator, found_in(annotations, seed))
    ours = evaluator.compute()
    results = evaluator.results()
    # So few that no limit matters: theirs is one of images, ours one of classes in an image.
    assert max(len(one) for one in evaluator.detections.values()) < 20
    evaluation = lvis.LVISEval(str(tmp_path / "train.json"), results, "bbox")
    evaluation.run()
    for name in METRICS[:6]:
        assert ours[name] == pytest.approx(100 * evaluation.results[name], abs=1e-9), name
    assert ours["AR100"] == pytest.approx(100 * evaluation.results["AR@300"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_with_full_knowledge_the_numbers_are_pycocotools_own(tmp_path: Path, seed: int) -> None:
    """To the last bit: every class is in one of the lists, or has a box."""
    plain = federated(tmp_path, seed)
    of_images = noisy(plain, seed)
    everything = np.full((12, 3), COMPLETE, dtype=np.int8)
    for said in (everything, None):
        annotations = replace(plain, said=said)
        evaluator = CocoEvaluator(annotations)
        update(evaluator, of_images)
        ours = list(evaluator.compute().values())
        theirs = official(tmp_path / "train.json", evaluator.results())
        assert ours == [None if v < 0 else 100 * v for v in theirs]


@pytest.mark.parametrize("count", [1, 2, 3, 49, 50, 51, 99, 100, 101, 150, 250])
@pytest.mark.parametrize("right", [1, 2, 3])
def test_few_right_detections_of_many_objects_count_as_in_pycocotools(
    tmp_path: Path, count: int, right: int
) -> None:
    """The precision of the first alone is 1 - 2e-16 there. With one object, others are wrong."""
    side = 16
    rows = [(20.0 * (n % side), 20.0 * (n // side), 15.0, 15.0, 1) for n in range(count)]
    file = write_coco(tmp_path, [rows], width=320, height=320)
    evaluator = CocoEvaluator(read_coco(file))
    found = [(x, y, x + w, y + h, 0, 0.9) for x, y, w, h, _ in rows[:right]]
    found += [(3, 3, 9, 9, 0, 0.8), (60, 3, 75, 18, 0, 0.7), (60, 3, 75, 18, 0, 0.6)]
    evaluator.update([1], boxes(found))
    ours = list(evaluator.compute().values())
    theirs = official(file, evaluator.results())
    assert ours == [None if v < 0 else 100 * v for v in theirs]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("knows", [True, False])
def test_the_ground_truth_fed_back_has_ap_100(tmp_path: Path, seed: int, knows: bool) -> None:
    annotations = federated(tmp_path, seed)
    edit_json(tmp_path / "train.json", lambda c: c["annotations"][0].update(ignore=1))
    annotations = read_coco(tmp_path / "train.json")
    if not knows:
        annotations = replace(annotations, said=None)
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


# -- AP as a lower bound -----------------------------------------------------------------


def test_the_table_marks_a_lower_bound_and_says_what_it_is() -> None:
    metrics: dict[str, float | None] = dict.fromkeys(METRICS, 12.34) | {"APl": None}
    names, values, words = metrics_table(metrics, lower_bound=True).splitlines()
    assert names.split() == list(METRICS)
    assert values.split() == [">=12.3"] * 5 + ["-"] + ["12.3"] * 6
    assert words == LOWER_BOUND
    assert [len(names)] == [len(values)]
    assert ">" not in metrics_table(metrics)
    assert len(metrics_table(metrics).splitlines()) == 2


OF_A_SHARE = ("data.val_annotations=null", "data.val_images=null", "data.val_fraction=0.5")
THE_SAME = ("data.val_annotations=train.json", "data.val_images=train")


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ((), (False, False)),
        (("data.val_annotated=partial",), (True, False)),
        (("data.val_annotated=fields",), (False, False)),
        (("data.test_annotated=partial",), (False, True)),
        (("data.annotated=exhaustive",), (False, False)),
        (OF_A_SHARE, (True, False)),  # as data.annotated, which is partial
        ((*OF_A_SHARE, "data.annotated=exhaustive"), (False, False)),
        ((*OF_A_SHARE, "data.annotated=fields"), (False, False)),
        ((*OF_A_SHARE, "data.val_annotated=exhaustive"), (False, False)),
        (THE_SAME, (True, False)),
    ],
)
def test_what_is_known_of_a_split_by_default(
    tmp_path: Path, options: tuple[str, ...], bounds: tuple[bool, bool]
) -> None:
    records = [[(1, 2, 10, 12, 1)]] * 6
    for split in ("train", "val", "test"):
        write_coco(tmp_path, records, split=split)
    data = data_of(tmp_path, *options)
    found = tuple(data.evaluated[split].is_partial for split in ("val", "test"))
    assert found == bounds


def data_of(root: Path, *options: str, splits: tuple[str, ...] = ("train", "val", "test")) -> Any:
    named = [
        part
        for split in splits
        for part in (f"data.{split}_annotations={split}.json", f"data.{split}_images={split}")
    ]
    cfg = composed("data=custom", *named, "data.num_workers=0", "sparsity=full", *options)
    cfg.data.root = str(root)
    sparsity = instantiate(cfg.sparsity, "sparsity")
    data: DetectionData = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    data.setup("fit")
    return data


def test_fields_that_say_all_leave_no_lower_bound(tmp_path: Path) -> None:
    """Also where the rest is partial; with one image without them there is one."""
    file = write_coco(tmp_path, [[(1, 2, 10, 12, 1)]] * 2)
    fields = ([2], [1])
    assert not known(file, fields, fields).annotated_as("partial").is_partial
    edit_json(file, lambda content: content["images"].append({**content["images"][0], "id": 3}))
    edit_json(file, lambda content: content["images"][2].update(file_name="3.png"))
    edit_json(file, lambda content: [content["images"][2].pop(key) for key in NAMES_OF_FIELDS])
    assert read_coco(file).annotated_as("partial").is_partial
    assert not read_coco(file).annotated_as("exhaustive").is_partial


NAMES_OF_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


@pytest.fixture(scope="module")
def partly(module_path: Path) -> Path:
    """A run whose validation split is partly annotated, on data without erased truth."""
    train(
        module_path / "run", f"data.root={module_path / 'shapes'}", "data.prepare.train_images=12",
        "data.prepare.val_images=6", "data.prepare.test_images=2", "data.batch_size=4",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1", "trainer.val_check_interval=2", "trainer.max_steps=6",
        "tau=0.008", "sparsity=full", "data.val_annotated=partial", "logger=tensorboard",
        "pictures.every_n_steps=6", "pictures.images=2", "pictures.judged_images=4",
    )  # fmt: skip
    return module_path / "run"


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_result_and_loggers_mark_the_split_that_is_partial(partly: Path) -> None:
    result = json.loads((partly / "result.json").read_text())
    assert result["ap_is_lower_bound"]
    assert not result["test_ap_is_lower_bound"]
    assert result["data"]["val"]["known"]["complete"] == 0
    assert result["data"]["test"]["known"]["partial"] == 0
    validations = [row for row in rows_of(partly) if row["val/AR100"]]
    assert len(validations) == 3
    assert {row["val/AP_is_lower_bound"] for row in validations} == {"1.0"}
    assert {row["val/AP_is_lower_bound"] for row in rows_of(partly)} == {"1.0", ""}
    events = EventAccumulator(str(partly / "tensorboard"))
    events.Reload()
    assert [one.value for one in events.Scalars("val/AP_is_lower_bound")] == [1.0] * 3
    summary = events.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| final/AP_is_lower_bound | 1 |" in summary
    assert "test/AP_is_lower_bound" not in summary


def test_recall_stands_beside_ap(partly: Path) -> None:
    result = json.loads((partly / "result.json").read_text())
    assert [row["step"] for row in result["history"]] == [2, 4, 6]
    for name in ("AR1", "AR10", "AR100"):
        assert result["history"][-1][name] == result["metrics"][name] is not None
    assert "AR100" in metrics_table(result["metrics"]).split()


def test_the_best_checkpoint_is_that_of_the_best_recall(partly: Path) -> None:
    history = json.loads((partly / "result.json").read_text())["history"]
    best = torch.load(partly / "checkpoints" / "best.ckpt", weights_only=True)
    values = [row["AR100"] for row in history]
    assert best["global_step"] == history[int(np.argmax(values))]["step"]


def test_evaluating_a_checkpoint_marks_it_too(
    partly: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run did; by other options; and of a checkpoint that is older than these options."""
    metrics = json.loads((partly / "result.json").read_text())["metrics"]
    checkpoint = partly / "checkpoints" / "last.ckpt"
    old = torch.load(checkpoint, weights_only=True)
    of_data = old["comining"]["config"]["data"]
    for name in (
        "annotated", "val_annotated", "test_annotated", "ignore_category", "ignored_overlap",
        "difficult",
    ):  # fmt: skip
        del of_data[name]
    del old["comining"]["config"]["checkpoint"]["monitor"]
    torch.save(old, tmp_path / "old.ckpt")
    for name, file, options, expected in (
        ("as", checkpoint, (), True),
        ("by", checkpoint, ("+data_override.val_annotated=exhaustive",), False),
        ("old", tmp_path / "old.ckpt", (), False),
        ("new", tmp_path / "old.ckpt", ("+data_override.val_annotated=partial",), True),
    ):
        found = evaluate_checkpoint(tmp_path / name, f"checkpoint={file}", *options)
        assert found["ap_is_lower_bound"] == expected, name
        assert found["metrics"] == metrics
        assert (LOWER_BOUND in capsys.readouterr().out) == expected


def test_a_line_of_progress_marks_a_lower_bound() -> None:
    figures = types.SimpleNamespace(latest={"val/AP": 12.34, "val/AR100": 45.67})
    progress = Progress(figures, True)  # type: ignore[arg-type]
    assert progress._words(" ") == "AP=12.3"
    figures.latest["val/AP_is_lower_bound"] = 1.0
    assert progress._words(" ") == "AP>=12.3 AR100=45.7"


def test_the_summary_of_an_old_history_has_no_recall() -> None:
    """A run that an earlier version began, and this one ends."""
    figures = TrainingFigures(1, None, None, {})  # type: ignore[arg-type]
    figures.history = [{"step": 1, "AP": 30.0}, {"step": 2, "AP": 20.0, "AR100": 40.0}]
    module = types.SimpleNamespace(
        metrics={"val": {"AP": 20.0}, "test": {"AP": 10.0}}, is_lower_bound=lambda split: True
    )
    assert figures.summary(module) == {  # type: ignore[arg-type]
        "final/AP": 20.0, "test/AP": 10.0, "best/AP": 30.0, "best/AR100": 40.0,
        "final/AP_is_lower_bound": 1.0, "test/AP_is_lower_bound": 1.0,
    }  # fmt: skip


# -- the best checkpoint -----------------------------------------------------------------


class WithNumbers(DetectionModule):
    """A module that has nothing but the numbers of its last validation."""

    def __init__(self, bound: bool):
        LightningModule.__init__(self)
        self.bound = bound
        self.metrics = {}

    def is_lower_bound(self, split: str) -> bool:
        return self.bound


class Validations:
    """Validations with given numbers, and the step of the best checkpoint that they left."""

    def __init__(self, bound: bool = False):
        self.module = WithNumbers(bound)
        self.step, self.best = 0, -1

    def show(self, callback: StepCheckpoint, *rows: tuple[float | None, float | None]) -> int:
        for ap, recall in rows:
            self.step += 1
            self.module.metrics = {"val": {"AP": ap, "AR100": recall, "APs": None}}
            trainer: Any = types.SimpleNamespace(
                global_step=self.step, state=types.SimpleNamespace(fn="validate"),
                is_global_zero=True,
                save_checkpoint=lambda path: setattr(self, "best", self.step),
            )  # fmt: skip
            callback.on_validation_end(trainer, self.module)
        return self.best


@pytest.mark.parametrize(
    ("monitor", "bound", "expected"),
    [
        (None, False, 1), (None, True, 2), ("AP", True, 1), ("AR100", False, 2), ("APs", False, -1),
    ],
)  # fmt: skip
def test_the_best_is_chosen_by_the_monitored_number(
    monitor: Any, bound: bool, expected: int
) -> None:
    callback = StepCheckpoint("unused", 0, monitor)
    rows = [(30.0, 50.0), (20.0, 60.0), (10.0, 60.0)]
    assert Validations(bound).show(callback, *rows) == expected


def test_a_number_that_is_never_there_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback = StepCheckpoint("unused", 0, "APs")
    Validations().show(callback, (30.0, 50.0), (20.0, 60.0))
    assert [record.message for record in caplog.records] == [
        "checkpoint.monitor=APs: no such objects are annotated in the validation split, so no "
        "best.ckpt is written"
    ]


def test_a_resumed_run_keeps_its_best(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And begins anew where it goes by another number: AP 45 is no better than AR100 60."""
    caplog.set_level(logging.WARNING)
    validations = Validations()
    first = StepCheckpoint("unused", 0, "AR100")
    assert validations.show(first, (30.0, 60.0)) == 1
    again = StepCheckpoint("unused", 0, "AR100")
    again.load_state_dict(first.state_dict())
    assert validations.show(again, (50.0, 59.0)) == 1
    assert not caplog.records
    other = StepCheckpoint("unused", 0, "AP")
    other.load_state_dict(again.state_dict())
    assert validations.show(other, (45.0, 10.0), (44.0, 99.0)) == 3
    assert "best.ckpt was chosen by AR100; from now on it is chosen by AP" in caplog.text
    old = StepCheckpoint("unused", 0, None)
    old.load_state_dict({"best": 47.0, "validated_step": 3})  # of a version without the option
    assert validations.show(old, (46.0, 10.0), (48.0, 5.0)) == 6


def test_a_number_that_there_is_not_is_one_line() -> None:
    cfg = composed("checkpoint.monitor=mAP").checkpoint
    with pytest.raises(ConfigError, match=r"^checkpoint\.monitor='mAP' must be .* AP,.*") as error:
        instantiate(cfg, "checkpoint", folder="unused")
    assert "\n" not in str(error.value)
    for name in (*METRICS, None):
        cfg.monitor = name
        assert instantiate(cfg, "checkpoint", folder="unused").monitor == name


# -- mining figures ----------------------------------------------------------------------

MINED = [
    (0, 0, 20, 20, 0, 0.9),  # right
    (60, 60, 80, 80, 0, 0.9),  # on an object of class 2
    (0, 0, 20, 20, 1, 0.9),  # on an object of class 0
    (60, 60, 80, 80, 2, 0.9),  # right
]


def score(judged: list[list[bool]]) -> Any:
    batch = batch_of(boxes([]), boxes([(0, 0, 20, 20, 0), (60, 60, 80, 80, 2)]))
    batch.judged = torch.tensor(judged)
    built = MiningScore(("original",), 3)
    built.update(*built.measure(StepResult({}, {"original": boxes(MINED)}), batch))
    return built.compute()


def test_what_cannot_be_judged_is_in_no_share() -> None:
    everything = score([[True, True, True]])
    assert headline(everything.together) == {
        "pseudo_labels_per_image": 4, "precision": 0.5, "recall": 1,
    }  # fmt: skip
    without_2 = score([[True, True, False]]).together
    assert headline(without_2) == {
        "pseudo_labels_per_image": 4, "precision": 1 / 3, "recall": 1,
    }  # fmt: skip
    assert without_2["precision"] + sum(without_2[kind] for kind in KINDS[1:]) == pytest.approx(1)
    assert without_2["wrong_class"] == 2 / 3  # which it is on what cannot be judged itself, too
    of_class = score([[True, False, False]]).classes
    assert [one["precision"] for one in of_class] == [0.5, None, None]
    assert [one["recall"] for one in of_class] == [1, None, None]
    assert [one["pseudo_labels_per_image"] for one in of_class] == [2, 1, 1]


def test_where_nothing_can_be_judged_there_is_nothing_but_counts() -> None:
    figures = score([[False] * 3]).together
    absent = {name for name, value in figures.items() if value is None}
    assert absent == {"precision", "recall", *KINDS[1:]}
    assert figures["pseudo_labels_per_image"] == 4
    assert figures["score"] == pytest.approx(0.9)


def test_a_run_without_erased_truth_has_no_precision(partly: Path) -> None:
    result = json.loads((partly / "result.json").read_text())
    assert result["mining"]["pseudo_labels_per_image"] > 0
    for name in ("precision", "recall", *KINDS[1:]):
        assert result["mining"][name] is None
        assert not [column for column in rows_of(partly)[0] if column.endswith(f"/{name}")]
    assert {one["precision"] for one in result["mining_classes"].values()} == {None}
    assert "mining/pseudo_labels_per_image" in rows_of(partly)[0]
    assert {row["precision"] for row in result["history"]} == {None}
    names = {file.name for file in (partly / "pictures").glob("*.*")}
    assert names == {"mined_000006.png", "mined_over_time.png", "detections_000006.png"}


@pytest.mark.parametrize(
    ("options", "judged"),
    [
        (("sparsity=full",), [False, False, False]),
        (("sparsity=hard",), [False, True, False]),  # the file says so of classes 1 and 3
        (("sparsity=hard", "data.annotated=exhaustive"), [False, True, False]),
        (("sparsity=classes",), [False, True, False]),
        (("sparsity=hard", "data.annotated=fields"), [False, True, False]),
    ],
)
def test_what_can_be_judged_of_an_image(
    tmp_path: Path, options: tuple[str, ...], judged: list[bool]
) -> None:
    """There must be erased truth, and the file must not say that more is missing."""
    records = [[(1 + 12 * n, 2, 10, 12, k) for k in (1, 2) for n in range(2)]] * 8
    file = write_coco(tmp_path, records)
    known(file, *[([], [1])] * 8)
    write_coco(tmp_path, records[:1], split="val")
    data = data_of(tmp_path, *options, splits=("train", "val"))
    for item in range(len(data.train_set)):
        assert data.train_set[SampleKey(item, item)].judged.tolist() == judged


def test_wrong_boxes_are_those_that_can_be_judged() -> None:
    batch = batch_of(boxes([]), boxes([(0, 0, 20, 20, 0)]))
    image = torch.full((3, 90, 90), 128, dtype=torch.uint8)
    wrong = WrongPseudoLabels(["a", "b", "c"])
    batch.judged = torch.tensor([[False, False, False]])
    wrong.add("original", [image], batch, boxes(MINED))
    assert not wrong.judged
    assert wrong.total == 0
    batch.judged = torch.tensor([[True, False, True]])
    wrong.add("original", [image], batch, boxes(MINED))
    assert wrong.judged
    assert wrong.counts == dict.fromkeys(KINDS, 0) | {"right": 1, "background": 2}
