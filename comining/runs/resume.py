"""Resuming a run: from which checkpoint, and with the same options."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from comining.config import resolve
from comining.data.annotations import Categories
from comining.detectors.detector import Detector
from comining.errors import CheckpointError, ConfigError, shortened
from comining.runs.checkpoint import read_checkpoint
from comining.runs.command_line import absolute, quoted, text_of
from comining.runs.files import replace_file
from comining.runs.options import flat, relevant

# Options of this start of a run, not of the run itself.
OF_THIS_START = ("resume", "ckpt", "allow_changes", "overwrite")
# Options of earlier versions: these folders are now always in the run directory.
GONE = ("checkpoint.folder", "pictures.folder")
# The state of one optimizer means nothing to another.
FIXED = "optimizer._target_"
# Among the recorded options: the directory that relative paths of the run are relative to.
STARTED_IN = "hydra.runtime.cwd"


def checkpoint_to_resume(cfg: DictConfig, run: Path) -> Path | None:
    """The checkpoint to resume from; None for a new run.

    ``resume=DIR`` means ``DIR/checkpoints/last.ckpt``, ``resume=auto`` that of the run's own
    directory, if there is one; ``ckpt=FILE`` names another.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    chosen = None
    if cfg.ckpt is not None:
        chosen = Path(cfg.ckpt)
    elif cfg.resume is not None:
        chosen = run / "checkpoints" / "last.ckpt"
        if cfg.resume == "auto" and not chosen.exists():
            return None
    if chosen is not None:
        read_checkpoint(chosen)
    return chosen


@contextlib.contextmanager
def where_started(run: Path) -> Iterator[None]:
    """Change to the directory where the run in ``run`` was started, if it still exists.

    Relative paths in its options then mean the same as before.
    """
    options = {_key(override): override for override in _recorded(run)}
    try:
        folder = text_of(options[STARTED_IN]) if STARTED_IN in options else None
    except HydraException as error:
        raise ConfigError(
            f"{run / 'overrides.yaml'}: {STARTED_IN} cannot be read ({error})"
        ) from error
    if folder is None or not os.path.isdir(folder):
        yield
        return
    with contextlib.chdir(folder):
        yield


def with_options_of(run: Path) -> DictConfig:
    """The configuration of the run in ``run``, changed by the options of this command line.

    Composed again from the options that the run was started with, followed by those of this start.

    Raises:
        ConfigError: the file with the earlier ones is damaged, or has an option that no longer is.
    """
    before = [one for one in _recorded(run) if _key(one) != STARTED_IN]
    now = list(HydraConfig.get().overrides.task)
    here = Path(HydraConfig.get().runtime.cwd)
    if not os.path.samefile(here, os.curdir):  # see where_started
        now = [absolute(one, here) for one in now]
    given = {_key(override) for override in now}
    overrides = [override for override in before if _key(override) not in given] + now
    hydra: Any = HydraConfig.get()
    try:
        composed = compose("train", overrides=overrides, return_hydra_config=True)
    except HydraException as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{run / 'overrides.yaml'}: options cannot be used ({said})") from error
    with open_dict(composed):
        # The facts of this process stay; the choices are those of the run.
        composed.hydra.runtime.output_dir = hydra.runtime.output_dir
        with open_dict(composed.hydra.runtime):  # what OutputDirectory has left there
            names = [name for name in ("wanted", "numbered") if name in hydra.runtime]
            composed.hydra.runtime.update({name: hydra.runtime[name] for name in names})
        composed.hydra.runtime.cwd = hydra.runtime.cwd
        composed.hydra.runtime.version = hydra.runtime.version
        composed.hydra.runtime.config_sources = hydra.runtime.config_sources
        composed.hydra.mode = hydra.mode
        composed.hydra.job.id, composed.hydra.job.num = "resumed", 0
        HydraConfig.instance().set_config(composed)
        del composed["hydra"]
    return composed


def _recorded(run: Path) -> list[str]:
    """The overrides written by :func:`write_overrides`.

    Raises:
        ConfigError: the file is damaged.
    """
    file = run / "overrides.yaml"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(recorded, list) or not all(isinstance(one, str) for one in recorded):
        raise ConfigError(f"{file}: not a list of options")
    return [one for one in recorded if _key(one) not in GONE]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def write_overrides(run: Path, fitted: Mapping[str, int | float]) -> None:
    """Write the command line's options, for :func:`with_options_of`.

    Args:
        fitted: options that were chosen from the training images; a resumed run keeps them.
    """
    task = HydraConfig.get().overrides.task
    overrides = [one for one in task if _key(one) not in (*OF_THIS_START, *fitted)]
    chosen = [f"{name}={value}" for name, value in fitted.items()]
    text = yaml.safe_dump([*overrides, *chosen, f"{STARTED_IN}={quoted(os.getcwd())}"])
    replace_file(run / "overrides.yaml", lambda file: file.write(text.encode()))


def check_same_options(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuse to resume with other options than those of the checkpoint, unless ``allow_changes``.

    Raises:
        ConfigError: with every option that differs, or another optimizer.
    """
    content = read_checkpoint(checkpoint)
    differences = _differences(content["comining"]["config"], resolve(cfg))
    if differences and not cfg.allow_changes:
        raise ConfigError(
            f"{checkpoint} was trained with other options: {'; '.join(differences.values())}. Use "
            "those, or resume with the new ones by allow_changes=true"
        )
    if FIXED in differences:
        raise ConfigError(
            f"{checkpoint} has the state of another optimizer: {differences[FIXED]}. Use that, or "
            f"start a new run from its weights: weights={checkpoint}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    first, second = (flat(relevant(config)) for config in (before, now))
    return {
        name: f"{name} was {first.get(name)!r}, is {second.get(name)!r}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    }


def check_fits(
    detector: Detector,
    groups: Sequence[Mapping[str, Any]],
    categories: Categories,
    checkpoint: Path,
) -> None:
    """Refuse to resume with other classes or another network than those of the checkpoint.

    The options can be the same all the same: the annotation file may have changed.

    Args:
        groups: of parameters that are trained, for the optimizer.

    Raises:
        CheckpointError: naming the file, and the classes, the weights or the groups.
    """
    content = read_checkpoint(checkpoint)
    before, now = content["comining"]["category_names"], list(categories.names)
    if before != now:
        changes = [
            f"{words} {shortened([name for name in these if name not in those])}"
            for words, these, those in (("without", before, now), ("with", now, before))
            if set(these) - set(those)
        ]
        raise CheckpointError(
            f"{checkpoint} was trained for {len(before)} classes, the annotations have {len(now)}: "
            f"{', '.join(changes) or 'the same in another order'}. Start a new run from its "
            f"weights instead: weights={checkpoint}"
        )
    prefix = "detector."
    there = {
        name.removeprefix(prefix): list(weights.shape)
        for name, weights in content["state_dict"].items()
        if name.startswith(prefix)
    }
    here = {name: list(weights.shape) for name, weights in detector.state_dict().items()}
    different = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    if different:
        name = different[0]
        sizes = f"{there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        rest = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise CheckpointError(
            f"{checkpoint} has the weights of another network ({name}: {sizes}{rest})"
        )
    if not content.get("optimizer_states"):
        raise CheckpointError(f"{checkpoint}: holds weights, but no state of a training")
    trained = [
        [len(group["params"]) for group in of_either]
        for of_either in (content["optimizer_states"][0]["param_groups"], groups)
    ]
    if trained[0] != trained[1]:
        raise CheckpointError(
            f"{checkpoint} has the state of an optimizer for {trained[0]} parameters, these options"
            f" train {trained[1]} (parameter_groups, backbone.trainable_layers). Start a new run "
            f"from its weights instead: weights={checkpoint}"
        )


def requeue() -> str | None:
    """Put a SLURM job back into the queue, from where it resumes (``resume=auto``).

    Returns:
        A message with the outcome; None if this is not a SLURM job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    command: Sequence[str] = ("scontrol", "requeue", job)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)} failed: {error}"
    if done.returncode:
        return f"{' '.join(command)} failed: {done.stderr.strip()}"
    return f"job {job} is queued again"
