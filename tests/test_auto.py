"""data=auto: what a folder is taken for, what is refused, and real sets in other layouts."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import open_dict

from comining.config import instantiate
from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import AnnotationSet, Categories
from comining.data.datamodule import DetectionData
from comining.data.formats.coco import read_coco
from comining.data.validation_share import validation_share
from comining.errors import ConfigError, DataError
from tests.annotated_folders import RECORDS, WRITERS, coco, picture, text, voc_text, yolo
from tests.helpers import composed, real_data, write_coco
from tests.test_train import SMALL, evaluate, train


def data(name: str, root: Path, **options: Any) -> DetectionData:
    cfg = composed(f"data={name}", "sparsity=full")
    with open_dict(cfg):
        cfg.data.root = str(root)
        cfg.data.update({"num_workers": 0, "min_size": 48, **options})
        sparsity = instantiate(cfg.sparsity, "sparsity")
    built: DetectionData = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    return built


def trained_on(built: DetectionData) -> AnnotationSet:
    assert built.train_set is not None
    return built.train_set.annotations


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_recognised(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    WRITERS[name](tmp_path)
    with caplog.at_level(logging.INFO):
        built = data("auto", tmp_path)
        built.setup("fit")
    said = [line for line in caplog.messages if line.startswith("data=auto: ")]
    assert len(said) == 1
    assert f"(data={name})" in said[0]
    assert "\n" not in said[0]
    both = built.evaluated["val"].file_names + trained_on(built).file_names
    assert sorted(both) == list(RECORDS)


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_Train.json", "images/Train"),
        ("annotations/train.json", "train"),
        ("train/_annotations.coco.json", "train"),
        ("_annotations.coco.json", "."),
        ("train.json", "train"),
        ("train.json", "images"),
        ("annotations.json", "images"),
        ("annotations/lvis_v1_train.json", "train2017"),
    ],
)
def test_layouts_of_coco(tmp_path: Path, file: str, folder: str) -> None:
    coco(tmp_path / "set", folder, file)
    text(tmp_path / "set/package.json", '{"name": "x"}')
    built = data("auto", tmp_path / "set")
    built.setup("fit")
    assert trained_on(built).path == tmp_path / "set" / file


def test_all_splits_of_roboflow(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        coco(tmp_path, split, f"{split}/_annotations.coco.json")
    built = data("auto", tmp_path)
    built.setup("fit")
    assert {name: one.path.parent.name for name, one in built.evaluated.items()} == {
        "val": "valid",
        "test": "test",
    }
    assert trained_on(built).file_names == list(RECORDS)


def test_captions_beside_the_boxes_are_passed_over(tmp_path: Path) -> None:
    coco(tmp_path, "train2017", "annotations/instances_train2017.json")
    text(tmp_path / "annotations/captions_train2017.json", '{"images": []}')
    read = data("auto", tmp_path)
    read.setup("fit")
    assert read.train_set is not None
    assert read.train_set.annotations.path.name == "instances_train2017.json"


def two_formats(root: Path) -> None:
    coco(root, "images/train", "annotations/instances_train.json")
    yolo(root)


def two_files_of_a_split(root: Path) -> None:
    coco(root, "train", "annotations/train_a.json")
    coco(root, "train", "annotations/train_b.json")


def two_files_of_no_split(root: Path) -> None:
    coco(root, "images", "annotations/monday.json")
    coco(root, "images", "annotations/friday.json")


def pictures_only(root: Path) -> None:
    for number in range(12):
        picture(root / f"{number:02d}.png")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two formats": (two_formats, r"looks like .*COCO .* and YOLO .*choose .*data=yolo"),
    "two files": (two_files_of_a_split, "both hold the split train; choose with data=custom"),
    "no split": (two_files_of_no_split, "not clear which splits .*friday.json.*data=custom"),
    "nothing": (lambda root: root.mkdir(), "no format is recognised; it holds nothing; choose"),
    "pictures": (pictures_only, "it holds 00.png, .*07.png and 4 more; choose one of .*data=yolo"),
    "absent": (lambda root: None, "no such folder"),
    "no pictures": (
        lambda root: shutil.rmtree(coco(root) / "images"),
        r"train\.json: no picture a\.png; looked in",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_clear_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    write, words = REFUSED[kind]
    root = tmp_path / "set"
    write(root)
    with pytest.raises(DataError, match=words) as error:
        data("auto", root).setup("fit")
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_one_format_are_not_for_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_annotations=x\.json is for data=custom"):
        data("yolo", tmp_path, train_annotations="x.json", train_images="x")
    with pytest.raises(
        ConfigError, match=r"data\.val_annotations and data\.val_images go together"
    ):
        data("custom", tmp_path, train_annotations="x", train_images="x", val_images="x")
    with pytest.raises(
        ConfigError, match=r"val_fraction=1\.0 must be a number above 0 and below 1"
    ):
        data("yolo", tmp_path, val_fraction=1.0)
    coco(tmp_path)
    with pytest.raises(DataError, match=r"names its classes itself; data\.names is for other"):
        data("auto", tmp_path, names=["a"]).setup("fit")


def test_labels_that_are_missing(tmp_path: Path) -> None:
    (yolo(tmp_path) / "labels/train/c.txt").unlink()
    with pytest.raises(DataError, match=r"c\.txt: no such label file"):
        data("auto", tmp_path, missing_labels="error").setup("fit")


def test_validation_on_training_images_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As coco128.yaml of Ultralytics has it."""
    yolo(tmp_path)
    text(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]")
    data("auto", tmp_path).setup("fit")
    assert "3 of the 3 validation images" in caplog.text
    assert "are TRAINING images, too" in caplog.text


# -- a share of the images for validation --------------------------------------------------


def named(names: list[str]) -> AnnotationSet:
    builder = AnnotationBuilder(Path("x"), Categories((1,), ("x",)), "error")
    for number, name in enumerate(names, start=1):
        builder.add_image(name, number, name, 10, 10)
    return builder.build()


def test_the_share_stays_when_pictures_are_added() -> None:
    names = [f"{number:04d}.jpg" for number in range(1000)]
    few, many = (validation_share(named(part), 0.2) for part in (names[::2], names))
    assert few.tolist() == many[::2].tolist()
    assert 150 < many.sum() < 250
    more = validation_share(named(names), 0.3)
    assert not (many & ~more).any()  # a larger share holds the smaller


def test_the_share_of_a_small_set_is_never_empty_or_all() -> None:
    for fraction in (0.001, 0.5, 0.999):
        for count in range(2, 6):
            share = validation_share(named([f"{n}.jpg" for n in range(count)]), fraction)
            assert 0 < share.sum() < count
    with pytest.raises(DataError, match="one image cannot be shared"):
        validation_share(named(["a.jpg"]), 0.2)


def test_composed_and_decomposed_names_are_one() -> None:
    composed_name, decomposed = "z\u00fcrich.jpg", "zu\u0308rich.jpg"
    others = [f"{n}.jpg" for n in range(20)]
    first, second = (
        validation_share(named([*others, name]), 0.5) for name in (composed_name, decomposed)
    )
    assert first.tolist() == second.tolist()


def test_what_is_validated_on_is_not_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path, [[(1, 2, 10, 12, 1 + n % 3)] * (1 + n % 4) for n in range(30)])
    options = {"train_annotations": "train.json", "train_images": "train"}
    built = data("custom", tmp_path, **options)
    with caplog.at_level(logging.INFO):
        built.setup("fit")
    train, val = trained_on(built), built.evaluated["val"]
    assert not set(train.file_names) & set(val.file_names)
    assert len(train.file_names) + len(val.file_names) == 30
    whole = read_coco(tmp_path / "train.json")
    for part in (train, val):
        for row, annotation_id in enumerate(part.ids.tolist()):
            (same,) = np.flatnonzero(whole.ids == annotation_id)
            assert part.image_ids[part.image[row]] == whole.image_ids[whole.image[same]]
            assert part.bboxes[row].tolist() == whole.bboxes[same].tolist()
    said = [line for line in caplog.messages if line.startswith("no validation split")]
    assert said == [
        f"no validation split: {len(val.file_names)} of the 30 images of {whole.path} are kept for "
        "it and not trained on (data.val_fraction=0.2, by a hash of the file name)"
    ]
    assert built.summary()["val"]["share_of_train"] == 0.2
    assert not built.summary()["val"]["is_training_set"]
    again = data("custom", tmp_path, **options)
    again.setup("validate")
    assert again.evaluated["val"].fingerprint() == val.fingerprint()
    with pytest.raises(DataError, match=r"there is no validation split; data\.val_fraction=0\.2"):
        data("custom", tmp_path, **options, val_fraction=None).setup("fit")


def test_a_sparse_file_of_all_images_goes_with_a_share(tmp_path: Path) -> None:
    boxes = [(1, 2, 10, 12, 1), (20, 20, 30, 20, 3)]
    write_coco(tmp_path, [boxes] * 10)
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"] = content["annotations"][::2]
    sparse = text(tmp_path / "sparse.json", json.dumps(content))
    cfg = composed("data=custom", "sparsity=file", f"sparsity.path={sparse}")
    with open_dict(cfg):
        cfg.data.update({"root": str(tmp_path), "train_annotations": "train.json"})
        cfg.data.train_images = "train"
        sparsity = instantiate(cfg.sparsity, "sparsity")
    built = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    built.setup("fit")
    assert built.erased.sum() == len(built.train_set) == 10 - len(built.val_set)


# -- real sets in the layout that their authors have ----------------------------------------


def renumbered(root: Path, file: str, images: str) -> tuple[dict[str, Any], Path, list[str]]:
    """A COCO file without crowds and areas of masks, numbered by the rule."""
    content = json.loads((root / file).read_text())
    categories = sorted(content["categories"], key=lambda one: one["id"])
    label = {one["id"]: number for number, one in enumerate(categories, start=1)}
    pictures = sorted(content["images"], key=lambda one: one["file_name"])
    number = {one["id"]: position for position, one in enumerate(pictures, start=1)}
    kept = sorted(
        (one for one in content["annotations"] if not one.get("iscrowd")),
        key=lambda one: (number[one["image_id"]], one["id"]),
    )
    annotations = [
        {
            "id": position,
            "image_id": number[one["image_id"]],
            "category_id": label[one["category_id"]],
            "bbox": one["bbox"],
        }
        for position, one in enumerate(kept, start=1)
    ]
    new = {
        "images": [
            {key: one[key] for key in ("file_name", "width", "height")} | {"id": number[one["id"]]}
            for one in pictures
        ],
        "annotations": annotations,
        "categories": [
            {"id": position, "name": one["name"]} for position, one in enumerate(categories, 1)
        ],
    }
    return new, root / images, [one["name"] for one in categories]


def as_yolo(root: Path, content: dict[str, Any], pictures: Path, names: list[str]) -> Path:
    """Ultralytics' layout, six decimals; no label file where there is no object."""
    text(root / "data.yaml", f"path: .\ntrain: images/train2017\nnames: {json.dumps(names)}\n")
    (root / "labels/train2017").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "images/train2017").symlink_to(pictures)
    rows: dict[int, list[str]] = {}
    sizes = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    for one in content["annotations"]:
        (x, y, w, h), (width, height) = one["bbox"], sizes[one["image_id"]]
        shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        row = " ".join([str(one["category_id"] - 1), *(f"{share:.6f}" for share in shares)])
        rows.setdefault(one["image_id"], []).append(row)
    for one in content["images"]:
        if one["id"] in rows:
            name = f"{Path(one['file_name']).stem}.txt"
            text(root / "labels/train2017" / name, "\n".join(rows[one["id"]]))
    return root


@pytest.mark.parametrize(
    ("name", "file", "images"),
    [
        ("coco128", "annotations/instances_train2017.json", "train2017"),
        ("highway", "annotations/instances_train.json", "images"),
    ],
)
def test_real_sets_as_yolo(tmp_path: Path, name: str, file: str, images: str) -> None:
    content, pictures, names = renumbered(real_data(name), file, images)
    if name == "highway":  # whose splits share a folder
        wanted = [one["file_name"] for one in content["images"]]
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for one in wanted:
            shutil.copy(real_data(name) / images / one, pictures)
    expected = read_coco(text(tmp_path / "expected.json", json.dumps(content)))
    root = as_yolo(tmp_path / "set", content, pictures, names)
    built = data("auto", root, val_fraction=0.01)
    annotations, _, _ = built.splits.read_train()
    assert annotations.bboxes.tolist() == expected.bboxes.tolist()
    assert annotations.fingerprint() == expected.fingerprint()


def bccd_as_voc(root: Path, jsons: Path) -> dict[str, AnnotationSet]:
    """In the layout of its repository, with whole numbers; and the sets that it holds."""
    expected = {}
    listed: dict[str, list[str]] = {"trainval": []}
    for split in ("train", "val", "test"):
        content, pictures, names = renumbered(
            real_data("bccd"), f"annotations/instances_{split}.json", "images"
        )
        expected[split] = read_coco(text(jsons / f"{split}.json", json.dumps(content)))
        listed[split] = [Path(one["file_name"]).stem for one in content["images"]]
        boxes: dict[int, list[Any]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            label = names[one["category_id"] - 1]
            boxes[one["image_id"]].append((*map(int, one["bbox"]), label))
        for one in content["images"]:
            file = root / "Annotations" / f"{Path(one['file_name']).stem}.xml"
            size = (one["width"], one["height"])
            text(file, voc_text(one["file_name"], boxes[one["id"]], size))
    (root / "JPEGImages").symlink_to(pictures)
    listed["trainval"] = listed["train"] + listed["val"]
    for name, stems in listed.items():
        text(root / f"ImageSets/Main/{name}.txt", "\n".join(reversed(stems)))
    return expected


def test_bccd_as_voc(tmp_path: Path) -> None:
    expected = bccd_as_voc(tmp_path / "repository" / "BCCD", tmp_path / "expected")
    built = data("auto", tmp_path / "repository", names=["RBC", "WBC", "Platelets"])
    built.setup("fit")
    found = {"train": trained_on(built), **built.evaluated}
    for split, one in expected.items():
        assert found[split].fingerprint() == one.fingerprint(), split


@pytest.mark.slow
def test_equal_sets_have_equal_losses(tmp_path: Path) -> None:
    """Two steps on coco128 as YOLO and as COCO."""
    content, pictures, names = renumbered(
        real_data("coco128"), "annotations/instances_train2017.json", "train2017"
    )
    root = as_yolo(tmp_path / "yolo", content, pictures, names)
    text(tmp_path / "coco/train.json", json.dumps(content))
    (tmp_path / "coco/train").symlink_to(pictures)
    losses = []
    for folder in (root, tmp_path / "coco"):
        options = [*SMALL, "data.min_size=64", "sparsity=full", "method=original"]
        run = tmp_path / f"run_{folder.name}"
        train(run, "data=auto", f"data.root={folder}", *options, "trainer.max_steps=2")
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        losses.append([row["train/loss"] for row in rows if row["train/loss"]])
    # What the checkpoint remembers of its data leads to the same share of the images.
    record = json.loads((run / "result.json").read_text())
    found = evaluate(tmp_path / "evaluated", f"checkpoint={run}/checkpoints/last.ckpt")
    assert found["data"]["val"] == record["data"]["val"]
    assert found["metrics"] == record["metrics"]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
