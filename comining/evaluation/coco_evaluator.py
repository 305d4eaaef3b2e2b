"""COCO's own 12 numbers, computed once over the detections of all processes.

By faster-coco-eval, whose numbers are those of pycocotools to the last bit (tests compare them).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster

from comining.data.annotations import AnnotationSet
from comining.errors import DivergedError
from comining.structures import Detections

log = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

Metrics = dict[str, float | None]


class CocoEvaluator:
    """Collects detections in original pixels and compares them with an annotation file.

    The ground truth has the boxes, areas and crowds of the file. Its annotations are renumbered
    from 1, because COCOeval takes one with id 0 for unmatched.
    """

    def __init__(self, annotations: AnnotationSet):
        self.annotations = annotations
        self.found: dict[int, Detections] = {}
        self.class_ap: dict[str, float | None] = {}  # after compute(): AP of every class, 0-100

    def reset(self) -> None:
        """Forget all detections."""
        self.found = {}

    def update(self, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Add the detections of some images; an image that comes again counts once.

        Raises:
            DivergedError: a box or score is NaN or infinite; COCOeval would score it as right.
        """
        for image_id, one in zip(image_ids, detections, strict=True):
            if not (torch.isfinite(one.boxes).all() and torch.isfinite(one.scores).all()):
                raise DivergedError(
                    f"detections of image {image_id} are not finite", {"image_id": image_id}
                )
            self.found[image_id] = Detections(one.boxes.cpu(), one.labels.cpu(), one.scores.cpu())

    def gather(self) -> Metrics:
        """Bring the detections of all processes together on the first, and compute there.

        Returns:
            the 12 numbers, on every process.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self.compute()
        first = dist.get_rank() == 0
        shares: list[Any] | None = [None] * dist.get_world_size() if first else None
        dist.gather_object(self.found, shares)
        outcome: list[Any] = [None, None]
        if shares is not None:
            self.found = {image_id: one for share in shares for image_id, one in share.items()}
            outcome = [self.compute(), self.class_ap]
        dist.broadcast_object_list(outcome)
        metrics: Metrics = outcome[0]
        self.class_ap = outcome[1]
        return metrics

    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's results format: category ids and xywh."""
        category_ids = self.annotations.categories.ids
        rows = []
        for image_id in sorted(self.found):
            one = self.found[image_id]
            boxes = one.boxes.double()
            boxes[:, 2:] -= boxes[:, :2]
            columns = zip(
                one.labels.tolist(), boxes.tolist(), one.scores.double().tolist(), strict=True
            )
            for label, bbox, score in columns:
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
        rows = self.results()
        truth = _coco(self._ground_truth())
        nothing = {**self._ground_truth(), "annotations": []}
        found = truth.loadRes(rows) if rows else _coco(nothing)  # loadRes fails on an empty list
        # Twenty lines of progress at every validation would bury those of the run.
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=log.debug)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        # [10 IoUs, 101 recalls, K, 4 areas, 3 limits]; all areas, 100 detections; -1: nothing there
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        self.class_ap = {
            name: 100 * float(of_class[of_class > -1].mean()) if (of_class > -1).any() else None
            for name, of_class in zip(
                self.annotations.categories.names, np.moveaxis(precision, 2, 0), strict=True
            )
        }
        return {
            name: None if value < 0 else 100 * float(value)
            for name, value in zip(METRICS, evaluation.stats[: len(METRICS)], strict=True)
        }

    def _ground_truth(self) -> dict[str, Any]:
        annotations = self.annotations
        image_ids = annotations.image_ids.tolist()
        category_ids = annotations.categories.ids
        columns = zip(
            annotations.image.tolist(),
            annotations.labels.tolist(),
            annotations.bboxes.tolist(),
            annotations.areas.tolist(),
            annotations.crowd.astype(np.int64).tolist(),
            strict=True,
        )
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


def _coco(content: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def metrics_table(metrics: Metrics) -> str:
    """The 12 numbers as two aligned lines; a dash where there is none."""
    values = ["-" if metrics[name] is None else f"{metrics[name]:.1f}" for name in METRICS]
    return "\n".join(" ".join(f"{cell:>5}" for cell in row) for row in (METRICS, values))
