"""A GPU for every process of a sweep on one machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import torch

from comining.errors import ConfigError

# Open as long as this process lives: its lock is what keeps the GPU ours.
_held: dict[Path, tuple[int, int]] = {}


def claim_gpu(folder: Path) -> int | None:
    """The index of a GPU that no other process of the same sweep uses, or None without GPUs.

    A process that asks again gets the same one. The claim ends with the process, however it ends.

    Args:
        folder: shared by the processes; lock files are made there.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    folder = folder.resolve()
    if folder in _held:
        return _held[folder][0]
    count = torch.cuda.device_count()
    for gpu in range(count):
        descriptor = os.open(folder / f".gpu-{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _held[folder] = (gpu, descriptor)
        return gpu
    if count:
        raise ConfigError(f"hydra.launcher.n_jobs is larger than the number of GPUs, {count}")
    return None
