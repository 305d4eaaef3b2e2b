"""The description in a checkpoint, and loading a detector from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from comining.config import instantiate
from comining.data.annotations import Categories
from comining.detectors.detector import Detector
from comining.errors import CheckpointError, UserError


def describe(
    config: dict[str, Any],
    categories: Categories,
    initial_weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is needed to rebuild the detector and its data, as plain containers.

    Plain, because a checkpoint must load with ``weights_only=True``.

    Args:
        initial_weights: for the record of a run that is resumed from the checkpoint.
    """
    names = {"category_ids": list(categories.ids), "category_names": list(categories.names)}
    return {"config": config, **names, "initial_weights": initial_weights}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may contain.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        names = [f"checkpoints/{stem}.ckpt" for stem in ("best", "last")]
        files = [str(file) for name in names if (file := Path(path, name)).is_file()]
        advice = f"; name a file in it: {' or '.join(files)}" if files else ""
        raise CheckpointError(f"{path}: is a directory, not a checkpoint{advice}") from None
    except Exception as error:  # broken bytes may raise anything
        reason = "it is damaged, or holds more than tensors and plain containers"
        if isinstance(error, OSError | RuntimeError | EOFError):
            reason = next(iter(str(error).splitlines()), reason)
        # torch's own message advises to load it anyway, which would run code from the file.
        raise CheckpointError(f"{path}: cannot be loaded as a checkpoint ({reason})") from error
    if not isinstance(content, dict) or not {"comining", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path}: not a checkpoint of comining")
    problem = _problem(content["comining"], content["state_dict"])
    if problem:
        raise CheckpointError(f"{path}: not a valid checkpoint of comining: {problem}")
    return content


def _problem(description: Any, weights: Any) -> str:
    """What is wrong with the parts of a checkpoint; "" if nothing."""
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        return "'state_dict' does not hold tensors"
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        return "it has no configuration"
    for group in ("backbone", "detector", "data"):
        if not isinstance(description["config"].get(group), dict):
            return f"its configuration has no '{group}'"
    ids, names = description.get("category_ids"), description.get("category_names")
    if not isinstance(ids, list) or not isinstance(names, list) or not 0 < len(ids) == len(names):
        return "it does not name its classes"
    if any(type(i) is not int for i in ids) or any(type(name) is not str for name in names):
        return "it does not name its classes"
    try:
        # The configuration was resolved before it was stored. A reference in it can only be meant
        # to read the environment of the machine that evaluates it.
        if "${" in json.dumps(description["config"]):
            return "its configuration holds a reference, ${...}"
    except (TypeError, ValueError, RecursionError):
        return "its configuration is not made of plain containers"
    return ""


def build_detector(config: dict[str, Any], num_classes: int, pretrained: bool) -> Detector:
    """The detector of a configuration.

    Args:
        pretrained: whether to fetch the backbone's weights; not needed if a checkpoint is loaded
            next.
    """
    node = OmegaConf.create(config)
    backbone = node.backbone
    if not pretrained and "weights" in backbone:
        backbone.weights = None
    built = instantiate(backbone, "backbone")
    detector: Detector = instantiate(
        node.detector, "detector", backbone=built, num_classes=num_classes
    )
    return detector


def check_network(config: dict[str, Any]) -> None:
    """Build the network of a new run and drop it: finds what is wrong before any data are read.

    The random numbers stay as they are. Pretrained weights are fetched only if the run begins with
    them.

    Raises:
        ConfigError: an option of the network is wrong, or its weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        begins = config["weights"] is None and config["ckpt"] is None
        build_detector(config, 1, pretrained=begins)


def load_detector(path: str | Path) -> tuple[Detector, dict[str, Any]]:
    """The trained detector of a checkpoint in evaluation mode, and the checkpoint's description.

    Raises:
        CheckpointError: naming the file.
        ConfigError: naming the file and an option of its configuration that cannot be built.
    """
    content = read_checkpoint(path)
    description: dict[str, Any] = content["comining"]
    num_classes = len(description["category_ids"])
    try:
        detector = build_detector(description["config"], num_classes, pretrained=False)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    prefix = f"{description.get('deployed', 'detector')}."
    weights = {
        name.removeprefix(prefix): value
        for name, value in content["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]  # one a parameter
        rest = f" and {len(lines) - 1} more like this" if len(lines) > 1 else ""
        raise CheckpointError(
            f"{path}: weights do not fit the detector of its configuration with {num_classes} "
            f"classes: {next(iter(lines), str(error))}{rest}"
        ) from error
    for name, value in detector.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: the weights {name} are not finite")
    return detector.eval(), description
