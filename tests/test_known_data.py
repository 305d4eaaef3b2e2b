"""What files say of images and classes: fields, regions, lists of files, and sparse files."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import open_dict

from comining.config import CONFIG_FOLDER, instantiate, instantiate_file
from comining.data.annotations import AnnotationSet, Categories
from comining.data.category_matching import match_categories, without_category
from comining.data.convert import main as convert
from comining.data.convert import read_sets
from comining.data.datamodule import DetectionData
from comining.data.formats.annotation_format import ReadOptions
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED, UNSAID, counts, rates
from comining.data.sampler import SampleKey
from comining.data.set_export import CocoExport, VocExport, YoloExport
from comining.errors import DataError
from comining.tracking.drawing import IGNORED, Layer
from comining.tracking.tracker import LabelledImage
from comining.tracking.wandb_run import _box_layers
from comining.training.callbacks.pictures import _batch, _layers, _styles
from comining.training.pointless import pointless
from tests.annotated_folders import voc, yolo
from tests.helpers import boxes, composed, detector, edit_json, write_coco
from tests.test_datamodule import coco_data

NEG, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
A, B, C = (1, 2, 10, 12, 1), (20, 20, 30, 20, 2), (5, 5, 8, 8, 3)  # one of each class


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three images: two of class 1 and one of class 2, one of class 2, none."""
    return write_coco(tmp_path, [[A, (30, 2, 10, 12, 1), B], [B], []])


def fields(image: int, **lists: Any) -> Any:
    """Gives the record of an image (0, 1, 2) further fields."""
    return lambda content: content["images"][image].update(lists)


def said(file: Path, change: Any) -> list[list[int]]:
    rows: list[list[int]] = read_coco(edit_json(file, change)).said_of_all.tolist()
    return rows


# -- the fields of LVIS ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({NEG: [], NOT_EXHAUSTIVE: []}, [COMPLETE, COMPLETE, UNLOOKED]),
        ({NEG: [3], NOT_EXHAUSTIVE: []}, [COMPLETE, COMPLETE, COMPLETE]),
        ({NEG: [], NOT_EXHAUSTIVE: [1]}, [PARTIAL, COMPLETE, UNLOOKED]),
        ({NEG: [], NOT_EXHAUSTIVE: [3]}, [COMPLETE, COMPLETE, PARTIAL]),
        ({NEG: [3], NOT_EXHAUSTIVE: [3]}, [COMPLETE, COMPLETE, PARTIAL]),
        ({NEG: [1]}, [COMPLETE, COMPLETE, UNLOOKED]),
        ({NOT_EXHAUSTIVE: [2]}, [COMPLETE, PARTIAL, UNLOOKED]),
        ({NEG: None, NOT_EXHAUSTIVE: [2, 2]}, [COMPLETE, PARTIAL, UNLOOKED]),
        ({NEG: ["3"], NOT_EXHAUSTIVE: [1.0]}, [PARTIAL, COMPLETE, COMPLETE]),
        ({NEG: None, NOT_EXHAUSTIVE: None}, [UNSAID] * 3),
        ({}, [UNSAID] * 3),
    ],
)
def test_what_the_fields_say(file: Path, lists: dict[str, Any], expected: list[int]) -> None:
    assert said(file, fields(0, **lists)) == [expected, [UNSAID] * 3, [UNSAID] * 3]


def test_contradictions_are_counted(file: Path) -> None:
    edit_json(file, fields(0, **{NEG: [1, 3], NOT_EXHAUSTIVE: [3]}))
    assert read_coco(file).repairs == {
        "classes in neg_category_ids that have a box, taken as complete": 1,
        "classes in both lists of fields, taken as not exhaustive": 1,
    }


@pytest.mark.parametrize("key", [NEG, NOT_EXHAUSTIVE])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([9], "9 is not among the categories"),
        ("1", "must be a list of category ids, got '1'"),
        (1, "must be a list of category ids, got 1"),
        ({"1": 1}, "must be a list of category ids"),
        ([None], "must be a whole number of 64 bits, got None"),
        ([True], "must be a whole number of 64 bits, got True"),
        ([[1]], r"must be a whole number of 64 bits, got \[1\]"),
        (["cat"], "must be a whole number of 64 bits, got 'cat'"),
        ([1.5], "must be a whole number of 64 bits, got 1.5"),
    ],
)
def test_bad_fields_are_refused_by_name(file: Path, key: str, value: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"train.json: image 2: {key}(\[0\]|:)? {words}"):
        read_coco(edit_json(file, fields(1, **{key: value})))


def test_a_region_to_ignore_does_not_show_that_all_is_annotated(file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][3]["ignore"] = 1  # the only one of class 2 in image 2
        fields(1, **{NEG: []})(content)

    assert said(file, change)[1] == [UNLOOKED] * 3


def test_an_unused_root_may_stand_in_the_fields(file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for one in content["categories"]:
            one["supercategory"] = "animals"
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        fields(2, **{NEG: [0, 1], NOT_EXHAUSTIVE: [0]})(content)

    assert said(file, change)[2] == [COMPLETE, UNLOOKED, UNLOOKED]


def test_rates_and_counts() -> None:
    status = np.array([[UNLOOKED, COMPLETE], [PARTIAL, COMPLETE]], dtype=np.int8)
    assert np.array_equal(rates(status), [[0, 1], [np.nan, 1]], equal_nan=True)
    assert counts(status, ("a", "b")) == {
        "complete": 2, "not_looked_for": 1, "partial": 1,
        "classes": {
            "a": {"complete": 0, "not_looked_for": 1, "partial": 1},
            "b": {"complete": 2, "not_looked_for": 0, "partial": 0},
        },
    }  # fmt: skip


def test_the_fingerprint_of_a_set_without_fields_is_that_of_before(file: Path) -> None:
    plain = read_coco(file).fingerprint()
    assert plain == FINGERPRINT
    edit_json(file, fields(2, **{NEG: []}))
    empty = read_coco(file)
    edit_json(file, fields(2, **{NEG: [1]}))
    named = read_coco(file)
    edit_json(file, lambda content: content["images"].reverse())
    assert len({plain, empty.fingerprint(), named.fingerprint()}) == 3
    assert read_coco(file).fingerprint() == named.fingerprint()


# As computed before sets had fields.
FINGERPRINT = "9de58c27a85a2ec6"


# -- what holds where no field says anything ---------------------------------------------


def training(root: Path, **options: Any) -> DetectionData:
    """The set below a folder; without a validation split it is read again."""
    options = {"val_annotations": "train.json", "val_images": "train", **options}
    data = coco_data(root, test_annotations=None, test_images=None, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("annotated", "first", "last"),
    [
        ("partial", [np.nan] * 3, [np.nan] * 3),
        ("exhaustive", [1, 1, 1], [1, 1, 1]),
        ("fields", [1, 1, 0], [0, 1, 0]),
    ],
)
def test_annotated_says_what_holds_elsewhere(
    file: Path, annotated: str, first: list[float], last: list[float]
) -> None:
    edit_json(file, lambda content: content["annotations"].append(
        {"id": 9, "image_id": 3, "category_id": 3, "bbox": [1, 1, 9, 9]}
    ))  # fmt: skip
    edit_json(file, fields(2, **{NEG: [1], NOT_EXHAUSTIVE: []}))
    data = training(file.parent, annotated=annotated)
    assert data.train_set is not None
    rows = [data.train_set[SampleKey(0, item)].knowledge.rate[0].numpy() for item in range(3)]
    assert np.array_equal(rows[0], first, equal_nan=True)
    assert np.array_equal(rows[1], last, equal_nan=True)
    assert rows[2].tolist() == [1, 0, 1]  # what the fields say holds in any case
    known = data.summary()["train"]["known"]
    assert known["complete"] + known["not_looked_for"] + known["partial"] == 9
    assert known["classes"]["class 2"]["not_looked_for"] == 1


def test_an_unknown_word_for_annotated_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.annotated='all' must be one of partial, exhaus"):
        training(file.parent, annotated="all")


# -- regions to ignore -------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "1", True, 1.0, "true"])
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_marked_annotations_are_regions(file: Path, key: str, value: Any) -> None:
    edit_json(file, lambda content: content["annotations"][0].update({key: value}))
    found = read_coco(file)
    assert found.crowd.tolist() == [True, False, False, False]
    assert found.labels[0] == 0
    for empty in (0, None, False, "0"):
        again = {key: empty}
        edit_json(file, lambda content, again=again: content["annotations"][0].update(again))
        assert not read_coco(file).crowd.any()


def test_ignore_is_a_flag(file: Path) -> None:
    edit_json(file, lambda content: content["annotations"][0].update(ignore=2))
    with pytest.raises(DataError, match=r"train.json: annotation 1: ignore must be 0 or 1, got 2"):
        read_coco(file)


def test_crowds_may_be_objects_beside_regions(file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1].update(iscrowd=1, ignore=1)
        content["annotations"][2]["ignore"] = 1

    found = read_coco(edit_json(file, change), crowd="object")
    assert found.crowd.tolist() == [False, True, True, False]


def test_regions_are_resized_and_flipped_as_boxes(file: Path) -> None:
    """An annotation and a region of the same box stay the same box."""
    edit_json(file, lambda content: content["annotations"].append(
        {**content["annotations"][0], "id": 50, "ignore": 1}
    ))  # fmt: skip
    for flip in (0.0, 1.0):
        data = training(file.parent, min_size=96, flip=flip)
        assert data.train_set is not None
        sample = data.train_set[SampleKey(0, 0)]
        assert sample.image.shape[1] == 96
        assert torch.equal(sample.knowledge.ignored.boxes, sample.annotated.boxes[:1])
        assert sample.knowledge.ignored.labels.tolist() == [0]
        left = sample.annotated.boxes[0, 0].item()
        assert left == (2 if flip == 0 else 128 - 22)
        assert sample.knowledge.overlap == 0.5
    assert data.summary()["train"]["known"]["ignored_regions"] == 1


def test_a_class_may_be_regions_for_all_classes(file: Path) -> None:
    edit_json(file, fields(0, **{NEG: [3], NOT_EXHAUSTIVE: [2]}))
    data = training(file.parent, ignore_category="class 1")
    assert data.categories.names == ("class 2", "class 3")
    assert data.train_set is not None
    found = data.train_set.annotations
    assert found.labels.tolist() == [-1, -1, 0, 0]
    assert found.crowd.tolist() == [True, True, False, False]
    assert found.said_of_all.tolist()[0] == [PARTIAL, COMPLETE]
    assert data.train_set[SampleKey(0, 0)].knowledge.ignored.labels.tolist() == [-1, -1]
    assert data.summary()["train"]["classes"] == 2


def formatted(root: Path, name: str, **options: Any) -> DetectionData:
    """A set in a format."""
    cfg = composed(f"data={name}", "sparsity=full")
    with open_dict(cfg):
        cfg.data.update({"root": str(root), "num_workers": 0, "min_size": 48, **options})
        sparsity = instantiate(cfg.sparsity, "sparsity")
    data: DetectionData = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_a_class_of_any_format_may_be_regions(tmp_path: Path, name: str) -> None:
    {"yolo": yolo, "voc": voc}[name](tmp_path)
    data = formatted(tmp_path, name, ignore_category="dog", val_fraction=0.2)
    assert data.categories.names == ("cat",)
    assert data.summary()["train"]["crowds"] + data.summary()["val"]["crowds"] == 1
    for wrong in ("bird", "Dog"):
        with pytest.raises(DataError, match=f"data.ignore_category={wrong} is not among .* cat, d"):
            formatted(tmp_path, name, ignore_category=wrong, val_fraction=0.2)


def test_the_only_class_cannot_be_ignored(file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"] = content["categories"][:1]
        content["annotations"] = content["annotations"][:2]

    edit_json(file, change)
    with pytest.raises(DataError, match=r"no class but data.ignore_category=class 1"):
        training(file.parent, ignore_category="class 1")


def test_what_is_evaluated_may_lack_the_ignored_class(file: Path) -> None:
    write_coco(file.parent, [[A, B]], split="val")

    def lack(content: dict[str, Any]) -> None:
        content["categories"] = content["categories"][:2]

    edit_json(file.parent / "val.json", lack)
    val = {"val_annotations": "val.json", "val_images": "val"}
    data = training(file.parent, ignore_category="class 3", **val)
    assert data.evaluated["val"].categories.names == ("class 1", "class 2")


def test_difficult_objects_of_voc_may_be_regions(tmp_path: Path) -> None:
    file = voc(tmp_path) / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    for difficult, expected in (("object", 0), ("ignore", 1)):
        data = formatted(tmp_path, "voc", difficult=difficult, val_fraction=0.01)
        crowds = [data.summary()[split]["crowds"] for split in ("train", "val")]
        assert sum(crowds) == expected
    with pytest.raises(ValueError, match=r"data\.difficult='drop' must be one of object, ignore"):
        formatted(tmp_path, "voc", difficult="drop")


# -- regions of every class, wherever sets go --------------------------------------------


@pytest.fixture
def for_all(file: Path) -> AnnotationSet:
    """Two regions for every class in the first image."""
    edit_json(file, fields(0, **{NEG: [3]}))
    return without_category(read_coco(file), "class 1")


def test_regions_of_every_class_keep_their_label(for_all: AnnotationSet) -> None:
    assert len(for_all.fingerprint()) == 16
    part = for_all.of_images(np.array([True, False, True]))
    assert part.labels.tolist() == [-1, -1, 0]
    assert part.said_of_all.tolist()[0] == [COMPLETE, COMPLETE]
    other = Categories((7, 8), ("class 3", "class 2"))
    matched = match_categories(part, other, "other.json")
    assert matched.labels.tolist() == [-1, -1, 1]
    wider = Categories((7, 8, 9), ("x", "class 3", "class 2"))
    wide = match_categories(for_all, wider, "other.json", may_lack=True)
    assert wide.labels.tolist() == [-1, -1, 2, 2]
    assert wide.said_of_all.tolist() == [
        [UNLOOKED, COMPLETE, COMPLETE], [UNLOOKED, UNSAID, UNSAID], [UNLOOKED, UNSAID, UNSAID],
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"'x' .* is in other.json only"):
        match_categories(for_all, wider, "other.json")


def test_regions_of_every_class_are_no_trouble_for_warnings_and_pictures(file: Path) -> None:
    data = training(file.parent, ignore_category="class 1", batch_size=2)
    lines = list(pointless(data, detector("retinanet", 2)))
    assert len([line for line in lines if "'class 3'" in line]) == 1
    assert not [line for line in lines if "class 1" in line]
    batch = _batch(data, [0, 1], torch.device("cpu"))
    assert IGNORED in _styles(batch)
    nothing = boxes([], [])
    layers = _layers(IGNORED, nothing, nothing, nothing, batch.knowledge.ignored, nothing)
    assert len(layers[0].boxes) == 2
    labels = batch.knowledge.ignored.labels
    image = LabelledImage(batch.images[0], [Layer(IGNORED, layers[0].boxes)], [labels])
    (layer,) = _box_layers(image, {0: "class 2", 1: "class 3"}).values()
    assert [box["class_id"] for box in layer["box_data"]] == [-1, -1]
    assert layer["class_labels"][-1] == "every class"


# -- converting --------------------------------------------------------------------------


def sets_of(root: Path, name: str, **options: Any) -> AnnotationSet:
    (found,) = read_sets(root, name, ReadOptions(**options), pictures=True).values()
    return found[0]


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A set with fields of every kind and two regions, in a folder of its own."""
    root = tmp_path / "source"
    file = write_coco(root, [[A, B, C], [B, C], [], [A]])

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][3]["ignore"] = 1
        fields(0, **{NEG: [], NOT_EXHAUSTIVE: [2]})(content)
        fields(1, **{NEG: [1], NOT_EXHAUSTIVE: []})(content)
        fields(2, **{NEG: []})(content)

    edit_json(file, change)
    return root


def test_coco_keeps_what_is_known(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert([str(known), str(tmp_path / "out"), "--to", "coco"])
    assert "not kept" not in capsys.readouterr().out
    before, after = sets_of(known, "coco_folder"), sets_of(tmp_path / "out", "coco_folder")
    assert after.said is not None
    assert after.said_of_all.tolist() == before.said_of_all.tolist() == [
        [UNLOOKED, PARTIAL, COMPLETE], [COMPLETE, UNLOOKED, COMPLETE], [UNLOOKED] * 3, [UNSAID] * 3,
    ]  # fmt: skip
    assert after.fingerprint() == before.fingerprint()
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert NEG not in content["images"][3]


def test_without_fields_coco_gets_none(tmp_path: Path) -> None:
    write_coco(tmp_path / "source", [[A], []])
    convert([str(tmp_path / "source"), str(tmp_path / "out"), "--to", "coco"])
    assert NEG not in (tmp_path / "out/annotations/instances_train.json").read_text()


def test_yolo_and_voc_count_what_they_lose(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("yolo", "voc"):
        convert([str(known), str(tmp_path / to), "--to", to])
        printed = capsys.readouterr().out
        assert "what is known of images and classes (fields of LVIS): 9\n" in printed
        regions = "regions to ignore, unless data.difficult=ignore reads difficult objects so: 2"
        left_out = "crowds and other regions to ignore, left out: 2"
        assert {"yolo": left_out, "voc": regions}[to] in printed
    assert len(sets_of(tmp_path / "yolo", "yolo").ids) == 4
    before = sets_of(known, "coco_folder")
    back = sets_of(tmp_path / "voc", "voc", difficult="ignore")
    assert back.crowd.tolist() == before.crowd.tolist()
    assert back.bboxes.tolist() == before.bboxes.tolist()
    assert back.labels.tolist() == before.labels.tolist()
    convert(
        [str(tmp_path / "voc"), str(tmp_path / "again"), "--to", "coco", "--difficult", "ignore"]
    )
    assert sets_of(tmp_path / "again", "coco_folder").crowd.sum() == 2


@pytest.mark.parametrize("export", [CocoExport(), YoloExport(), VocExport()])
def test_regions_of_every_class_become_one_of_each(
    for_all: AnnotationSet, export: Any, tmp_path: Path
) -> None:
    written = export.export({"train": (for_all, tmp_path / "train")})
    if export.title == "COCO":
        (content,) = map(json.loads, written.text_files.values())
        rows = [(one["id"], one["category_id"], one["iscrowd"]) for one in content["annotations"]]
        assert rows == [(1, 2, 1), (5, 3, 1), (2, 2, 1), (6, 3, 1), (3, 2, 0), (4, 2, 0)]
    elif export.title == "YOLO":
        assert "-1 " not in "".join(written.text_files.values())
        assert written.losses["crowds and other regions to ignore, left out"] == 4
    else:
        first = written.text_files["Annotations/001.xml"]
        assert first.count("<difficult>1<") == 4
        assert first.count("<name>class 3</name>") == 2


# -- sparse sets -------------------------------------------------------------------------


def protocol(name: str, **options: Any) -> Any:
    return instantiate_file(CONFIG_FOLDER / "sparsity" / f"{name}.yaml", options)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twenty images of eight boxes, three classes, a crowd in each."""
    rng = np.random.default_rng(0)
    records = [
        [
            (*rng.uniform(0, 20, 2), *rng.uniform(4, 20, 2), int(rng.integers(1, 4)))
            for _ in range(8)
        ]
        for _ in range(20)
    ]
    file = write_coco(tmp_path / "many", records)

    def add_crowds(content: dict[str, Any]) -> None:
        for n, image in enumerate(content["images"]):
            crowd = {**content["annotations"][n], "id": 1000 + n, "image_id": image["id"]}
            content["annotations"].append({**crowd, "iscrowd": 1})

    return edit_json(file, add_crowds)


def by_id(found: AnnotationSet, mask: Any) -> set[int]:
    return set(found.ids[mask].tolist())


def looked_for(found: AnnotationSet, status: Any) -> set[tuple[int, str]]:
    return {
        (int(found.image_ids[image]), found.categories.names[label])
        for image, label in np.argwhere(status != UNLOOKED)
    }


def test_classes_are_erased_by_image(many: Path) -> None:
    found = read_coco(many)
    erasure = protocol("classes", fraction=0.4).apply(found)  # of three classes one
    assert ((erasure.status == UNLOOKED).sum(axis=1) == 1).all()
    assert ((erasure.status == COMPLETE).sum(axis=1) == 2).all()
    unlooked = erasure.status[found.image, found.labels] == UNLOOKED
    assert np.array_equal(erasure.erased, unlooked & ~found.crowd)
    assert erasure.erased.any()
    assert not erasure.ignored.any()
    # Every class has its turn.
    assert ((erasure.status == UNLOOKED).sum(axis=0) > 2).all()
    for fraction, number in ((0.0, 0), (0.33, 0), (0.7, 2), (1.0, 3)):
        status = protocol("classes", fraction=fraction).apply(found).status
        assert ((status == UNLOOKED).sum(axis=1) == number).all()


def test_the_choice_of_classes_is_that_of_seed_image_and_name(many: Path) -> None:
    found = read_coco(many)
    first = protocol("classes").apply(found)
    other = protocol("classes", seed=1).apply(found)
    assert looked_for(found, first.status) != looked_for(found, other.status)

    def shuffle(content: dict[str, Any]) -> None:
        rng = np.random.default_rng(1)
        for one in (*content["categories"], *content["annotations"]):
            key = "id" if "name" in one else "category_id"
            one[key] = 4 - one[key]
        for section in content.values():
            rng.shuffle(section)

    again = read_coco(edit_json(many, shuffle))
    assert again.categories.names == ("class 3", "class 2", "class 1")
    erasure = protocol("classes").apply(again)
    assert looked_for(again, erasure.status) == looked_for(found, first.status)
    assert by_id(again, erasure.erased) == by_id(found, first.erased)


def test_the_same_classes_without_knowing_it(many: Path) -> None:
    found = read_coco(many)
    told, untold = (protocol("classes", known=known).apply(found) for known in (True, False))
    assert np.array_equal(told.erased, untold.erased)
    assert (untold.status == PARTIAL).all()


@pytest.mark.parametrize(
    "name", ["regions", "hard", "easy", "extreme", "miss50", "keep1", "classes"]
)
def test_any_protocol_may_leave_regions(many: Path, name: str) -> None:
    found = read_coco(many)
    plain = protocol(name, regions=0.0).apply(found)
    some = protocol(name, regions=0.5).apply(found)
    everything = protocol(name, regions=1.0).apply(found)
    assert np.array_equal(plain.erased, some.erased)
    assert not plain.ignored.any()
    assert some.ignored.sum() == some.erased.sum() // 2 > 0
    assert not (some.ignored & ~some.erased).any()
    assert np.array_equal(everything.ignored, everything.erased)
    assert np.array_equal(plain.status, some.status)

    def shuffle(content: dict[str, Any]) -> None:
        for section in content.values():
            np.random.default_rng(1).shuffle(section)

    again = read_coco(edit_json(many, shuffle))
    assert by_id(again, protocol(name, regions=0.5).apply(again).ignored) == by_id(
        found, some.ignored
    )
    other = protocol(name, regions=0.5, seed=3).apply(found)
    assert by_id(found, other.ignored) != by_id(found, some.ignored)


def test_a_bad_share_of_regions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity\.regions=1.5 must be a number from 0 to 1"):
        protocol("hard", regions=1.5)


def test_regions_of_erased_objects_reach_training(many: Path) -> None:
    """They are neither targets nor erased objects that mining could be judged by."""
    root = many.parent
    cfg = composed("data=custom", "sparsity=regions")
    with open_dict(cfg):
        cfg.data.update({"root": str(root), "num_workers": 0, "min_size": 48, "flip": 0.0})
        cfg.data.update({"train_annotations": "train.json", "train_images": "train"})
        sparsity = instantiate(cfg.sparsity, "sparsity")
    data: DetectionData = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    data.setup("fit")
    assert data.train_set is not None
    regions = total = 0
    for item in range(len(data.train_set)):
        sample = data.train_set[SampleKey(0, item)]
        regions += len(sample.knowledge.ignored) - 1  # without the crowd
        total += len(sample.annotated) + len(sample.erased) + len(sample.knowledge.ignored)
        assert sample.judged.all()
        assert sample.knowledge.rate.isnan().all()
    assert total == 9 * len(data.train_set)  # each box has one part
    facts = data.summary()["train"]
    assert facts["known"]["ignored_regions"] == regions + facts["crowds"]


def test_what_is_erased_from_a_file_with_fields(many: Path) -> None:
    """Complete classes may lack objects then; what is absent stays absent."""

    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 4, "name": "class 4"})
        content["categories"].append({"id": 5, "name": "class 5"})
        for image in content["images"][:10]:
            image.update({NEG: [4], NOT_EXHAUSTIVE: [1]})

    found = read_coco(edit_json(many, change))
    before = found.annotated_as("exhaustive").status
    status = protocol("hard").apply(found.annotated_as("exhaustive")).status
    assert (status[:10, 3] == COMPLETE).all()
    assert (status[:10, 0] == PARTIAL).all()
    assert (status[:10, 4] == UNLOOKED).all()
    assert (status[:10, 1:3] != COMPLETE).all()
    assert (status[10:] == PARTIAL).all()
    full = protocol("full").apply(found.annotated_as("exhaustive"))
    assert np.array_equal(full.status, before)


FIELDS_OF_TEN = {NEG: [4], NOT_EXHAUSTIVE: [1]}


@pytest.mark.parametrize("with_fields", [False, True])
@pytest.mark.parametrize("name", ["classes", "regions", "hard", "full"])
def test_a_written_file_says_all_that_training_is_told(
    many: Path, tmp_path: Path, name: str, with_fields: bool
) -> None:
    """Read as it is, and as the sparse file of the full one."""
    from comining.data.sparsity import main

    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 4, "name": "class 4"})
        for image in content["images"][:10]:
            image.update(FIELDS_OF_TEN)

    if with_fields:
        edit_json(many, change)
    output = tmp_path / "out.json"
    main([str(many), str(output), "--protocol", name, "--seed", "2", "--regions", "0.4"])
    full, sparse = read_coco(many), read_coco(output)
    expected = protocol(name, seed=2, regions=0.4).apply(full)
    if name != "full":
        assert expected.ignored.any()
    assert sparse.status.tolist() == expected.status.tolist()
    assert by_id(sparse, ~sparse.crowd) == by_id(full, ~expected.erased & ~full.crowd)
    assert by_id(sparse, sparse.crowd) == by_id(full, expected.ignored | full.crowd)
    again = protocol("file", path=str(output)).apply(full)
    assert np.array_equal(again.erased, expected.erased)
    assert np.array_equal(again.ignored, expected.ignored)
    assert np.array_equal(again.status, expected.status)
    # What was erased from that is not told by the other half of the set.
    whole = sparse.annotated_as("exhaustive").status
    if with_fields and name != "full":
        assert np.array_equal(whole, expected.status)


def test_a_class_that_lost_its_boxes_may_be_called_absent(file: Path, tmp_path: Path) -> None:
    """By a ready-made file: complete before and after, but told by the box before."""
    from comining.data.sparsity import main

    edit_json(file, fields(1, **{NEG: []}))
    shutil.copy(file, tmp_path / "sparse.json")

    def lose(content: dict[str, Any]) -> None:
        del content["annotations"][3]
        content["images"][1][NEG] = [2]

    edit_json(tmp_path / "sparse.json", lose)
    output = tmp_path / "out.json"
    main([str(file), str(output), "--protocol", "file", "--sparse-file", f"{tmp_path}/sparse.json"])
    assert read_coco(output).status[1].tolist() == [UNLOOKED, COMPLETE, UNLOOKED]


def test_the_command_prints_what_is_known(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from comining.data.sparsity import main

    main([str(many), str(tmp_path / "o.json"), "--protocol", "classes", "--regions", "1"])
    erased = protocol("classes").apply(read_coco(many)).erased.sum()
    line = "images x classes: 40 complete, 20 not looked for, 0 partial; erased annotations that"
    assert f"{line} are regions to ignore: {erased}\n" in capsys.readouterr().out


def test_a_sparse_file_beside_an_ignored_class(many: Path, tmp_path: Path) -> None:
    from comining.data.sparsity import main

    output = tmp_path / "out.json"
    arguments = [str(many), str(output), "--protocol", "hard", "--ignore-category", "class 3"]
    main(arguments)
    full = without_category(read_coco(many), "class 3")
    expected = protocol("hard").apply(full)
    again = protocol("file", path=str(output)).apply(full)
    assert expected.erased.any()
    assert np.array_equal(again.erased, expected.erased)
    assert np.array_equal(again.status, expected.status)
    assert not again.ignored.any()
    with pytest.raises(SystemExit):
        main([*arguments[:4], "--ignore-category", "class 9"])


def test_crowds_read_as_objects_are_objects_in_the_sparse_file(many: Path, tmp_path: Path) -> None:
    """Also where the set has regions of another kind."""
    from comining.data.sparsity import main

    edit_json(many, lambda content: content["annotations"][0].update(ignore=1))
    output = tmp_path / "out.json"
    main([str(many), str(output), "--protocol", "hard", "--crowd", "object"])
    full = read_coco(many, crowd="object")
    assert full.crowd.sum() == 1
    expected = protocol("hard").apply(full)
    again = protocol("file", path=str(output)).apply(full)
    assert np.array_equal(again.erased, expected.erased)
    assert not again.ignored.any()


def test_one_of_two_equal_boxes_becomes_a_region(tmp_path: Path) -> None:
    from comining.data.sparsity import main

    file = write_coco(tmp_path, [[A, A, A, A, B, B, C, C]])
    output = tmp_path / "out.json"
    main([str(file), str(output), "--protocol", "regions"])
    full = read_coco(file)
    expected, again = (
        protocol("regions").apply(full),
        protocol("file", path=str(output)).apply(full),
    )
    assert again.erased.sum() == expected.erased.sum() == 4
    assert again.ignored.sum() == expected.ignored.sum() == 2


def test_the_log_says_nothing_of_plain_files(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(file, fields(0, **{NEG: [3], NOT_EXHAUSTIVE: [1]}))
    with caplog.at_level(logging.WARNING):
        read_coco(file)
    assert not caplog.records
