"""Cross-fitting: detectors for the images that they were not trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from comining.config import CONFIG_FOLDER
from comining.errors import ConfigError, DataError
from comining.runs.checkpoint import read_checkpoint
from comining.runs.command_line import absolute, quoted, text_of
from comining.runs.files import write_json
from comining.runs.result import RunResult, find_files
from comining.runs.resume import STARTED_IN

RECIPE_FILE = "recipe.json"  # in FOLDS
FOLDS = "folds"  # the sweep of trainings, in the folder of proposals
OPTION = "data.left_out_fold"
PROGRESS_BAR = "trainer.enable_progress_bar"
# Options of a run that determine where it is written, not how it is trained.
OF_THE_RUN = (
    STARTED_IN, OPTION, "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "overwrite",
    "resume", "ckpt", "allow_changes", "skip_finished", "launcher", "table", "experiment.table",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained: the options of a run, or those of a command line.

    Args:
        overrides: of ``train.py``.
        folder: the base of relative paths in them.
    """

    overrides: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, given: Sequence[str]) -> Recipe:
        """The recipe on a command line: the directory of a run, options (``NAME=VALUE``), or both.

        The given options follow those of the run.

        Raises:
            ConfigError: more than one directory, or nothing at all.
            DataError: the directory is not that of a run.
        """
        runs = [one for one in given if "=" not in one or Path(one).is_dir()]
        options = [one for one in given if one not in runs]
        if len(runs) > 1:
            raise ConfigError(f"give one run, not {len(runs)}: {', '.join(runs)}")
        if not runs:
            if not options:
                raise ConfigError("give the directory of a run, or options such as data.root=DIR")
            return cls(tuple(options), Path.cwd())
        recorded, folder = _recorded(Path(runs[0]))
        given_names = {_name(one) for one in options}
        kept = [one for one in recorded if _name(one) not in {*OF_THE_RUN, *given_names}]
        # The new options are relative to the directory of this command.
        return cls((*kept, *(absolute(one, Path.cwd()) for one in options)), folder)


def _recorded(run: Path) -> tuple[list[str], Path]:
    """The options that a run was started with, and the directory that it was started in."""
    file = run / "overrides.yaml"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{run}: not the directory of a run: no overrides.yaml") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    if not isinstance(recorded, list) or not all(isinstance(one, str) for one in recorded):
        raise DataError(f"{file}: must be a list of options")
    started = [text_of(one) or "" for one in recorded if _name(one) == STARTED_IN]
    there = started and Path(started[-1]).is_dir()
    return recorded, Path(started[-1]) if there else Path.cwd()


def _name(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def train_folds(
    recipe: Recipe, output: Path, folds: int, launcher: str | None, progress: bool
) -> dict[int, Path]:
    """For each part of the images, train a detector without it, if there is none yet.

    Finished runs with the same options are kept, so that an interrupted command continues with the
    part that it was at.

    Args:
        folds: parts of the images, n.
        launcher: a choice of ``conf/launcher`` that trains several at once; None: one by one.
        progress: whether to show progress bars.

    Returns:
        The last checkpoint for every left-out part, 0 ... n - 1.

    Raises:
        DataError: the folder holds trainings with other options; or training failed, with the
            directories of the runs.
    """
    sweep = (output / FOLDS).absolute()
    parts = ",".join(f"[{part},{folds}]" for part in range(folds))
    command = [
        sys.executable, str(CONFIG_FOLDER.parent / "train.py"), "-m", *recipe.overrides,
        f"{OPTION}={parts}", f"hydra.sweep.dir={quoted(str(sweep))}", "skip_finished=true",
    ]  # fmt: skip
    if launcher is not None:
        command.append(f"launcher={launcher}")
    if not progress:
        command.append(f"{PROGRESS_BAR}=false")
    _note_recipe(sweep, recipe, folds)
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0"}
    done = subprocess.run(command, cwd=recipe.folder, env=environment, check=False)
    found = trained_folds(sweep, folds)
    missing = [part for part in range(folds) if part not in found]
    if done.returncode or missing:
        raise DataError(
            f"{sweep}: training without part {', '.join(map(str, missing)) or '?'} of the images "
            f"did not finish (train.py ended with {done.returncode}); the same command continues "
            "where it stopped"
        )
    return found


def _note_recipe(sweep: Path, recipe: Recipe, folds: int) -> None:
    """Record how the trainings of a sweep are made, and refuse to mix them with others.

    Raises:
        DataError: there are trainings with other options.
    """
    file = sweep / RECIPE_FILE
    now = {"folder": str(recipe.folder.resolve()), "folds": folds, **_values(recipe.overrides)}
    if file.exists() and find_files(sweep, "config.yaml"):
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [
            f"{name}: {before.get(name, 'not given')}, now {now.get(name, 'not given')}"
            for name in sorted({*before, *now})
            if before.get(name, ...) != now.get(name, ...)
        ]
        if changed:
            raise DataError(
                f"{sweep.parent}: holds trainings with other options ({'; '.join(changed)}); "
                "choose another --out, or delete that folder"
            )
    sweep.mkdir(parents=True, exist_ok=True)
    write_json(file, now)


def _values(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of options by name; ``False`` and ``false`` are the same."""
    return {
        _name(one): _value(one.partition("=")[2])
        for one in overrides
        if _name(one) not in {*OF_THE_RUN, PROGRESS_BAR}
    }


def _value(text: str) -> Any:
    """What a text stands for, if JSON can hold that; else the text."""
    try:
        value = yaml.safe_load(text)
        json.dumps(value)
    except (yaml.YAMLError, TypeError):
        return text  # such as %, which starts no value in YAML, or a date
    return value


def trained_folds(sweep: Path, folds: int) -> dict[int, Path]:
    """The last checkpoint of every finished run of a sweep, by the part that was left out."""
    found = {}
    for file in find_files(sweep, "result.json"):
        checkpoint = file.parent / "checkpoints" / "last.ckpt"
        if RunResult.read(file).status != "finished" or not checkpoint.exists():
            continue
        part, count = read_checkpoint(checkpoint)["comining"]["config"]["data"]["left_out_fold"]
        if count == folds:
            found[part] = checkpoint
    return found


def trained_configuration(output: Path) -> tuple[dict[str, Any], Path]:
    """All options of the trainings behind the proposals, and the base of their relative paths.

    Raises:
        DataError: there are none.
    """
    for file in find_files(output / FOLDS, "result.json"):
        checkpoint = file.parent / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            config: dict[str, Any] = read_checkpoint(checkpoint)["comining"]["config"]
            return config, _recorded(file.parent)[1]
    raise DataError(f"{output / FOLDS}: no finished training in it; --truth FILE names the truth")
