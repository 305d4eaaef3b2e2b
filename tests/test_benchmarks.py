"""The benchmarks run and write what they promise. How fast anything is, no test asks."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d

from benchmarks import data, evaluation, layout, measure, methods, object_scores, step
from benchmarks.setting import Setting, stock_copy
from comining.data.dataset import EvaluationSet
from comining.data.formats.coco import read_coco
from comining.structures import Boxes
from tests.ddp import train
from tests.helpers import detector, write_coco

CPU = torch.device("cpu")


def written(file: Path) -> dict[str, dict[str, float]]:
    content: dict[str, dict[str, float]] = json.loads(file.read_text())
    for one in content.values():
        assert one.keys() == {"ratio", "spread"}
        assert math.isfinite(one["ratio"])
        assert one["ratio"] > 0
        assert one["spread"] >= 0
    return content


@pytest.mark.parametrize(
    "options",
    [
        ["--clock", "cpu"],
        ["--detector", "fcos", "--precision", "bf16", "--channels-last"],
        ["--detector", "faster_rcnn"],
    ],
    ids=["plain", "fcos in bf16", "two stages"],
)
def test_step(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    step.main(["--quick", "--json", str(tmp_path / "step.json"), *options])
    expected = {"mining_over_joint", "mining_over_torchvision", "mining_over_naive"}
    if "faster_rcnn" not in options:
        expected.add("cogeneration_over_torchvision")
    assert set(written(tmp_path / "step.json")) == expected
    assert "torch" in capsys.readouterr().out


def test_layout(tmp_path: Path) -> None:
    layout.main(["--quick", "--backbone", "slim", "--json", str(tmp_path / "layout.json")])
    assert set(written(tmp_path / "layout.json")) == {"channels_last_over_contiguous"}
    chosen = layout.arguments(["--quick", "--backbone", "slim"])
    kernels = {
        name: next(p for p in one.detector.parameters() if p.dim() == 4 and p.shape[2] == 3)
        for name, one in layout.settings(chosen).items()
    }
    assert kernels["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert kernels["contiguous"].is_contiguous()
    assert not kernels["contiguous"].is_contiguous(memory_format=torch.channels_last)


def test_methods(tmp_path: Path) -> None:
    names = "annotation_rate,comining_rate,costudent,calibrated_teacher"
    file = tmp_path / "methods.json"
    methods.main(["--quick", "--json", str(file), "--methods", names])
    assert set(written(file)) == {f"{name}_over_original" for name in names.split(",")}


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_the_steps_that_are_compared_mine_and_train_the_same_weights(name: str) -> None:
    setting = Setting(step.arguments(["--quick", "--detector", name]))
    assert setting.pseudo_labels() > 1
    ours, stock = setting.detector.net.state_dict(), setting.stock.state_dict()
    assert ours.keys() == stock.keys()
    before = {name: value.clone() for name, value in ours.items()}
    for run in (lambda: setting.ours(setting.methods["comining"]), setting.naive):
        run()
    for name, value in before.items():
        assert torch.equal(stock[name], value)
        assert torch.equal(ours[name], value)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_the_stock_model_has_nothing_of_ours_in_it(name: str) -> None:
    built = detector(name, 3, "backbone=resnet18")
    stock = stock_copy(built, 0.6)
    head = {"retinanet": RetinaNetHead(256, 9, 3), "fcos": FCOSHead(256, 1, 3)}[name]
    in_place = [
        [one.inplace for one in module.modules() if isinstance(one, torch.nn.ReLU)]
        for module in (stock.head, head)
    ]
    assert in_place[0] == in_place[1] == [name == "retinanet"] * 8
    for part, one in stock.named_modules():
        assert not type(one).__module__.startswith("comining"), part
    assert sum(type(one) is FrozenBatchNorm2d for one in stock.modules()) == 20
    for key, value in built.net.state_dict().items():
        assert torch.equal(stock.state_dict()[key], value)


def test_data(tmp_path: Path) -> None:
    data.main(["--quick", "--json", str(tmp_path / "data.json")])
    assert set(written(tmp_path / "data.json")) == {
        "loader_over_naive",
        "pasting_over_plain",
        "decoding_over_plain",
    }


def test_evaluation_compares_equal_numbers(tmp_path: Path) -> None:
    evaluation.main(["--quick", "--json", str(tmp_path / "evaluation.json")])
    assert set(written(tmp_path / "evaluation.json")) == {"evaluation_over_pycocotools"}


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is twice as slow for a while is so for both."""
    one = measure.ratio([1.0, 2.0, 1.0, 3.0], [2.0, 4.0, 2.0, 6.0])
    assert (one.ratio, one.spread) == (0.5, 0.0)


def test_variants_take_turns_and_the_first_rounds_do_not_count() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    taken = measure.interleave(variants, CPU, rounds=3, seconds=60.0, clock="wall", warmup=1)
    assert all(len(seconds) == 3 for seconds in taken.values())
    assert len(calls) == 12
    rounds = [calls[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({names[0] for names in rounds}) == 3


def test_two_rounds_are_made_however_little_time_there_is() -> None:
    taken = measure.interleave({"a": int}, CPU, rounds=9, seconds=0.0, clock="wall")
    assert len(taken["a"]) == 2


def test_the_peak_is_what_a_step_takes_beyond_what_was_there() -> None:
    peak = measure.peak_memory(lambda: torch.ones(64, 2**20).sum(), CPU)
    assert math.isnan(peak) or 200 < peak < 400


def test_review_page(tmp_path: Path) -> None:
    review_page = pytest.importorskip("benchmarks.review_page", reason="selenium is not installed")
    file = tmp_path / "page.json"
    review_page.main(["--images", "5", "--rounds", "1", "--json", str(file)])
    content = json.loads(file.read_text())
    assert content["proposals"] > 5
    if review_page.CHROMIUM and review_page.DRIVER:
        assert 0 < content["first_picture_s"] == content["first_picture_worst_s"]


class Detections:
    """A detector that detects the same in every image."""

    device = CPU

    def __init__(self, boxes: list[list[float]], labels: list[int], scores: list[float]):
        self.boxes = Boxes.of_images(
            [torch.tensor(boxes).reshape(-1, 4)], [torch.tensor(labels)], [torch.tensor(scores)]
        )

    def detect(self, images: list[torch.Tensor]) -> Boxes:
        assert len(images) == 1
        return self.boxes


def test_the_score_of_an_object_is_that_of_its_best_detection(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [[(10, 10, 20, 20, 1), (40, 10, 20, 20, 2)], []])
    images = EvaluationSet(read_coco(file), tmp_path / "train")
    # IoU with the first object: 1, 0.5 and 0.45; the last two are of the other class.
    boxes = [
        [10, 10, 30, 30],
        [10, 10, 30, 20],
        [10, 10, 30, 19],
        [10, 10, 30, 30],
        [40, 10, 60, 30],
    ]
    found: Any = Detections(boxes, [0, 0, 0, 1, 0], [0.25, 0.5, 0.75, 1.0, 1.0])
    rows, scores = object_scores.object_scores(found, images, np.array([1, 0]))
    assert rows.tolist() == [0, 1]
    assert scores.tolist() == [0.5, 0.0]
    nothing: Any = Detections([], [], [])
    assert object_scores.object_scores(nothing, images, np.array([0]))[1].tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_object_scores_of_a_run(tmp_path: Path) -> None:
    done = train(tmp_path, "hydra.run.dir=run", "method=original", "sparsity=hard")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "scores.json"
    object_scores.main([str(tmp_path / "run"), "--images", "1000", "--json", str(file)])
    kinds = json.loads(file.read_text())["run"]
    folder = tmp_path / "shapes" / "annotations"
    objects = {split: len(read_coco(folder / f"{split}.json").ids) for split in ("train", "val")}
    assert kinds["new"]["objects"] == objects["val"]
    assert kinds["annotated"]["objects"] + kinds["erased"]["objects"] == objects["train"]
    assert 0 < kinds["erased"]["objects"] <= objects["train"] / 2
    assert all(0 <= kind["mean"] <= 1 for kind in kinds.values())
