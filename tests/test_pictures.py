"""The sheets of a run, and the counts of wrong boxes."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from comining.data.views import ColorJitter
from comining.evaluation.mining_metric import KINDS
from comining.methods.method import RunInfo
from comining.structures import Batch, Images
from comining.tracking.drawing import (
    ANNOTATED,
    CAPTION,
    DETECTED,
    ERASED,
    IGNORED,
    MINED,
    Layer,
    captioned,
    crop,
    panel,
)
from comining.tracking.tracker import LabelledImage
from comining.tracking.wandb_run import _box_layers
from comining.training.callbacks.pictures import WrongPseudoLabels, mine
from comining.training.training_module import DetectionModule, ParameterGroups
from tests.helpers import assert_equal, batch_of, boxes, detector, edit_json, images, method
from tests.test_train import train

GREY = torch.full((3, 100, 120), 128, dtype=torch.uint8)


def test_wrong_boxes_of_every_kind_are_counted_and_the_counts_add_up() -> None:
    erased = boxes([(0, 0, 20, 20, 0), (60, 60, 80, 80, 1)], [])
    kept = boxes([(30, 30, 50, 50, 0)], [])
    mined = [
        (0, 0, 20, 20, 0, 0.9),  # right
        (0, 0, 20, 21, 0, 0.8),  # duplicate of an erased one that is found already
        (30, 30, 50, 50, 0, 0.7),  # duplicate of a kept one
        (60, 60, 80, 80, 0, 0.9),  # wrong class
        (60, 72, 80, 92, 1, 0.6),  # poor localisation
        (90, 0, 110, 20, 2, 0.5),  # background
        (95, 70, 119, 99, 2, 0.5),  # background
    ]
    batch = batch_of(kept, erased)
    wrong = WrongPseudoLabels(["a", "b", "c"])
    wrong.add("original", [GREY, GREY], batch, boxes(mined, []))
    assert wrong.counts == {
        "right": 1, "duplicate": 2, "wrong_class": 1, "poor_localisation": 1, "background": 2,
    }  # fmt: skip
    assert wrong.total == len(mined)
    assert {kind: len(drawn) for kind, drawn in wrong.panels.items()} == {
        "duplicate": 2, "wrong_class": 1, "poor_localisation": 1, "background": 2,
    }  # fmt: skip
    wrong.add("augmented", [GREY, GREY], batch, boxes([], mined))  # in the other image all is wrong
    assert wrong.total == 14
    assert wrong.counts["right"] == 1
    page = wrong.sheet("here")
    assert page.width > 7 * 180


def test_more_wrong_boxes_than_fit_are_still_counted() -> None:
    rows = [(5.0 * k, 0, 5.0 * k + 4, 4, 0, 0.9) for k in range(20)]
    wrong = WrongPseudoLabels(["a"], examples=3)
    wrong.add("original", [GREY], batch_of(boxes([])), boxes(rows))
    assert wrong.counts["background"] == 20
    assert len(wrong.panels["background"]) == 3


@pytest.mark.parametrize("box", [(2, 2, 12, 22), (110, 90, 120, 100), (-20, -20, 300, 300)])
def test_a_crop_holds_its_box_and_moves_the_layers_along(box: tuple[float, ...]) -> None:
    marked = GREY.clone()
    one = torch.tensor([box], dtype=torch.float32)
    part, (layer, other) = crop(
        marked, one[0], [Layer(MINED, one, ["x"]), Layer(ERASED, torch.zeros(0, 4))]
    )
    assert min(part.shape[1:]) >= 1
    assert len(layer.boxes) == 1
    assert list(layer.captions) == ["x"]
    assert not len(other.boxes)
    sides = layer.boxes[0, 2:] - layer.boxes[0, :2]
    assert torch.equal(sides, one[0, 2:] - one[0, :2])
    visible = layer.boxes[0].clamp(min=0)
    assert visible[0] <= part.shape[2]
    assert visible[1] <= part.shape[1]


def test_a_caption_that_is_too_long_is_cut_and_says_so() -> None:
    picture = Image.new("RGB", (60, 40))
    page = np.asarray(captioned(picture, "a very long caption that cannot fit " * 9))
    assert page.shape[0] == 58
    assert CAPTION - 12 < page.shape[1] <= CAPTION
    assert (page[:18] < 128).any()  # words
    assert (page[18:, :60] == 0).all()  # the picture itself is whole


def test_captions_of_boxes_in_one_place_do_not_cover_each_other() -> None:
    box = torch.tensor([[20.0, 30.0, 90.0, 80.0]])
    style, inside = DETECTED, (slice(33, 41), slice(24, 80))
    one = np.asarray(panel(GREY, [Layer(style, box, ["circle 0.50"])]))
    two = np.asarray(panel(GREY, [Layer(style, box.repeat(2, 1), ["circle 0.50", "circle 0.50"])]))
    assert not (one[inside][..., 0] > 170).any()  # grey ground, 128
    assert (two[inside][..., 0] > 170).sum() > 20  # the second stands below the first


# -- mining for a sheet ------------------------------------------------------------------


def trained_module(name: str) -> DetectionModule:
    """A network whose batch norms mix the images of a batch, as it is before its first step."""
    built = detector(
        "retinanet", 3, "backbone=resnet18", "backbone.norm=batch", "backbone.trainable_layers=5"
    )
    chosen = method(name, score_threshold=0.01, max_per_image=20)
    chosen.prepare(built, None, RunInfo(Path("unused"), torch.device("cpu")))
    return DetectionModule(
        built, chosen, ColorJitter(brightness=0.8, contrast=0.0, saturation=0.0, hue=0.0, p=1.0),
        lambda groups: torch.optim.SGD(groups, lr=0.0), ParameterGroups(1.0, True),
        lambda step: 1.0, {}, Path("unused"), 0, {},
    )  # fmt: skip


def noise_batch() -> Batch:
    batch = batch_of(boxes([(8, 8, 40, 40, 0)], [], [(10, 5, 30, 35, 1)]))
    return replace(batch, images=Images.of(images(3, 64, 64)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["comining", "self_mining", "mean_teacher", "costudent"])
def test_a_sheet_mines_as_a_training_step_does(name: str, training: bool) -> None:
    module = trained_module(name)
    module.train(training)
    stepping = copy.deepcopy(module).train()
    batch = noise_batch()
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    modes = {key: part.training for key, part in module.named_modules()}

    views, mined = mine(module, batch, 0)
    step = stepping.method(
        stepping.detector, stepping.views(batch, stepping.method.views), batch, 0
    )
    assert list(views) == list(mined) == list(step.pseudo_labels)
    for view, pseudo_labels in step.pseudo_labels.items():
        assert len(pseudo_labels) > 10
        assert_equal(mined[view], pseudo_labels)
        assert len(views[view]) == 3
    # The step was one that changes statistics, and mining left them, and the mode, as they were.
    changed = [key for key, value in stepping.named_buffers() if not value.equal(buffers[key])]
    assert any("running_mean" in key for key in changed)
    assert any("num_batches_tracked" in key for key in changed)
    for key, value in module.named_buffers():
        assert torch.equal(value, buffers[key]), key
    assert {key: part.training for key, part in module.named_modules()} == modes
    assert module.training == training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_evaluation_mode_would_mine_other_boxes() -> None:
    """Else the test above could not fail."""
    module = trained_module("comining")
    batch = noise_batch()
    _, mined = mine(module, batch, 0)
    module.eval()
    views = module.views(batch, module.method.views)
    with torch.no_grad():
        step = module.method(module.detector, views, batch, 0)
    one, other = mined["original"], step.pseudo_labels["original"]
    assert len(one) != len(other) or not torch.equal(one.boxes, other.boxes)


# -- the sheets of a run -----------------------------------------------------------------

SHEETS = [
    "data.prepare.train_images=12", "data.prepare.val_images=5", "data.prepare.test_images=2",
    "data.batch_size=4", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
    "trainer.max_steps=4", "pictures.every_n_steps=2", "pictures.images=3",
    "pictures.judged_images=6", "tau=0.008",
]  # fmt: skip


def test_a_run_leaves_its_sheets(tmp_path: Path) -> None:
    options = [*SHEETS, f"data.root={tmp_path / 'shapes'}"]
    train(tmp_path / "a", *options)
    folder = tmp_path / "a" / "pictures"
    assert {file.name for file in folder.glob("*.*")} == {
        "mined_000002.png", "mined_000004.png", "mined_over_time.png", "wrong.png", "wrong.json",
        "detections_000002.png", "detections_000004.png",
    }  # fmt: skip
    wrong = json.loads((folder / "wrong.json").read_text())
    assert wrong["images"] == 6
    assert wrong["mined"] == sum(wrong[kind] for kind in KINDS) > 0
    with Image.open(folder / "mined_over_time.png") as page:
        assert page.width > 2 * 260  # two steps side by side
        assert page.height > 3 * 260
    sheet = np.asarray(Image.open(folder / "mined_000004.png"))
    for style in (ANNOTATED, ERASED, MINED):
        assert (sheet == style.colour).all(-1).sum() > 100
    assert not in_legend(sheet)


def in_legend(sheet: np.ndarray) -> bool:
    """Whether a sheet explains what regions to ignore look like."""
    return bool((sheet[-28:] == IGNORED.colour).all(-1).any())


@pytest.mark.slow
def test_regions_to_ignore_are_in_all_sheets(tmp_path: Path) -> None:
    """Those that sparsity leaves, and those of a file; where there are some, in the legend, too."""
    folder = tmp_path / "a" / "pictures"
    options = [*SHEETS, f"data.root={tmp_path / 'shapes'}", "sparsity=regions"]
    train(tmp_path / "a", *options, "sparsity.regions=1.0", "trainer.max_steps=2")
    for name in ("mined_000002", "mined_over_time", "wrong"):
        sheet = np.asarray(Image.open(folder / f"{name}.png"))
        assert in_legend(sheet), name
        assert (sheet[40:-40] == IGNORED.colour).all(-1).sum() > 100, name
    assert not in_legend(np.asarray(Image.open(folder / "detections_000002.png")))

    for name, regions, drawn in (("b", 5, True), ("c", 0, False)):

        def change(content: dict[str, Any], regions: int = regions) -> None:
            for one in content["annotations"]:
                one["ignore"] = int(one["image_id"] <= regions)

        edit_json(tmp_path / "shapes" / "annotations" / "val.json", change)
        train(tmp_path / name, *options, "trainer.max_steps=2", "method=original")
        sheet = np.asarray(Image.open(tmp_path / name / "pictures" / "detections_000002.png"))
        assert in_legend(sheet) == drawn


def test_a_label_of_every_class_has_a_name_in_the_layers() -> None:
    """In the boxes that W&B gets, which must have a name for each class."""
    regions, erased = boxes([(1, 2, 30, 40, -1)]), boxes([(50, 2, 80, 40, 1)])
    image = LabelledImage(
        GREY,
        [Layer(IGNORED, regions.boxes), Layer(ERASED, erased.boxes)],
        [regions.labels, erased.labels],
    )
    layers = _box_layers(image, {0: "a", 1: "b"})
    (box,) = layers["ignored"]["box_data"]
    assert (box["class_id"], box["box_caption"]) == (-1, "every class")
    assert layers["ignored"]["class_labels"] == {0: "a", 1: "b", -1: "every class"}
    (box,) = layers["erased"]["box_data"]
    assert (box["class_id"], box["box_caption"]) == (1, "b")
    assert layers["erased"]["class_labels"] == {0: "a", 1: "b"}
    wandb.Image(GREY.permute(1, 2, 0).numpy(), boxes=layers)  # which refuses what it cannot show


def test_a_view_of_another_geometry_is_drawn(tmp_path: Path) -> None:
    options = [*SHEETS, f"data.root={tmp_path / 'shapes'}", "method=costudent",
               "method.score_threshold=0.008", "method.teacher_score_threshold=0.008"]  # fmt: skip
    train(tmp_path / "a", *options)
    folder = tmp_path / "a" / "pictures"
    assert {"mined_000004.png", "mined_over_time.png", "wrong.json"} <= {
        file.name for file in folder.iterdir()
    }
    wrong = json.loads((folder / "wrong.json").read_text())
    assert wrong["mined"] == sum(wrong[kind] for kind in KINDS) > 0


@pytest.mark.slow
def test_drawing_does_not_disturb_training(tmp_path: Path) -> None:
    weights = []
    for every in (0, 1):
        run = tmp_path / str(every)
        options = [*SHEETS, f"data.root={tmp_path / 'shapes'}", f"pictures.every_n_steps={every}"]
        train(run, *options)
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(torch.cat([value.flatten() for value in state.values()]))
    assert torch.equal(*weights)
    assert not (tmp_path / "0" / "pictures").exists()


def test_a_method_that_does_not_mine_shows_detections_only(tmp_path: Path) -> None:
    train(tmp_path / "a", *SHEETS, f"data.root={tmp_path / 'shapes'}", "method=original")
    names = {file.name for file in (tmp_path / "a" / "pictures").glob("*.*")}
    assert names == {"detections_000002.png", "detections_000004.png"}


def test_targets_are_not_touched_by_drawing() -> None:
    one = boxes([(1, 2, 30, 40, 0)])
    panel(GREY, [Layer(ANNOTATED, one.boxes)], 3.0)
    crop(GREY, one.boxes[0], [Layer(ANNOTATED, one.boxes)])
    assert one.boxes.tolist() == [[1, 2, 30, 40]]
