"""Mining whose thresholds and cap follow from the annotation rate."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from comining.methods.comining_rate import binned
from comining.methods.method import RunInfo
from comining.methods.rate_estimator import RateEstimator
from comining.structures import Boxes
from tests.ddp import ROOT, TWO, train
from tests.helpers import batch_of, boxes, method
from tests.test_resume import call, same

SIZE = (64, 96)


class Said:
    """Predictions of two images; what is detected in them, the stand-in detector says."""

    num_classes, scores_per_image = 3, 12
    image_sizes = (SIZE, SIZE)


class Detecting(nn.Module):
    found: Boxes

    def predict(self, images: Any) -> Said:
        return Said()

    def candidates(self, predictions: Any, threshold: float) -> Boxes:
        return self.found[self.found.known_scores > threshold]


def ready(**options: Any) -> Any:
    chosen = method("comining_rate", **options)
    data: Any = SimpleNamespace(categories=SimpleNamespace(names=("a", "b", "c")))
    run = RunInfo(Path("unused"), torch.device("cpu"), max_steps=100)
    chosen.prepare(Detecting(), data, run)
    chosen.in_step = True  # as in a training step
    return chosen


def mine(chosen: Any, found: Boxes, annotated: Boxes, step: int = 60, pasted: Any = ()) -> Any:
    """One step in which the teacher detects ``found``; what the network does, nobody asks."""
    chosen.teacher.detector.found = found
    batch: Any = replace(batch_of(annotated), pasted=list(pasted))
    return chosen.supervise(None, None, {"original": []}, batch, step)


def scores_of(supervision: Any) -> list[float]:
    return [round(score, 3) for score in supervision.pseudo_labels["original"].scores.tolist()]


ANNOTATED = boxes([(0, 0, 20, 20, 0)], [(40, 0, 60, 20, 0)])


def detections(*scores: float, label: int = 0) -> Boxes:
    """Both annotations found with 0.9, and others in the first image that nobody annotated."""
    free = [(5 * n + 4, 34, 5 * n + 8, 60, label, s) for n, s in enumerate(scores)]
    return boxes([(0, 0, 20, 21, 0, 0.9), *free], [(40, 0, 60, 21, 0, 0.9)])


def test_as_many_are_mined_as_the_rate_tells_of() -> None:
    """Two annotated objects are found at 0.9. With 1/2 two others are expected, with 1/4 six."""
    found = detections(0.89, 0.88, 0.87, 0.86, 0.85, 0.84, 0.83)
    assert scores_of(mine(ready(rate=0.5, precision=1.0), found, ANNOTATED)) == [0.89, 0.88]
    assert len(scores_of(mine(ready(rate=0.25, precision=1.0), found, ANNOTATED))) == 6
    assert scores_of(mine(ready(rate=1.0), found, ANNOTATED)) == []
    # Four of which half are right are as many right ones as expected.
    assert len(scores_of(mine(ready(rate=0.5, precision=0.5), found, ANNOTATED))) == 4


def test_the_counts_of_a_step() -> None:
    supervision = mine(ready(rate=0.5, precision=1.0), detections(0.89, 0.5), ANNOTATED)
    assert supervision.added["original"] is supervision.pseudo_labels["original"]
    remaining = supervision.remaining_counts["original"]
    assert remaining.tolist() == [[12, 3, 3, 3, 2], [12, 1, 1, 1, 0]]


def test_scores_that_no_annotated_object_reaches_are_not_mined() -> None:
    """Where none is found, none is expected."""
    chosen = ready(rate=0.25, precision=1.0)
    assert scores_of(mine(chosen, detections(0.99, 0.98), ANNOTATED)) == [0.99, 0.98]
    assert chosen.thresholds()[0].item() == pytest.approx(0.3)
    assert scores_of(mine(ready(rate=0.25), detections(0.99, label=1), ANNOTATED)) == []


def test_wrong_detections_raise_the_threshold() -> None:
    """Step by step more of them: the threshold goes up, and at last nothing passes it."""
    chosen = ready(rate=0.5, precision=1.0)
    thresholds = []
    for count in (2, 4, 8, 8, 8):
        mine(chosen, detections(*[0.6 + 0.02 * n for n in range(count)]), ANNOTATED)
        thresholds.append(chosen.thresholds()[0].item())
    assert thresholds[0] == pytest.approx(0.3)
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] > 0.6


def test_no_more_than_expected_is_mined_in_the_long_run() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = ready(rate=0.5, precision=1.0)
    counts = []
    for _ in range(400):
        scores = (0.3 + 0.6 * torch.rand(9, generator=generator)).tolist()
        counts.append(len(scores_of(mine(chosen, detections(*scores), ANNOTATED))))
    assert 1.5 < sum(counts[100:]) / 300 < 2.3


def test_what_was_pasted_does_not_count() -> None:
    found = detections(0.8, 0.79, 0.78)
    options = {"rate": 0.5, "precision": 1.0}
    assert scores_of(mine(ready(**options), found, ANNOTATED, pasted=(1, 1))) == []
    assert scores_of(mine(ready(**options), found, ANNOTATED, pasted=(1, 0))) == [0.8]


def test_the_rate_is_the_high_end_of_the_estimate() -> None:
    """0.66 expects one other object for two that are found. Without an estimate, none."""
    chosen = ready(held_back=0.0, precision=1.0)
    assert scores_of(mine(chosen, detections(0.85), ANNOTATED)) == []
    chosen.estimate[:, 0] = torch.tensor([0.5, 0.4, 0.66])
    assert chosen.known_rates()[0].item() == pytest.approx(0.66)
    chosen.found.zero_()
    chosen.unmatched.zero_()
    assert scores_of(mine(chosen, detections(0.85, 0.8), ANNOTATED)) == [0.85]


def test_what_the_overview_images_ask_does_not_count() -> None:
    chosen = ready(rate=0.5, precision=1.0)
    mine(chosen, detections(0.89), ANNOTATED)
    before = {name: value.clone() for name, value in chosen.named_buffers()}
    chosen.in_step = False
    assert scores_of(mine(chosen, detections(0.8), ANNOTATED)) == [0.8]
    for name, value in chosen.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_nothing_is_mined_too_early() -> None:
    supervision = mine(ready(rate=0.5, mine_from=0.5), detections(0.8), ANNOTATED, step=49)
    assert supervision.pseudo_labels == {}
    assert supervision.added == {}


def test_objects_by_class_and_score() -> None:
    labels, scores = torch.tensor([0, 2, 2, 1]), torch.tensor([0.0, 0.55, 1.0, 0.05])
    counts = binned(labels, scores, torch.zeros(3, 10))
    assert counts.nonzero().tolist() == [[1, 0], [2, 5], [2, 9]]
    assert counts.sum() == 3


# -- whole runs --------------------------------------------------------------------------

MINING = (
    "method=comining_rate", "method.rate=0.1", "method.least_score=0.005", "method.mine_from=0.2",
    "method.precision=0.1", "data.paste=1", "checkpoint.every_n_steps=1",
    "pictures.every_n_steps=3",
)  # fmt: skip
# Long enough for scores that can be counted; the estimate is made at step 48.
ESTIMATING = (
    "method=annotation_rate", "method.held_back=0.3", "method.estimate_from=0.5",
    "method.estimate_until=0.8", "data.paste=1", "trainer.max_steps=60",
    "trainer.val_check_interval=60", "checkpoint.every_n_steps=15",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of each kind."""
    for name, options in (("mining", MINING), ("estimating", ESTIMATING)):
        done = train(module_path, f"hydra.run.dir={name}", *options)
        assert done.returncode == 0, done.stderr
        (module_path / f"{name}.txt").write_text(done.stdout)
    return module_path


def result_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def test_what_a_run_tells_of_the_rate(folder: Path) -> None:
    result = result_of(folder / "estimating")
    rate = result["rate"]
    assert rate["estimated"]
    assert rate["estimated"].keys() == rate["interval"].keys() <= rate["true"].keys()
    for name, (low, high) in rate["interval"].items():
        assert 0 < low <= rate["estimated"][name] <= high <= 1
        assert 0 < rate["true"][name] <= 1
    said = (folder / "estimating.txt").read_text()
    assert "% of the objects are annotated: " in said
    with (folder / "estimating" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("rate/all")]
    assert int(logged[0]["step"]) >= 48
    name, value = next(iter(rate["estimated"].items()))
    assert float(logged[-1][f"rate/{name}"]) == pytest.approx(value)
    mined = result_of(folder / "mining")
    assert mined["rate"] is None
    assert mined["mining"]["pseudo_labels_per_image"] > 0


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("mining", 2),
        pytest.param("mining", 4, marks=pytest.mark.slow),
        pytest.param("estimating", 45, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_never_stopped(folder: Path, name: str, step: int) -> None:
    run = folder / f"{name}{step}"
    shutil.copytree(folder / name, run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / f"step_{step:06d}.ckpt", checkpoints / "last.ckpt")
    done = call(folder, f"resume={run.name}")
    assert done.returncode == 0, done.stderr
    same(folder / name, run)
    assert result_of(run)["rate"] == result_of(folder / name)["rate"]


@pytest.mark.slow
def test_two_processes_mine_as_one(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", *MINING, *TWO)
    assert done.returncode == 0, done.stderr
    one, two = result_of(folder / "mining"), result_of(folder / "two")
    assert two["status"] == "finished"
    counts = [result["mining"]["pseudo_labels_per_image"] for result in (one, two)]
    assert counts[0] > 0
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


SCRIPT = """
import sys, torch, torch.distributed as dist
from comining.methods.rate_estimator import RateEstimator
from tests.test_comining_rate import counted

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
print([column.tolist() for column in counted([rank]).estimate(*ANNOTATED)])
"""


def counted(shares: list[int]) -> RateEstimator:
    """What was counted in these shares of the images."""
    estimator = RateEstimator(2)
    for share in shares:
        generator = torch.Generator().manual_seed(share)
        for name, most in (("spies", 9), ("unmatched", 30)):
            table = getattr(estimator, name)
            table += torch.randint(most, table.shape, generator=generator)
        estimator.images += 50 + share
    return estimator


@pytest.mark.slow
def test_two_processes_estimate_as_one(tmp_path: Path) -> None:
    annotated = "(torch.tensor([400.0, 90.0]), torch.tensor([80.0, 20.0]), 100)"
    script = SCRIPT.replace("ANNOTATED", annotated)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(tmp_path / "meet")],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    alone = counted([0, 1]).estimate(torch.tensor([400.0, 90.0]), torch.tensor([80.0, 20.0]), 100)
    assert said == [str([column.tolist() for column in alone])] * 2
    assert not alone.rate.isnan().any()
