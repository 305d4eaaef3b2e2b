"""Stops training before numbers that are not finite reach the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from comining.errors import DivergedError
from comining.structures import Batch, Boxes
from comining.training.training_module import DetectionModule


@dataclass
class _BatchFacts:
    """Facts about one batch of a step; a step is one batch or several."""

    image_ids: list[int]
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    mined: dict[str, Boxes] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        return {
            "losses": {name: str(loss.item()) for name, loss in self.losses.items()},  # "nan"
            "pseudo_labels_per_image": {
                view: len(mined) / mined.num_images for view, mined in self.mined.items()
            },
            "image_ids": self.image_ids,
        }


class DivergenceGuard(L.Callback):
    """Raises :class:`DivergedError`, with the facts, at a loss or gradient that is not finite.

    Lightning alone trains on through a NaN loss, saves NaN weights and reports success. The check
    comes after backward and before the optimizer, and synchronises with the device once a step,
    when the work of the step has been queued. All processes stop together, whichever of them is
    affected.
    """

    def __init__(self) -> None:
        self.gradient_norm: torch.Tensor | None = None  # [] of the latest step
        # Of the latest step, too: the largest, which parts with pretrained weights may not have.
        self.learning_rate = 0.0
        self._batches: list[_BatchFacts] = []  # of the current step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
        self._batches.append(_BatchFacts(batch.image_ids))

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor
    ) -> None:
        module = _trained(pl_module)
        if module.result is None:
            raise RuntimeError("a step was taken before any batch")
        facts = self._batches[-1]
        facts.losses = {name: value.detach() for name, value in module.result.losses.items()}
        facts.mined = dict(module.result.pseudo_labels)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norm = get_total_norm(gradients)
        self.learning_rate = max(group["lr"] for group in optimizer.param_groups)
        losses = [loss for facts in self._batches for loss in facts.losses.values()]
        fine = torch.isfinite(torch.stack(losses).sum())
        if trainer.scaler is None:  # with fp16 an infinite gradient is skipped by its scaler
            fine = fine & torch.isfinite(self.gradient_norm)
        if trainer.world_size > 1:
            everywhere = fine.to(torch.uint8)
            dist.all_reduce(everywhere, dist.ReduceOp.MIN)
            fine = everywhere.bool()
        if not fine:
            self._stop(trainer, _trained(pl_module))

    def _stop(self, trainer: L.Trainer, module: DetectionModule) -> None:
        if self.gradient_norm is None:
            raise RuntimeError("a step was taken before any batch")
        mine = [facts.described() for facts in self._batches]
        of_ranks = [mine]
        if trainer.world_size > 1:
            of_ranks = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(of_ranks, mine)
        batches = [facts for of_rank in of_ranks for facts in of_rank]
        bad = [
            facts
            for facts in batches
            if any(v in ("nan", "inf", "-inf") for v in facts["losses"].values())
        ]
        facts = {
            "step": trainer.global_step,
            **(bad or batches)[0],
            "gradient_norm": str(self.gradient_norm.item()),
            "score_threshold": module.method.score_threshold,
            "learning_rate": self.learning_rate,
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
        # The last step may have broken the weights; no further loss would show it.
        for name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                facts = {"step": trainer.global_step, "parameter": name}
                raise DivergedError(f"{name} is not finite after the last step", facts)


def _trained(module: L.LightningModule) -> DetectionModule:
    if not isinstance(module, DetectionModule):
        raise TypeError(f"{type(module).__name__} is not trained by this project")
    return module
