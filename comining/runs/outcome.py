"""How a run ends: every run of a sweep leaves a ``result.json``, whatever happened to it."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from comining.config import resolve
from comining.errors import ConfigError, DivergedError, UserError, one_line
from comining.evaluation.coco_evaluator import Metrics, metrics_table
from comining.evaluation.mining_metric import headline
from comining.program_options import check_training
from comining.runs.directory import hardware, options_hash, same_options, versions
from comining.runs.files import write_json
from comining.runs.gpu import claim_gpu
from comining.runs.resume import requeue, with_options_of, write_overrides
from comining.runs.signals import SIGNALS, Interrupted

log = logging.getLogger(__name__)

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
# A diverged run is a result: the paper's Table 3 prints "Nan". It is not tried again.
SETTLED = ("finished", "diverged")

Main = Callable[[DictConfig, dict[str, Any], Path], Mapping[str, Any]]


def recorded(main: Main) -> Callable[[DictConfig], None]:
    """Give a training function its run directory, and write ``result.json`` when it ends.

    ``main(cfg, config, run)`` gets the composed and the resolved configuration and the run
    directory, and returns the facts of a finished run. A run that diverges is recorded with its
    facts; alone it exits with code 3. A run that is told to stop is recorded as ``interrupted``,
    and ends a sweep, too; the exit code is that of the signal. A run that fails is recorded if it
    is one of a sweep, where the others shall go on; alone it leaves no result, and bad input ends
    it with one line, code 2.
    """

    @functools.wraps(main)
    def run_and_record(cfg: DictConfig) -> None:
        started = time.monotonic()
        quiet_lightning()
        run = Path(HydraConfig.get().runtime.output_dir)
        alone = HydraConfig.get().mode is RunMode.RUN
        facts: Mapping[str, Any]
        config: Any = OmegaConf.to_container(cfg)  # for the record, if it cannot be resolved
        with SIGNALS:
            try:
                if cfg.resume is not None and (run / "overrides.yaml").exists():
                    cfg = with_options_of(run)
                config = resolve(cfg)
                check_training(config)
                if not alone:
                    _refuse_several_devices(cfg)
                if cfg.skip_finished and (before := _settled(run, config)) is not None:
                    print(f"skipped, has a result: {before}")
                    return
                if (
                    cfg.own_gpu
                    and cfg.trainer.accelerator != "cpu"
                    and (gpu := claim_gpu(run.parent)) is not None
                ):
                    cfg.trainer.devices = [gpu]
                status, facts = "finished", main(cfg, config, run)
            except DivergedError as error:
                status, facts = "diverged", {"error": str(error), **error.facts}
            except Interrupted as error:
                status, facts = "interrupted", {"error": str(error), "step": error.step}
                code = error.exit_code
            except Exception as error:
                if alone and isinstance(error, UserError):
                    print(f"error: {one_line(error)}", file=sys.stderr)
                    sys.exit(EXIT_USER_ERROR)
                if alone:
                    _explain(error, run)
                    raise
                log.exception("this run failed; the sweep goes on")
                trace = traceback.format_exc()
                status = "failed"
                facts = {"error": f"{type(error).__name__}: {error}", "trace": trace}
            _record(run, status, config, facts, time.monotonic() - started)
        if status == "diverged":
            print(f"diverged: {facts['error']}", file=sys.stderr)
            if alone:
                sys.exit(EXIT_DIVERGED)
        if status == "interrupted":
            _say_how_to_go_on(run, facts, code, alone)
            sys.exit(code)  # of a sweep, too: it has been told to stop

    return run_and_record


@rank_zero_only
def begin(run: Path, config: Mapping[str, Any]) -> None:
    """Mark the run directory as this run's, when all that can be checked has been.

    What an earlier run left there as its result is gone from here on.
    """
    run.mkdir(parents=True, exist_ok=True)
    (run / "result.json").unlink(missing_ok=True)
    OmegaConf.save(OmegaConf.create(dict(config)), run / "config.yaml")
    write_overrides(run)


@rank_zero_only
def _say_how_to_go_on(run: Path, facts: Mapping[str, Any], code: int, alone: bool) -> None:
    after = "" if facts["step"] is None else f" after step {facts['step']}"
    print(f"{facts['error']}{after}", file=sys.stderr)
    if alone and facts["step"] is not None:
        print(f"go on with: python train.py resume={run}", file=sys.stderr)
    if code == 128 + signal.SIGUSR1 and (queued := requeue()) is not None:
        print(queued, file=sys.stderr)


@rank_zero_only
def _explain(error: Exception, run: Path) -> None:
    """What to do about an error that a traceback does not tell."""
    if isinstance(error, torch.OutOfMemoryError):
        print(
            "error: out of memory; lower data.batch_size or data.max_size, or use more devices",
            file=sys.stderr,
        )
    if "DataLoader worker" in str(error):
        print(
            "error: a worker that loads images died, perhaps for want of memory; lower "
            "data.num_workers",
            file=sys.stderr,
        )
    if (run / "checkpoints" / "last.ckpt").exists():
        print(f"go on with: python train.py resume={run}", file=sys.stderr)


def _refuse_several_devices(cfg: DictConfig) -> None:
    """Lightning starts further processes by the command line, which is that of the whole sweep."""
    devices = cfg.trainer.devices
    several = devices not in (1, "1", "auto") and not (
        isinstance(devices, ListConfig) and len(devices) == 1
    )
    by_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1  # a process for each is there already
    if (several or cfg.trainer.num_nodes != 1) and not by_slurm:
        raise ConfigError(
            f"a sweep runs each of its runs on one device; trainer.devices={devices} "
            f"trainer.num_nodes={cfg.trainer.num_nodes} needs a process for each. Start the runs "
            "one by one (without -m), share the devices out with launcher=joblib, or let SLURM "
            "start the processes: launcher=slurm hydra.launcher.tasks_per_node=DEVICES"
        )


def _settled(run: Path, config: Mapping[str, Any]) -> Path | None:
    """The directory, this one or one beside it, that holds a result by the same options."""
    for file in (run / "result.json", *sorted(run.parent.glob("*/result.json"))):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            before = OmegaConf.to_container(OmegaConf.load(file.with_name("config.yaml")))
        except FileNotFoundError:
            continue
        if result["status"] in SETTLED and same_options(before, config, ignoring=()):
            return file.parent
    return None


@rank_zero_only
def _record(
    run: Path, status: str, config: Mapping[str, Any], facts: Mapping[str, Any], seconds: float
) -> None:
    choices = HydraConfig.get().runtime.choices
    names = ("method", "detector", "sparsity", "backbone", "view", "data", "optimizer")
    identity = {name: choices[name] for name in names}
    identity["dataset"] = identity.pop("data")
    # Hydra leaves lists such as experiment=[coco,table1] out of the choices.
    given = [o for o in HydraConfig.get().overrides.task if o.startswith("experiment=")]
    options = {k: v for k, v in config["method"].items() if not k.startswith("_")}
    result = {
        "status": status,
        **identity,
        "experiment": given[-1].removeprefix("experiment=") if given else None,
        "table": config["table"],
        "seed": config["seed"],
        "max_steps": config["trainer"]["max_steps"],
        "method_options": options,
        # What runs must share to be seeds of one another, and what the cells of a table share.
        "variant": options_hash(config, without=("seed",)),
        "recipe": options_hash(config, without=("seed", "method", "view", "sparsity", "tau")),
        **facts,
        "versions": versions(),
        "hardware": hardware(),
        "wall_time_s": round(seconds, 1),
    }
    write_json(run / "result.json", result)


def quiet_lightning() -> None:
    """Leave out what Lightning says to itself; its warnings to the user stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # lightning 2.6.6 calls what newer torch deprecates; and it does not know that we log ourselves.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="The number of training batches")
    # Our sampler is in the loader; how many workers are right is the user's to say (README).
    warnings.filterwarnings("ignore", message=".*does not have many workers")


def print_start(run: Path, data: Mapping[str, Any], device: torch.device) -> None:
    """The start of a run, for a person: what was read, on what it runs, where it writes."""
    for split, facts in data.items():
        words = [f"{facts['images']} images"]
        if split == "train":
            words += [
                f"{facts['images_trained_on']} of them trained on",
                f"{facts['kept']} annotations kept",
                f"{facts['erased']} erased",
                f"{facts['crowds']} crowds set aside",
                f"{facts['classes']} classes",
            ]
        words += [f"repaired: {name}: {count}" for name, count in facts.get("repairs", {}).items()]
        print(f"{split}: {facts['annotations']}: {', '.join(words)}")
    print(f"device: {device}")
    print(f"run directory: {run}", flush=True)


def print_outcome(
    run: Path, metrics: Mapping[str, Metrics], mining: Mapping[str, float | None]
) -> None:
    """The end of a run, for a person: its numbers, and all that it wrote."""
    for split, numbers in metrics.items():
        print(f"{split}\n{metrics_table(numbers)}")
    for name, value in headline(mining).items():
        print(f"mining over the last quarter: {name} {'-' if value is None else f'{value:.2f}'}")
    print("written:")
    for pattern in (
        "result.json",
        "config.yaml",
        "metrics.csv",
        "checkpoints/*.ckpt",
        "pictures/*.*",
    ):
        # result.json follows when all else is done.
        found = sorted(run.glob(pattern)) or ([run / pattern] if pattern == "result.json" else [])
        for file in found:
            print(f"  {file}")
