"""Evaluate a checkpoint: ``python evaluate.py checkpoint=PATH [data=coco data.root=...]``."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict

from comining.checkpoint import load_detector
from comining.config import CONFIG_FOLDER, instantiate, instantiate_file
from comining.errors import ConfigError, one_line_errors
from comining.evaluation.coco import metrics_table
from comining.evaluation.module import EvaluationModule
from comining.run_directory import versions, write_json


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
@one_line_errors
def main(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ConfigError("checkpoint=PATH is missing")
    run = Path(HydraConfig.get().runtime.output_dir)
    detector, description = load_detector(to_absolute_path(cfg.checkpoint))
    options = OmegaConf.create(description["config"]["data"]) if "data" not in cfg else cfg.data
    with open_dict(options):
        options.merge_with(cfg.data_override)
    nothing_erased = instantiate_file(CONFIG_FOLDER / "sparsity" / "full.yaml", {})
    data = instantiate(options, "data", sparsity=nothing_erased, seed=0)
    data.setup("validate")
    names = list(data.categories.names)
    if names != description["category_names"]:
        raise ConfigError(
            f"{cfg.checkpoint} detects {description['category_names']}, but the data have {names}"
        )
    module = EvaluationModule(detector, data.evaluated)
    trainer = instantiate(
        cfg.trainer, "trainer", logger=False, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=str(run),
    )  # fmt: skip
    trainer.validate(module, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    facts = {
        "checkpoint": str(cfg.checkpoint),
        "metrics": module.metrics["val"],
        "data": data.summary(),
        "versions": versions(),
    }
    write_json(run / "evaluation.json", facts)
    print(metrics_table(module.metrics["val"]))
    print(f"written: {run / 'evaluation.json'}")
    if cfg.coco_results:
        write_json(run / "coco_results.json", module.evaluators["val"].results())
        print(f"written: {run / 'coco_results.json'}")


if __name__ == "__main__":
    main()
