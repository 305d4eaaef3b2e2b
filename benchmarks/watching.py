"""What logging costs: a short run with W&B (offline) and pictures, against ``metrics.csv`` alone.

python -m benchmarks.watching [--steps 200] [--rounds 3] [--json FILE]

Both are ``python train.py`` on the embedded set, started in turns; the time is that which
``result.json`` reports, from the composed configuration to the last figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import measure
from comining.config import CONFIG_FOLDER

VARIANTS = {
    "csv": ["logger=csv", "pictures.every_n_steps=0"],
    "all": ["logger=wandb", "pictures.every_n_steps=100"],
}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options."""
    options = measure.parser("A run with all logging on, against one with csv only.")
    options.add_argument("--steps", type=int, default=200)
    options.set_defaults(rounds=3)
    chosen = options.parse_args(given)
    if chosen.quick:
        chosen.steps, chosen.rounds = 2, 2
    return chosen


def run(folder: Path, name: str, chosen: argparse.Namespace) -> float:
    """Seconds of one run."""
    accelerator = "cpu" if chosen.device == "cpu" else "gpu"
    small = ["data.prepare.train_images=64", "data.prepare.val_images=20"] if chosen.quick else []
    subprocess.run(
        [sys.executable, str(CONFIG_FOLDER.parent / "train.py"), f"data.root={folder / 'shapes'}",
         f"trainer.max_steps={chosen.steps}", f"trainer.accelerator={accelerator}",
         f"hydra.run.dir={folder / name}", *small, *VARIANTS[name]],
        check=True, capture_output=True, env={**os.environ},
    )  # fmt: skip
    seconds: float = json.loads((folder / name / "result.json").read_text())["wall_time_s"]
    return seconds


def main(given: list[str] | None = None) -> None:
    """Compare the two."""
    chosen = arguments(given)
    print(measure.machine(torch.device(chosen.device)))
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), "csv", chosen)  # draws the set
        for number in range(chosen.rounds):
            order = list(VARIANTS) if number % 2 else list(VARIANTS)[::-1]
            for variant in order:
                taken[variant].append(run(Path(name), variant, chosen))
    measure.report_times(taken, {})
    measure.report_ratios(
        {"logging_over_csv": measure.ratio(taken["all"], taken["csv"])}, chosen.json
    )


if __name__ == "__main__":
    main()
