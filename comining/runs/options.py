"""Which options of a run can change its result, and whether two runs share them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from comining.runs.result import plain

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


def relevant(config: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The options of a resolved configuration that can change a result.

    Args:
        without: top-level groups to leave out, too.
    """
    left = {k: v for k, v in config.items() if k not in (*SILENT[""], *without)}
    if left.get("weights") is None:  # as in runs from before this option existed
        left.pop("weights", None)
    for group in ("trainer", "data"):
        if isinstance(left.get(group), Mapping):
            left[group] = {k: v for k, v in left[group].items() if k not in SILENT[group]}
    return left


def same_options(first: Any, second: Any, ignoring: Collection[str]) -> bool:
    """Whether two resolved configurations agree, except for some top-level groups."""
    return relevant(first, ignoring) == relevant(second, ignoring)


def options_hash(config: Mapping[str, Any], without: Collection[str]) -> str:
    """A hash of all options that can change a result, except some top-level groups."""
    text = json.dumps(plain(relevant(config, without)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
