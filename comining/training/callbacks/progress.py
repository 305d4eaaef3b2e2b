"""The progress bar of training, or lines in its place."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from tqdm.auto import tqdm

from comining.training.callbacks.figures import TrainingFigures


class Progress(L.Callback):
    """One bar over all steps, with loss, pseudo-labels per image and the last AP.

    If AP is a lower bound, it is marked, and AR100 is shown, too.

    If standard output is not a terminal, prints ten lines ``step=... loss=...`` per run instead, so
    that a log file stays short and can be parsed.

    Args:
        figures: source of the numbers.
        enabled: False prints nothing.
    """

    def __init__(self, figures: TrainingFigures, enabled: bool):
        self.figures = figures
        self.enabled = enabled
        self.terminal = sys.stdout.isatty()
        self.bar: tqdm[Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.enabled = self.enabled and trainer.is_global_zero

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.enabled and self.terminal:
            self.bar = tqdm(
                total=trainer.max_steps, initial=trainer.global_step, unit="step",
                dynamic_ncols=True, file=sys.stdout, smoothing=0.05,
            )  # fmt: skip

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self.enabled or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, fresh = trainer.global_step, trainer.global_step % self.figures.every_n_steps == 0
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            if fresh:
                self.bar.set_postfix_str(self._words(", "))
        elif step % max(1, trainer.max_steps // 10) == 0:
            print(f"step={step}/{trainer.max_steps} {self._words(' ')}", flush=True)

    def _words(self, separator: str) -> str:
        shown = {
            "loss": ("train/loss", ".3f"),
            "mined/image": ("mining/pseudo_labels_per_image", ".2f"),
            "AP": ("val/AP", ".1f"),
        }
        latest = self.figures.latest
        words = {
            name: f"{name}={latest[key]:{form}}"
            for name, (key, form) in shown.items()
            if key in latest
        }
        if "AP" in words and "val/AP_is_lower_bound" in latest:
            words["AP"] = words["AP"].replace("=", ">=")
            words["AR100"] = f"AR100={latest['val/AR100']:.1f}"
        return separator.join(words.values())

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
