"""Detections in pictures without annotations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from comining.data.images import load_image, open_image
from comining.detectors.detector import Detector
from comining.errors import DataError
from comining.evaluation.picture_files import PictureFiles
from comining.evaluation.picture_names import json_name, printable
from comining.structures import Boxes
from comining.tracking.drawing import DETECTED, Layer, panel

# px: drawings are reduced to the first as their longest side, but no side below the second, so that
# strips remain visible.
LONGEST, SHORTEST = 1600, 200
LONGEST_REASON = 300  # characters


@dataclass
class PicturePrediction:
    """What was detected in one picture.

    Without ``rows`` the picture was skipped; without ``drawing`` only the drawing is missing.
    """

    image_id: int  # counts the pictures from 1
    name: PurePath  # relative to the folder
    size: tuple[int, int] = (0, 0)  # (height, width) as a viewer shows it, px
    pages: int = 1  # or frames, of which the first is taken
    rows: list[dict[str, Any]] | None = None  # COCO's results, with file_name
    categories: dict[int, str] = field(default_factory=dict)  # of the rows: name of each id
    exceeding: int = 0  # detections that exceed the threshold
    drawing: Image.Image | None = None  # with these detections
    problem: str | None = None  # why something is missing, on one line


def predict_pictures(
    detector: Detector,
    files: PictureFiles,
    *,
    category_ids: list[int],
    category_names: list[str],
    score_threshold: float,
) -> Iterator[PicturePrediction]:
    """Detect in pictures, one after the other; an error in one does not stop the others.

    A picture is turned by its EXIF orientation: boxes are in pixels as a viewer shows it. The
    caller writes the results.

    Args:
        score_threshold: detections that do not exceed it are not drawn.
    """
    for image_id, name in enumerate(files.pictures, start=1):
        prediction = PicturePrediction(image_id, name)
        # A failure (a broken file, too little memory) does not affect the next picture. Partial
        # results are kept.
        try:
            image = load_image(files.folder / name, exif="apply")
            prediction.pages = _pages(files.folder / name)
            prediction.size = (int(image.shape[-2]), int(image.shape[-1]))
            detections = detector.detect([image.to(detector.device)]).to("cpu")
            prediction.rows = _rows(prediction, detections, category_ids)
            found = sorted((category_ids[n], n) for n in set(detections.labels.tolist()))
            prediction.categories = {one: category_names[n] for one, n in found}
            drawn = detections[detections.known_scores > score_threshold]
            prediction.exceeding = len(drawn)
            prediction.drawing = _drawing(image, drawn, category_names)
        except Exception as error:
            prediction.problem = reason(error, files.folder / name)
        yield prediction


def reason(error: Exception, file: Path) -> str:
    """Why something failed, on one line without the name of the file."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif not isinstance(error, DataError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = printable(" ".join(text.replace(f"{file}: ", "").split()))
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _pages(file: Path) -> int:
    """The number of pages or frames of a file, up to the first damaged one."""
    try:
        with open_image(file, str(file)) as image:
            # Phones store a preview or a depth map after the picture in an MPO file.
            return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except DataError:
        return 1


def _rows(
    prediction: PicturePrediction, detections: Boxes, category_ids: list[int]
) -> list[dict[str, Any]]:
    xywh = detections.boxes.double()
    xywh[:, 2:] -= xywh[:, :2]
    scores = detections.known_scores.double()
    if not (xywh.isfinite().all() and scores.isfinite().all()):
        raise DataError("the detector's numbers are not finite")
    columns = zip(detections.labels.tolist(), xywh.tolist(), scores.tolist(), strict=True)
    file_name = json_name(prediction.name)
    return [
        {
            "image_id": prediction.image_id,
            "file_name": file_name,
            "category_id": category_ids[label],
            "bbox": bbox,
            "score": score,
        }
        for label, bbox, score in columns
    ]


def _drawing(image: Tensor, drawn: Boxes, category_names: list[str]) -> Image.Image:
    labelled = zip(drawn.labels.tolist(), drawn.known_scores.tolist(), strict=True)
    captions = [f"{category_names[label]} {score:.2f}" for label, score in labelled]
    sides = image.shape[-2:]
    scale = min(1.0, max(LONGEST / max(sides), SHORTEST / min(sides)))
    return panel(image, [Layer(DETECTED, drawn.boxes, captions)], scale)
