"""Train, and be killed, again and again: ``python -m tests.killed FOLDER WORKERS SIGNAL COUNT``.

Each attempt is a fork of a process that has imported everything, so that it takes a second and not
ten. Prints as JSON what became of it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import runpy
import signal
import statistics
import sys
import time
from pathlib import Path

from comining.config import CONFIG_FOLDER

SCRIPT = CONFIG_FOLDER.parent / "train.py"
sys.path.insert(0, str(SCRIPT.parent))
import train  # noqa: E402, F401 - so that forks find everything imported

BATCH = 2
OPTIONS = [
    "data.prepare.train_images=8",
    "data.prepare.val_images=2",
    "data.prepare.test_images=1",
    f"data.batch_size={BATCH}",
    "trainer.max_steps=60",
    "trainer.val_check_interval=20",
    "trainer.log_every_n_steps=3",
    "trainer.accelerator=cpu",
    "checkpoint.every_n_steps=1",
    "pictures.every_n_steps=0",
    "tau=0.01",
]


def start(log: Path, *arguments: str) -> int:
    """The process id of a fork that runs ``python train.py`` with these arguments."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def steps_per_second(metrics: Path) -> float:
    """The median over a run that nothing disturbed."""
    with metrics.open() as lines:
        column = [row["train/images_per_s"] for row in csv.DictReader(lines)]
    return statistics.median(float(rate) for rate in column if rate) / BATCH


def main(folder: Path, workers: int, signum: int, count: int) -> None:
    """Train once undisturbed, and once with ``count`` kills."""
    common = [f"data.root={folder / 'shapes'}", f"data.num_workers={workers}", *OPTIONS]
    whole = wait(start(folder / "whole.log", *common, f"hydra.run.dir={folder / 'whole'}"))
    pause = 1 / steps_per_second(folder / "whole" / "metrics.csv")
    rng = random.Random(0)
    run, codes, statuses = folder / "killed", [], []
    last = run / "checkpoints" / "last.ckpt"
    # resume=auto is what a scheduler that starts a job again needs: it may have no checkpoint yet.
    arguments = [*common, f"hydra.run.dir={run}", "resume=auto"]
    while len(codes) < count:
        before = last.stat().st_mtime_ns if last.exists() else 0
        child = start(folder / "killed.log", *arguments)
        # Every other one may be killed before it has got anywhere at all.
        give_up = time.monotonic() + (rng.uniform(0, 1.5) if len(codes) % 2 else 120)
        code = None
        while time.monotonic() < give_up:
            if (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
                code = os.waitstatus_to_exitcode(ended[1])
                break
            with contextlib.suppress(FileNotFoundError):  # there is none yet
                if last.stat().st_mtime_ns != before:
                    break
            time.sleep(0.001)
        if code is None:
            # In a step, or in a save. No longer than a step takes on this machine: after SIGTERM a
            # run keeps what it has done, and on a fast one it would end before all the kills.
            time.sleep(rng.uniform(0, pause))
            os.kill(child, signum)
            code = wait(child)
        codes.append(code)
        result = run / "result.json"
        statuses.append(json.loads(result.read_text())["status"] if result.exists() else None)
        if code not in (-signum, 128 + signum):
            break  # it has ended, or failed
    # And to the end, by the directory alone, if there is anything to go on with.
    end = wait(start(folder / "killed.log", f"resume={run}"))
    print(json.dumps({"whole": whole, "codes": codes, "statuses": statuses, "end": end}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(signal.Signals[sys.argv[3]]), int(sys.argv[4]))
