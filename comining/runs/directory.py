"""What a run leaves on disk about itself."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "pycocotools",
    "faster-coco-eval",
    "torchmetrics",
)


def versions() -> dict[str, str]:
    """Of everything that may change a result."""
    found = {"python": platform.python_version()}
    for package in ("comining", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> str:
    """The device in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"


# Where a run writes to, and what is silent about its result.
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
    for group in ("trainer", "data"):
        if group in left:
            left[group] = {k: v for k, v in left[group].items() if k not in SILENT[group]}
    return left


def same_options(first: Any, second: Any, ignoring: Collection[str]) -> bool:
    """Whether two resolved configurations agree, but for some top-level groups."""
    return relevant(first, ignoring) == relevant(second, ignoring)


def options_hash(config: Mapping[str, Any], without: Collection[str]) -> str:
    """A short name for all options that can change a result, but for some top-level groups."""
    text = json.dumps(relevant(config, without), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def find_run(run: Path, wanted: Mapping[str, Any]) -> Path | None:
    """A finished run beside ``run`` whose ``result.json`` says what is ``wanted``.

    Its other options are those of ``run``.
    """
    mine = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    for file in sorted(run.parent.glob("*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["status"] != "finished" or any(result[k] != v for k, v in wanted.items()):
            continue
        its = OmegaConf.to_container(OmegaConf.load(file.with_name("config.yaml")))
        if same_options(mine, its, ignoring={*wanted, "tau"}):
            return file.parent
    return None
