"""COCO's 12 numbers: ours against plain pycocotools, on the same detections.

python -m benchmarks.evaluation [--images 5000] [--detections 100] [--json FILE]

Both begin with tensors of detections and end with the 12 numbers, which must be equal to the last
bit. The set is drawn: boxes as many and as large as COCO's, and detections of which some are
shifted copies of the annotations and the others false.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import measure
from comining.data.annotations import AnnotationSet, Categories
from comining.evaluation.coco_evaluator import CocoEvaluator
from comining.structures import Boxes

CPU = torch.device("cpu")


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options."""
    options = measure.parser("COCO's numbers, ours against pycocotools.")
    options.add_argument("--images", type=int, default=5000)
    options.add_argument("--detections", type=int, default=100, help="of an image")
    options.add_argument("--classes", type=int, default=80)
    options.set_defaults(rounds=3, seconds=200.0)
    chosen = options.parse_args(given)
    if chosen.quick:
        chosen.images, chosen.detections, chosen.classes, chosen.rounds = 30, 20, 5, 2
    return chosen


def drawn_boxes(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[count, 4] xywh in images of 640 x 480 px, a third of them small, of hundredths of a px."""
    side = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corner = rng.random((count, 2)) * np.maximum(np.array([640, 480]) - side, 1)
    return np.round(np.concatenate([corner, side], axis=1), 2)


def drawn_truth(images: int, classes: int, rng: np.random.Generator) -> AnnotationSet:
    """7.3 annotations an image, as COCO has, one in a hundred a crowd."""
    per_image = rng.poisson(7.3, images)
    image = np.repeat(np.arange(images), per_image)
    count = len(image)
    bboxes = drawn_boxes(count, rng)
    return AnnotationSet(
        path=Path("drawn.json"),
        categories=Categories(tuple(range(1, classes + 1)), tuple(map(str, range(classes)))),
        image_ids=np.arange(1, images + 1),
        file_names=[f"{number}.jpg" for number in range(images)],
        sizes=np.tile([480, 640], (images, 1)),
        ids=np.arange(1, count + 1),
        image=image,
        labels=rng.integers(0, classes, count),
        bboxes=bboxes,
        boxes=np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1),
        areas=bboxes[:, 2] * bboxes[:, 3] * 0.6,
        crowd=rng.random(count) < 0.01,
        proposed=np.zeros(count, dtype=np.bool_),
        repairs={},
    )


def drawn_detections(truth: AnnotationSet, per_image: int, rng: np.random.Generator) -> Boxes:
    """Every annotation twice, shifted by a little, and false boxes up to ``per_image``."""
    corners, all_labels, all_scores = [], [], []
    for number in range(len(truth.image_ids)):
        rows = np.flatnonzero(truth.image == number).repeat(2)[:per_image]
        near = (
            truth.bboxes[rows]
            + rng.normal(size=(len(rows), 4))
            * truth.bboxes[rows, 2:].min(axis=1, keepdims=True, initial=1e9)
            * 0.1
        )
        false = drawn_boxes(per_image - len(rows), rng)
        boxes = np.concatenate([near, false])
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        other = rng.integers(0, len(truth.categories), len(false))
        scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 6, len(false))])
        order = np.argsort(-scores)
        labels = np.concatenate([truth.labels[rows], other])
        corners.append(torch.from_numpy(boxes[order]).float())
        all_labels.append(torch.from_numpy(labels[order]))
        all_scores.append(torch.from_numpy(scores[order]).float())
    return Boxes.of_images(corners, all_labels, all_scores)


def plain(truth: AnnotationSet, detections: Boxes) -> list[float]:
    """The 12 numbers by pycocotools, as its demonstration has it."""
    annotations = [
        {
            "id": number,
            "image_id": int(truth.image_ids[image]),
            "category_id": truth.categories.ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, label, bbox, area, crowd) in enumerate(
            zip(
                truth.image.tolist(),
                truth.labels.tolist(),
                truth.bboxes.tolist(),
                truth.areas.tolist(),
                truth.crowd.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    rows: list[dict[str, Any]] = []
    for image_id, one in zip(truth.image_ids.tolist(), detections.split(), strict=True):
        boxes = one.boxes.double()
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(one.labels.tolist(), boxes.tolist(), one.known_scores.double().tolist())
        rows += [
            {
                "image_id": image_id,
                "category_id": truth.categories.ids[label],
                "bbox": bbox,
                "score": score,
            }
            for label, bbox, score in columns
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": image_id} for image_id in truth.image_ids.tolist()],
            "categories": [{"id": category} for category in truth.categories.ids],
            "annotations": annotations,
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def main(given: list[str] | None = None) -> None:
    """Compare speed and numbers."""
    chosen = arguments(given)
    rng = np.random.default_rng(0)
    truth = drawn_truth(chosen.images, chosen.classes, rng)
    detections = drawn_detections(truth, chosen.detections, rng)
    evaluator = CocoEvaluator(truth)
    evaluator.update(truth.image_ids.tolist(), detections)
    numbers: dict[str, list[float]] = {}

    def ours() -> None:
        metrics = evaluator.compute()
        numbers["ours"] = [-1.0 if value is None else value for value in metrics.values()]

    def theirs() -> None:
        numbers["pycocotools"] = [
            -1.0 if value < 0 else 100 * value for value in plain(truth, detections)
        ]

    print(measure.machine(CPU))
    print(
        f"{chosen.images} images, {len(truth.ids)} annotations, "
        f"{chosen.images * chosen.detections} detections, {chosen.classes} classes"
    )
    taken = measure.interleave(
        {"ours": ours, "pycocotools": theirs},
        CPU,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        clock=chosen.clock,
        warmup=0,
    )
    if numbers["ours"] != numbers["pycocotools"]:
        raise RuntimeError(f"the numbers differ: {numbers}")
    print(f"  AP {numbers['ours'][0]:.2f}, all 12 numbers equal to the last bit")
    measure.report_times(taken, {})
    measure.report_ratios(
        {"evaluation_over_pycocotools": measure.ratio(taken["ours"], taken["pycocotools"])},
        chosen.json,
    )


if __name__ == "__main__":
    main()
