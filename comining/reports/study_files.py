"""The files of a study: results copied from run directories, to be committed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from comining.errors import DataError
from comining.reports.records import find_results, read_results
from comining.runs.result import RunResult

REPEAT = "-repeat"
# A diverged run is a result: the paper's Table 3 prints "Nan".
COLLECTED = ("finished", "diverged")


def collect(runs: Sequence[Path], folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Copy the results of finished and diverged runs, without the paths of this machine.

    A repeated run with another outcome is kept next to the first one.

    Args:
        runs: directories of runs or sweeps.

    Returns:
        The files written, and what was left out: a file or directory and its status.

    Raises:
        DataError: a directory does not exist, or a result cannot be read; names it.
    """
    files, without_result = find_results(runs)
    written = []
    left_out = dict.fromkeys(without_result, "no result")
    for file, result in read_results(files).items():
        if result.status not in COLLECTED:
            left_out[file] = result.status
            continue
        result = without_paths(result)
        place = _place(folder, result)
        result.write(place)
        written.append(place)
    return written, left_out


def without_paths(result: RunResult) -> RunResult:
    """The record with file names instead of paths; fingerprints identify the annotations."""
    data = {
        split: {
            name: Path(value).name if name == "annotations" and isinstance(value, str) else value
            for name, value in facts.items()
        }
        for split, facts in result.data.items()
    }
    options = {
        field: {
            name: Path(value).name if isinstance(value, str) and "/" in value else value
            for name, value in given.items()
        }
        for field, given in {
            "method_options": result.method_options,
            "sparsity_options": result.sparsity_options,
            "recipe_options": result.recipe_options,
        }.items()
    }
    return result.model_copy(update={"data": data, **options})


def _place(folder: Path, result: RunResult) -> Path:
    """The file for a result: that of the same outcome, or a new one, perhaps as a repeat."""
    same = {
        file: other
        for file, other in read_results(sorted(folder.glob("*.json"))).items()
        if _same_run(other, result)
    }
    for file, other in same.items():
        if other.metrics == result.metrics:
            return file
    if same:
        first = next(iter(same)).stem.split(REPEAT)[0]
        return _free(folder, (f"{first}{REPEAT}{number}" for number in itertools.count(1)))
    choices = (result.detector, result.sparsity, result.method, result.view, result.variant)
    name = f"{'-'.join(filter(None, choices))}-seed{result.seed}"
    # Without `variant`, in records from before it, different runs would have one name.
    others = (f"{name}-{number}" for number in itertools.count(2))
    return _free(folder, itertools.chain([name], others))


def _free(folder: Path, names: Iterable[str]) -> Path:
    """The first of the files that does not exist."""
    places = (folder / f"{name}.json" for name in names)
    return next(place for place in places if not place.exists())


def _same_run(one: RunResult, other: RunResult) -> bool:
    """Whether a run repeats another; options that only one of the records knows do not count."""
    recipes = one.recipe_options, other.recipe_options
    shared = recipes[0].keys() & recipes[1].keys()
    return _identity(one) == _identity(other) and all(
        recipes[0][name] == recipes[1][name] for name in shared
    )


def _identity(result: RunResult) -> tuple[Any, ...]:
    """Equal for repeats of a run; ``variant`` also counts options that change no number."""
    choices = (result.dataset, result.detector, result.sparsity, result.method, result.view)
    options = (
        result.method_options,
        result.sparsity_options,
        result.max_steps,
        result.paste,
        result.seed,
    )
    return (*choices, result.backbone, *options)


def read_study(folder: Path) -> tuple[dict[Path, RunResult], dict[Path, RunResult]]:
    """The records of one study, and those of repeated runs.

    Raises:
        DataError: a file is not a result, or a repeat without its first run; names it.
    """
    results = read_results(sorted(folder.glob("*.json")))
    repeats = {file: result for file, result in results.items() if REPEAT in file.name}
    for file in repeats:
        if Path(first_run(str(file))) not in results:
            raise DataError(f"{file}: a repeat, but {first_run(str(file))} is missing")
    return {k: v for k, v in results.items() if k not in repeats}, repeats


def first_run(repeat: str) -> str:
    """The file of the first run of a repeat."""
    folder, _, name = repeat.rpartition("/")
    return f"{folder}/{name.split(REPEAT)[0]}.json"
