"""What goes wrong on one process ends all of them, in the same way and with the record kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ddp import ROOT, TINY, TWO, free_port, train

SCRIPT = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from comining.data.formats.coco import read_coco
from comining.errors import DivergedError
from comining.evaluation.coco_evaluator import CocoEvaluator
from comining.structures import Boxes

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
evaluator = CocoEvaluator(read_coco(Path(sys.argv[3])))
bad = float("nan") if rank == int(sys.argv[4]) else 9.0
box = torch.tensor([[1.0, 2.0, bad, 14.0]])
evaluator.update([rank + 1], Boxes.of_images([box], [torch.zeros(1, dtype=torch.int64)],
                                             [torch.ones(1)]))
try:
    print("metrics", evaluator.gather()["AP"])
except DivergedError as error:
    print("diverged:", error)
"""


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_detections_that_are_not_finite_on_one_process_are_an_error_on_both(
    tmp_path: Path, bad: int
) -> None:
    from tests.helpers import write_coco

    file = write_coco(tmp_path, [[(1, 2, 8, 12, 1)], [(1, 2, 8, 12, 1)]])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "meet"), str(file), str(bad)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    said = [out.splitlines()[-1] if out else err for out, err in outputs]
    if bad == 2:  # none
        assert said[0] == said[1]
        assert said[0].startswith("metrics")
    else:
        assert said == [f"diverged: detections of image {bad + 1} are not finite"] * 2


# A loss that is infinite on the second process only, while all gradients stay finite.
METHOD = """
import torch
import torch.distributed as dist
from comining.methods.method import Method


class OneRank(Method):
    def forward(self, detector, views, batch, step):
        result = super().forward(detector, views, batch, step)
        if step == 2 and dist.get_rank() == 1:
            result.losses["original/box"] = result.losses["original/box"] + torch.inf
        return result
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process_stops_both_and_is_recorded(
    tmp_path: Path,
) -> None:
    """Rank 0 writes the record, and what it says is known to rank 1 alone."""
    for name in ("comining", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "comining" / "methods" / "one_rank.py").write_text(METHOD)
    yaml = "_target_: comining.methods.one_rank.OneRank\nviews: [original]\n"
    (tmp_path / "conf" / "method" / "one_rank.yaml").write_text(yaml)
    done = subprocess.run(
        [sys.executable, "train.py", *TINY, *TWO, "method=one_rank", "hydra.run.dir=run",
         f"data.root={tmp_path / 'shapes'}", "checkpoint.every_n_steps=1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["step"]) == ("diverged", 2)
    assert "the loss at step 2 is not finite" in result["error"]
    assert result["divergence"]["losses"]["original/box"] == "inf"
    assert result["divergence"]["gradient_norm"] not in ("nan", "inf")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A teacher, and a run by its pseudo-labels in one process."""
    done = train(module_path, "hydra.run.dir=teacher", "method=original")
    assert done.returncode == 0, done.stderr
    done = train(module_path, "hydra.run.dir=one", *LABELS)
    assert done.returncode == 0, done.stderr
    return module_path


LABELS = ("method=pseudo_label", "tau=0.008", "method.teacher=teacher/checkpoints/last.ckpt",
          "data.val_batch_size=1")  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_the_labelling_and_train_as_one(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", *LABELS, *TWO)
    assert done.returncode == 0, done.stderr
    labels, results = (
        [json.loads((folder / run / name).read_text()) for run in ("one", "two")]
        for name in ("pseudo_labels.json", "result.json")
    )
    assert len(labels[0]) > 20
    assert labels[1] == labels[0]
    assert results[1]["metrics"] == results[0]["metrics"]
    assert results[1]["mining"] == pytest.approx(results[0]["mining"], nan_ok=True)
    assert (
        done.stderr.count("boxes beyond the annotations")
        + done.stdout.count("boxes beyond the annotations")
        == 1
    )


@pytest.mark.slow
def test_labelling_that_fails_on_one_process_ends_both(folder: Path, tmp_path: Path) -> None:
    """The pixels of one image are broken behind a whole header, which is found at decoding."""
    shutil.copytree(folder / "shapes", tmp_path / "shapes")
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    picture = sorted((tmp_path / "shapes" / "train").glob("*.jpg"))[1]
    picture.write_bytes(picture.read_bytes()[:700])
    done = train(tmp_path, "hydra.run.dir=broken", *LABELS, *TWO, timeout=200)
    assert done.returncode not in (0, None)
    assert picture.name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_fewer_validation_images_than_processes(tmp_path: Path) -> None:
    small = ("data.prepare.val_images=1", "data.prepare.test_images=1", "method=original")
    results = []
    for name, options in (("one", ()), ("two", TWO)):
        done = train(tmp_path, f"hydra.run.dir={name}", *small, *options)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[1]["metrics"] == results[0]["metrics"]
    assert results[1]["test"] == results[0]["test"]
