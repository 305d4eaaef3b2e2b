"""Train a detector: ``python train.py [group=choice ...] [option=value ...]``."""

import logging
import time
from pathlib import Path

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from comining.checkpoint import build_detector, describe
from comining.config import check, instantiate, resolve
from comining.errors import one_line_errors
from comining.module import DetectionModule
from comining.run_directory import report_result

log = logging.getLogger(__name__)


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
@one_line_errors
def main(cfg: DictConfig) -> None:
    started = time.monotonic()
    run = Path(HydraConfig.get().runtime.output_dir)
    config = resolve(cfg)
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    # What is wrong with the options is found before the data are read, and what is wrong with
    # the data before the network is built. Other groups refer to the trainer's options.
    check(config["trainer"], "trainer", {})
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
    method.prepare(data, run)
    detector = build_detector(config, len(data.categories), pretrained=True)
    module = DetectionModule(
        detector, method, view, optimizer, schedule, data.val_set.annotations, cfg.seed,
        describe(config, data.categories),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    if module.metrics_step != trainer.global_step:  # else the last validation has just done it
        trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        report_result(run, config, module, data.summary(), time.monotonic() - started)


if __name__ == "__main__":
    main()
