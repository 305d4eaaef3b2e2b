"""What a checkpoint says about itself, and how a detector comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from comining.config import instantiate
from comining.data.annotations import Categories
from comining.detectors.base import DenseDetector
from comining.errors import CheckpointError


def describe(config: dict[str, Any], categories: Categories) -> dict[str, Any]:
    """All that is needed to rebuild the detector and its data, as plain containers.

    Plain, because a checkpoint must load with ``weights_only=True``.
    """
    names = {"category_ids": list(categories.ids), "category_names": list(categories.names)}
    return {"config": config, **names}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may contain.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # whatever the bytes lead the reader to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: cannot be loaded as a checkpoint ({reason})") from error
    if not isinstance(content, dict) or not {"comining", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path}: not a checkpoint of comining")
    return content


def build_detector(config: dict[str, Any], num_classes: int, pretrained: bool) -> DenseDetector:
    """The detector of a configuration.

    Args:
        pretrained: whether to fetch the backbone's weights; pointless where a checkpoint follows.
    """
    node = OmegaConf.create(config)
    backbone = node.backbone
    if not pretrained and "weights" in backbone:
        backbone.weights = None
    built = instantiate(backbone, "backbone")
    detector: DenseDetector = instantiate(
        node.detector, "detector", backbone=built, num_classes=num_classes
    )
    return detector


def load_detector(path: str | Path) -> tuple[DenseDetector, dict[str, Any]]:
    """The trained detector of a checkpoint in evaluation mode, and the checkpoint's description.

    Raises:
        CheckpointError: naming the file.
    """
    content = read_checkpoint(path)
    description: dict[str, Any] = content["comining"]
    num_classes = len(description["category_ids"])
    detector = build_detector(description["config"], num_classes, pretrained=False)
    prefix = "detector."
    weights = {
        name.removeprefix(prefix): value
        for name, value in content["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the detector ({error})") from error
    return detector.eval(), description
