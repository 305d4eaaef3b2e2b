"""Checkpoints that are never half-written: by step, the last, the best."""

from __future__ import annotations

import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from comining.errors import CheckpointError
from comining.evaluation.coco_evaluator import Metric
from comining.option_types import NonNegativeInt
from comining.runs.checkpoint import read_checkpoint
from comining.runs.signals import SIGNALS, Interrupted
from comining.training.training_module import DetectionModule

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to the disk, then renames it.

    A kill or a full disk leaves the earlier file unchanged. (Lightning writes to ``$TMPDIR``, and
    copies if that is another filesystem.) Reading runs no code from the file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        content = io.BytesIO()  # from here on only the disk can fail
        torch.save(checkpoint, content)
        draft = draft_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            earlier = "; the earlier checkpoint is unchanged" if target.exists() else ""
            raise CheckpointError(
                f"{target}: cannot be written, {error.strerror or error} "
                f"({content.getbuffer().nbytes / 1e6:.1f} MB were needed){earlier}"
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(path)


def keep_as(source: Path, target: Path) -> None:
    """Give a checkpoint a second name: a hard link, or a copy if the disk has none."""
    draft = draft_of(target)
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        shutil.copyfile(source, draft)
    os.replace(draft, target)


def draft_of(target: Path) -> Path:
    """The temporary file of a checkpoint while it is written."""
    return target.with_name(f".{target.name}.{os.getpid()}.draft")


class StepCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, ``best.ckpt`` and, at intervals, ``step_NNNNNN.ckpt``.

    A checkpoint is written at the end of a step, and before every validation: an error or a kill
    there loses no training. A run that is resumed from it validates first. A signal (see
    :class:`Signals`) stops a run at the end of a step, after its validation.

    (Lightning's ModelCheckpoint names files ``step=400.ckpt``, which Hydra's command line cannot
    parse, and writes no ``last`` between its own intervals.)

    Args:
        folder: the output folder.
        every_n_steps: 0 writes ``last.ckpt`` at the end only, and the best.
        monitor: the validation metric by which the best is chosen; None for AP, or AR100 if objects
            may be missing in the annotations of the validation split: there AP is lower for a
            detector that finds them.
    """

    def __init__(self, folder: str, every_n_steps: NonNegativeInt, monitor: Metric | None):
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.saved: tuple[int, int | None] | None = None  # step and validated step
        # Nothing is validated before the first step; None if a checkpoint does not say.
        self.validated_step: int | None = 0
        self.monitor = monitor
        self.best: float | None = None  # of the monitored metric
        self.best_by: Metric | None = None  # the metric of `best`

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for leftover in self.folder.glob(".*.draft"):  # of a run that was killed here
                leftover.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        SIGNALS.install()  # Lightning has just taken SIGTERM
        SIGNALS.deferred = True
        # A checkpoint from elsewhere says how good its own best.ckpt was, not the one here.
        elsewhere = (
            trainer.ckpt_path is not None
            and Path(str(trainer.ckpt_path)).resolve().parent != self.folder.resolve()
        )
        if trainer.strategy.broadcast(elsewhere or not (self.folder / "best.ckpt").exists()):
            self.best = None
        if self._validates(trainer) and self.validated_step not in (None, trainer.global_step):
            # The checkpoint was written before the validation of its step. Lightning takes it for
            # done and would skip it.
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def _validates(self, trainer: L.Trainer) -> bool:
        """Whether validation follows this step."""
        interval = trainer.val_check_interval  # in batches
        return isinstance(interval, int) and (
            trainer.global_step * trainer.accumulate_grad_batches % interval == 0
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        step, validates = trainer.global_step, self._validates(trainer)
        due = self.every_n_steps and step % self.every_n_steps == 0
        if due or validates:
            self._save_last(trainer)
        if due and trainer.is_global_zero:
            keep_as(self.folder / "last.ckpt", self.folder / f"step_{step:06d}.ckpt")
        if not validates:
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, DetectionModule):
            return
        self.validated_step = trainer.global_step
        if self._is_best(trainer, pl_module):
            trainer.save_checkpoint(self.folder / "best.ckpt")
        if trainer.state.fn == "fit":
            self._stop_if_told(trainer)

    def _is_best(self, trainer: L.Trainer, module: DetectionModule) -> bool:
        """Whether the latest validation is the best so far; stores its value if so."""
        monitor: Metric = self.monitor or ("AR100" if module.is_lower_bound("val") else "AP")
        value = module.metrics["val"][monitor]
        told = logging.WARNING if trainer.is_global_zero else logging.DEBUG
        if self.best_by not in (None, monitor):  # different metrics do not compare
            log.log(
                told, "best.ckpt was chosen by %s; from now on it is chosen by %s",
                self.best_by, monitor,
            )  # fmt: skip
            self.best = None
        if value is None and self.best_by != monitor:
            log.log(
                told, "checkpoint.monitor=%s: no such objects are annotated in the validation "
                "split, so no best.ckpt is written", monitor,
            )  # fmt: skip
        self.best_by = monitor
        if value is None or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        signum = self._agreed_signal(trainer)
        if signum:
            self._save_last(trainer)
            raise Interrupted(signum, trainer.global_step)

    def _agreed_signal(self, trainer: L.Trainer) -> int:
        """The signal that any process received, so that all stop at the same step."""
        if trainer.world_size == 1:
            return SIGNALS.received
        signum = torch.tensor(SIGNALS.received, device=trainer.strategy.root_device)
        dist.all_reduce(signum, dist.ReduceOp.MAX)
        return int(signum)

    def _save_last(self, trainer: L.Trainer) -> None:
        state = (trainer.global_step, self.validated_step)
        if state != self.saved:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved = state

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_last(trainer)
        self._stop_if_told(trainer)  # a signal after the last step counts, too

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        SIGNALS.deferred = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best, "best_by": self.best_by, "validated_step": self.validated_step,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        # Versions that do not store it chose by AP.
        self.best_by = state_dict.get("best_by", None if self.best is None else "AP")
        self.validated_step = state_dict.get("validated_step")
