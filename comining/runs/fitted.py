"""Options that are ``auto``: chosen from the training set before a run starts."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from typing import Any

from omegaconf import DictConfig, OmegaConf

from comining.config import instantiate, resolve
from comining.data.fitting import Given
from comining.program_options import check_training
from comining.runs.checkpoint import check_network
from comining.runs.start_weights import trained_anchor_scale

AUTO = "auto"
ANCHORS = "head.anchor_scale"
LARGE = 2**31 - 1
# Their values are chosen by comining.data.fitting.FitToData.
FITTED = (
    "data.min_size",
    "data.max_size",
    ANCHORS,
    "trainer.max_steps",
    "trainer.val_check_interval",
)
# The fields of Given.
GIVEN = ("data.min_size", "data.max_size", "trainer.max_steps")


@dataclass(frozen=True)
class Fitted:
    """Options that were chosen, with their values, and what keeps them from fitting better."""

    values: dict[str, int | float] = field(default_factory=dict)
    shortfall: str | None = None

    def lines(self) -> list[str]:
        """What to print at the start of a run; nothing if nothing was chosen."""
        if not self.values:
            return []
        options = " ".join(f"{name}={value}" for name, value in self.values.items())
        lines = [f"fitted to the training images: {options}"]
        return lines if self.shortfall is None else [*lines, f"  {self.shortfall}"]


def fit_to_data(cfg: DictConfig) -> Fitted:
    """Replace the options of :data:`FITTED` that are ``auto``; reads the training annotations.

    A network that ``weights=`` names keeps the anchors that it was trained with.

    Args:
        cfg: composed, changed in place.

    Raises:
        UserError: the data cannot be read, or an option is wrong.
    """
    wanted = [name for name in FITTED if OmegaConf.select(cfg, name) == AUTO]
    if ANCHORS in wanted and "anchor_scale" not in cfg.detector:
        # Nothing refers to it.
        OmegaConf.update(cfg, ANCHORS, None)
        wanted.remove(ANCHORS)
    if not wanted:
        return Fitted()
    # The data module needs numbers here, but what it reads does not depend on them.
    provisional = copy.deepcopy(cfg)
    for name in wanted:
        OmegaConf.update(provisional, name, 1 if name != "data.max_size" else LARGE)
    config = resolve(provisional)
    check_training(config)
    check_network(config)
    # With ckpt= the weights are in that checkpoint, and no other file is needed.
    trained = trained_anchor_scale(cfg.weights) if cfg.ckpt is None else None
    sparsity = instantiate(provisional.sparsity, "sparsity")
    data = instantiate(provisional.data, "data", sparsity=sparsity, seed=cfg.seed)
    fit = instantiate(provisional.fit, "fit")
    data.write_set()  # not again by the run, which could not log it then
    given = Given(*(None if name in wanted else OmegaConf.select(cfg, name) for name in GIVEN))
    with _logged_on_failure(logging.getLogger("comining.data")):
        annotations = data.annotations_to_train_on()
    values: dict[str, Any] = fit.values(*annotations, given)
    if trained is not None:
        values[ANCHORS] = trained
    chosen = {name: values[name] for name in wanted}
    for name, value in chosen.items():
        OmegaConf.update(cfg, name, value)
    return Fitted(chosen, fit.shortfall(*annotations, given, values))


@contextlib.contextmanager
def _logged_on_failure(logger: logging.Logger) -> Iterator[None]:
    """Log only if an error is raised: the run reads the data again, and logs the same then."""
    held = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    logger.addHandler(held)
    logger.propagate = False
    failed = True
    try:
        yield
        failed = False
    finally:
        logger.removeHandler(held)
        logger.propagate = True
        for record in held.buffer if failed else ():
            logger.handle(record)
