"""Gradient accumulation: a step is several batches, and everything counts steps."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.ddp import train
from tests.test_resume import call, same

TWICE = "trainer.accumulate_grad_batches=2"


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["train/loss"]]


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of 6 steps of 2 batches of 2 images, with a checkpoint of each step."""
    done = train(
        module_path, "hydra.run.dir=whole", TWICE, "data.batch_size=2", "tau=0.008",
        "checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return module_path


def test_steps_are_counted_not_batches(folder: Path) -> None:
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert result["steps"] == 6
    assert [row["step"] for row in result["history"]] == [3, 6]
    rows = rows_of(folder / "whole")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    files = {file.name for file in (folder / "whole" / "checkpoints").glob("step_*")}
    assert files == {f"step_{step:06d}.ckpt" for step in range(1, 7)}
    state = torch.load(folder / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 6
    assert {int(s["step"]) for s in state["optimizer_states"][0]["state"].values()} == {6}


@pytest.mark.slow
def test_a_step_is_the_mean_of_its_batches(folder: Path) -> None:
    """With a learning rate of zero the weights stay, so that steps of one batch compare."""
    still = ("method=original", "optimizer=sgd", "optimizer.lr=0", "data.batch_size=2",
             "trainer.log_every_n_steps=1", "trainer.val_check_interval=99")  # fmt: skip
    for name, options in (
        ("ones", ["trainer.max_steps=4"]),
        ("pairs", ["trainer.max_steps=2", TWICE]),
    ):
        done = train(folder, f"hydra.run.dir={name}", *still, *options)
        assert done.returncode == 0, done.stderr
    ones, pairs = (
        [float(row["train/loss"]) for row in rows_of(folder / name)] for name in ("ones", "pairs")
    )
    assert pairs == pytest.approx([(ones[0] + ones[1]) / 2, (ones[2] + ones[3]) / 2], rel=1e-6)
    assert len(set(ones)) == 4


@pytest.mark.slow
def test_the_gradient_is_the_mean_of_those_of_its_batches(folder: Path) -> None:
    """SGD without momentum: a step of two batches moves the weights by the mean of two moves.

    The second batch alone is reached by a first step with a learning rate of nearly zero.
    """
    plain = ("method=original", "optimizer=sgd", "optimizer.momentum=0",
             "optimizer.weight_decay=0", "schedule=multistep", "schedule.milestones=[]",
             "data.batch_size=2", "trainer.val_check_interval=99")  # fmt: skip
    runs = {
        "none": ("optimizer.lr=0", "trainer.max_steps=1", "schedule.warmup_steps=0"),
        "pair": ("optimizer.lr=0.1", "trainer.max_steps=1", "schedule.warmup_steps=0", TWICE),
        "first": ("optimizer.lr=0.1", "trainer.max_steps=1", "schedule.warmup_steps=0"),
        # The first of two steps has the factor 0, the second 1.
        "second": ("optimizer.lr=0.1", "trainer.max_steps=2", "schedule.warmup_steps=1",
                   "schedule.warmup_start=0"),
    }  # fmt: skip
    weights = {}
    for name, options in runs.items():
        done = train(folder, f"hydra.run.dir={name}", *plain, *options)
        assert done.returncode == 0, done.stderr
        state = torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)
        weights[name] = torch.cat([v.flatten() for v in state["state_dict"].values()])
    moves = {name: value - weights["none"] for name, value in weights.items()}
    assert moves["first"].abs().max() > 1e-3
    assert not torch.allclose(moves["first"], moves["second"], atol=1e-4)
    expected = (moves["first"] + moves["second"]) / 2
    torch.testing.assert_close(moves["pair"], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_schedule_goes_by_steps(folder: Path) -> None:
    done = train(
        folder, "hydra.run.dir=plain", "tau=0.008", "data.batch_size=2",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rates = [[row["train/lr"] for row in rows_of(folder / run)] for run in ("whole", "plain")]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_never_stopped(folder: Path, step: int) -> None:
    run = folder / f"again{step}"
    shutil.copytree(folder / "whole", run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / f"step_{step:06d}.ckpt", checkpoints / "last.ckpt")
    done = call(folder, f"resume={run.name}")
    assert done.returncode == 0, done.stderr
    same(folder / "whole", run)


def test_a_batch_that_diverges_within_a_step_is_named(folder: Path) -> None:
    done = train(
        folder, "hydra.run.dir=diverged", TWICE, "data.batch_size=2", "optimizer=sgd",
        "optimizer.lr=1e12",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    result = json.loads((folder / "diverged" / "result.json").read_text())
    assert result["status"] == "diverged"
    assert len(result["divergence"]["image_ids"]) == 2
