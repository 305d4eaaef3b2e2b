"""How a detector scores annotated and erased objects of its training images, and new objects.

python -m benchmarks.object_scores RUN... [--images 150] [--json FILE]

An erased object that scores lower than one of a validation image was learnt as background. The
score of an object is that of the best detection of its class with an IoU of 0.5 or more, and 0
without one. RUN is the directory of a finished run; its ``checkpoints/best.ckpt`` is measured. Run
it in the folder where the run was started.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from comining.completion.propose import read_data
from comining.data.dataset import EvaluationSet
from comining.detectors.detector import Detector
from comining.runs.checkpoint import load_detector
from comining.runs.files import write_json

MIN_IOU = 0.5
CHECKPOINT = "checkpoints/best.ckpt"


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options."""
    options = argparse.ArgumentParser(description="Scores of erased, annotated and new objects.")
    options.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    options.add_argument("--images", type=int, default=150, help="of each split, drawn by seed 0")
    options.add_argument("--json", type=Path, help="write the result to this file")
    return options.parse_args(given)


def object_scores(
    detector: Detector, images: EvaluationSet, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Scores of the objects of some images, crowds left out.

    Returns:
        [M] rows of the annotation set, and the [M] score of each.
    """
    annotations = images.annotations
    rows, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    for image in chosen.tolist():
        here = np.flatnonzero((annotations.image == image) & ~annotations.crowd)
        found = detector.detect([images[image][1].to(detector.device)]).to("cpu")
        overlap = box_iou(torch.from_numpy(annotations.boxes[here]), found.boxes.double())
        same = torch.from_numpy(annotations.labels[here])[:, None] == found.labels
        score = torch.where((overlap >= MIN_IOU) & same, found.known_scores, 0.0)
        if len(found):
            scores.append(score.amax(dim=1).double().numpy())
        else:
            scores.append(np.zeros(len(here)))
        rows.append(here)
    return np.concatenate(rows), np.concatenate(scores)


def of_run(run: Path, count: int) -> dict[str, dict[str, float]]:
    """Number and mean score of the objects of each kind: ``annotated``, ``erased``, ``new``."""
    detector, description = load_detector(run / CHECKPOINT)
    detector.to("cuda" if torch.cuda.is_available() else "cpu")
    data = read_data(description["config"])
    train, val = data.train_set, data.val_set
    assert train is not None
    assert val is not None
    kinds = {}
    for images in (EvaluationSet(train.annotations, train.folder, train.load), val):
        everyone = np.random.default_rng(0).permutation(len(images))
        rows, scores = object_scores(detector, images, everyone[:count])
        if images is val:
            kinds["new"] = scores
        else:
            kinds |= {"annotated": scores[train.kept[rows]], "erased": scores[~train.kept[rows]]}
    return {
        kind: {"objects": len(scores), "mean": float(scores.mean())}
        for kind, scores in kinds.items()
        if len(scores)
    }


def main(given: list[str] | None = None) -> None:
    """Measure the runs."""
    chosen = arguments(given)
    measured = {}
    for run in chosen.runs:
        measured[run.name] = of_run(run, chosen.images)
        figures = ", ".join(
            f"{kind} {one['mean']:.3f} ({one['objects']} objects)"
            for kind, one in measured[run.name].items()
        )
        print(f"{run.name}: {figures}", flush=True)
    if chosen.json:
        write_json(chosen.json, measured)


if __name__ == "__main__":
    main()
