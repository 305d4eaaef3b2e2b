"""Results of runs as data frames: one row per run, one row per validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from comining.errors import DataError
from comining.evaluation.recall_among import MULTIPLES
from comining.reports.cells import number
from comining.runs.result import RunResult, find_files

Results = Mapping[Path, RunResult]

# Known names in the order of the paper; tables and plots put others after them.
DETECTORS = ("retinanet", "fcos", "faster_rcnn")
SPARSITIES = (
    "full", "easy", "hard", "extreme", "miss50", "keep1", "classes", "regions", "file",
)  # fmt: skip
METHODS = (
    "original", "augmented", "joint", "self_mining", "comining", "pseudo_label", "soft_sampling",
    "background_recalibration", "part_aware", "mean_teacher", "costudent", "calibrated_teacher",
    "annotation_rate", "comining_rate", "sparsedet",
)  # fmt: skip

COCO_METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
WRONG_KINDS = ("duplicate", "wrong_class", "poor_localisation", "background")
MINING = ("pseudo_labels_per_image", "precision", "recall", *WRONG_KINDS)
TEXTS = (
    "file", "status", "method", "detector", "backbone", "sparsity", "view", "variant", "recipe",
    "table",
    "kind", "pasting", "threshold", "second_view", "options", "recipe_options",
    "most_mined_class", "error", "hardware", "versions",
)  # fmt: skip
# Options that only methods that mine use.
OF_MINING = ("detector.candidate_proposals",)
# The recall of annotated objects, which is valid even if AP is a lower bound.
RECALLS = ("AR1", "AR10", "AR100")
# Whether objects may be missing in the annotations that AP and test AP are measured on.
LOWER_BOUNDS = ("ap_is_lower_bound", "test_ap_is_lower_bound")
AMONG = tuple(f"recall_among_{multiple:g}" for multiple in MULTIPLES)
NUMBERS = (
    *COCO_METRICS, *AMONG, "test_AP", *(f"test_{name}" for name in RECALLS), *MINING,
    "most_mined_share", "score_threshold", "wall_time_s",
)  # fmt: skip
TYPES = {
    **dict.fromkeys(TEXTS, "object"),
    **dict.fromkeys(("seed", "max_steps"), "Int64"),
    **dict.fromkeys(NUMBERS, "float64"),
    **dict.fromkeys(LOWER_BOUNDS, "bool"),
}


def find_results(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Look for ``result.json`` in folders and all folders below them.

    Returns:
        The files, in the order of their paths, and the directories of runs that have none yet.

    Raises:
        DataError: a folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such directory")
    # By resolved path, so that a file below two of the folders counts once.
    files, started = (
        {file.resolve(): file for folder in folders for file in find_files(folder, name)}
        for name in ("result.json", "config.yaml")
    )
    # Hydra and W&B have copies of the options in folders below the run.
    runs = {
        path.parent: file.parent for path, file in started.items()
        if path.parent.name != ".hydra" and path.parts[-4:-3] != ("wandb",)
    }  # fmt: skip
    waiting = [run for path, run in runs.items() if path / "result.json" not in files]
    return sorted(files.values()), sorted(waiting)


def in_usual_order(names: pd.Series, known: Sequence[str]) -> pd.Series:
    """Names as ordered categories: the known ones, then others alphabetically."""
    others = sorted(set(names).difference(known))
    return names.astype(pd.CategoricalDtype([*known, *others], ordered=True))


def read_results(files: Sequence[Path]) -> dict[Path, RunResult]:
    """Read records of runs.

    Raises:
        DataError: a file is not a result; names it.
    """
    return {file: RunResult.read(file) for file in files}


def runs_frame(results: Results) -> pd.DataFrame:
    """A row per run, whatever its status; the columns are :data:`TYPES`.

    AP is on a scale of 0-100; mining figures are those of the last quarter of training. Figures
    that a run does not have are NaN. ``options`` is JSON: all options of the method but its score
    threshold, and those of the sparse set that differ from its choice; ``recipe_options`` is JSON,
    too. ``kind`` is a readable name for the options that runs of one
    table share.
    """
    rows = [_row(file, result) for file, result in results.items()]
    return pd.DataFrame(rows, columns=pd.Index(TYPES)).astype(TYPES)


def _row(file: Path, result: RunResult) -> dict[str, Any]:
    finished = result.status == "finished"  # else the numbers would be those of some earlier step
    options = {k: v for k, v in result.method_options.items() if k != "score_threshold"}
    options |= {f"sparsity.{name}": value for name, value in result.sparsity_options.items()}
    tau = result.score_threshold
    pasting = f"data.paste={result.paste}" if result.paste else ""
    mined = result.mining.get("pseudo_labels_per_image") is not None
    unused = () if mined else OF_MINING
    known = {k: v for k, v in result.recipe_options.items() if k not in unused}
    choices = (result.method, result.detector, result.backbone, result.sparsity, result.view)
    recipe = (result.dataset, result.optimizer, result.recipe, result.recipe_options)
    settings = (*choices, *recipe, tau, pasting, result.max_steps, options)
    row = {
        **{name: value for name, value in result if name in TYPES},
        **{name: result.mining.get(name) for name in MINING},
        "file": str(file),
        "variant": result.variant or json.dumps(settings),  # empty in records from before it
        "table": result.table or "runs",
        "kind": f"{result.detector}, {result.backbone}, data {result.dataset}, "
        f"{result.max_steps} steps" + (f", {pasting}" if pasting else ""),
        "pasting": pasting,
        "threshold": "-" if tau is None else number(tau, "g"),
        "second_view": "baseline" if result.method == "original" else result.view,
        "options": json.dumps(options),
        "recipe_options": json.dumps(known),
        "test_AP": result.test_ap if finished else None,
        "score_threshold": tau,
        "error": " ".join((result.error or "").split()),
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    }
    if finished:
        row |= {name: (result.metrics or {}).get(name) for name in COCO_METRICS}
        row |= {f"recall_among_{name}": value for name, value in result.recall_among.items()}
        row |= {f"test_{name}": (result.test or {}).get(name) for name in RECALLS}
    counts = {
        name: figures.get("pseudo_labels_per_image") or 0.0
        for name, figures in result.mining_classes.items()
    }
    if counts and row["pseudo_labels_per_image"]:
        most = max(counts, key=lambda name: counts[name])
        share = counts[most] / row["pseudo_labels_per_image"]
        row |= {"most_mined_class": most, "most_mined_share": share}
    return row


def validations_frame(results: Results) -> pd.DataFrame:
    """A row per validation of each run: ``file``, ``step``, ``precision`` and ``recall``.

    Precision and recall are those of the boxes mined since the previous validation; NaN for none.
    """
    types = {"file": "object", "step": "int64", "precision": "float64", "recall": "float64"}
    rows = [{**row, "file": str(file)} for file, run in results.items() for row in run.history]
    return pd.DataFrame(rows, columns=pd.Index(types)).astype(types)
