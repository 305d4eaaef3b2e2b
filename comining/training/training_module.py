"""The LightningModule that trains: it calls the method and sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comining.data.annotations import AnnotationSet
from comining.data.datamodule import DetectionData
from comining.data.seeding import derive_seed
from comining.data.views import SecondView
from comining.detectors.detector import Detector
from comining.errors import CheckpointError, shortened
from comining.evaluation.evaluation_module import EvaluationModule
from comining.methods.method import Method, RunInfo
from comining.option_types import NonNegativeFloat
from comining.structures import Batch, StepResult


@dataclass(frozen=True)
class ParameterGroups:
    """Options of the optimizer that differ between groups of parameters.

    Args:
        backbone_lr_factor: factor on ``optimizer.lr`` for the backbone's body.
        decay_norms_and_biases: False exempts them from weight decay.
    """

    backbone_lr_factor: NonNegativeFloat
    decay_norms_and_biases: bool


class DetectionModule(EvaluationModule):
    """Trains a detector by a method.

    Args:
        view: makes the second view, if the method uses one.
        optimizer: given groups of parameters, returns the optimizer.
        parameter_groups: what the groups are.
        schedule: step to factor on the learning rate.
        annotations: of the splits ``val`` and, where there is one, ``test``.
        folder: the run directory, where the method may write files.
        seed: of the run.
        description: stored in every checkpoint: plain containers only.
    """

    def __init__(
        self,
        detector: Detector,
        method: Method,
        view: SecondView,
        optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer],
        parameter_groups: ParameterGroups,
        schedule: Callable[[int], float],
        annotations: Mapping[str, AnnotationSet],
        folder: Path,
        seed: int,
        description: dict[str, Any],
    ):
        super().__init__(detector, annotations)
        self.method = method
        self.view = view
        self.optimizer = optimizer
        self.parameter_groups = parameter_groups
        self.schedule = schedule
        self.folder = folder
        self.seed = seed
        self.description = description
        self.group_options: list[dict[str, Any]] = []  # of the optimizer, besides the current rate
        self.result: StepResult | None = None  # of the latest batch, for callbacks

    def setup(self, stage: str) -> None:
        """Prepare the method, once processes can communicate and before a checkpoint is loaded."""
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        if not isinstance(data, DetectionData):
            raise TypeError(f"training needs DetectionData, not {type(data).__name__}")
        run = RunInfo(
            self.folder,
            self.trainer.strategy.root_device,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.seed,
            self.trainer.max_steps,
            data.batch_size * self.trainer.accumulate_grad_batches,
        )
        self.method.prepare(self.detector, data, run)

    @property
    def deployed(self) -> Detector:
        """The network that is evaluated."""
        return self.method.deployed(self.detector)

    def views(self, batch: Batch, wanted: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """The images of the original view, the wanted ones, and those that the method makes.

        B times [3, H, W] uint8 each.
        """
        original = list(batch.images)
        images: dict[str, Sequence[Tensor]] = {"original": original}
        if "augmented" in wanted:
            images["augmented"] = self.view(original, batch.positions, self.seed)
        return images | self.method.own_views(original, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        views = self.views(batch, self.method.views)
        seeds = [derive_seed("samples", self.seed, position) for position in batch.positions]
        self.detector.seed_samples(seeds)
        self.result = self.method(self.detector, views, batch, self.global_step)
        return self.result.total

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the weights of a checkpoint.

        Raises:
            CheckpointError: they are those of another method, which keeps other weights or none.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            raise CheckpointError(
                "the weights in the checkpoint do not fit this run: "
                f"{shortened(lines, most=1) or error}"
            ) from error

    def on_train_start(self) -> None:
        """Give a resumed optimizer the options of this run: a checkpoint brings its own."""
        scheduler: Any = self.lr_schedulers()
        groups = scheduler.optimizer.param_groups
        for group, options in zip(groups, self.group_options, strict=True):
            group.update(options)
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group in groups:
            group["lr"] = group["initial_lr"] * self.schedule(scheduler.last_epoch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then call :meth:`Method.after_step`."""
        super().optimizer_step(*args, **kwargs)
        self.method.after_step(self.detector, self.global_step + 1)  # counted when this returns

    def configure_optimizers(self) -> Any:
        groups = self.detector.parameter_groups(
            self.parameter_groups.backbone_lr_factor, self.parameter_groups.decay_norms_and_biases
        )
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor")
        # A function has no state: a resumed run keeps the schedule of its own options.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule(step))
        self.group_options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        deployed = next(name for name, part in self.named_modules() if part is self.deployed)
        checkpoint["comining"] = {**self.description, "deployed": deployed}
