"""Options that train on completed annotations as the trainings of the proposals were trained."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from comining.completion.cross_fitting import FOLDS, PROGRESS_BAR, Recipe
from comining.config import CONFIG_FOLDER
from comining.data.datamodule import DetectionData
from comining.data.set_export import coco_content
from comining.runs.command_line import absolute, quoted
from comining.runs.files import write_json
from comining.runs.result import find_files

# The options of the data that the new files replace.
REPLACED = re.compile(
    r"_target_|root|format|prepare|hint|missing_labels|names|annotated|left_out_fold|missing_val|"
    r"val_fraction|ignore_category|difficult|check|"
    r"(train|val|test)_(annotations|images|annotated)"
)

DEFAULTS = ("base", "custom")  # files of conf/data


def _trained_recipe(output: Path) -> Recipe:
    """The options of the trainings in a folder of proposals."""
    return Recipe.of([str(find_files(output / FOLDS, "result.json")[0].parent)])


def recipe_of(output: Path) -> Recipe:
    """The options of the trainings in a folder of proposals, without those of their data."""
    recipe = _trained_recipe(output)
    kept = [one for one in recipe.overrides if not re.match(r"[+~]*(data|sparsity)\b(?!_)", one)]
    return Recipe((*kept, "data=custom", "sparsity=full"), recipe.folder)


def training_options(
    output: Path, config: Mapping[str, Any], folder: Path, data: DetectionData
) -> list[str]:
    """Options of ``train.py`` that train like those of a folder of proposals.

    They lack ``data.train_annotations``, ``data.train_images`` and ``data.annotated``. The
    validation and test split are written into the folder, and named with absolute paths.

    Args:
        output: the folder.
        config: all options of one of its trainings.
        folder: the base of relative paths in them.
        data: of that training.
    """
    recipe = recipe_of(output)
    given = [re.match(r"[+~]*data\.(\w+)", one) for one in _trained_recipe(output).overrides]
    home = output.absolute()
    with contextlib.chdir(folder):
        splits, _ = write_evaluated_splits(home, data)
    bar = f"{PROGRESS_BAR}="
    overrides = [absolute(one, folder) for one in recipe.overrides if not one.startswith(bar)]
    # The files have absolute paths, wherever data.root of the trainings was.
    of_data = data_options(config, also={one[1] for one in given if one})
    return [*overrides, "data.root=/", *of_data, *splits]


def data_options(config: Mapping[str, Any], also: Collection[str] | None = None) -> list[str]:
    """The options of the data that completed annotations are trained with, but for their files.

    Args:
        config: all options of a training.
        also: leave out the defaults of ``data=custom``, except for the options of these names; None
            leaves out nothing.
    """
    defaults: dict[str, Any] = {}
    if also is not None:
        data = CONFIG_FOLDER / "data"
        merged = OmegaConf.merge(*(OmegaConf.load(data / f"{one}.yaml") for one in DEFAULTS))
        plain: Any = OmegaConf.to_container(merged)
        defaults = {name: value for name, value in plain.items() if name not in also}
    return [
        f"data.{name}={_text(value)}"
        for name, value in config["data"].items()
        if not REPLACED.fullmatch(name) and not (name in defaults and defaults[name] == value)
    ]


def write_evaluated_splits(folder: Path, data: DetectionData) -> tuple[list[str], str]:
    """Write the validation and test split of a training as COCO files.

    Relative paths of the data count from the working directory.

    Args:
        folder: the folder to write ``val.json`` and ``test.json`` into.
        data: of the training.

    Returns:
        Options that name the files, with absolute paths; and the split that AP is of: ``test``, or
        ``val`` without a test split.
    """
    options = []
    for name, images in {"val": data.val_set, "test": data.test_set}.items():
        if images is None:
            continue
        file = folder.absolute() / f"{name}.json"
        write_json(file, coco_content(images.annotations))
        partial = "partial" if images.annotations.is_partial else "exhaustive"
        options += [
            f"data.{name}_annotations={quoted(str(file))}",
            f"data.{name}_images={quoted(str(images.folder.absolute()))}",
            f"data.{name}_annotated={partial}",
        ]
    return options, "val" if data.test_set is None else "test"


def _text(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else json.dumps(value)
