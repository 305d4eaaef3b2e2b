"""What happens around a sweep."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from comining.reports.tables import main as report


class SweepReport(Callback):
    """Prints the report when a sweep ends; the exit code tells whether a run failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            failed = report([str(folder)])
        except (
            Exception
        ):  # Hydra would make a warning of it, and the exit code say that all is well
            traceback.print_exc()
            sys.exit(1)
        if failed:
            print(f"{failed} of the runs failed", file=sys.stderr)
            sys.exit(1)
