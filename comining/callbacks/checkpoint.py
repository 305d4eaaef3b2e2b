"""Checkpoints by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


class StepCheckpoint(Checkpoint):
    """Writes ``step_NNNNNN.ckpt`` every so many steps, and ``last.ckpt`` then and at the end.

    (Lightning's ModelCheckpoint names files ``step=400.ckpt``, which Hydra's command line cannot
    take back, and writes no ``last`` between its own intervals.)

    Args:
        folder: where to.
        every_n_steps: 0 writes ``last.ckpt`` at the end only.
    """

    def __init__(self, folder: str, every_n_steps: int):
        if every_n_steps < 0:
            raise ValueError(f"checkpoint.every_n_steps must not be negative, got {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.saved_step = -1

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self.saved_step:
            trainer.save_checkpoint(self.folder / f"step_{step:06d}.ckpt")
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_step = step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self.saved_step:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_step = trainer.global_step
