"""The benefit of a round of review: AP after training on a perfect reviewer's decisions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comining.completion.completed_set import write_coco
from comining.completion.decisions import Decisions
from comining.completion.judge import Truth, right_ones
from comining.completion.proposal_folder import ProposalFolder
from comining.completion.review_order import in_order
from comining.completion.reviewed_set import reviewed_set
from comining.completion.training_options import (
    data_options,
    recipe_of,
    write_evaluated_splits,
)
from comining.config import CONFIG_FOLDER
from comining.data.datamodule import DetectionData
from comining.errors import DataError
from comining.runs.command_line import quoted
from comining.runs.result import RunResult, find_files

ROUNDS = "rounds"  # in the folder of proposals


@dataclass(frozen=True)
class RoundPlan:
    """The rounds of review to measure.

    Args:
        counts: numbers of decisions.
        orders: of the review.
        correct_boxes: see :func:`right_ones`.
        seeds: of the trainings.
        launcher: a choice of ``conf/launcher`` that trains several runs at once; None: one by one.
    """

    counts: Sequence[int]
    orders: Sequence[str]
    correct_boxes: bool
    seeds: Sequence[int]
    launcher: str | None


@dataclass(frozen=True)
class Round:
    """A training set after some decisions, and the runs on it.

    Args:
        order: of the review; None without decisions.
        decisions: their number.
        found: the number of missing objects that they recovered.
        ap: AP of each run, by seed.
    """

    order: str | None
    decisions: int
    found: int
    ap: Mapping[int, float]


def perfect_decisions(
    folder: ProposalFolder, truth: Truth, order: str, count: int, correct_boxes: bool = False
) -> tuple[Decisions, int]:
    """The decisions of a perfect reviewer on the first proposals of an order.

    Args:
        correct_boxes: see :func:`right_ones`.

    Returns:
        The decisions, and how many missing objects they recover.
    """
    asked = in_order(folder.proposals, order)[:count]
    _, decided = right_ones(asked, truth, correct_boxes)
    found = sum(one.decision != "reject" for one in decided)
    return Decisions({one.id: one for one in decided}), found


def judge_rounds(
    folder: ProposalFolder,
    truth: Truth,
    config: Mapping[str, Any],
    started_in: Path,
    data: DetectionData,
    plan: RoundPlan,
) -> tuple[str, list[Round]]:
    """Train without decisions, and after the first ones of each order.

    Finished runs are kept, so that an interrupted command continues.

    Args:
        config: all options of the trainings behind the proposals.
        started_in: the base of its relative paths.
        data: of these trainings.
        plan: what to measure.

    Returns:
        The split of the AP, and the rounds.

    Raises:
        DataError: a training failed.
    """
    base = (folder.path / ROUNDS).absolute()
    base.mkdir(exist_ok=True)
    with contextlib.chdir(started_in):
        splits, split = write_evaluated_splits(base, data)
    recipe = recipe_of(folder.path)
    overrides = [one for one in recipe.overrides if not one.startswith("seed=")]
    options = [
        *data_options(config), "data.root=/", "data.annotated=fields", "data.check=exist", *splits,
    ]  # fmt: skip
    rounds = []
    for order, count in [(None, 0), *((order, n) for n in plan.counts for order in plan.orders)]:
        decisions, found = Decisions(), 0
        if order is not None:
            decisions, found = perfect_decisions(folder, truth, order, count, plan.correct_boxes)
        name = "none" if order is None else f"{order}_{count}" + "_corrected" * plan.correct_boxes
        file = base / f"{name}.json"
        write_coco(file, reviewed_set(folder, decisions).content)
        training = [
            *overrides, *options, f"data.train_annotations={quoted(str(file))}",
            f"data.train_images={quoted(str(folder.images.absolute()))}",
        ]  # fmt: skip
        ap = _train(training, base / name, recipe.folder, split, plan)
        rounds.append(Round(order, len(decisions.of_proposal), found, ap))
    return split, rounds


def _train(
    options: Sequence[str],
    sweep: Path,
    folder: Path,
    split: str,
    plan: RoundPlan,
) -> dict[int, float]:
    """The AP of a run for each seed."""
    command = [
        sys.executable, str(CONFIG_FOLDER.parent / "train.py"), "-m", *options,
        f"seed={','.join(map(str, plan.seeds))}", f"hydra.sweep.dir={quoted(str(sweep))}",
        "hydra.sweep.subdir=seed_${seed}", "skip_finished=true",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    if plan.launcher is not None:
        command.append(f"launcher={plan.launcher}")
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "HYDRA_FULL_ERROR": "0"}, check=False
    )
    found = {}
    for file in find_files(sweep, "result.json"):
        result = RunResult.read(file)
        metrics = result.test if split == "test" else result.metrics
        ap = None if metrics is None else metrics["AP"]
        if result.status == "finished" and result.seed is not None and ap is not None:
            found[result.seed] = ap
    missing = [seed for seed in plan.seeds if seed not in found]
    if done.returncode or missing:
        raise DataError(
            f"{sweep}: a training did not finish (train.py ended with {done.returncode}); the same "
            "command continues where it stopped"
        )
    return {seed: found[seed] for seed in plan.seeds}


def round_lines(split: str, rounds: Sequence[Round], correct_boxes: bool = False) -> list[str]:
    """Rounds as Markdown."""
    seeds = list(rounds[0].ap)
    boxes = "corrects boxes" if correct_boxes else "accepts boxes as they are proposed"
    lines = [
        "",
        f"AP ({split}) after training on the decisions of a reviewer who makes no mistakes and "
        f"{boxes}, seeds {', '.join(map(str, seeds))}",
        "",
        "| order | decisions | recovered objects | AP of each seed | mean |",
        "|---|---|---|---|---|",
    ]
    for one in rounds:
        each = ", ".join(f"{ap:.1f}" for ap in one.ap.values())
        mean = sum(one.ap.values()) / len(one.ap)
        lines.append(
            f"| {one.order or '-'} | {one.decisions} | {one.found} | {each} | {mean:.1f} |"
        )
    return lines
