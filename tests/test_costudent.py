"""Co-Student: every step by hand, and that a run resumes and shards exactly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comining.config import instantiate
from comining.data.strong_view import Warp
from comining.detectors.dense import DenseDetector
from comining.methods.costudent import denoise
from comining.methods.method import RunInfo
from comining.methods.teacher import Teacher
from comining.structures import Batch, Boxes, DensePredictions, Images, Knowledge
from tests.ddp import TWO, train
from tests.helpers import assert_equal, batch_of, boxes, composed, detector, images, method
from tests.test_ddp import compare
from tests.test_resume import call, same

RUN = RunInfo(Path("unused"), torch.device("cpu"), seed=3)
STILL = Warp(0.0, (0.0, 0.0))
SHIFTED = Warp(0.1, (0.0, 0.0))  # by 9.6 px in images of 96


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def batch_with_images(annotated: Boxes) -> Batch:
    pictures = images(annotated.num_images)
    return replace(batch_of(annotated), images=Images.of(pictures))


def views_of(chosen: Any, batch: Batch) -> dict[str, list[Tensor]]:
    original = list(batch.images)
    return {"original": original, "augmented": original, **chosen.own_views(original, batch)}


def ready(built: DenseDetector, warp: Warp = STILL, **options: Any) -> Any:
    chosen = method("costudent", **options)
    chosen.prepare(built, None, RUN)
    chosen.strong.warp = lambda position, seed: warp
    return chosen


def finding(chosen: Any, students: Boxes, teacher: Boxes) -> None:
    """Both networks find these: those of the weak images and then of the strong ones."""
    chosen.detections = lambda net, *_: teacher if net is chosen.teacher.detector else students


def supervise(chosen: Any, built: DenseDetector, batch: Batch) -> Any:
    views = views_of(chosen, batch)
    with torch.no_grad():
        predictions = built.predict([*views["augmented"], *views["strong"]])
    return chosen.supervise_unknown(built, predictions, views, batch, 0)


# -- the teacher -------------------------------------------------------------------------


class Tiny(nn.Module):
    """A weight and the running mean of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("mean", torch.tensor([10.0]))


def test_parameters_are_averaged_and_statistics_are_taken() -> None:
    student = Tiny()
    teacher = Teacher(student, 0.999, average_buffers=False)  # type: ignore[arg-type]
    expected = 1.0
    for step, value in ((1, 3.0), (2, 4.0), (3, 8.0)):
        student.weight.data.fill_(value)
        student.mean.fill_(10 * value)
        teacher.update(student, step)  # type: ignore[arg-type]
        # Before step t: m = min(.999, 1 - 1 / (t + 1)), which is 1/2, 2/3, 3/4.
        expected = (1 - 1 / (step + 1)) * expected + value / (step + 1)
        assert teacher.detector.weight.item() == pytest.approx(expected)
        assert teacher.detector.mean.item() == 10 * value
    teacher.update(student, 5000)  # type: ignore[arg-type]
    expected = 0.999 * expected + 0.001 * 8.0
    assert teacher.detector.weight.item() == pytest.approx(expected)


def test_the_teacher_begins_as_the_student_who_is_evaluated() -> None:
    built = detector("retinanet", 3, "backbone=resnet18", "backbone.norm=batch",
                     "backbone.trainable_layers=5")  # fmt: skip
    chosen = ready(built)
    for mine, theirs in zip(
        chosen.teacher.detector.state_dict().values(), built.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert not chosen.teacher.average_buffers
    assert chosen.teacher.momentum == 0.999
    assert chosen.deployed(built) is built


# -- step 1 ------------------------------------------------------------------------------


def sure(built: DenseDetector, probabilities: list[float]) -> DensePredictions:
    """Predictions for one image in which so many far anchors have these probabilities."""
    with torch.no_grad():
        predictions = built.predict(images(1))
    predictions.logits.fill_(-9)
    predictions.deltas.fill_(1.0 if predictions.auxiliary else 0.0)
    for column in predictions.auxiliary.values():
        column.fill_(torch.tensor(0.25).logit().item())
    for n, probability in enumerate(probabilities):
        centre = torch.tensor([20.0 + 28 * n, 30.0])
        middle = (predictions.anchors[:, :2] + predictions.anchors[:, 2:]) / 2
        nearest = (middle - centre).square().sum(1).argmin()
        predictions.logits[0, nearest, n] = torch.tensor(probability).logit()
    return predictions


def test_thresholds_are_of_the_class_probability_and_ranks_of_the_detectors_score(
    built: DenseDetector,
) -> None:
    """The students' .5, the teacher's .6; a centerness of .25 halves a root, and rules out none."""
    chosen = ready(built)
    predictions = sure(built, [0.45, 0.55, 0.64])
    student = chosen.detections(built, predictions, chosen.score_threshold)
    teacher = chosen.detections(built, predictions, chosen.teacher_score_threshold)
    assert sorted(student.labels.tolist()) == [1, 2]
    assert teacher.labels.tolist() == [2]
    score = (0.64 * 0.25) ** 0.5 if predictions.auxiliary else 0.64
    assert teacher.known_scores.item() == pytest.approx(score, abs=1e-5)
    assert len(chosen.detections(built, sure(built, []), 0.5)) == 0


def test_boxes_of_one_class_are_suppressed_from_an_overlap_of_point_six_on(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ready(built, max_per_image=2)
    rows = [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 5.9, 0, 0.8), (0, 0, 10, 6.1, 0, 0.7),
            (0, 0, 10, 10, 1, 0.6)]  # fmt: skip
    monkeypatch.setattr(built, "candidates", lambda predictions, threshold: boxes(rows))
    kept = chosen.detections(built, sure(built, []), 0.5)
    # .7 overlaps .9 by .61; .6 is of another class, and third of two.
    assert kept.known_scores.tolist() == pytest.approx([0.9, 0.8])


# -- step 2 ------------------------------------------------------------------------------

STUDENT = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        # IoU .8 and a higher score: place, class and score are the teacher's.
        ([(0, 0, 10, 8, 1, 0.8)], [(0, 0, 10, 8, 1, 0.8)]),
        # As high a score is enough.
        ([(0, 0, 10, 8, 1, 0.7)], [(0, 0, 10, 8, 1, 0.7)]),
        # A lower one is not; and the box is not added, because it overlaps.
        ([(0, 0, 10, 8, 1, 0.69)], [(*STUDENT, 0, 0.7)]),
        # IoU .5 exactly: neither above nor below.
        ([(0, 0, 10, 5, 1, 0.9)], [(*STUDENT, 0, 0.7)]),
        # IoU .4: another object.
        ([(0, 0, 10, 4, 1, 0.6)], [(*STUDENT, 0, 0.7), (0, 0, 10, 4, 1, 0.6)]),
        ([(50, 50, 60, 60, 0, 0.6)], [(*STUDENT, 0, 0.7), (50, 50, 60, 60, 0, 0.6)]),
        # Of two that may, the one that overlaps more.
        ([(0, 0, 10, 6, 1, 0.9), (0, 0, 10, 9, 2, 0.8)], [(0, 0, 10, 9, 2, 0.8)]),
        # The one that overlaps more may not.
        ([(0, 0, 10, 9, 2, 0.6), (0, 0, 10, 6, 1, 0.9)], [(0, 0, 10, 6, 1, 0.9)]),
        ([], [(*STUDENT, 0, 0.7)]),
    ],
)
def test_denoising_by_hand(
    teacher: list[tuple[float, ...]], expected: list[tuple[float, ...]]
) -> None:
    """In the second image of three; the first has what must stay, the third only a teacher's."""
    other = (0, 0, 10, 9, 2, 0.95)
    student = boxes([other], [(*STUDENT, 0, 0.7)], [])
    taught = boxes([], teacher, [other])
    assert_equal(denoise(student, taught, 0.5), boxes([other], expected, [other]))


def test_denoising_nothing() -> None:
    nothing, some = boxes([], [], scores=True), boxes([(*STUDENT, 0, 0.7)], [])
    assert_equal(denoise(nothing, some, 0.5), some)
    assert_equal(denoise(some, nothing, 0.5), some)
    assert_equal(denoise(nothing, nothing, 0.5), nothing)


def test_a_teachers_box_replaces_every_box_that_it_overlaps() -> None:
    student = boxes([(0, 0, 10, 10, 0, 0.6), (0, 0, 10, 9, 1, 0.7), (40, 40, 50, 50, 2, 0.9)])
    taught = boxes([(0, 0, 10, 9.5, 2, 0.8)])
    expected = boxes([*[(0, 0, 10, 9.5, 2, 0.8)] * 2, (40, 40, 50, 50, 2, 0.9)])
    assert_equal(denoise(student, taught, 0.5), expected)


def test_the_teachers_boxes_are_moved_into_the_strong_picture(built: DenseDetector) -> None:
    """It corrects both students; what has left the strong picture is not added there."""
    chosen = ready(built, SHIFTED)
    batch = batch_with_images(boxes([]))
    seen_weak, seen_strong = (10, 10, 30, 30, 0, 0.6), (19.6, 10, 39.6, 29, 0, 0.6)
    taught = (10, 10, 30, 28, 1, 0.9)
    gone = (88, 40, 95, 50, 2, 0.9)  # of whose 7 px none is left
    finding(chosen, boxes([seen_weak], [seen_strong]), boxes([taught, gone]))
    supervision = supervise(chosen, built, batch)
    assert_equal(supervision.pseudo_labels["augmented"], boxes([taught, gone]))
    strong = supervision.pseudo_labels["strong"]
    assert strong.labels.tolist() == [1]
    torch.testing.assert_close(strong.boxes, torch.tensor([taught[:4]]).float(), atol=1e-4, rtol=0)
    assert strong.known_scores.tolist() == pytest.approx([0.9])


# -- step 3 ------------------------------------------------------------------------------


def test_each_view_is_supervised_by_the_other(built: DenseDetector) -> None:
    """What the strong one found comes back to where it is; what is annotated is dropped."""
    chosen = ready(built, SHIFTED)
    annotated = boxes([(60, 10, 80, 30, 0)])
    batch = batch_with_images(annotated)
    in_weak = (10, 10, 30, 30, 1, 0.7)
    weak = [in_weak, (60, 10, 80, 19, 0, 0.9), (60, 10, 80, 30, 2, 0.6)]  # IoU .45; another class
    strong = [(49.6, 40, 69.6, 60, 2, 0.8), (69.6, 10, 89.6, 17, 0, 0.9)]  # IoU .35 when back
    finding(chosen, boxes(weak, strong), boxes([], scores=True))
    added, mined, _ = supervise(chosen, built, batch)
    assert_equal(mined["augmented"], boxes([in_weak, (60, 10, 80, 30, 2, 0.6)]))
    assert mined["strong"].labels.tolist() == [2, 0]
    expected = torch.tensor([[40.0, 40, 60, 60], [60, 10, 80, 17]])
    torch.testing.assert_close(mined["strong"].boxes, expected, atol=1e-4, rtol=0)
    assert list(added) == ["augmented", "strong"]
    assert_equal(added["augmented"], mined["strong"])
    assert_equal(added["strong"], mined["augmented"])


def test_the_loss_is_the_sum_of_both_views_under_their_own_boxes(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard labels, and in the strong view everything lies 9.6 px to the right."""
    chosen = ready(built, SHIFTED)
    batch = batch_with_images(boxes([(60, 10, 80, 30, 0)], []))
    weak, strong = (10, 10, 30, 30, 1, 0.7), (49.6, 40, 69.6, 60, 2, 0.8)
    finding(chosen, boxes([weak], [], [], [strong]), boxes([], [], scores=True))
    views = views_of(chosen, batch)
    runs: list[int] = []
    built.net.backbone.register_forward_hook(lambda *_: runs.append(1))
    result = chosen(built, views, batch, 0)
    assert len(runs) == 1  # of both views; the teacher has a network of its own
    predictions = built.predict([*views["augmented"], *views["strong"]])
    halves = predictions.split(2)
    by_hand = {
        "augmented": boxes([(60, 10, 80, 30, 0)], [(40, 40, 60, 60, 2)]),
        "strong": boxes([(69.6, 10, 89.6, 30, 0), (19.6, 10, 39.6, 30, 1)], []),
    }
    assert {name.split("/")[0] for name in result.losses} == set(by_hand)
    for (view, targets), half in zip(by_hand.items(), halves, strict=True):
        for name, loss in built.losses(half, targets).items():
            torch.testing.assert_close(result.losses[f"{view}/{name}"], loss, atol=1e-5, rtol=1e-4)
    assert result.total.item() == pytest.approx(sum(v.item() for v in result.losses.values()))
    result.total.backward()
    assert all(p.grad is None for p in chosen.teacher.parameters())


def test_what_is_known_holds_in_the_strong_view_where_it_lies_there(
    built: DenseDetector,
) -> None:
    """A class that is complete is not mined, and no loss is left in an ignored region."""
    chosen = ready(built, SHIFTED)
    batch = batch_with_images(boxes([(60, 10, 80, 30, 0)]))
    rate = torch.tensor([[torch.nan, 1.0, torch.nan]])
    batch = replace(batch, knowledge=Knowledge.of(rate, boxes([(30, 30, 60, 64, -1)]), 0.5))
    strong = [(49.6, 40, 69.6, 60, 2, 0.8), (9.6, 5, 29.6, 25, 2, 0.8), (9.6, 40, 29.6, 60, 1, 0.8)]
    finding(chosen, boxes([], strong), boxes([], scores=True))
    supervision = supervise(chosen, built, batch)
    assert supervision.pseudo_labels["strong"].labels.tolist() == [2]
    torch.testing.assert_close(
        supervision.added["augmented"].boxes, torch.tensor([[0.0, 5, 20, 25]]), atol=1e-4, rtol=0
    )
    seen, _ = chosen.seen_in("strong", batch, batch.annotated)
    expected = torch.tensor([[39.6, 30, 69.6, 64]])
    torch.testing.assert_close(seen.knowledge.ignored.boxes, expected, atol=1e-4, rtol=0)


def test_images_without_annotations_train(built: DenseDetector) -> None:
    for annotated in (boxes([], []), boxes([], [(10, 5, 30, 35, 1)])):
        chosen = method("costudent")
        chosen.prepare(built, None, RUN)
        batch = batch_with_images(annotated)
        result = chosen(built, views_of(chosen, batch), batch, 0)
        result.total.backward()
        assert torch.isfinite(result.total)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in built.parameters())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("method.strong.squares=[3,1]", r"squares must be \[least, most\], got \[3, 1\]"),
        ("method.strong.shear=90", "method.strong.shear=90 must be"),
        ("method.score_threshold=1.5", "method.score_threshold=1.5 must be"),
        ("+method.views=[original]", "unknown option method.views"),
    ],
)
def test_bad_options_are_named(option: str, words: str) -> None:
    cfg = composed("method=costudent", option)
    with pytest.raises(ValueError, match=words):
        instantiate(cfg.method, "method")


# -- runs --------------------------------------------------------------------------------

OPTIONS = ("method=costudent", "method.score_threshold=0.008", "checkpoint.every_n_steps=1",
           "method.teacher_score_threshold=0.009")  # fmt: skip


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of 6 steps, with a checkpoint of each."""
    done = train(module_path, "hydra.run.dir=whole", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return module_path


@pytest.mark.slow
def test_killed_and_resumed_equals_never_stopped(folder: Path) -> None:
    run = folder / "again"
    shutil.copytree(folder / "whole", run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / "step_000002.ckpt", checkpoints / "last.ckpt")
    done = call(folder, "resume=again")
    assert done.returncode == 0, done.stderr
    same(folder / "whole", run)
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert any(name.startswith("method.teacher.detector.") for name in state["state_dict"])
    assert state["comining"]["deployed"] == "detector"
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert result["mining"]["pseudo_labels_per_image"] > 0


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", *OPTIONS, *TWO)
    assert done.returncode == 0, done.stderr
    compare(folder / "whole", folder / "two", mining=20)
