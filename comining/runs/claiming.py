"""Which directory a run asks for, and how it claims it."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from comining.errors import ConfigError, UserError
from comining.runs import cell_names  # noqa: F401  # registers the resolver that names a run of a sweep
from comining.runs.command_line import quoted
from comining.runs.directory import DirectoryTakenError, RunDirectory
from comining.runs.neighbours import find_settled, is_unfinished
from comining.runs.ranks import Decision, meeting, started_by_rank_zero

CLOCK = "${now:"  # a name that holds the time is one of many; any other one is meant as it is


class OutputDirectory(Callback):
    """Keeps Hydra from making the directory of a run, which :func:`claim` does.

    Hydra would make it before anything is checked, even if another run uses it. It is configured to
    write to the working directory instead, and the name that it has chosen is kept in
    ``hydra.runtime``. The directory of a sweep is made here, because all its runs share it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # names refer to what was chosen
        name = OmegaConf.to_container(config.hydra.run)["dir"]  # type: ignore[call-overload, index]
        wanted = str(config.hydra.run.dir)
        _set(config.hydra.runtime, wanted=wanted, numbered=CLOCK in str(name))
        _set(config.hydra.run, dir=os.getcwd())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)
        name = OmegaConf.to_container(config.hydra.sweep)["dir"]  # type: ignore[call-overload, index]
        wanted = Path(config.hydra.sweep.dir)
        try:
            folder = _make_sweep(wanted, numbered=CLOCK in str(name))
        except OSError as error:  # Hydra would turn an exception into a warning
            reason = error.strerror or error
            print(f"error: {wanted}: cannot be the directory of a sweep, {reason}", file=sys.stderr)
            sys.exit(2)
        if CLOCK in str(name):
            _set(config.hydra.sweep, dir=str(folder))
            # The runs compose the configuration again.
            with read_write(config.hydra.overrides):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")


def _make_sweep(wanted: Path, numbered: bool) -> Path:
    """Make the directory of a sweep, or use an existing one that is writable.

    Args:
        numbered: use ``NAME_2``, ``NAME_3``, ... if it exists.
    """
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(exist_ok=not numbered)
        except FileExistsError:
            if not numbered:  # it is a file
                raise
            continue
        break
    with tempfile.TemporaryFile(dir=folder):
        return folder


def wanted_directory() -> Path:
    """The run directory that the options of this process ask for."""
    runtime: Any = HydraConfig.get().runtime
    return Path(os.path.abspath(runtime.get("wanted", runtime.output_dir)))


def claim(cfg: DictConfig, config: Mapping[str, Any], wanted: Path) -> RunDirectory | Path:
    """Claim the directory of this run, in each of its processes; the process of rank 0 owns it.

    Args:
        cfg: the composed options of this start.
        config: all options of the run, resolved.
        wanted: see :func:`wanted_directory`.

    Returns:
        The directory; with ``skip_finished``, a path if that directory already has the result.

    Raises:
        ConfigError: rank 0 cannot have the directory, or this process finds no rank 0.
    """
    nodes = OmegaConf.select(cfg, "trainer.num_nodes")
    met = meeting(nodes if isinstance(nodes, int) else 1)
    if met is None and started_by_rank_zero():
        return _use(RunDirectory.join(wanted))
    claimed: list[RunDirectory] = []

    def decide() -> Decision:
        try:
            before = find_settled(wanted, config) if _skips(cfg) else None
            if before is not None:
                return {"skip": str(before)}
            claimed.append(_claim(cfg, wanted))
        except UserError as error:
            return {"error": str(error), "taken": isinstance(error, DirectoryTakenError)}
        return {"directory": str(claimed[0].path)}

    decision = decide() if met is None else met.agree(decide)
    if "error" in decision:
        raise (DirectoryTakenError if decision.get("taken") else ConfigError)(decision["error"])
    if "skip" in decision:
        return Path(decision["skip"])
    return _use(claimed[0] if claimed else RunDirectory.join(Path(decision["directory"])))


def claim_evaluation(cfg: DictConfig) -> RunDirectory:
    """The same for ``evaluate.py``, which does not skip.

    Raises:
        ConfigError: see :func:`claim`.
    """
    claimed = claim(cfg, {}, wanted_directory())
    if isinstance(claimed, Path):
        raise TypeError("an evaluation is never skipped")
    return claimed


def _skips(cfg: DictConfig) -> bool:
    return cfg.get("skip_finished", False) is True


def _claim(cfg: DictConfig, wanted: Path) -> RunDirectory:
    """In rank 0."""
    hydra: Any = HydraConfig.get()
    alone = hydra.mode is RunMode.RUN
    resume, overwrite = cfg.get("resume"), cfg.overwrite is True
    if resume is not None and overwrite:
        raise ConfigError(f"resume={resume} needs the directory that overwrite=true would clear")
    if resume not in (None, "auto") and not (wanted / "overrides.yaml").exists():
        raise ConfigError(f"resume={resume}: {wanted} is not a run directory")
    held: Literal["refuse", "resume", "replace"] = "refuse"
    if resume is not None:
        held = "resume"
    elif overwrite or (_skips(cfg) and is_unfinished(wanted)):
        held = "replace"
    trains = "resume" in cfg
    run = RunDirectory.claim(
        wanted,
        held=held,
        numbered=resume in (None, "auto") and bool(hydra.runtime.get("numbered", False)),
        advice=_advice(wanted, alone, trains),
    )
    if trains:
        try:
            run.create_wandb_id()
        except OSError as error:
            run.abandon()
            raise ConfigError(f"{run.path}: cannot be a run directory, {error.strerror}") from error
    return run


def _advice(wanted: Path, alone: bool, trains: bool) -> str:
    """What to do about a directory that holds another run."""
    aside = "move the old content aside with overwrite=true"
    if not alone:
        return (
            "run only what is not finished with skip_finished=true, choose another "
            f"hydra.sweep.dir, or {aside}"
        )
    further = f"resume it with resume={wanted}, " if trains else ""
    return f"{further}choose another hydra.run.dir, or {aside}"


def _use(run: RunDirectory) -> RunDirectory:
    """Let all references of the configuration, and processes that Lightning starts, point to it."""
    hydra: Any = HydraConfig.instance().cfg
    _set(hydra.hydra.runtime, output_dir=str(run.path))
    _set(hydra.hydra.run, dir=str(run.path))
    run.log_to_file()
    return run


def _set(node: Any, **values: Any) -> None:
    """Change a part of Hydra's own configuration, which is read-only."""
    with read_write(node), open_dict(node):
        node.update(values)
