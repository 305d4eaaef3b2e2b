"""Records that the program itself wrote, for tests that read them."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from comining.runs.result import RunResult
from tests.ddp import ROOT, TINY, train

# Methods with a score threshold; copies of records for others are made from those of `original`.
WITH_THRESHOLD = ("comining", "self_mining", "pseudo_label")


def train_records(folder: Path) -> dict[tuple[str, str], RunResult]:
    """Train tiny runs that end in every way: (status, method) -> the record.

    Their directories are below ``folder / "runs"``.
    """
    # A learning rate that explodes, and a batch size that is refused.
    cells = ["method=original,comining", "optimizer.lr=1e-3,1e12", "data.batch_size=4,0"]
    train(folder, "-m", "hydra.sweep.dir=runs/sweep", "optimizer=sgd", "tau=0.5", *cells)
    interrupt(folder, "hydra.run.dir=runs/interrupted", "optimizer=sgd", "tau=0.5")
    found = map(RunResult.read, sorted((folder / "runs").glob("**/result.json")))
    records = {(record.status, record.method): record for record in found}
    assert len(records) == 7, sorted(records)
    interrupted = records["interrupted", "comining"]
    return {**records, ("interrupted", "original"): interrupted}


def interrupt(folder: Path, run_dir: str, *overrides: str) -> None:
    """Train a run without end, and send SIGTERM when it has logged a step."""
    tiny = [option for option in TINY if not option.startswith("trainer.max_steps")]
    options = [f"data.root={folder / 'shapes'}", "trainer.max_steps=100000", run_dir]
    command = [sys.executable, str(ROOT / "train.py"), *tiny, *options, *overrides]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, **quiet) as process:
        deadline = time.monotonic() + 300
        metrics = folder / run_dir.removeprefix("hydra.run.dir=") / "metrics.csv"
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM


class RunFolder:
    """Directories of runs, whose records are copies of real ones with other numbers.

    Args:
        records: of :func:`train_records`.
    """

    def __init__(self, root: Path, records: dict[tuple[str, str], RunResult]):
        self.root, self.records = root, records

    def add(
        self,
        ap: float | None = None,
        *,
        status: str = "finished",
        method: str = "comining",
        tau: float = 0.5,
        test_ap: float | None = None,
        options: dict[str, Any] | None = None,
        mining: dict[str, float | None] | None = None,
        **changes: Any,
    ) -> Path:
        """Write a record; its file. Recipe and length are those of the finished run.

        Args:
            ap: on the validation split, for all metrics but APl, of which nothing is annotated.
            test_ap: on the test split; left out: as ``ap``.
            options, mining: what differs from the real record.
        """
        has_threshold = method in WITH_THRESHOLD
        real = self.records[status, "comining" if has_threshold else "original"]
        threshold = {"score_threshold": tau} if has_threshold else {}
        changes["method"] = method
        changes["method_options"] = real.method_options | threshold | (options or {})
        changes["mining"] = real.mining | (mining or {})
        if ap is not None and status == "finished":
            assert real.metrics is not None
            assert real.test is not None
            changes["metrics"] = dict.fromkeys(real.metrics, ap) | {"APl": None}
            of_test = dict.fromkeys(real.test, ap if test_ap is None else test_ap)
            changes.setdefault("test", of_test)
        finished = self.records["finished", "comining"]
        names = ("recipe", "recipe_options", "max_steps")
        common = {name: getattr(finished, name) for name in names}
        record = real.model_copy(update=common | changes)
        if "variant" not in changes:  # as a run does: what differs but for the seed
            choices = ("method", "sparsity", "view", "detector")
            options = ("method_options", "recipe_options", "max_steps")
            settings = repr([getattr(record, name) for name in (*choices, *options)])
            record.variant = hashlib.sha256(settings.encode()).hexdigest()[:8]
        file = self.root / str(len(list(self.root.glob("*")))) / "result.json"
        record.write(file)
        return file
