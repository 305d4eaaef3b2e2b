"""Two processes on the CPU, as tests start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from comining.config import CONFIG_FOLDER

ROOT = CONFIG_FOLDER.parent

TINY = [
    "data.prepare.train_images=16",
    "data.prepare.val_images=5",  # odd, so that the shares of two processes differ
    "data.prepare.test_images=3",
    "data.batch_size=4",
    "data.val_batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "pictures.every_n_steps=0",
    "trainer.enable_progress_bar=false",
]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def train(
    folder: Path, *overrides: str, launcher: tuple[str, ...] = (sys.executable,), timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python train.py`` on a tiny embedded set in ``folder``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PL_"))}
    flags = [one for one in overrides if one.startswith("-")]
    options = [one for one in overrides if not one.startswith("-")]
    data = f"data.root={folder / 'shapes'}"
    return subprocess.run(
        [*launcher, str(ROOT / "train.py"), *flags, data, *TINY, *options],
        cwd=folder, timeout=timeout,
        capture_output=True, text=True, check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
    )  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
