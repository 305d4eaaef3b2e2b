"""Which options of a run can change its result, and whether two runs share them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from comining.config import CONFIG_FOLDER
from comining.runs.result import plain

# What the runs of a study differ in: everything else is the recipe that they share.
STUDIED = ("seed", "method", "view", "sparsity", "tau")

# Where a run writes to, and other options that cannot change its result.
SILENT = {
    "": (
        "checkpoint",
        "logger",
        "pictures",
        "skip_finished",
        "own_gpu",
        "table",
        "resume",
        "ckpt",
        "allow_changes",
        "overwrite",
        "fit",  # its choices are in the options themselves
    ),
    "trainer": ("enable_progress_bar", "log_every_n_steps", "devices"),
    "data": ("num_workers", "hint"),
}

# In place of a value that the method does not use: once the default, and so part of hashes.
UNUSED_TAU = 0.5

# Parts of a recipe that are not recorded with it: classes, files and the length, which have fields
# of their own, the machine, and how often and on what a run is evaluated.
NOT_RECORDED = re.compile(
    r".*\._\w+_|published_tau\..*|published_start|(detector|head)\.(compile|channels_last)|"
    r"data\.(root|format|prepare(\..*)?|names|check|missing_val|"
    r"(train|val|test)_(annotations|images|annotated|batch_size))|"
    r"schedule\.max_steps|trainer\.(max_steps|accelerator|strategy|num_nodes|\w*val_\w+|benchmark|deterministic)"
)


def relevant(config: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The options of a resolved configuration that can change a result.

    Args:
        without: top-level groups to leave out, too.
    """
    left = {k: v for k, v in config.items() if k not in (*SILENT[""], *without)}
    if left.get("weights") is None:  # as in runs from before this option existed
        left.pop("weights", None)
    method = config.get("method")
    of_method = method.get("score_threshold") if isinstance(method, Mapping) else None
    if "tau" in left and left["tau"] != of_method:
        left["tau"] = UNUSED_TAU
    for group in ("trainer", "data"):
        if isinstance(left.get(group), Mapping):
            left[group] = {k: v for k, v in left[group].items() if k not in SILENT[group]}
    return left


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their full names, ``{"data.root": ...}``."""
    options: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            options |= flat(value, f"{prefix}{name}.")
        else:
            options[f"{prefix}{name}"] = value
    return options


def recipe_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the runs of a study share, by their full names; classes by their names.

    Args:
        config: the resolved configuration.
    """
    options = flat(relevant(config, STUDIED))
    classes = {
        name: str(options.get(f"{name}._target_")).rpartition(".")[2]
        for name in ("optimizer", "schedule")
    }
    recorded = {k: v for k, v in options.items() if not NOT_RECORDED.fullmatch(k)}
    return {"weights": config.get("weights"), **classes, **recorded}


def changed_options(group: str, choice: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that differ from the file of its choice; files aside.

    Args:
        group: a folder of the configuration.
        choice: a file in it; nothing is known of other ones.
        config: the resolved configuration.
    """
    file = CONFIG_FOLDER / group / f"{choice}.yaml"
    options = config.get(group)
    if not isinstance(options, Mapping) or not file.is_file():
        return {}
    usual = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: value
        for name, value in options.items()
        if name != "path" and (name not in usual or usual[name] != value)
    }


def same_options(first: Any, second: Any, ignoring: Collection[str]) -> bool:
    """Whether two resolved configurations agree, except for some top-level groups."""
    return relevant(first, ignoring) == relevant(second, ignoring)


def options_hash(config: Mapping[str, Any], without: Collection[str]) -> str:
    """A hash of all options that can change a result, except some top-level groups."""
    text = json.dumps(plain(relevant(config, without)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
