"""Where figures go: ``metrics.csv`` always, and TensorBoard or Weights & Biases beside it.

Each function here is a choice of ``logger=``; it gets the run directory, and what else its yaml
says, and returns the loggers of a run.
"""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL.Image import Image
from torch import Tensor

from comining.errors import ConfigError
from comining.tracking.drawing import Layer


class MetricsFile(Logger):
    """``metrics.csv``: a row for every call, an empty cell where a row has no such figure.

    A run that goes on in its directory goes on in the file: what the killed run had written after
    its last checkpoint is dropped, since it is done again. (Lightning's own CSV logger deletes the
    file.)

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def begin(self, count: int) -> None:
        """Keep the first rows, as many as there were at the checkpoint; with 0 begin anew."""
        rows = self._read() if count else []
        kept = rows[:count]
        self.columns = list(rows[0]) if rows else []
        if kept:
            self._rewrite(kept)
        else:
            self.file.unlink(missing_ok=True)
            self.columns = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            earlier = self._read() if self.columns else []
            self.columns += new
            self._rewrite([*earlier, row])
            return
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """``config.yaml`` tells them."""

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # A killed run may leave half a row.
        return [row for row in rows if None not in row.values() and row["step"].isdigit()]

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(draft, self.file)


class WandbRun(WandbLogger):
    """A Weights & Biases run whose steps are optimizer steps, and which takes boxes as layers."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # With the step given, a resumed run's repeated steps are not logged twice.
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def tell(self, config: Mapping[str, Any]) -> None:
        """Make the options searchable."""
        self.experiment.config.update(dict(config), allow_val_change=True)

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """End the run; what is logged later would belong to another one."""
        self.experiment.finish(exit_code=exit_code)

    @rank_zero_only
    def log_boxes(
        self,
        key: str,
        images: Sequence[tuple[Tensor, Sequence[Layer], Sequence[Tensor]]],
        class_names: Sequence[str],
        step: int,
    ) -> None:
        """Log images with layers of boxes, which can be switched on and off on the page.

        Args:
            images: image [3, H, W] uint8, its layers, and the labels [N] of each layer's boxes.
        """
        import wandb

        names = dict(enumerate(class_names))
        logged = []
        for image, layers, labels in images:
            boxes = {}
            for layer, of_layer in zip(layers, labels, strict=True):
                rows = zip(layer.boxes.tolist(), of_layer.tolist(), strict=True)
                boxes[layer.style.name.replace(" ", "_")] = {
                    "box_data": [
                        {
                            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box)),
                            "domain": "pixel",
                            "class_id": label,
                            "box_caption": names[label],
                        }
                        for box, label in rows
                    ],
                    "class_labels": names,
                }
            array = image.permute(1, 2, 0).cpu().numpy()
            logged.append(wandb.Image(array, boxes=boxes))
        self.experiment.log({key: logged, "trainer/global_step": step}, step=step)


def csv_only(folder: str) -> list[Logger]:
    """``logger=csv``."""
    return [MetricsFile(folder)]


def tensorboard(folder: str) -> list[Logger]:
    """``logger=tensorboard``: event files in the run directory.

    Raises:
        ConfigError: neither tensorboard nor tensorboardX is installed.
    """
    try:
        return [MetricsFile(folder), TensorBoardLogger(folder, name="", version="tensorboard")]
    except ModuleNotFoundError as error:
        raise ConfigError(
            'logger=tensorboard needs tensorboard: pip install -e ".[tensorboard]"'
        ) from error


def wandb(
    folder: str,
    *,
    mode: Literal["offline", "online"],
    project: str,
    entity: str | None,
    tags: Sequence[str],
) -> list[Logger]:
    """``logger=wandb``: a run in ``folder/wandb``, uploaded only where the mode is ``online``.

    The runs of a sweep are one group, named after the sweep's directory. A run that is resumed in
    its directory goes on under its id, which is kept there in ``wandb_id``.

    Raises:
        ConfigError: online, but there is no key; W&B would ask for it, or fail much later.
    """
    import wandb as library

    if mode == "online" and not library.api.api_key:
        raise ConfigError(
            "logger.mode=online needs an account: run `wandb login` or set WANDB_API_KEY; "
            "logger.mode=offline needs none, and `wandb sync` uploads later"
        )
    run = Path(folder)
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name if hydra.mode is RunMode.MULTIRUN else None
    run_id = _run_id(run)
    # mode is given here and not as WandbLogger(offline=True), which would set it for the process.
    logger = WandbRun(
        save_dir=folder, project=project, entity=entity, group=group, name=run.name,
        id=run_id, tags=list(tags) or None, mode=mode, resume="allow",
        settings=library.Settings(console="off", silent=True),
    )  # fmt: skip
    return [MetricsFile(folder), logger]


def _run_id(run: Path) -> str:
    """One id for all the processes and all the resumptions of a run."""
    file = run / "wandb_id"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


@contextmanager
def finished(loggers: Sequence[Logger], config: Mapping[str, Any]) -> Iterator[None]:
    """Tell the loggers the options, and close them, however the run ends.

    Several runs in one process would otherwise log into the first one's W&B run, and one that
    failed would be shown as still running.
    """
    failed = True
    try:
        for logger in loggers:
            if isinstance(logger, WandbRun):
                logger.tell(config)
        yield
        failed = False
    finally:
        for logger in loggers:
            logger.finalize("failed" if failed else "success")
            if isinstance(logger, WandbRun):
                logger.close(exit_code=int(failed))


@rank_zero_only
def summarize(loggers: Sequence[Logger], summary: Mapping[str, Any]) -> None:
    """Leave the run's final figures where a table of runs shows them."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.experiment.summary.update(summary)


@rank_zero_only
def log_picture(loggers: Sequence[Logger], key: str, picture: Image, step: int) -> None:
    """Show a finished sheet in TensorBoard. (W&B gets the boxes themselves.)"""
    import numpy as np

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")
