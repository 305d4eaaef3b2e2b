"""Writing what was detected in a folder of pictures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from comining.evaluation.predict import PicturePrediction
from comining.runs.files import write_json

log = logging.getLogger(__name__)


@dataclass
class PredictionCounts:
    """What became of the files of a folder."""

    images: int = 0
    detections: int = 0
    skipped: list[str] = field(default_factory=list)  # names


def write_predictions(
    predictions: Iterable[PicturePrediction], count: int, output: Path
) -> PredictionCounts:
    """Write ``output/pictures/NAME.png`` for every picture, and ``output/coco_results.json``.

    Args:
        count: how many files there are, for the progress bar.
    """
    counts = PredictionCounts()
    rows: list[dict[str, Any]] = []
    quiet = not sys.stdout.isatty()
    for prediction in tqdm(predictions, total=count, unit="image", file=sys.stdout, disable=quiet):
        if prediction.drawing is None:
            log.warning("skipped: %s", prediction.problem)
            counts.skipped.append(str(prediction.name))
            continue
        counts.images += 1
        rows += prediction.rows
        # The suffix stays in the name: a.jpg and a.png are two pictures.
        name = prediction.name.with_name(prediction.name.name + ".png")
        target = output / "pictures" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        prediction.drawing.save(target)
    counts.detections = len(rows)
    write_json(output / "coco_results.json", rows)
    return counts
