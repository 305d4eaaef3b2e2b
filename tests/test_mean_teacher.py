"""A method with state: the averaged copy, and that it survives a resume to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from comining.methods.method import RunInfo
from comining.methods.teacher import Teacher
from comining.runs.checkpoint import load_detector
from tests.ddp import TWO, train
from tests.helpers import batch_of, boxes, detector, images, method
from tests.test_ddp import compare
from tests.test_resume import call, same

OPTIONS = ("method=mean_teacher", "tau=0.008", "method.momentum=0.9", "checkpoint.every_n_steps=1")


class Tiny(nn.Module):
    """Stands in for a detector: a weight, a float buffer and a counter."""

    def __init__(self, value: float, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([10 * value]))
        self.register_buffer("seen", torch.tensor(count))


def test_the_average_by_hand() -> None:
    student = Tiny(1.0, 0)
    teacher = Teacher(student, momentum=0.6)  # type: ignore[arg-type]
    for step, value in ((1, 3.0), (2, 4.0), (3, 5.0)):
        student.weight.data.fill_(value)
        student.mean.fill_(10 * value)
        student.seen += 1
        teacher.update(student, step)  # type: ignore[arg-type]
    # min(.6, 1 - 1 / (step + 1)) is 1/2, then .6 and .6
    expected = 0.5 * 1.0 + 0.5 * 3.0
    expected = 0.6 * expected + 0.4 * 4.0
    expected = 0.6 * expected + 0.4 * 5.0
    assert teacher.detector.weight.item() == pytest.approx(expected)
    assert teacher.detector.mean.item() == pytest.approx(10 * expected)
    assert teacher.detector.seen.item() == 3


def test_a_teacher_is_no_part_of_the_training() -> None:
    student = Tiny(1.0, 0)
    teacher = Teacher(student, momentum=0.9)  # type: ignore[arg-type]
    teacher.train()
    assert not teacher.training
    assert not teacher.detector.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert student.weight.requires_grad
    assert student.training


def test_the_teacher_mines_in_the_original_and_the_student_learns_on_its_views() -> None:
    built = detector("retinanet", 3)
    chosen = method("mean_teacher", score_threshold=0.008)
    chosen.prepare(built, None, RunInfo(Path("unused"), torch.device("cpu")))
    noise = images(4)
    views = {"original": noise[:2], "augmented": noise[2:]}
    batch = batch_of(boxes([(8, 8, 40, 40, 0)], []))
    with torch.no_grad():  # student and teacher differ from here on
        for parameter in built.parameters():
            parameter.add_(0.01)
    predictions = built.predict(views["augmented"])
    added, mined, remaining = chosen.supervise(built, predictions, views, batch, step=0)
    teacher = chosen.teacher.detector
    expected, _ = chosen.miner(teacher, teacher.predict(noise[:2]), batch.annotated)
    assert len(expected) > 0
    assert list(mined) == list(remaining) == ["original"]
    assert torch.equal(mined["original"].boxes, expected.boxes)
    assert list(added) == ["augmented"]
    assert len(added["augmented"]) == len(expected)
    assert chosen.deployed(built) is teacher
    assert method("mean_teacher", deploy="student").deployed(built) is built
    none = method("mean_teacher", start_step=5).supervise(built, predictions, views, batch, 4)
    assert none.targets("augmented", batch.annotated) is batch.annotated
    assert none.pseudo_labels == {}


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of 6 steps, with a checkpoint of each."""
    done = train(module_path, "hydra.run.dir=whole", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return module_path


def test_killed_and_resumed_equals_never_stopped(folder: Path) -> None:
    run = folder / "again"
    shutil.copytree(folder / "whole", run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / "step_000002.ckpt", checkpoints / "last.ckpt")
    done = call(folder, "resume=again")
    assert done.returncode == 0, done.stderr
    same(folder / "whole", run)
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("method.teacher.detector.") for name in state)


def test_the_checkpoint_means_the_teacher(folder: Path) -> None:
    """What is loaded for use is the network that was evaluated, not the student."""
    file = folder / "whole" / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)["state_dict"]
    loaded, _ = load_detector(file)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[f"method.teacher.detector.{name}"])
    student = [state[f"detector.{name}"] for name in loaded.state_dict()]
    assert not all(map(torch.equal, loaded.state_dict().values(), student))
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert result["mining"]["pseudo_labels_per_image"] > 0


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", *OPTIONS, *TWO)
    assert done.returncode == 0, done.stderr
    compare(folder / "whole", folder / "two", mining=20)
