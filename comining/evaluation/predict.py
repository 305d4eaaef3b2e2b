"""Detections on a folder of pictures that nobody annotated."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from comining.data.images import load_image
from comining.detectors.dense import DenseDetector
from comining.errors import DataError
from comining.runs.files import write_json
from comining.structures import Detections
from comining.tracking.drawing import DETECTED, Layer, panel

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
LONGEST = 1600  # px: larger pictures are drawn reduced


def predict_folder(
    detector: DenseDetector,
    folder: Path,
    output: Path,
    *,
    category_ids: list[int],
    category_names: list[str],
    score_threshold: float,
) -> dict[str, Any]:
    """Detect in every image file below ``folder``; files that cannot be read are skipped and named.

    Writes ``output/pictures/...`` with the detections that exceed ``score_threshold``, and all of
    them to ``output/coco_results.json``, in COCO's results format with the ``file_name`` added;
    ``image_id`` counts the files, sorted by path, from 1.

    Returns:
        how many images were read, the files that were skipped, and how many detections there are.

    Raises:
        DataError: the folder does not exist, or holds no image that can be read.
    """
    if not folder.is_dir():
        raise DataError(f"images={folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"images={folder}: no image files ({', '.join(sorted(SUFFIXES))})")
    device = next(detector.parameters()).device
    skipped: list[str] = []
    rows: list[dict[str, Any]] = []
    for image_id, file in enumerate(
        tqdm(files, unit="image", file=sys.stdout, disable=not sys.stdout.isatty()), start=1
    ):
        name = file.relative_to(folder)
        try:
            image = load_image(file)
        except DataError as error:
            log.warning("skipped: %s", error)
            skipped.append(str(name))
            continue
        found = detector.detect([image.to(device)])[0]
        boxes = found.boxes.double().cpu()
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(found.labels.tolist(), boxes.tolist(), found.scores.double().tolist())
        rows += [
            {
                "image_id": image_id,
                "file_name": name.as_posix(),
                "category_id": category_ids[label],
                "bbox": bbox,
                "score": score,
            }
            for label, bbox, score in columns
        ]
        sure = found.scores > score_threshold
        drawn = Detections(found.boxes[sure], found.labels[sure], found.scores[sure])
        words = [
            f"{category_names[label]} {score:.2f}"
            for label, score in zip(drawn.labels.tolist(), drawn.scores.tolist(), strict=True)
        ]
        picture = panel(
            image,
            [Layer(DETECTED, drawn.boxes, words)],
            min(1.0, LONGEST / max(image.shape[-2:])),
        )
        # The suffix stays in the name: a.jpg and a.png are two pictures.
        target = output / "pictures" / name.with_name(name.name + ".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    if len(skipped) == len(files):
        raise DataError(f"images={folder}: none of {len(files)} files could be read")
    write_json(output / "coco_results.json", rows)
    return {"images": len(files) - len(skipped), "skipped": skipped, "detections": len(rows)}
