"""Other runs in the same folder: those of a sweep, or all of ``runs/``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from comining.errors import DataError
from comining.runs.options import same_options
from comining.runs.result import RunResult

log = logging.getLogger(__name__)

# A diverged run is a result: the paper's Table 3 prints "Nan". It is not tried again.
SETTLED = ("finished", "diverged")


def find_run(run: Path, wanted: Mapping[str, Any]) -> Path | None:
    """A finished run beside ``run`` whose ``result.json`` has the ``wanted`` values.

    Its other options equal those of ``run``.
    """
    mine = _options(run / "config.yaml")
    for folder, result, options in _runs(run.parent):
        if result.status != "finished" or any(getattr(result, k) != v for k, v in wanted.items()):
            continue
        if same_options(mine, options, ignoring={*wanted, "tau"}):
            return folder
    return None


def find_settled(run: Path, config: Mapping[str, Any]) -> Path | None:
    """The directory, ``run`` or one beside it, that holds a result of the same options."""
    for folder, result, options in _runs(run.parent, first=run):
        if result.status in SETTLED and same_options(options, config, ignoring=()):
            return folder
    return None


def is_unfinished(run: Path) -> bool:
    """Whether the run in a directory was killed, interrupted, or failed."""
    file = run / "result.json"
    return not file.exists() or RunResult.read(file).status not in SETTLED


def _runs(parent: Path, first: Path | None = None) -> Iterator[tuple[Path, RunResult, Any]]:
    """Every recorded run in a folder: its directory, its record, its options."""
    files = sorted(parent.glob("*/result.json"), key=lambda file: (file.parent != first, file))
    for file in files:
        config = file.with_name("config.yaml")
        if not config.exists():  # the run ended before its options were accepted
            continue
        try:
            result = RunResult.read(file)
            options = _options(config)
        except DataError as error:
            if file.exists() and config.exists():  # otherwise its owner has just started again
                log.warning("left out: %s", error)
            continue
        yield file.parent, result, options


def _options(config: Path) -> Any:
    """The options in a ``config.yaml``.

    Raises:
        DataError: naming the file.
    """
    try:
        options = OmegaConf.to_container(OmegaConf.load(config))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{config}: cannot be read ({said})") from error
    if not isinstance(options, dict):
        raise DataError(f"{config}: not the options of a run")
    return options
