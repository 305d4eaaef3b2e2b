"""Options of train.py and evaluate.py that no constructor checks: top-level ones, the trainer's.

:data:`TRAINING` and :data:`EVALUATION` are the top-level options of the two programs,
:data:`TRAINER` what Lightning's trainer accepts. Some of the trainer's options conflict with the
programs; :data:`REASONS` says why, for the error message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from comining.config import CONTROL, check
from comining.errors import ConfigError
from comining.option_types import Fraction, NonNegativeFloat, PositiveInt, misfit, shown

Group = Mapping[str, Any]
# The range of NumPy's seeds.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]

TRAINING: Mapping[str, Any] = {
    "seed": Seed,
    "tau": Fraction,
    "published_tau": Mapping[str, Mapping[str, Fraction]],
    "published_start": Fraction,
    "head": Group,
    "weights": str | None,
    "resume": str | None,
    "ckpt": str | None,
    "allow_changes": bool,
    "skip_finished": bool,
    "overwrite": bool,
    "table": str | None,
    "own_gpu": bool,
    "data": Group,
    "fit": Group,
    "sparsity": Group,
    "backbone": Group,
    "detector": Group,
    "method": Group,
    "view": Group,
    "optimizer": Group,
    "parameter_groups": Group,
    "schedule": Group,
    "trainer": Group,
    "logger": Group,
    "checkpoint": Group,
    "pictures": Group,
}
EVALUATION: Mapping[str, Any] = {
    "checkpoint": str,
    "split": Literal["val", "test"],
    "images": str | None,
    "score_threshold": Fraction,
    "coco_results": bool,
    "overwrite": bool,
    "data_override": Group,
    "data": Group,
    "trainer": Group,
}

TRAINER: Mapping[str, Any] = {
    "max_steps": PositiveInt,
    "accumulate_grad_batches": PositiveInt,
    "accelerator": str,
    "devices": int | str | list[int],
    "num_nodes": PositiveInt,
    "strategy": Literal["auto", "ddp", "ddp_find_unused_parameters_true"],
    "sync_batchnorm": bool,
    "precision": Literal["32-true", "16-mixed", "bf16-mixed"] | None,
    "gradient_clip_val": NonNegativeFloat | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "val_check_interval": PositiveInt | None,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": PositiveInt,
    "enable_progress_bar": bool,
    "deterministic": bool | Literal["warn"] | None,
    "benchmark": bool | None,
    "inference_mode": bool,
    "detect_anomaly": bool,
    "profiler": str | None,
}
STEPS = "training runs for trainer.max_steps steps, whatever the number of images; set that instead"
PART = (
    "metrics of a part of the images compare with no others; use a smaller annotation file instead"
)
NO_EFFECT = "it would have no effect"
REASONS = {
    "strategy": "every process must be started separately and hold the whole detector",
    "precision": "losses and boxes need float32, weights in another precision do not train",
    "val_check_interval": "it counts steps",
    "check_val_every_n_epoch": "validation counts steps; set trainer.val_check_interval instead",
    "max_epochs": STEPS,
    "min_epochs": STEPS,
    "min_steps": STEPS,
    "max_time": "a run that it ends early would be recorded as finished; send SIGTERM instead, and "
    "resume with resume=DIR",
    "limit_train_batches": "it trains on the same few batches again and again; set "
    "trainer.max_steps instead",
    "overfit_batches": "it trains on the same few batches again and again; use a smaller "
    "annotation file instead",
    "fast_dev_run": "it leaves out checkpoints and metrics.csv; set trainer.max_steps=1 instead",
    "barebones": "it leaves out checkpoints and metrics.csv",
    "limit_val_batches": PART,
    "limit_test_batches": PART,
    "limit_predict_batches": NO_EFFECT,
    "num_sanity_val_steps": "validation comes every trainer.val_check_interval steps and at the "
    "end, never before training",
    "reload_dataloaders_every_n_epochs": NO_EFFECT,
    "use_distributed_sampler": "processes share the images already, without padding or repeats",
    "enable_checkpointing": "checkpoints are written by the group checkpoint; set its options",
    "enable_model_summary": NO_EFFECT,
    "enable_autolog_hparams": NO_EFFECT,
    "model_registry": "checkpoints are written by the group checkpoint; set its options",
    "logger": "choose it with the group logger: logger=csv, logger=tensorboard or logger=wandb",
    "callbacks": "the program sets them",
    "plugins": "the program sets them",
    "default_root_dir": "files go to the run directory; set hydra.run.dir instead",
}


def check_training(config: Mapping[str, Any]) -> None:
    """Check the top-level options of train.py, and those of its trainer.

    Args:
        config: resolved.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    _check_options(config, TRAINING, optional=("published_tau", "published_start"))
    check_trainer(config["trainer"])


def check_evaluation(config: Mapping[str, Any]) -> None:
    """The same for evaluate.py."""
    _check_options(config, EVALUATION, optional=("data",))
    check_trainer(config["trainer"])


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse options of the trainer that have a wrong value, or that the programs cannot work with.

    Raises:
        ConfigError: naming the option and the reason.
    """
    for key, value in options.items():
        if key in TRAINER:
            problem = misfit(value, TRAINER[key], f"trainer.{key}")
        elif key in REASONS:
            problem = f"trainer.{key}={shown(value)} cannot be used"
        elif key not in CONTROL:
            problem = f"unknown option trainer.{key}; valid options: {', '.join(TRAINER)}"
        else:
            problem = None
        if problem is not None:
            raise ConfigError(f"{problem}: {REASONS[key]}" if key in REASONS else problem)
    check(options, "trainer", {})


def _check_options(
    config: Mapping[str, Any], schema: Mapping[str, Any], optional: Collection[str]
) -> None:
    for name, value in config.items():
        if name not in schema:
            raise ConfigError(f"unknown option {name}; valid options: {', '.join(schema)}")
        problem = misfit(value, schema[name], name)
        if problem is not None:
            raise ConfigError(problem)
    for name in schema:
        if name not in config and name not in optional:
            raise ConfigError(f"option {name} is missing")
