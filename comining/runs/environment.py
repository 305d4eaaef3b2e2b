"""Versions and devices that a result was produced with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

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
    """The version of everything that may change a result."""
    found = {"python": platform.python_version()}
    for package in ("comining", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device, processes: int) -> str:
    """The devices that a run uses, in words.

    Args:
        device: that of this process.
        processes: how many there are, each with a device of this kind.
    """
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    name = (
        f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type.upper()
    )
    return name if processes == 1 else f"{processes} x {name}"
