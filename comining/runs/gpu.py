"""A GPU for every process of a sweep on one machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from comining.errors import ConfigError
from comining.runs.lock import try_lock

# Kept open as long as this process lives: the lock reserves the GPU.
_held: dict[Path, tuple[int, int]] = {}


def claim_gpu(folder: Path) -> int | None:
    """The index of a GPU that no other process of the same sweep uses, or None without GPUs.

    A process that asks again gets the same one. The claim ends with the process, however it ends.

    Args:
        folder: shared by the processes; lock files are made there.

    Raises:
        ConfigError: there are more processes than GPUs, or the folder has no file locks.
    """
    folder = folder.resolve()
    if folder in _held:
        return _held[folder][0]
    count = torch.cuda.device_count()
    for gpu in range(count):
        descriptor = os.open(folder / f".gpu-{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        locked = try_lock(descriptor)
        if locked is None:
            os.close(descriptor)
            raise ConfigError(
                f"own_gpu=true needs file locks, which {folder} lacks; set own_gpu=false and "
                "start a process for each GPU with CUDA_VISIBLE_DEVICES"
            )
        if not locked:
            os.close(descriptor)
            continue
        _held[folder] = (gpu, descriptor)
        return gpu
    if count:
        raise ConfigError(f"hydra.launcher.n_jobs is larger than the number of GPUs, {count}")
    return None
