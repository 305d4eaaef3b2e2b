"""Find possibly missing boxes: detections by detectors that were not trained on the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from comining.completion.probability import HeldOutScores, ObjectScores, fit, rates
from comining.completion.proposal_folder import (
    PROPOSALS_FILE,
    ProposalSource,
    RateEstimate,
    path_from,
)
from comining.completion.proposals import Proposal, write_proposals
from comining.completion.review_order import DEFAULT_ORDER, in_order
from comining.config import CONFIG_FOLDER, instantiate
from comining.data.annotations import AnnotationSet
from comining.data.datamodule import DetectionData
from comining.data.dataset import EvaluationSet, TrainingSet
from comining.data.folds import fold_of
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED
from comining.data.set_export import coco_content
from comining.detectors.detector import Detector
from comining.errors import DataError
from comining.ops import iou_in_image, share_inside
from comining.runs.checkpoint import load_detector
from comining.runs.files import write_json
from comining.structures import Boxes

ANNOTATIONS_FILE = "annotations.json"
# A detection belongs to an annotation if their IoU exceeds the first for the same class, or the
# second for any class.
OVERLAP, OVERLAP_OF_ANY = 0.5, 0.7
# Of detections, also of different classes, with a larger IoU than this, the best is proposed.
SAME_PLACE = 0.7
LEAST_SCORE = 0.05
MOST_IN_AN_IMAGE = 100
# Detections of a lower probability are not proposed.
LEAST_PROBABILITY = 0.01


@dataclass
class Found:
    """Detections in the images that each detector was not trained on.

    Columns of detections that belong to no annotation, best first in each image; and of annotated
    objects, with the score of the best detection of each, 0 if there is none.
    """

    image: NDArray[np.int64]  # position in the annotation set
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]  # [n, 4] xyxy px
    scores: NDArray[np.float64]
    annotated_image: NDArray[np.int64]
    annotated_labels: NDArray[np.int64]
    annotated_scores: NDArray[np.float64]


def read_data(config: Mapping[str, Any]) -> DetectionData:
    """The data of a run, including the part of the training images that it may have left out.

    Args:
        config: all options of the run.
    """
    today = OmegaConf.load(CONFIG_FOLDER / "data" / "base.yaml")
    options: Any = OmegaConf.merge(today, config["data"])
    options.left_out_fold, options.paste = None, 0
    sparsity = instantiate(OmegaConf.create(config["sparsity"]), "sparsity")
    data: DetectionData = instantiate(options, "data", sparsity=sparsity, seed=config["seed"])
    data.setup("fit")
    return data


def training_set(data: DetectionData) -> TrainingSet:
    """The whole training set of a run, without the images that are kept for validation."""
    if data.train_set is None:
        raise DataError("there is no training split")
    return data.train_set


def find(train: TrainingSet, checkpoints: Mapping[int, Path], progress: bool) -> Found:
    """Detect in every image with the detector that was trained without it.

    Images without any annotation are included.

    Args:
        checkpoints: by the left-out part of the images.
    """
    annotations = train.annotations
    everything = np.ones(len(annotations.image_ids), dtype=np.bool_)
    folds = fold_of(annotations, everything, len(checkpoints))
    images = EvaluationSet(annotations, train.folder, train.load)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[tuple[int, Boxes, Boxes, Tensor]] = []
    with tqdm(total=len(folds), desc="detecting", disable=not progress) as bar:
        for part, checkpoint in sorted(checkpoints.items()):
            detector, description = load_detector(checkpoint)
            if tuple(description["category_names"]) != annotations.categories.names:
                raise DataError(f"{checkpoint}: its classes are not those of {annotations.path}")
            detector = detector.to(device).eval()
            for image in np.flatnonzero(folds == part).tolist():
                rows.append((image, *_of_image(detector, images, train, image)))
                bar.update()
    return _columns(rows)


def _of_image(
    detector: Detector, images: EvaluationSet, train: TrainingSet, image: int
) -> tuple[Boxes, Boxes, Tensor]:
    """Detections that belong to no annotation; annotations, and the best score of each."""
    _, pixels = images[image]
    detected = detector.detect([pixels.to(detector.device)]).to("cpu")
    detected = detected[detected.known_scores >= LEAST_SCORE]
    annotated = train.annotated_boxes(image)
    scores = torch.zeros(len(annotated))
    if len(detected) and len(annotated):
        overlap, labels = iou_in_image(detected, annotated)
        same = labels == detected.labels[:, None]
        covers = same & (overlap > OVERLAP)
        scores = torch.where(covers, detected.known_scores[:, None], 0.0).amax(dim=0)
        detected = detected[~(covers | (overlap > OVERLAP_OF_ANY)).any(dim=1)]
    detected = _open(detected, train, image)
    # Over all classes: of several detections in one place, the best is proposed.
    kept = nms(detected.boxes, detected.known_scores, SAME_PLACE)[:MOST_IN_AN_IMAGE]
    detected = detected[kept]
    return detected, annotated, scores


def _open(detected: Boxes, train: TrainingSet, image: int) -> Boxes:
    """Detections where an object could be missing: not in complete classes or ignored regions."""
    status = torch.from_numpy(train.status[image])[detected.labels]
    # Every object of a class that nobody looked for is missing.
    kept = (status == PARTIAL) | (status == UNLOOKED)
    rows = train.ignored_rows[image]
    if len(rows) and len(detected):
        regions = torch.from_numpy(train.annotations.boxes[rows]).float()
        labels = torch.from_numpy(train.annotations.labels[rows])
        inside = train.ignored_overlap < share_inside(detected.boxes, regions).T
        kept &= ~(inside & ((labels < 0) | (labels == detected.labels[:, None]))).any(dim=1)
    return detected[kept]


def _columns(rows: list[tuple[int, Boxes, Boxes, Tensor]]) -> Found:
    rows = sorted(rows, key=lambda row: row[0])

    def image_of(counts: Iterator[int]) -> NDArray[np.int64]:
        return np.repeat(np.array([row[0] for row in rows], dtype=np.int64), [*counts])

    def joined(parts: Iterator[Tensor], shape: tuple[int, ...] = (0,)) -> NDArray[Any]:
        return torch.cat([torch.zeros(shape), *parts]).double().numpy()

    return Found(
        image=image_of(len(row[1]) for row in rows),
        labels=joined(row[1].labels for row in rows).astype(np.int64),
        boxes=joined((row[1].boxes for row in rows), (0, 4)),
        scores=joined(row[1].known_scores for row in rows),
        annotated_image=image_of(len(row[2]) for row in rows),
        annotated_labels=joined(row[2].labels for row in rows).astype(np.int64),
        annotated_scores=joined(row[3] for row in rows),
    )


def held_out_scores(found: Found, num_classes: int, num_images: int) -> HeldOutScores:
    """The scores of the detections, class by class."""
    unmatched = [found.labels == label for label in range(num_classes)]
    annotated = [found.annotated_labels == label for label in range(num_classes)]
    return HeldOutScores(
        [found.annotated_scores[rows] for rows in annotated],
        [found.annotated_image[rows] for rows in annotated],
        [found.scores[rows] for rows in unmatched],
        [found.image[rows] for rows in unmatched],
        num_images,
        LEAST_SCORE,
    )


def proposals_of(found: Found, fitted: ObjectScores, annotations: AnnotationSet) -> list[Proposal]:
    """Proposals, the most probable first."""
    probability = np.zeros(len(found.scores))
    for label in range(len(annotations.categories)):
        rows = found.labels == label
        probability[rows] = fitted(label, found.scores[rows])
    order = np.lexsort((-found.scores, -probability))
    chosen = order[probability[order] >= LEAST_PROBABILITY]
    sizes = annotations.sizes[found.image[chosen]]
    boxes = found.boxes[chosen].copy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, sizes[:, 1:])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, sizes[:, :1])
    boxes[:, 2:] -= boxes[:, :2]
    return [
        Proposal(
            id=number,
            image_id=int(annotations.image_ids[found.image[row]]),
            category_id=annotations.categories.ids[found.labels[row]],
            bbox=tuple(round(value, 2) for value in box.tolist()),
            score=round(float(found.scores[row]), 5),
            probability=round(float(probability[row]), 5),
        )
        for number, (row, box) in enumerate(
            ((row, box) for row, box in zip(chosen, boxes, strict=True) if (box[2:] > 0.01).all()),
            start=1,
        )
    ]


def write_folder(
    output: Path,
    train: TrainingSet,
    options: Mapping[str, Any],
    found: Found,
    base: Path,
    training: Sequence[str] = (),
) -> tuple[list[Proposal], dict[str, RateEstimate]]:
    """Compute the probabilities, and write ``proposals.json`` and ``complete.json``.

    The annotations are those that training uses. They are written to ``annotations.json``, unless
    they equal a COCO file of the user.

    Args:
        options: of the data.
        base: the base of relative paths of the training set.
        training: options of ``train.py`` that train on completed annotations, see
            :class:`ProposalSource`.
    """
    annotations = train.annotations
    scores = held_out_scores(found, len(annotations.categories), len(annotations.image_ids))
    fitted = fit(scores)
    proposals = in_order(proposals_of(found, fitted, annotations), DEFAULT_ORDER)
    estimated = {
        name: RateEstimate(rate=rate, interval=(low, high))
        for name, rate, low, high in zip(
            annotations.categories.names,
            *(column.tolist() for column in rates(scores, fitted)),
            strict=True,
        )
        if np.isfinite([rate, low, high]).all()
    }
    output.mkdir(parents=True, exist_ok=True)
    file, annotated = _annotation_file(output, train, options)
    source = ProposalSource(
        annotations=path_from(output, file if file.parent == output else _from_here(file, base)),
        images=path_from(output, _from_here(train.folder, base)),
        classes=list(annotations.categories.names),
        annotated=annotated,
        exif=options.get("exif", "ignore"),
        bit_depth=options.get("bit_depth", "auto"),
        rates=estimated,
        training=[*training],
    )
    source.write(output)
    write_proposals(output / PROPOSALS_FILE, proposals)
    return proposals, estimated


def _from_here(path: Path, base: Path) -> Path:
    """A path that is relative to ``base``, as seen from the working directory."""
    return path if base.samefile(Path.cwd()) else base / path


def _annotation_file(
    output: Path, train: TrainingSet, options: Mapping[str, Any]
) -> tuple[Path, Any]:
    """The COCO file of the training annotations, and ``annotated`` for images without fields."""
    annotations = train.annotations
    known = train.kept | annotations.crowd | train.ignored
    as_it_stands = (
        options.get("format") is None
        and isinstance(options.get("train_annotations"), str)
        and known.all()
        and not annotations.repairs
        and annotations.unused_root is None
        and annotations.ignore_category is None
    )
    if as_it_stands:
        return annotations.path, options.get("annotated", "partial")
    partial_alone = bool((train.status == PARTIAL).all())
    complete_alone = bool((train.status == COMPLETE).all())
    said = None if partial_alone or complete_alone else train.status
    kept = replace(annotations.of_rows(known), said=said)
    kept = replace(kept, crowd=kept.crowd | train.ignored[known])
    file = output / ANNOTATIONS_FILE
    write_json(file, coco_content(kept))
    return file, "exhaustive" if complete_alone else "partial"
