"""Collecting the results of runs, and putting them into cells."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comining.errors import DataError
from comining.runs.files import write_json
from comining.runs.result import find_results

Result = Mapping[str, Any]

METHODS = (
    "original", "augmented", "joint", "self_mining", "comining", "pseudo_label", "soft_sampling",
    "background_recalibration", "part_aware",
)  # fmt: skip
SPARSITIES = ("full", "easy", "hard", "extreme", "miss50")
REPEAT = "-repeat"
# Where nothing was tried on a sparse set of its own, its threshold is that of this one.
MAIN = "hard"


def collect(runs: Sequence[Path], folder: Path) -> int:
    """Copy the results of finished and diverged runs; how many there were.

    A run that was made a second time with another outcome is kept beside the first one.

    Raises:
        DataError: a result cannot be read.
    """
    count = 0
    for file in sorted(file for run in runs for file in find_results(run)):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a result ({error})") from error
        if result["status"] not in ("finished", "diverged"):
            continue
        for split in result.get("data", {}).values():
            split["annotations"] = Path(split["annotations"]).name  # the fingerprint identifies it
        name = "-".join(
            [result["detector"], result["sparsity"], result["method"], result["view"],
             result["variant"], f"seed{result['seed']}"]
        )  # fmt: skip
        write_json(_place(folder, name, result), result)
        count += 1
    return count


def _place(folder: Path, name: str, result: Result) -> Path:
    """Where a result belongs: beside another one of its cell and seed it is a repeat."""
    same = [file for file in sorted(folder.glob("*.json")) if _cell(_read(file)) == _cell(result)]
    for file in same:
        if _read(file)["metrics"] == result["metrics"]:
            return file
    if not same:
        return folder / f"{name}.json"
    return folder / f"{same[0].stem.split(REPEAT)[0]}{REPEAT}{len(same)}.json"


def _cell(result: Result) -> tuple[Any, ...]:
    """What makes two runs the same; ``variant`` also counts options that change no number."""
    keys = ("detector", "sparsity", "method", "view", "method_options", "max_steps", "seed")
    return tuple(result[key] for key in keys)


def _read(file: Path) -> Result:
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found


def read(folder: Path) -> list[Result]:
    """The results of one study, without repeats."""
    files = (file for file in sorted(folder.glob("*.json")) if REPEAT not in file.name)
    return [_read(file) for file in files]


def read_repeats(folder: Path) -> list[tuple[Result, Result]]:
    """Runs that were made more than once: the first, and one of the others."""
    return [
        (_read(folder / f"{file.name.split(REPEAT)[0]}.json"), _read(file))
        for file in sorted(folder.glob(f"*{REPEAT}*.json"))
    ]


def tau_of(result: Result) -> float | None:
    """The score threshold of a run; None for methods that have none."""
    value = result["method_options"].get("score_threshold")
    return None if value is None else float(value)


def settings_of(result: Result) -> dict[str, Any]:
    """What a study keeps the same: the length of training, and the method's options but tau."""
    options = {k: v for k, v in result["method_options"].items() if k != "score_threshold"}
    return {"max_steps": result["max_steps"], **options}


def set_probes_apart(results: Sequence[Result]) -> tuple[list[Result], list[tuple[Result, str]]]:
    """Runs with the usual settings, and probes of another length or option, with what differs.

    Usual is what most runs of a detector and method have; with as many of one as of the other, it
    is what comes first.
    """
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for one in results:
        kind = (one["detector"], one["method"])
        kinds.setdefault(kind, Counter())[json.dumps(settings_of(one))] += 1
    usual, probes = [], []
    for one in results:
        ((most, _),) = kinds[one["detector"], one["method"]].most_common(1)
        settings, expected = settings_of(one), json.loads(most)
        changed = {k: v for k, v in settings.items() if k not in expected or expected[k] != v}
        if changed:
            probes.append((one, ", ".join(f"{k}={v}" for k, v in changed.items())))
        else:
            usual.append(one)
    return usual, probes


def chosen_tau(results: Sequence[Result], sparsity: str) -> float | None:
    """The threshold with the best validation AP of co-mining (RetinaNet) on a sparse set.

    Compared are the thresholds that were run with most seeds, by their mean; where that is one
    alone, all, by seed 0. Where fewer than two were tried, it is that of :data:`MAIN`.
    """
    sweep = sweep_of(results, sparsity)
    if len(sweep) < 2 and sparsity != MAIN:
        return chosen_tau(results, MAIN)
    if not sweep:
        return None
    most = max(map(len, sweep.values()))
    finalists = [tau for tau, runs in sweep.items() if len(runs) == most]
    if len(finalists) == 1:
        return max(sweep, key=lambda tau: _validation_ap(sweep[tau][0]))
    return max(
        finalists,
        key=lambda tau: statistics.mean(map(_validation_ap, sweep[tau].values())),
    )


def _validation_ap(result: Result) -> float:
    """Zero of a run that diverged: it detects nothing."""
    return float(result["metrics"]["AP"]) if result["status"] == "finished" else 0.0


def sweep_of(results: Sequence[Result], sparsity: str) -> dict[float, dict[int, Result]]:
    """The threshold sweep on a sparse set: tau to its runs by seed, of those that have seed 0."""
    found: dict[float, dict[int, Result]] = {}
    for one in sorted(results, key=lambda one: int(one["seed"])):
        cell = (one["detector"], one["sparsity"], one["method"], one["view"])
        tau = tau_of(one)
        if cell == ("retinanet", sparsity, "comining", "color") and tau is not None:
            found.setdefault(tau, {})[int(one["seed"])] = one
    return {tau: runs for tau, runs in sorted(found.items()) if 0 in runs}


def by_seed(
    results: Sequence[Result], detector: str, sparsity: str, method: str, view: str = "color"
) -> dict[int, float]:
    """Test AP of each seed of a cell, at the chosen threshold; NaN where it diverged."""
    cell = {}
    tau = chosen_tau(results, sparsity)
    for one in results:
        if (one["detector"], one["sparsity"], one["method"]) != (detector, sparsity, method):
            continue
        if one["view"] != view or tau_of(one) not in (None, tau):
            continue
        finished = one["status"] == "finished"
        cell[int(one["seed"])] = one["test"]["AP"] if finished else float("nan")
    return cell


Cells = dict[tuple[str, str], dict[int, float]]  # sparsity, method -> seed -> test AP


def cells_of(results: Sequence[Result], detector: str) -> Cells:
    """All cells of a detector that have been run."""
    cells = {
        (sparsity, method): by_seed(results, detector, sparsity, method)
        for sparsity in SPARSITIES
        for method in METHODS
    }
    return {key: cell for key, cell in cells.items() if cell}
