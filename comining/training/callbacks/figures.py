"""Figures of a run while it trains: the only place that logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from comining.evaluation.mining_metric import Figures, MiningScore, headline
from comining.tracking.tracker import Tracker
from comining.training.callbacks.divergence import DivergenceGuard
from comining.training.training_module import DetectionModule

log = logging.getLogger(__name__)

# result.json reports the mining of the last part of training, when it has settled.
FINAL_PART = 0.25


class TrainingFigures(L.Callback):
    """Logs losses, mining and AP, and keeps the figures for ``result.json``.

    Names: ``train/...`` (losses per view, learning rate, gradient norm, images per second),
    ``mining/...`` (all views), ``mining/VIEW/...``, ``mining/class/NAME/...``, ``val/...``,
    ``val/class/NAME``, and what the method adds (``rate/NAME``); ``val/AP_is_lower_bound`` where
    objects may be missing in the validation split. The step of a row is the number of optimizer
    steps done. Only the steps that log synchronise with the device. Figures are those of all
    processes together.

    Args:
        every_n_steps: how often training is logged, of a shorter run the last step; validation
            always is.
        guard: whose gradient norm is logged, too.
        tracker: gets the figures; started here, in the first process only.
        config: all options of the run, for the tracker.
    """

    def __init__(
        self,
        every_n_steps: int,
        guard: DivergenceGuard,
        tracker: Tracker,
        config: Mapping[str, Any],
    ):
        self.every_n_steps = every_n_steps
        self.guard = guard
        self.tracker = tracker
        self.config = config
        self.scores: dict[str, MiningScore] = {}
        self.history: list[dict[str, Any]] = []  # a row per validation
        self.latest: dict[str, float] = {}  # the last value of every figure
        self.mining: Figures = {}  # over the final part
        self.classes: dict[str, Figures] = {}  # mining per class over the final part
        self.rows = 0  # logged so far
        self.resumed_step = 0
        self.images = 0
        self.since = 0.0
        self._losses: list[torch.Tensor] = []  # of the batches of the current step
        self._restored: dict[str, list[torch.Tensor]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_train_start: it is not called if a resumed run has no step left, and the mining
        # figures are needed anyway.
        self.every_n_steps = min(self.every_n_steps, trainer.max_steps)
        module, device = _trained(pl_module), trainer.strategy.root_device
        classes = len(module.evaluators["val"].annotations.categories)
        for name in ("recent", "since_validation", "final"):
            score = MiningScore(module.method.mined_views, classes, device)
            if name in self._restored and trainer.is_global_zero:
                # The saved sums are those of all processes; the other processes begin at zero.
                states = self._restored.pop(name)
                sizes = [state.shape for state in (score.sums, score.most, score.classes)]
                if [state.shape for state in states] == sizes:
                    score.update(*(state.to(device) for state in states))
                else:
                    log.warning(
                        "the checkpoint counts mined boxes differently from this version: "
                        "their figures start from zero"
                    )
            self.scores[name] = score
        if trainer.is_global_zero:  # in other processes the tracker stays silent
            self.tracker.start(self.config, self.resumed_step, self.rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.images = 0
        self.since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        module, step = _trained(pl_module), trainer.global_step
        if module.result is None:
            raise RuntimeError("no step has been taken")
        with torch.no_grad():
            measured = self.scores["recent"].measure(module.result, batch)
        # In the middle of a step, that step is not yet counted.
        under_way = step + bool((batch_idx + 1) % trainer.accumulate_grad_batches)
        for name, score in self.scores.items():
            if name != "final" or under_way > int((1 - FINAL_PART) * trainer.max_steps):
                score.update(*measured)
        self.images += len(batch.images) * trainer.world_size
        losses = [module.result.total, *module.result.losses.values()]
        self._losses.append(torch.stack(losses).detach().float())
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        if step % self.every_n_steps == 0:
            self._log_step(trainer, module)
        self._losses = []

    def _log_step(self, trainer: L.Trainer, module: DetectionModule) -> None:
        result = module.result
        if result is None or self.guard.gradient_norm is None:
            raise RuntimeError("no step has been taken")
        losses = torch.stack(self._losses).mean(dim=0)  # the loss that Lightning uses
        if trainer.world_size > 1:  # each process normalises so that their mean is the loss
            dist.all_reduce(losses)
            losses /= trainer.world_size
        figures = dict(zip(("loss", *result.losses), losses.tolist(), strict=True))
        figures["gradient_norm"] = self.guard.gradient_norm.item()
        figures["lr"] = self.guard.learning_rate
        figures["images_per_s"] = self.images / (time.perf_counter() - self.since)
        row = {f"train/{name}": value for name, value in figures.items()}
        row |= module.method.figures()
        if result.pseudo_labels:
            mining = self.scores["recent"].compute()
            row |= _numbers("mining", mining.together)
            for view, of_view in mining.views.items():
                row |= _numbers(f"mining/{view}", of_view)
            self.scores["recent"].reset()
        self._log(trainer, row)
        self._restart_clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.history and self.history[-1]["step"] == trainer.global_step:
            return  # a run that was resumed with no step left to do is only evaluated again
        module = _trained(pl_module)
        metrics, class_ap = module.metrics["val"], module.class_ap["val"]
        row = _numbers("val", metrics) | _numbers("val/class", class_ap)
        if module.is_lower_bound("val"):
            row["val/AP_is_lower_bound"] = 1.0
        score = self.scores["since_validation"]
        mining = score.compute()
        if mining.together["pseudo_labels_per_image"] is not None:
            for name, of_class in zip(class_ap, mining.classes, strict=True):
                row |= _numbers(f"mining/class/{name}", of_class)
        score.reset()
        ap = {name: metrics[name] for name in ("AP", "AP50", "AR1", "AR10", "AR100")}
        self.history.append({"step": trainer.global_step, **ap, **headline(mining.together)})
        self._log(trainer, row)
        self._restart_clock()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mining = self.scores["final"].compute()
        names = _trained(pl_module).evaluators["val"].annotations.categories.names
        self.mining = mining.together
        self.classes = dict(zip(names, mining.classes, strict=True))

    def _log(self, trainer: L.Trainer, row: Mapping[str, float]) -> None:
        self.latest |= row
        self.rows += 1
        self.tracker.figures(row, trainer.global_step)

    # -- at the end ------------------------------------------------------------------------

    def facts(self, module: DetectionModule) -> dict[str, Any]:
        """Fields of ``result.json`` for a finished run."""
        facts: dict[str, Any] = {
            "steps": module.metrics_step,
            "metrics": module.metrics["val"],
            "class_ap": module.class_ap["val"],
            "recall_among": module.recall_among["val"],
            "ap_is_lower_bound": module.is_lower_bound("val"),
        }
        if "test" in module.metrics:
            facts["test"] = module.metrics["test"]
            facts["test_class_ap"] = module.class_ap["test"]
            facts["test_ap_is_lower_bound"] = module.is_lower_bound("test")
        return {
            **facts, **module.method.outcome(), "mining": self.mining,
            "mining_classes": self.classes, "history": self.history,
        }  # fmt: skip

    def summary(self, module: DetectionModule) -> dict[str, float]:
        """Final and best figures, for the tables of runs that loggers show."""
        best: dict[str, float] = {}
        for name in ("AP", "AR100"):  # by which best.ckpt is chosen unless an option says otherwise
            # The history of a run that an old version began has no AR.
            values = [row[name] for row in self.history if row.get(name) is not None]
            best |= {f"best/{name}": max(values)} if values else {}
        final = _numbers("final", module.metrics["val"])
        test = _numbers("test", module.metrics.get("test", {}))
        marks = {
            f"{name}/AP_is_lower_bound": 1.0
            for name, split in (("final", "val"), ("test", "test"))
            if split in module.metrics and module.is_lower_bound(split)
        }
        return {**final, **test, **_numbers("final/mining", self.mining), **best, **marks}

    # -- resuming ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        kept = {"rows": self.rows, "history": self.history, "latest": self.latest}
        state: dict[str, Any] = {**kept, "scores": {}}
        for name, score in self.scores.items():
            with score.sync_context():
                state["scores"][name] = [
                    state.detach().cpu().clone()
                    for state in (score.sums, score.most, score.classes)
                ]
        return state

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.resumed_step = checkpoint["global_step"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.history = state_dict["history"]
        self.latest = state_dict["latest"]
        self._restored = state_dict["scores"]


def _trained(module: L.LightningModule) -> DetectionModule:
    if not isinstance(module, DetectionModule):
        raise TypeError(f"{type(module).__name__} is not trained by this project")
    return module


def _numbers(prefix: str, figures: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items() if value is not None}
