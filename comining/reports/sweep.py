"""The report at the end of a sweep."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from comining.errors import UserError, one_line


class SweepReport(Callback):
    """Prints the report when a sweep ends; the exit code is 1 if a run failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Imported here because every run builds the callback, and importing pandas is slow.
        from comining.reports.paper_tables import write_report

        folder = Path(config.hydra.sweep.dir)
        try:
            statuses = write_report([folder], output=folder)["status"]
        except (UserError, OSError) as error:  # bad records, or the report cannot be written
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # Hydra would turn it into a warning, and exit with 0
            traceback.print_exc()
            sys.exit(1)
        for status, words in (("interrupted", "were interrupted"), ("failed", "failed")):
            if count := (statuses == status).sum():
                print(f"{count} of the runs {words}", file=sys.stderr)
        if (statuses == "failed").any():
            sys.exit(1)
