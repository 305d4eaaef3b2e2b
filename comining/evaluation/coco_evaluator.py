"""COCO's own 12 numbers, computed once over the detections of all processes.

Uses faster-coco-eval, whose numbers equal those of pycocotools to the last bit (tests compare
them).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from comining.data.annotations import AnnotationSet
from comining.data.knowledge import PARTIAL, UNLOOKED
from comining.errors import DivergedError
from comining.evaluation.exact_precision import accumulate
from comining.evaluation.recall_among import MULTIPLES, recall_among_best
from comining.structures import Boxes

log = logging.getLogger(__name__)

Metric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
]  # fmt: skip
METRICS: tuple[str, ...] = get_args(Metric)

Metrics = dict[str, float | None]

LOWER_BOUND = (
    "AP is a lower bound: objects may be missing in the annotations, and a detection of one counts "
    "as wrong. AR, the recall of the annotated objects, is not affected."
)


class CocoEvaluator:
    """Collects detections in original pixels and compares them with an annotation file.

    The ground truth has the boxes, areas and crowds of the file. Its annotations are renumbered
    from 1, because COCOeval treats id 0 as unmatched.

    Fields of the file about classes count as in LVIS (Gupta et al., CVPR 2019): detections of a
    class that nobody looked for in an image are left out. Where a class is not exhaustively
    annotated, detections that cover no annotation are neither right nor wrong (a crowd covers the
    whole image). Regions to ignore are crowds, of one class or of all.
    """

    def __init__(self, annotations: AnnotationSet):
        self.annotations = annotations
        self.detections: dict[int, Boxes] = {}  # image id -> boxes of one image, on the CPU
        self.not_finite: list[int] = []  # ids of images with a NaN or infinite detection
        self.class_ap: dict[str, float | None] = {}  # after compute(): AP of every class, 0-100
        self.recall_among: Metrics = {}  # after compute(), see recall_among_best()

    def reset(self) -> None:
        """Forget all detections."""
        self.detections, self.not_finite = {}, []

    def update(self, image_ids: Sequence[int], detections: Boxes) -> None:
        """Add the detections of a batch of images; a repeated image counts once.

        Args:
            image_ids: B ids of the annotation file.
            detections: of the B images, with scores, in original pixels.
        """
        self.add(dict(zip(image_ids, detections.to("cpu").split(), strict=True)))

    def add(self, detections: Mapping[int, Boxes]) -> None:
        """Add detections of single images on the CPU, by image id."""
        for image_id, boxes in detections.items():
            columns = (boxes.boxes, boxes.known_scores)
            if not all(torch.isfinite(column).all() for column in columns):
                self.not_finite.append(image_id)
            self.detections[image_id] = boxes

    def gather(self) -> Metrics:
        """Gather the detections of all processes on the first, and compute there.

        Returns:
            the 12 numbers, on every process.

        Raises:
            DivergedError: on every process, if a detection of any process is NaN or infinite;
                COCOeval would score it as right.
        """
        if not (dist.is_available() and dist.is_initialized()):
            self._check_finite()
            return self.compute()
        first = dist.get_rank() == 0
        shares: list[Any] | None = [None] * dist.get_world_size() if first else None
        dist.gather_object((self.detections, self.not_finite), shares)
        outcome: list[Any] = [None, None, None, None]
        if shares is not None:
            self.reset()
            for detections, not_finite in shares:
                # If several processes evaluated an image, the first one counts.
                self.detections = {**detections, **self.detections}
                self.not_finite += not_finite
            if not self.not_finite:
                outcome[:3] = [self.compute(), self.class_ap, self.recall_among]
            outcome[3] = self.not_finite
        dist.broadcast_object_list(outcome)
        metrics: Metrics = outcome[0]
        self.class_ap, self.recall_among, self.not_finite = outcome[1:]
        self._check_finite()
        return metrics

    def _check_finite(self) -> None:
        if self.not_finite:
            image_id = min(self.not_finite)
            count = len(set(self.not_finite))
            others = "" if count == 1 else f", and of {count - 1} more images,"
            raise DivergedError(
                f"detections of image {image_id}{others} are not finite", {"image_id": image_id}
            )

    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's results format: category ids and xywh."""
        category_ids = self.annotations.categories.ids
        rows = []
        for image_id in sorted(self.detections):
            boxes = self.detections[image_id]
            xywh = boxes.boxes.double()
            xywh[:, 2:] -= xywh[:, :2]
            scores = boxes.known_scores.double().tolist()
            for label, bbox, score in zip(
                boxes.labels.tolist(), xywh.tolist(), scores, strict=True
            ):
                rows.append(
                    {
                        "image_id": image_id,
                        "category_id": category_ids[label],
                        "bbox": bbox,
                        "score": score,
                    }
                )
        return rows

    def compute(self) -> Metrics:
        """The 12 numbers on a scale of 0-100; None where nothing of that kind is annotated."""
        rows = self._judged(self.results())
        content = self._ground_truth(rows)
        self._renumber(rows, content)
        truth = _coco(content)
        nothing = {**content, "annotations": []}
        found = truth.loadRes(rows) if rows else _coco(nothing)  # loadRes fails on an empty list
        # Its twenty lines of progress at every validation would clutter the log.
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=log.debug)
        accumulate(evaluation, self._num_objects(evaluation.params.areaRng))
        evaluation.summarize()
        # [10 IoUs, 101 recalls, K, 4 areas, 3 limits]; all areas, 100 detections; -1: nothing there
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        levels = np.asarray(evaluation.params.recThrs)
        self.recall_among = {
            f"{multiple:g}": recall_among_best(precision, levels, multiple)
            for multiple in MULTIPLES
        }
        categories = self.annotations.categories
        of_id = dict(zip(sorted(categories.ids), np.moveaxis(precision, 2, 0), strict=True))
        self.class_ap = {}
        for category_id, name in zip(categories.ids, categories.names, strict=True):
            seen = of_id[category_id][of_id[category_id] > -1]
            self.class_ap[name] = 100 * float(seen.mean()) if len(seen) else None
        return {
            name: None if value < 0 else 100 * float(value)
            for name, value in zip(METRICS, evaluation.stats[: len(METRICS)], strict=True)
        }

    def _renumber(self, rows: list[dict[str, Any]], content: dict[str, Any]) -> None:
        """Give the results and the ground truth small ids, in place and in the same order.

        The evaluation holds ids in float64, where neighbours from 2**53 on are the same.
        """
        image = _ranks(self.annotations.image_ids.tolist())
        category = _ranks(self.annotations.categories.ids)
        for one in content["images"]:
            one["id"] = image[one["id"]]
        for one in content["categories"]:
            one["id"] = category[one["id"]]
        for row in (*rows, *content["annotations"]):
            row["image_id"] = image[row["image_id"]]
            row["category_id"] = category[row["category_id"]]

    def _num_objects(self, area_ranges: Sequence[Sequence[float]]) -> NDArray[np.int64]:
        """[K, 4] the number of objects of each class, in the order of ids, and area range."""
        annotations = self.annotations
        counts = []
        for smallest, largest in area_ranges:
            inside = (annotations.areas >= smallest) & (annotations.areas <= largest)
            labels = annotations.labels[inside & ~annotations.crowd]
            counts.append(np.bincount(labels, minlength=len(annotations.categories)))
        return np.stack(counts, axis=1)[np.argsort(annotations.categories.ids)]

    def _judged(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results without classes that nobody looked for in their image."""
        annotations = self.annotations
        if annotations.said is None:
            return rows
        position = {image_id: n for n, image_id in enumerate(annotations.image_ids.tolist())}
        label = {category_id: n for n, category_id in enumerate(annotations.categories.ids)}
        judged = []
        for row in rows:
            said = annotations.said[position[row["image_id"]], label[row["category_id"]]]
            # A box without area overlaps no crowd and would count as wrong.
            ignored = said == PARTIAL and row["bbox"][2] * row["bbox"][3] <= 0
            if said != UNLOOKED and not ignored:
                judged.append(row)
        return judged

    def _ground_truth(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The annotations, and crowds where detections are neither right nor wrong.

        Args:
            rows: the results. A crowd of every class is added only for the classes that they have
                in the image: for others it changes nothing, and there may be a thousand classes.
        """
        annotations = self.annotations
        image_ids = annotations.image_ids.tolist()
        category_ids = annotations.categories.ids
        detected: dict[int, set[int]] = {}  # image id -> category ids
        for row in rows:
            detected.setdefault(row["image_id"], set()).add(row["category_id"])
        label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        found = [sorted(label_of[one] for one in detected.get(i, ())) for i in image_ids]
        columns: list[tuple[int, int, list[float], float, int]] = []
        for image, label, bbox, area, crowd in zip(
            annotations.image.tolist(),
            annotations.labels.tolist(),
            annotations.bboxes.tolist(),
            annotations.areas.tolist(),
            annotations.crowd.astype(np.int64).tolist(),
            strict=True,
        ):
            labels = [label] if label >= 0 else found[image]
            columns += [(image, of_class, bbox, area, crowd) for of_class in labels]
        for image, labels in enumerate(found if annotations.said is not None else []):
            height, width = annotations.sizes[image].tolist()
            # Detections may overhang.
            whole = [-float(width), -float(height), 3.0 * width, 3.0 * height]
            columns += [
                (image, label, whole, whole[2] * whole[3], 1)
                for label in labels
                if annotations.said_of_all[image, label] == PARTIAL
            ]
        return {
            "images": [{"id": image_id} for image_id in image_ids],
            "categories": [{"id": category_id} for category_id in category_ids],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_ids[image],
                    "category_id": category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": crowd,
                }
                for number, (image, label, bbox, area, crowd) in enumerate(columns, start=1)
            ],
        }


def _ranks(ids: Sequence[int]) -> dict[int, int]:
    return {one: rank for rank, one in enumerate(sorted(ids), start=1)}


def _coco(content: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def metrics_table(metrics: Metrics, *, lower_bound: bool = False) -> str:
    """The 12 numbers as two aligned lines; a dash for a missing one.

    Args:
        lower_bound: objects may be missing in the annotations, so that AP is a lower bound; it is
            marked, and a third line says so. AR, the recall of the annotated objects, is not
            affected.
    """
    values = ["-" if metrics[name] is None else f"{metrics[name]:.1f}" for name in METRICS]
    names = list(METRICS)
    if lower_bound:
        for column, name in enumerate(METRICS):
            if name.startswith("AP") and metrics[name] is not None:
                values[column] = f">={values[column]}"
    widths = [max(5, len(name), len(value)) for name, value in zip(names, values, strict=True)]
    lines = [
        " ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in (names, values)
    ]
    if lower_bound:
        lines.append(LOWER_BOUND)
    return "\n".join(lines)
