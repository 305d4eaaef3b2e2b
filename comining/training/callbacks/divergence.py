"""Stopping before the weights are touched by numbers that are not finite."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from comining.errors import DivergedError
from comining.structures import Batch
from comining.training.training_module import DetectionModule


class DivergenceGuard(L.Callback):
    """Raises :class:`DivergedError`, with the facts, at a loss or gradient that is not finite.

    Lightning alone trains on through a NaN loss, saves NaN weights and reports success. The check
    comes after backward and before the optimizer: one wait for the device a step, when the work
    of the step has been queued. All processes stop together, whichever of them it happened to.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.gradient_norm: torch.Tensor | None = None  # [] of the latest step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if not isinstance(pl_module, DetectionModule) or pl_module.result is None:
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norm = get_total_norm(gradients)
        fine = torch.isfinite(pl_module.result.total.detach())
        if trainer.scaler is None:  # with fp16 an infinite gradient is skipped by its scaler
            fine = fine & torch.isfinite(self.gradient_norm)
        if trainer.world_size > 1:
            everywhere = fine.to(torch.uint8)
            dist.all_reduce(everywhere, dist.ReduceOp.MIN)
            fine = everywhere.bool()
        if not fine:
            self._stop(trainer, pl_module)

    def _stop(self, trainer: L.Trainer, module: DetectionModule) -> None:
        result, batch = module.result, self.batch
        if result is None or batch is None or self.gradient_norm is None:
            raise RuntimeError("a step was taken before any batch")
        mine: dict[str, Any] = {
            "losses": {name: str(loss.item()) for name, loss in result.losses.items()},  # "nan"
            "pseudo_labels_per_image": {
                view: sum(map(len, mined)) / len(mined) for view, mined in result.mined.items()
            },
            "image_ids": batch.image_ids,
        }
        of_ranks = [mine]
        if trainer.world_size > 1:
            of_ranks = [{} for _ in range(trainer.world_size)]
            dist.all_gather_object(of_ranks, mine)
        bad = [
            one
            for one in of_ranks
            if any(v in ("nan", "inf", "-inf") for v in one["losses"].values())
        ]
        facts = {
            "step": trainer.global_step,
            **(bad or of_ranks)[0],
            "gradient_norm": str(self.gradient_norm.item()),
            "score_threshold": getattr(module.method, "score_threshold", None),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        what = "loss" if bad else "gradient"
        raise DivergedError(
            f"the {what} at step {facts['step']} is not finite: losses {facts['losses']}, gradient "
            f"norm {facts['gradient_norm']}, pseudo-labels per image "
            f"{facts['pseudo_labels_per_image']}, score threshold {facts['score_threshold']}, "
            f"learning rate {facts['learning_rate']:g}, images {facts['image_ids']}",
            facts,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The last step may have ruined the weights; no further loss would tell.
        for name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                facts = {"step": trainer.global_step, "parameter": name}
                raise DivergedError(f"{name} is not finite after the last step", facts)
