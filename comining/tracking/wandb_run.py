"""Weights & Biases: figures by optimizer step, boxes in layers, configuration and summary."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from comining.errors import ConfigError
from comining.tracking.tracker import LabelledImage, Tracker

if TYPE_CHECKING:
    import wandb

# The name that Lightning gives it, so that charts of earlier runs fit.
STEP = "trainer/global_step"
MODES = ("offline", "online", "disabled")
# Groups whose choices a dashboard compares runs by; the configuration has them as NAME_name.
NAMED_GROUPS = ("method", "sparsity", "detector")
# W&B's variables that would give a run another id than its directory has.
REFUSED = ("WANDB_RUN_ID", "WANDB_RESUME")


class WandbRun(Tracker):
    """Logs to a W&B run, whose files are in ``directory/wandb``.

    The runs of a sweep are one group, named after the sweep's directory. A run that is resumed in
    its directory continues the same W&B run, whose id is in ``folder/wandb_id``.

    Args:
        folder: the run directory.
        mode: ``online`` uploads while training; after ``offline`` runs ``wandb sync`` does;
            ``disabled`` logs nothing.
        project, entity, tags: as in :func:`wandb.init`.
        group: None for the name of the sweep's directory, if the run belongs to a sweep.
        name: None for that of the run directory.
        directory: made where it is missing.

    Raises:
        ConfigError: an unknown mode, a variable of W&B that contradicts the run directory, or
            online without an API key, which W&B would ask for in the terminal.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        mode: str,
        project: str,
        entity: str | None,
        group: str | None,
        name: str | None,
        directory: str,
        tags: Sequence[str],
    ):
        self.folder = Path(folder)
        self.mode = mode
        self.project = project
        self.entity = entity
        self.group = group
        self.name = name
        self.directory = Path(directory)
        self.tags = tags
        self._run: wandb.Run  # from start on
        if mode not in MODES:
            raise ConfigError(
                f"logger.mode={mode!r} must be one of {', '.join(MODES)} (its default is the "
                "variable WANDB_MODE)"
            )
        contradicting = [variable for variable in REFUSED if os.environ.get(variable)]
        if contradicting and mode != "disabled":
            raise ConfigError(
                f"{contradicting[0]}={os.environ[contradicting[0]]!r} cannot be used: the id of a "
                f"W&B run is in its run directory, so that resume=DIR continues it; unset "
                f"{contradicting[0]}"
            )
        if mode == "online":
            import wandb

            if not wandb.api.api_key:
                raise ConfigError(
                    "logger.mode=online needs an account: run `wandb login` or set WANDB_API_KEY; "
                    "logger.mode=offline (or WANDB_MODE=offline) needs none, and `wandb sync` "
                    "uploads later"
                )

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        """Create or continue the W&B run.

        Raises:
            ConfigError: W&B refuses, or cannot be reached.
        """
        import wandb

        hydra = HydraConfig.get()
        sweep = Path(hydra.sweep.dir).name if hydra.mode is RunMode.MULTIRUN else None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)  # W&B would write to another one
            # reinit: a run that another one of a sweep in this process left open is not reused.
            self._run = wandb.init(
                dir=str(self.directory), project=self.project, entity=self.entity,
                group=self.group or sweep, name=self.name or self.folder.name,
                id=run_id(self.folder), tags=list(self.tags) or None,
                mode=self.mode, resume="allow", reinit=True,  # type: ignore[arg-type]  # in MODES
                config={**config, **choices(config, hydra.runtime.choices)},
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except (wandb.Error, OSError) as error:
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


def choices(config: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The keys by which a dashboard groups and compares runs, for the top of the configuration.

    The configuration itself has the options of each group, but not the name of the choice.

    Args:
        config: all options.
        chosen: the choice of every group.
    """
    names = {f"{group}_name": chosen.get(group) for group in NAMED_GROUPS}
    method = config.get("method")
    threshold = method.get("score_threshold") if isinstance(method, Mapping) else None
    return {**names, "score_threshold": threshold}


def _box_layers(labelled: LabelledImage, names: Mapping[int, str]) -> dict[str, Any]:
    """The layers of an image in W&B's format, by the name of their style."""
    layers = {}
    for layer, labels in zip(labelled.layers, labelled.labels, strict=True):
        of_layer = dict(names)
        if (labels < 0).any():  # regions to ignore
            of_layer[-1] = "every class"
        rows = zip(layer.boxes.tolist(), labels.tolist(), strict=True)
        layers[layer.style.name.replace(" ", "_")] = {
            "box_data": [
                {
                    "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                    "domain": "pixel",
                    "class_id": label,
                    "box_caption": of_layer[label],
                }
                for box, label in rows
            ],
            "class_labels": of_layer,
        }
    return layers


def run_id(folder: Path) -> str:
    """The id of a run directory, 8 hexadecimal characters; created where there is none yet.

    Raises:
        ConfigError: ``wandb_id`` holds something else.
    """
    file = folder / "wandb_id"
    # It may have been made when the directory was claimed, or by an earlier start.
    with contextlib.suppress(FileExistsError), file.open("x", encoding="utf-8") as created:
        created.write(secrets.token_hex(4))
    for _ in range(20):
        content = file.read_text(encoding="utf-8", errors="replace")
        if re.fullmatch("[0-9a-f]{8}", content):
            return content
        time.sleep(0.05)  # another process may have created the file and not written it yet
    raise ConfigError(f"{file}: {content[:20]!r} is not a run id of 8 hexadecimal characters")
