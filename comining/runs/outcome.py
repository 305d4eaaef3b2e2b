"""How a run ends: with a ``result.json``, whatever happened."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from comining.config import resolve
from comining.errors import DivergedError, UserError, one_line
from comining.evaluation.coco_evaluator import Metrics, metrics_table
from comining.evaluation.mining_metric import headline
from comining.program_options import check_training
from comining.runs.claiming import claim, wanted_directory
from comining.runs.directory import DirectoryTakenError, RunDirectory
from comining.runs.environment import versions
from comining.runs.files import replace_file
from comining.runs.fitted import Fitted, fit_to_data
from comining.runs.gpu import claim_gpu
from comining.runs.options import STUDIED, changed_options, options_hash, recipe_options
from comining.runs.result import INT64, RunResult, Status
from comining.runs.resume import requeue, where_started, with_options_of, write_overrides
from comining.runs.signals import SIGNALS, Interrupted

log = logging.getLogger(__name__)

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3

Main = Callable[[DictConfig, dict[str, Any], "Run"], Mapping[str, Any]]


class Run:
    """A run of ``train.py``: its directory, and what is known about it for ``result.json``.

    Args:
        directory: the claimed one.
        fitted: options that were chosen from the training images.
    """

    def __init__(self, directory: RunDirectory, fitted: Fitted):
        self.directory = directory
        self.fitted = fitted
        self.facts: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    def begin(self, config: Mapping[str, Any], **facts: Any) -> None:
        """Mark the directory as this run's, once everything that can be checked has been.

        The result of an earlier run there is removed.

        Args:
            facts: fields of :class:`RunResult` that do not depend on how the run ends.
        """
        self.facts |= facts
        self.directory.begin()
        if self.directory.owned:
            (self.path / "result.json").unlink(missing_ok=True)
            text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
            replace_file(self.path / "config.yaml", lambda file: file.write(text.encode()))
            write_overrides(self.path, self.fitted.values)


def recorded(main: Main) -> Callable[[DictConfig], None]:
    """Give a training function its run directory, and write ``result.json`` when it ends.

    ``main(cfg, config, run)`` gets the composed and the resolved configuration and the run, and
    returns the facts of a finished run. Every end of a run is recorded. A run that diverges exits
    with code 3. One that a signal stops exits with the code of the signal, and ends a sweep, too.
    One that fails ends with its traceback, or with one line and code 2 if the input is at fault; in
    a sweep the other runs continue.

    Bad input that is found before :meth:`Run.begin` leaves a single run no directory at all.
    """

    @functools.wraps(main)
    def run_and_record(cfg: DictConfig) -> None:
        quiet_lightning()
        with SIGNALS:
            code = _Attempt(main, cfg).end()
        if code:
            sys.exit(code)

    return run_and_record


class _Attempt:
    """One start of a run, from its options to its exit code."""

    def __init__(self, main: Main, cfg: DictConfig):
        self.main = main
        self.cfg = cfg
        self.alone = HydraConfig.get().mode is RunMode.RUN
        self.wanted = wanted_directory()
        self.started = time.monotonic()
        # For the record, if it cannot be resolved.
        self.config: Any = OmegaConf.to_container(cfg)
        self.fitted = Fitted()
        self.run: Run | None = None

    def end(self) -> int:
        """Run it, record how it ends, and return the exit code."""
        try:
            facts = self._train()
        except DivergedError as error:
            divergence = dict(error.facts)
            step = divergence.pop("step", None)
            self._record("diverged", error=str(error), step=step, divergence=divergence)
            print(f"diverged: {error}", file=sys.stderr)
            return EXIT_DIVERGED if self.alone else 0
        except Interrupted as error:
            self._record("interrupted", error=str(error), step=error.step)
            self._say_how_to_go_on(error)
            return error.exit_code
        except DirectoryTakenError as error:
            # No run has failed: none has begun. A sweep ends here: its other runs are alike.
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR
        except Exception as error:
            return self._fail(error)
        else:
            if facts is not None:
                self._record("finished", **facts)
            return 0
        finally:
            if self.run is not None:
                self.run.directory.release()

    def _train(self) -> Mapping[str, Any] | None:
        """The facts of the finished run; None if there is a result already."""
        if self.cfg.resume is None or not (self.wanted / "overrides.yaml").exists():
            return self._train_here()
        with where_started(self.wanted):
            self.cfg = with_options_of(self.wanted)
            return self._train_here()

    def _train_here(self) -> Mapping[str, Any] | None:
        self.fitted = fit_to_data(self.cfg)
        self.config = resolve(self.cfg)
        check_training(self.config)
        run = self._claim()
        if run is None:
            return None
        self.config = resolve(self.cfg)  # its name may have changed
        if (
            self.cfg.own_gpu
            and OmegaConf.select(self.cfg, "trainer.accelerator") != "cpu"
            and (gpu := claim_gpu(run.path.parent)) is not None
        ):
            self.cfg.trainer.devices = [gpu]
        return self.main(self.cfg, self.config, run)

    def _claim(self) -> Run | None:
        claimed = claim(self.cfg, self.config, self.wanted)
        if isinstance(claimed, Path):
            print(f"skipped, already has a result: {claimed}")
            if claimed != self.wanted:
                with contextlib.suppress(OSError):  # Hydra makes it for each run of a sweep
                    self.wanted.rmdir()
            return None
        self.run = Run(claimed, self.fitted)
        return self.run

    def _fail(self, error: Exception) -> int:
        if self.run is not None:
            error = self.run.directory.explained(error)
        expected = isinstance(error, UserError)
        if self.alone and expected:
            print(f"error: {one_line(error)}", file=sys.stderr)
            if self.run is not None and not self.run.directory.begun:
                self.run.directory.abandon()
                return EXIT_USER_ERROR
        if not self.alone:
            told = f": {one_line(error)}" if expected else ""
            log.error(
                f"this run failed{told}; the sweep continues", exc_info=not expected and error
            )
            try:
                if self.run is None:  # its options cannot even be resolved
                    self._claim()
            except UserError as refused:  # no other run of the sweep would get a directory either
                print(f"error: {refused}", file=sys.stderr)
                return EXIT_USER_ERROR
        trace = "".join(traceback.format_exception(error))
        self._record("failed", error=f"{type(error).__name__}: {one_line(error)}", trace=trace)
        if self.alone and not expected:
            self._explain(error)
            raise error
        return EXIT_USER_ERROR if self.alone else 0

    def _record(self, status: Status, **facts: Any) -> None:
        if self.run is None or not self.run.directory.owned:
            return
        if not self.run.directory.begun and (self.run.path / "result.json").exists():
            return  # of an earlier start, which this one has not replaced
        seconds = time.monotonic() - self.started
        result = RunResult(
            status=status, **identity(self.config), **{**self.run.facts, **facts},
            versions=versions(), wall_time_s=round(seconds, 1),
        )  # fmt: skip
        try:
            result.write(self.run.path / "result.json")
        except OSError as error:
            file = self.run.path / "result.json"
            print(f"error: {file}: cannot be written, {error.strerror}", file=sys.stderr)

    def _say_how_to_go_on(self, error: Interrupted) -> None:
        if self.run is not None and not self.run.directory.owned:
            return
        after = "" if error.step is None else f" after step {error.step}"
        print(f"{error}{after}", file=sys.stderr)
        if self.alone and self.run is not None and error.step is not None:
            print(f"resume with: python train.py resume={self.run.path}", file=sys.stderr)
        warned = signal.Signals(error.signum).name == "SIGUSR1"  # by SLURM, ahead of the limit
        if warned and (queued := requeue()) is not None:
            print(queued, file=sys.stderr)

    def _explain(self, error: Exception) -> None:
        """Print advice on errors whose traceback gives none."""
        if self.run is not None and not self.run.directory.owned:
            return
        if isinstance(error, torch.OutOfMemoryError):
            print(
                "error: out of memory; lower data.batch_size or data.max_size, or use more devices",
                file=sys.stderr,
            )
        if "DataLoader worker" in str(error):
            print(
                "error: a process that loads images died, possibly out of memory; lower "
                "data.num_workers",
                file=sys.stderr,
            )
        if self.run is not None and (self.run.path / "checkpoints" / "last.ckpt").exists():
            print(f"resume with: python train.py resume={self.run.path}", file=sys.stderr)


def identity(config: Any) -> dict[str, Any]:
    """The fields of :class:`RunResult` that say what was run.

    Args:
        config: all options; where they could not be resolved, as they were given. What is no
            value for a field becomes None.
    """
    choices = HydraConfig.get().runtime.choices
    names = ("method", "detector", "sparsity", "backbone", "view", "data", "optimizer")
    fields: dict[str, Any] = {name: str(choices.get(name)) for name in names}
    fields["dataset"] = fields.pop("data")
    # Hydra omits lists such as experiment=[coco,table1] from the choices.
    given = [o for o in HydraConfig.get().overrides.task if o.startswith("experiment=")]
    trainer, method = config.get("trainer"), config.get("method")
    max_steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    options = method if isinstance(method, dict) else {}
    table, seed = config.get("table"), config.get("seed")
    data = config.get("data")
    paste = data.get("paste") if isinstance(data, dict) else None
    return {
        **fields,
        "experiment": given[-1].removeprefix("experiment=") if given else None,
        "table": None if table is None else str(table),
        "paste": paste if type(paste) is int else 0,
        "seed": _recordable(seed),
        "max_steps": _recordable(max_steps),
        "method_options": {k: v for k, v in options.items() if not str(k).startswith("_")},
        "sparsity_options": changed_options("sparsity", fields["sparsity"], config),
        # Runs that differ only in the seed share the first; the cells of a table share the second.
        "variant": options_hash(config, without=("seed",)),
        "recipe": options_hash(config, without=STUDIED),
        "recipe_options": recipe_options(config),
    }


def _recordable(value: Any) -> int | None:
    return value if type(value) is int and -INT64 <= value < INT64 else None


def quiet_lightning() -> None:
    """Silence Lightning's internal messages; its warnings to the user stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # lightning 2.6.6 calls functions that newer torch deprecates, and does not know of our logging.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="The number of training batches")
    # Our sampler is in the loader; how many workers are right is the user's to say (README).
    warnings.filterwarnings("ignore", message=".*does not have many workers")


def print_start(run: Path, data: Mapping[str, Any], device: torch.device) -> None:
    """Print the start of a run: the data, the device, and the run directory."""
    for split, facts in data.items():
        words = [f"{facts['images']} images"]
        if split == "train":
            kept = f"{facts['kept']} annotations kept"
            if facts["proposed"]:
                kept += f" ({facts['proposed']} with a proposed box that nobody has corrected)"
            words += [
                f"{facts['images_trained_on']} used for training",
                kept,
                f"{facts['erased']} erased",
                f"{facts['crowds']} regions to ignore in the file",
                f"{facts['classes']} classes",
            ]
        words += [f"repaired: {name}: {count}" for name, count in facts.get("repairs", {}).items()]
        print(f"{split}: {facts['annotations']}: {', '.join(words)}")
        for line in knowledge_lines(facts["known"]):
            print(f"  {line}")
    print(f"device: {device}")
    print(f"run directory: {run}", flush=True)


STATES = {"complete": "complete", "not_looked_for": "not looked for", "partial": "partial"}
MOST_CLASSES = 20  # in the list of what is known of each


def knowledge_lines(known: Mapping[str, Any]) -> list[str]:
    """What is known about the annotation of a split: in total, and by class if classes differ.

    Args:
        known: as in ``result.json``.
    """
    total = sum(known[state] for state in STATES)
    said = [f"{known[state]} {words}" for state, words in STATES.items() if known[state]]
    lines = [f"annotation of {total} (image, class) pairs: {', '.join(said)}"]
    if known["ignored_regions"]:
        lines[0] += f"; {known['ignored_regions']} regions to ignore"
    if len(said) > 1:
        classes = list(known["classes"].items())
        for name, of_class in classes[:MOST_CLASSES]:
            parts = [f"{of_class[s]} {words}" for s, words in STATES.items() if of_class[s]]
            lines.append(f"{name}: {', '.join(parts)}")
        if len(classes) > MOST_CLASSES:
            lines.append(f"and {len(classes) - MOST_CLASSES} more classes, see result.json")
    return lines


def print_outcome(
    run: Path,
    metrics: Mapping[str, Metrics],
    lower_bounds: Collection[str],
    mining: Mapping[str, float | None],
) -> None:
    """Print the end of a run: its metrics, and the files that it wrote.

    Args:
        lower_bounds: splits whose AP is a lower bound.
    """
    for split, numbers in metrics.items():
        print(f"{split}\n{metrics_table(numbers, lower_bound=split in lower_bounds)}")
    for name, value in headline(mining).items():
        if value is not None:  # else nothing was mined
            print(f"mining over the last quarter: {name} {value:.2f}")
    print("written:")
    for pattern in (
        "result.json",
        "config.yaml",
        "metrics.csv",
        "checkpoints/*.ckpt",
        "pictures/*.*",
    ):
        # result.json is written last.
        found = sorted(run.glob(pattern)) or ([run / pattern] if pattern == "result.json" else [])
        for file in found:
            print(f"  {file}")
