"""Train a detector: ``python train.py [group=choice ...] [option=value ...]``."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from omegaconf import DictConfig

from comining.checkpoint import build_detector, describe
from comining.config import check, instantiate
from comining.errors import ConfigError
from comining.evaluation.coco import metrics_table
from comining.module import DetectionModule
from comining.outcome import print_outcome, recorded

log = logging.getLogger(__name__)


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
@recorded
def main(cfg: DictConfig, config: dict[str, Any], run: Path) -> Mapping[str, Any]:
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    # What is wrong with the options is found before the data are read, and what is wrong with
    # the data before the network is built. Other groups refer to the trainer's options.
    check(config["trainer"], "trainer", {})
    if cfg.trainer.log_every_n_steps < 1:
        raise ConfigError("trainer.log_every_n_steps must be positive")
    method, view, schedule, optimizer, sparsity, logger, checkpoint = (
        instantiate(cfg[name], name)
        for name in ("method", "view", "schedule", "optimizer", "sparsity", "logger", "checkpoint")
    )
    data = instantiate(cfg.data, "data", sparsity=sparsity, seed=cfg.seed)
    fixed = {"default_root_dir": str(run), "use_distributed_sampler": False,
             "num_sanity_val_steps": 0, "enable_model_summary": False}  # fmt: skip
    trainer = instantiate(cfg.trainer, "trainer", logger=logger, callbacks=[checkpoint], **fixed)
    data.setup("fit")
    log.info("data: %s", data.summary())
    detector = build_detector(config, len(data.categories), pretrained=True)
    method.prepare(data, run, trainer.strategy.root_device)
    module = DetectionModule(
        detector, method, view, optimizer, schedule, data.val_set.annotations, cfg.seed,
        describe(config, data.categories),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    if module.metrics_step != trainer.global_step:  # else the last validation has just done it
        trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        print_outcome(run, metrics_table(module.metrics), module.mining)
    facts = {"steps": module.metrics_step, "metrics": module.metrics, "mining": module.mining}
    return {**facts, "data": data.summary()}


if __name__ == "__main__":
    main()
