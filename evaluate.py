"""Evaluate a checkpoint: ``python evaluate.py checkpoint=PATH [data=coco] [data.root=...]``.

Or draw its detections in your own pictures: ``python evaluate.py checkpoint=PATH images=DIR``
(or ``images=FILE``).
"""

import sys
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict

from comining.config import CONFIG_FOLDER, instantiate, instantiate_file, resolve
from comining.data.annotations import Categories
from comining.detectors.detector import Detector
from comining.errors import ConfigError, one_line_errors
from comining.evaluation.coco_evaluator import metrics_table
from comining.evaluation.evaluation_module import EvaluationModule
from comining.evaluation.picture_files import find_pictures
from comining.evaluation.predict import predict_pictures
from comining.program_options import check_evaluation
from comining.runs.checkpoint import load_detector
from comining.runs.claiming import claim_evaluation
from comining.runs.command_line import command_line
from comining.runs.directory import OWNER, RunDirectory
from comining.runs.environment import versions
from comining.runs.files import write_json
from comining.runs.outcome import quiet_lightning
from comining.runs.predictions import write_predictions
from comining.runs.signals import SIGNALS, Interrupted


@command_line(data_of_checkpoint=True)
@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
@one_line_errors
def main(cfg: DictConfig) -> None:
    quiet_lightning()
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ConfigError("checkpoint=PATH is missing")
    refuse_unused(pictures=cfg.images is not None)
    # Options that are missing in the data may be in data_override.
    without_data = [str(key) for key in cfg if key != "data"]
    check_evaluation(resolve(OmegaConf.masked_copy(cfg, without_data)))
    detector, description = load_detector(to_absolute_path(cfg.checkpoint))
    with claim_evaluation(cfg).until_end() as directory:
        trainer = instantiate(
            cfg.trainer, "trainer", logger=False, enable_checkpointing=False,
            use_distributed_sampler=False, default_root_dir=str(directory.path),
        )  # fmt: skip
        do = evaluate if cfg.images is None else predict
        try:
            with SIGNALS:
                do(cfg, directory, trainer, detector, description)
        except Interrupted as stop:
            if not directory.begun:
                directory.abandon()
                print(f"{stop}; nothing was written", file=sys.stderr)
            sys.exit(stop.exit_code)


def refuse_unused(*, pictures: bool) -> None:
    """Refuse options on the command line that would have no effect.

    Args:
        pictures: ``images=`` is given, which takes the place of annotated data.

    Raises:
        ConfigError: naming the option.
    """
    of_data = ("data", "data_override", "split", "coco_results")
    unused = of_data if pictures else ("score_threshold",)
    for override in HydraConfig.get().overrides.task:
        name = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if name in unused:
            reason = (
                "images= reads no annotated data, and always writes coco_results.json"
                if pictures
                else "without images=DIR nothing is drawn"
            )
            given = override.lstrip("+~").replace("data_override.", "data.", 1)
            raise ConfigError(f"{given} has no effect: {reason}")


class KeepSignals(L.Callback):
    """Takes the signals back from Lightning, which ends quietly, as if nothing had happened."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        SIGNALS.install()

    on_test_start = on_validation_start


def predict(
    cfg: DictConfig,
    directory: RunDirectory,
    trainer: L.Trainer,
    detector: Detector,
    description: Any,
) -> None:
    """Show what is detected in a picture, or in those of a folder."""
    if not cfg.images:
        raise ConfigError("images= is empty; name a folder or a picture")
    if not trainer.is_global_zero:
        return
    files = find_pictures(Path(to_absolute_path(cfg.images)), run_marker=OWNER)
    predictions = predict_pictures(
        detector.to(trainer.strategy.root_device).eval(), files,
        category_ids=description["category_ids"],
        category_names=description["category_names"], score_threshold=cfg.score_threshold,
    )  # fmt: skip
    write_predictions(
        predictions, files, directory, score_threshold=cfg.score_threshold,
        progress=cfg.trainer.enable_progress_bar,
    )  # fmt: skip


def evaluate(
    cfg: DictConfig,
    directory: RunDirectory,
    trainer: L.Trainer,
    detector: Detector,
    description: Any,
) -> None:
    """Evaluate on a split of annotated data."""
    if "data" in cfg:
        options = cfg.data
    else:  # as in training; newer options have today's default
        today = OmegaConf.load(CONFIG_FOLDER / "data" / "base.yaml")
        options = OmegaConf.merge(today, description["config"]["data"])
    with open_dict(options):
        options.merge_with(cfg.data_override)
    nothing_erased = instantiate_file(CONFIG_FOLDER / "sparsity" / "full.yaml", {})
    data = instantiate(options, "data", sparsity=nothing_erased, seed=0)
    classes = Categories(tuple(description["category_ids"]), tuple(description["category_names"]))
    data.use_categories(classes, cfg.checkpoint)
    data.setup("validate" if cfg.split == "val" else "test")
    if cfg.split not in data.evaluated:
        raise ConfigError("split=test: the data have no test split (data.test_annotations)")
    module = EvaluationModule(detector, data.evaluated)
    trainer.callbacks.append(KeepSignals())  # type: ignore[attr-defined]
    run_split = trainer.validate if cfg.split == "val" else trainer.test
    run_split(module, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    directory.begin()
    run = directory.path
    facts: dict[str, Any] = {"checkpoint": str(cfg.checkpoint), "split": cfg.split}
    lower_bound = module.is_lower_bound(cfg.split)
    facts |= {"metrics": module.metrics[cfg.split], "ap_is_lower_bound": lower_bound}
    facts |= {"class_ap": module.class_ap[cfg.split]}
    facts |= {"recall_among": module.recall_among[cfg.split]}
    write_json(run / "evaluation.json", {**facts, "data": data.summary(), "versions": versions()})
    print(metrics_table(module.metrics[cfg.split], lower_bound=lower_bound))
    print(f"written: {run / 'evaluation.json'}")
    if cfg.coco_results:
        write_json(run / "coco_results.json", module.evaluators[cfg.split].results())
        print(f"written: {run / 'coco_results.json'}")


if __name__ == "__main__":
    main()
