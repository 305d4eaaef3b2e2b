"""Train a detector: ``python train.py [group=choice ...] [option=value ...]``."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from comining.config import instantiate, locate
from comining.data.sampler import check_batch_size
from comining.runs.checkpoint import build_detector, check_network, describe
from comining.runs.command_line import command_line
from comining.runs.environment import hardware
from comining.runs.outcome import Run, print_outcome, print_start, recorded
from comining.runs.ranks import refuse_several_processes
from comining.runs.resume import check_fits, check_same_options, checkpoint_to_resume
from comining.runs.start_weights import recorded_start, start_weights
from comining.tracking.metrics_csv import MetricsFile
from comining.tracking.tracker import TrackerGroup
from comining.training.callbacks.divergence import DivergenceGuard
from comining.training.callbacks.figures import TrainingFigures
from comining.training.callbacks.progress import Progress
from comining.training.callbacks.saving import WholeCheckpoints
from comining.training.pointless import ZeroLossWarning, pointless
from comining.training.training_module import DetectionModule

log = logging.getLogger(__name__)


@command_line
@hydra.main(config_path="conf", config_name="train", version_base="1.3")
@recorded
def main(cfg: DictConfig, config: dict[str, Any], run: Run) -> Mapping[str, Any]:
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    # Wrong options are found before the data are read, and wrong data before the training begins.
    method, view, schedule, optimizer, parameter_groups, sparsity = (
        instantiate(cfg[name], name)
        for name in (
            "method",
            "view",
            "schedule",
            "optimizer",
            "parameter_groups",
            "sparsity",
        )
    )
    choices = HydraConfig.get().runtime.choices
    kind = locate(cfg.detector._target_, "detector")
    method.check_detector(kind, choices.get("method"), choices.get("detector"))
    data = instantiate(cfg.data, "data", sparsity=sparsity, seed=cfg.seed)
    tracker = TrackerGroup([MetricsFile(run.path), instantiate(cfg.logger, "logger")])
    # Always in the run directory: there a resumed run and other programs look for them.
    checkpoint = instantiate(cfg.checkpoint, "checkpoint", folder=str(run.path / "checkpoints"))
    pictures = instantiate(
        cfg.pictures, "pictures", folder=str(run.path / "pictures"), tracker=tracker
    )
    guard = DivergenceGuard()
    figures = TrainingFigures(cfg.trainer.log_every_n_steps, guard, tracker, config)
    progress = Progress(figures, cfg.trainer.enable_progress_bar)
    interval, batches = cfg.trainer.val_check_interval, cfg.trainer.accumulate_grad_batches
    trainer = instantiate(
        cfg.trainer, "trainer", logger=False, default_root_dir=str(run.path),
        plugins=[WholeCheckpoints()], enable_progress_bar=False,
        callbacks=[guard, figures, pictures, progress, checkpoint, ZeroLossWarning(after=50)],
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False,
        # Lightning counts batches here, and steps everywhere else.
        val_check_interval=None if interval is None else interval * batches,
    )  # fmt: skip
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        refuse_several_processes(trainer)
    check_batch_size(data.batch_size, trainer.world_size)
    resumed = checkpoint_to_resume(cfg, run.path)
    if resumed is not None:
        check_same_options(cfg, resumed)
    # A resumed run has its weights in its own checkpoint.
    start = None if resumed is not None else start_weights(config, cfg.trainer.enable_progress_bar)
    fresh = resumed is None and start is None
    if fresh:
        check_network(config)
    data.setup("fit")
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        print_start(run.path, data.summary(), device)
        for line in run.fitted.lines():
            print(line, flush=True)
    detector = build_detector(config, len(data.categories), pretrained=fresh)
    initial_weights = recorded_start(resumed)
    if start is not None:
        initial_weights, lines = start.load_into(detector, data.categories.names)
        if trainer.is_global_zero:
            print(*lines, sep="\n", flush=True)
    del start  # and with it the other network
    if resumed is not None:
        groups = detector.parameter_groups(**dataclasses.asdict(parameter_groups))
        check_fits(detector, groups, data.categories, resumed)
    run.begin(
        config, data=data.summary(), hardware=hardware(device, trainer.world_size),
        initial_weights=initial_weights,
    )  # fmt: skip
    if trainer.is_global_zero:
        for warning in pointless(data, detector, mines=method.mines):
            log.warning(warning)
    module = DetectionModule(
        detector, method, view, optimizer, parameter_groups, schedule, data.evaluated, run.path,
        cfg.seed, describe(config, data.categories, initial_weights),
    )  # fmt: skip
    with tracker:
        trainer.fit(module, datamodule=data, ckpt_path=resumed)
        if module.metrics_step != trainer.global_step:  # else the last validation has just done it
            trainer.validate(module, datamodule=data, verbose=False)
        if "test" in data.evaluated:
            trainer.test(module, datamodule=data, verbose=False)
        tracker.summary(figures.summary(module))
    if trainer.is_global_zero:
        lower_bounds = [split for split in module.metrics if module.is_lower_bound(split)]
        for line in method.closing_lines():
            print(line)
        print_outcome(run.path, module.metrics, lower_bounds, figures.mining)
    return figures.facts(module)


if __name__ == "__main__":
    main()
