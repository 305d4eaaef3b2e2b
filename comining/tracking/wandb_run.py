"""Weights & Biases: figures by optimizer step, boxes in layers, configuration and summary."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from comining.errors import ConfigError
from comining.tracking.tracker import LabelledImage, Tracker

if TYPE_CHECKING:
    import wandb

# The name that Lightning gives it, so that charts of earlier runs fit.
STEP = "trainer/global_step"


class WandbRun(Tracker):
    """Logs to a W&B run, whose files are in ``folder/wandb``.

    The runs of a sweep are one group, named after the sweep's directory. A run that is resumed in
    its directory continues the same W&B run, whose id is in ``folder/wandb_id``.

    Args:
        folder: the run directory.
        mode: ``online`` uploads while training; after ``offline`` runs ``wandb sync`` does.
        project, entity, tags: as in :func:`wandb.init`.

    Raises:
        ConfigError: online without an API key, which W&B would ask for in the terminal.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        mode: Literal["offline", "online"],
        project: str,
        entity: str | None,
        tags: Sequence[str],
    ):
        self.folder = Path(folder)
        self.mode = mode
        self.project = project
        self.entity = entity
        self.tags = tags
        self._run: wandb.Run  # from start on
        if mode == "online":
            import wandb

            if not wandb.api.api_key:
                raise ConfigError(
                    "logger.mode=online needs an account: run `wandb login` or set WANDB_API_KEY; "
                    "logger.mode=offline needs none, and `wandb sync` uploads later"
                )

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        """Create or continue the W&B run.

        Raises:
            ConfigError: W&B refuses, or cannot be reached.
        """
        import wandb

        hydra = HydraConfig.get()
        group = Path(hydra.sweep.dir).name if hydra.mode is RunMode.MULTIRUN else None
        try:
            # reinit: a run that another one of a sweep in this process left open is not reused.
            self._run = wandb.init(
                dir=str(self.folder), project=self.project, entity=self.entity, group=group,
                name=self.folder.name, id=run_id(self.folder), tags=list(self.tags) or None,
                mode=self.mode, resume="allow", reinit=True,
                config=dict(config), allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(f"logger=wandb: {' '.join(str(error).split())}") from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)

    def figures(self, row: Mapping[str, float], step: int) -> None:
        # With the step given, W&B ignores steps that a resumed run repeats.
        self._run.log({**row, STEP: step}, step=step)

    def boxes(
        self, key: str, images: Sequence[LabelledImage], step: int, class_names: Sequence[str]
    ) -> None:
        import wandb

        names = dict(enumerate(class_names))
        logged = [
            wandb.Image(one.image.permute(1, 2, 0).cpu().numpy(), boxes=_box_layers(one, names))
            for one in images
        ]
        self._run.log({key: logged, STEP: step}, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _box_layers(labelled: LabelledImage, names: Mapping[int, str]) -> dict[str, Any]:
    """The layers of an image in W&B's format, by the name of their style."""
    layers = {}
    for layer, labels in zip(labelled.layers, labelled.labels, strict=True):
        rows = zip(layer.boxes.tolist(), labels.tolist(), strict=True)
        layers[layer.style.name.replace(" ", "_")] = {
            "box_data": [
                {
                    "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                    "domain": "pixel",
                    "class_id": label,
                    "box_caption": names[label],
                }
                for box, label in rows
            ],
            "class_labels": names,
        }
    return layers


def run_id(folder: Path) -> str:
    """The id of a run directory, 8 hexadecimal characters; created where there is none yet.

    Raises:
        ConfigError: ``wandb_id`` holds something else.
    """
    file = folder / "wandb_id"
    try:
        with file.open("x", encoding="utf-8") as created:
            created.write(secrets.token_hex(4))
    except FileExistsError:
        pass
    for _ in range(20):
        content = file.read_text(encoding="utf-8", errors="replace")
        if re.fullmatch("[0-9a-f]{8}", content):
            return content
        time.sleep(0.05)  # another process may have created the file and not written it yet
    raise ConfigError(f"{file}: {content[:20]!r} is no run id, 8 hexadecimal characters")
