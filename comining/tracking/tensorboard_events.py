"""TensorBoard: figures as curves, overview images, the configuration and the summary as text."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL.Image import Image

from comining.errors import ConfigError
from comining.tracking.panels import custom_scalars
from comining.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardEvents(Tracker):
    """Writes event files into ``folder/tensorboard``, with the sections of the dashboard.

    TensorBoard's tab "Custom scalars" shows these.

    Args:
        folder: the run directory.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder) / "tensorboard"
        self.step = 0
        self._writer: SummaryWriter  # from start on
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                'logger=tensorboard needs tensorboard: pip install -e ".[tensorboard]"'
            )

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard then hides what the stopped run logged after its last checkpoint.
        purge = step + 1 if rows else None
        self._writer = SummaryWriter(str(self.folder), purge_step=purge)
        self.step = step
        options = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", f"```yaml\n{options}```", step)
        self._writer.add_custom_scalars(custom_scalars())

    def figures(self, row: Mapping[str, float], step: int) -> None:
        self.step = step
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, key: str, picture: Image, step: int) -> None:
        self._writer.add_image(key, np.asarray(picture), step, dataformats="HWC")

    def summary(self, values: Mapping[str, float]) -> None:
        rows = [f"| {name} | {value:.6g} |" for name, value in values.items()]
        table = "\n".join(["| figure | value |", "|---|---|", *rows])
        self._writer.add_text("summary", table, self.step)

    def close(self, failed: bool) -> None:
        self._writer.close()
