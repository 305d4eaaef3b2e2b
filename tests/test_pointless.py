"""A word, once, where training or its evaluation is pointless."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from comining.config import CONFIG_FOLDER, instantiate, instantiate_file
from comining.data.datamodule import DetectionData
from comining.data.formats.coco import read_coco
from comining.errors import DataError
from comining.structures import StepResult
from comining.training.pointless import ZeroLossWarning, pointless
from comining.training.training_module import DetectionModule
from tests.helpers import boxes, composed, detector, edit_json, images, write_coco

ALL = [(1, 2, 20, 12, 1), (20, 20, 30, 20, 2), (40, 4, 22, 19, 3)]


def read(root: Path, *options: str, sparsity: str = "full") -> DetectionData:
    cfg = composed(
        "data=custom", f"data.root={root}", "data.train_annotations=train.json",
        "data.train_images=train", "data.val_annotations=val.json", "data.val_images=val",
        "data.batch_size=2", "data.min_size=48", "data.max_size=64", *options,
    )  # fmt: skip
    erasure = instantiate_file(CONFIG_FOLDER / "sparsity" / f"{sparsity}.yaml", {})
    data: DetectionData = instantiate(cfg.data, "data", sparsity=erasure, seed=0)
    data.setup("fit")
    return data


def words(data: DetectionData, name: str = "retinanet") -> list[str]:
    return list(pointless(data, detector(name, len(data.categories))))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set that there is nothing to say about."""
    for split, count in (("train", 6), ("val", 2)):
        write_coco(tmp_path, [ALL] * count, split=split)
    return tmp_path


def test_there_is_nothing_to_say_about_a_sound_set(root: Path) -> None:
    for name in ("retinanet", "fcos"):
        assert words(read(root), name) == []
    assert words(read(root, "data.batch_size=6")) == []  # as many as there are


def test_a_validation_set_without_annotations(root: Path) -> None:
    write_coco(root, [[], []], split="val")
    (line,) = words(read(root))
    assert line == f"{root}/val.json: no annotation for val: its AP will be null"
    # Crowds are not evaluated either.
    write_coco(root, [ALL], split="val")
    edit_json(root / "val.json", lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    (line,) = words(read(root))
    assert "no annotation for val" in line
    write_coco(root, [ALL], split="val")
    write_coco(root, [[]], split="test")
    test = ("data.test_annotations=test.json", "data.test_images=test")
    (line,) = words(read(root, *test))
    assert line.startswith(f"{root}/test.json: no annotation for test")


def test_classes_without_a_box(root: Path) -> None:
    write_coco(root, [ALL[:2]] * 2, split="train")
    write_coco(root, [ALL[1:]] * 2, split="val")
    assert words(read(root)) == [
        f"{root}/train.json: classes without a box to train on: 'class 3'; they are never learned",
        f"{root}/val.json: classes without a box for val: 'class 1'; they have no AP there",
    ]


def test_classes_of_which_all_boxes_are_erased(root: Path) -> None:
    write_coco(root, [ALL[:1]] * 2 + [ALL[1:]], split="train")
    (line,) = words(read(root, sparsity="extreme"))  # one of the last image stays
    erased = "'class 2' (1 erased or crowds)" if "'class 2'" in line else (
        "'class 3' (1 erased or crowds)"
    )  # fmt: skip
    assert f"classes without a box to train on: {erased}; they are never learned" in line


def test_many_classes_are_counted(root: Path) -> None:
    def more(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": k, "name": f"rare {k}"} for k in range(10, 30)]

    for split in ("train", "val"):
        edit_json(root / f"{split}.json", more)
    first, second = words(read(root))
    assert "'rare 10', 'rare 11', 'rare 12', 'rare 13', 'rare 14' and 15 more; they" in first
    assert second.startswith(f"{root}/val.json: ")


def test_fewer_images_than_a_batch(root: Path) -> None:
    (line,) = words(read(root, "data.batch_size=7"))
    assert line.startswith(f"{root}/train.json: only 6 images to train on, fewer than ")
    assert "data.batch_size=7" in line


@pytest.mark.parametrize(("name", "limit"), [("retinanet", 8), ("fcos", 4)])
def test_boxes_that_are_too_small_for_an_anchor(root: Path, name: str, limit: float) -> None:
    side = limit - 0.5
    tiny = [(5, 5, side, side, k) for k in (1, 2, 3)]
    write_coco(root, [tiny] * 4, split="train")
    (line,) = words(read(root), name)
    assert line.startswith(f"{root}/train.json: 12 of 12 boxes are below {limit} px after resizing")
    assert f"the smallest anchor is {2 * limit}" in line
    assert "data.min_size=48" in line
    assert line.endswith("raise data.min_size")
    (line,) = words(read(root, "data.min_size=60", "data.max_size=60"), name)
    assert line.endswith("raise data.max_size")
    assert words(read(root, "data.min_size=96", "data.max_size=128"), name) == []
    write_coco(root, [tiny, tiny, tiny, ALL], split="train")  # three quarters
    assert words(read(root), name) == []


# -- rotated boxes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "counted"),
    [
        ({"rotation": 30}, 1),
        ({"rotation": -45.5}, 1),
        ({"attributes": {"rotation": 90.0, "occluded": False}}, 1),
        ({"rotation": 0}, 0),
        ({"rotation": 180.0}, 0),
        ({"rotation": None, "attributes": {"rotation": 0.0}}, 0),
        ({"rotation": "left", "attributes": []}, 0),
    ],
)
def test_angles_that_are_lost_are_counted(
    root: Path, record: dict[str, Any], counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_coco(root / "train.json").fingerprint()
    edit_json(root / "train.json", lambda c: c["annotations"][1].update(record))
    caplog.clear()
    annotations = read_coco(root / "train.json")
    assert annotations.fingerprint() == before
    turned = [count for what, count in annotations.repairs.items() if "rotated boxes" in what]
    assert turned == [counted] * bool(counted)
    said = [message for message in caplog.messages if "rotated boxes" in message]
    assert len(said) == counted
    assert all(message.startswith(f"{root}/train.json: ") for message in said)


def test_a_box_of_five_numbers_is_refused(root: Path) -> None:
    edit_json(root / "train.json", lambda c: c["annotations"][1].update(bbox=[9, 9, 5, 5, 30.5]))
    with pytest.raises(DataError, match=r"train.json: annotation 2: bbox .* is a rotated box"):
        read_coco(root / "train.json")


# -- losses that stay zero ---------------------------------------------------------------


def test_no_point_of_fcos_lies_in_a_tiny_box() -> None:
    """The losses that place boxes are then 0, not small, and only then."""
    built = detector("fcos", 3)
    predictions = built.predict(images(1))
    between = built.losses(predictions, boxes([(10, 10, 13, 13, 0)]))
    at_a_point = built.losses(predictions, boxes([(7, 7, 9, 9, 0)]))
    for term in ("box", "centerness"):
        assert between[term] == 0
        assert at_a_point[term] > 0


def watched(root: Path, losses: list[dict[str, float]], after: int, max_steps: int = 100) -> None:
    callback = ZeroLossWarning(after)
    module = DetectionModule.__new__(DetectionModule)
    L.LightningModule.__init__(module)
    trainer = L.Trainer(max_steps=max_steps, logger=False, accelerator="cpu")
    trainer.datamodule = read(root)  # type: ignore[attr-defined]
    for number, terms in enumerate(losses):
        module.result = StepResult({name: torch.tensor(value) for name, value in terms.items()})
        callback.on_train_batch_end(trainer, module, None, None, number)


ZERO = {"original/classification": 1.0, "original/box": 0.0, "original/centerness": 0.0}


@pytest.mark.parametrize(
    ("losses", "max_steps", "said"),
    [
        ([ZERO] * 20, 100, 1),
        ([ZERO] * 4, 100, 0),
        ([ZERO] * 4, 4, 1),  # a run that is shorter
        ([ZERO, ZERO, {**ZERO, "original/box": 1e-9}, *[ZERO] * 20], 100, 0),
        ([{"original/classification": 0.0}] * 20, 100, 0),  # a detector without such losses
    ],
)
def test_a_loss_that_stays_zero_is_said_once(
    root: Path,
    losses: list[dict[str, float]],
    max_steps: int,
    said: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="comining"):
        watched(root, losses, after=5, max_steps=max_steps)
    lines = [message for message in caplog.messages if "localisation losses" in message]
    assert len(lines) == said
    assert all(line.startswith(f"{root}/train.json: ") for line in lines)
    assert all("data.min_size=48" in line for line in lines)


def test_training_says_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once each, at the start, in a run that goes on."""
    import sys

    monkeypatch.syspath_prepend(str(CONFIG_FOLDER.parent))
    monkeypatch.chdir(root)
    import train

    handlers = logging.getLogger().handlers[:]
    write_coco(root, [[], []], split="val")
    options = [
        "data=custom", f"data.root={root}", "data.train_annotations=train.json",
        "data.train_images=train", "data.val_annotations=val.json", "data.val_images=val",
        "data.batch_size=8", "data.min_size=48", "data.max_size=64", "data.num_workers=0",
        "method=original", "sparsity=full", "trainer.max_steps=1", "trainer.accelerator=cpu",
        "pictures.every_n_steps=0", "hydra.run.dir=out",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-path", str(CONFIG_FOLDER), *options])
    try:
        train.main()
    finally:
        logging.getLogger().handlers[:] = handlers
    out = capfd.readouterr().out
    assert out.count("no annotation for val: its AP will be null") == 1
    assert out.count("fewer than data.batch_size=8") == 1
    assert "no annotation for val" in (root / "out" / "train.log").read_text()


def test_counts_are_of_what_is_trained_on(root: Path) -> None:
    """Crowds train nothing: a class of crowds only is named."""
    edit_json(
        root / "train.json",
        lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["category_id"] == 3],
    )
    (line,) = words(read(root))
    assert "'class 3' (6 erased or crowds)" in line
    assert np.count_nonzero(read_coco(root / "train.json").crowd) == 6


@pytest.mark.parametrize(("candidates", "said"), [(5, True), (6, False)])
def test_few_proposals_for_a_crowded_image(root: Path, candidates: int, said: bool) -> None:
    data = read(root)
    option = f"detector.candidate_proposals={candidates}"
    two_stage = detector("faster_rcnn", len(data.categories), option)
    found = list(pointless(data, two_stage, mines=True))
    words = "has up to 3 annotated and pasted objects, and only its 5 best"
    assert any(words in line for line in found) == said
    assert not any("best proposals" in line for line in pointless(data, two_stage))
