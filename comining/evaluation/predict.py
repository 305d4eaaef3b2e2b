"""Detections in pictures that nobody annotated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from comining.data.images import load_image
from comining.detectors.detector import Detector
from comining.errors import DataError
from comining.tracking.drawing import DETECTED, Layer, panel

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
LONGEST = 1600  # px: larger pictures are drawn reduced


@dataclass
class PicturePrediction:
    """What was detected in one file, or why it was skipped."""

    name: Path  # relative to the folder
    rows: list[dict[str, Any]] = field(default_factory=list)  # COCO's results, with file_name
    drawing: Image.Image | None = None  # with the detections that exceed the threshold
    problem: str | None = None  # why the file was skipped


def find_pictures(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by path.

    Raises:
        DataError: the folder does not exist, or holds no image file.
    """
    if not folder.is_dir():
        raise DataError(f"images={folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"images={folder}: no image files ({', '.join(sorted(SUFFIXES))})")
    return files


def predict_pictures(
    detector: Detector,
    files: list[Path],
    folder: Path,
    *,
    category_ids: list[int],
    category_names: list[str],
    score_threshold: float,
) -> Iterator[PicturePrediction]:
    """Detect in image files, one after the other; a file that cannot be read is skipped.

    The caller writes what comes out. In the rows, ``image_id`` counts the files from 1.

    Args:
        folder: names are relative to it.
        score_threshold: detections that do not exceed it are not drawn.

    Raises:
        DataError: after the last file, if none could be read.
    """
    readable = False
    for image_id, file in enumerate(files, start=1):
        name = file.relative_to(folder)
        try:
            image = load_image(file)
        except DataError as error:
            yield PicturePrediction(name, problem=str(error))
            continue
        readable = True
        detections = detector.detect([image.to(detector.device)]).to("cpu")
        xywh = detections.boxes.double()
        xywh[:, 2:] -= xywh[:, :2]
        scores = detections.known_scores
        columns = zip(detections.labels.tolist(), xywh.tolist(), scores.double().tolist())
        rows = [
            {
                "image_id": image_id,
                "file_name": name.as_posix(),
                "category_id": category_ids[label],
                "bbox": bbox,
                "score": score,
            }
            for label, bbox, score in columns
        ]
        drawn = detections[scores > score_threshold]
        labelled = zip(drawn.labels.tolist(), drawn.known_scores.tolist(), strict=True)
        captions = [f"{category_names[label]} {score:.2f}" for label, score in labelled]
        scale = min(1.0, LONGEST / max(image.shape[-2:]))
        yield PicturePrediction(
            name, rows, panel(image, [Layer(DETECTED, drawn.boxes, captions)], scale)
        )
    if not readable:
        raise DataError(f"images={folder}: none of {len(files)} files could be read")
