"""Lists of annotation files: one set, in which each file is silent about classes it lacks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from comining.config import CONFIG_FOLDER, instantiate_file
from comining.data.annotations import AnnotationSet
from comining.data.datamodule import DetectionData
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED, UNSAID
from comining.data.merged_sets import merge
from comining.data.sampler import SampleKey
from comining.errors import DataError
from comining.runs.command_line import readable
from tests.helpers import edit_json, write_coco
from tests.test_datamodule import coco_data
from tests.test_train import train

NEG, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
# Of six images: boxes of all three classes.
RECORDS = [
    [(1, 2, 30, 32, 1), (34, 4, 28, 40, 3)],
    [(5, 5, 30, 30, 2), (20, 20, 40, 20, 3), (1, 30, 20, 15, 1)],
    [(5, 5, 30, 30, 1), (20, 20, 40, 20, 3)],
    [(5, 5, 30, 30, 2), (2, 20, 40, 20, 2), (30, 5, 30, 40, 3)],
    [(5, 5, 30, 30, 1), (20, 20, 40, 20, 3)],
    [(34, 4, 28, 40, 3), (10, 5, 30, 30, 2)],
]
# Two files share the images 3 and 4. One is annotated for the classes 1 and 2, the other for 3.
PARTS = {"one": ((1, 2, 3, 4), (1, 2)), "two": ((3, 4, 5, 6), (3,))}


def chosen_from(content: dict[str, Any], images: Sequence[int], classes: Sequence[int]) -> Any:
    """A COCO file with some of the images and classes of another."""
    return {
        "images": [one for one in content["images"] if one["id"] in images],
        "categories": [one for one in content["categories"] if one["id"] in classes],
        "annotations": [
            one
            for one in content["annotations"]
            if one["image_id"] in images and one["category_id"] in classes
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two files, one that says the same by the fields of LVIS, and one without such fields.

    The pictures of all are in ``train``.
    """
    full = json.loads(write_coco(tmp_path, RECORDS).read_text())
    write_coco(tmp_path, RECORDS[:3], split="val")
    together: list[Any] = []
    for name, (images, classes) in PARTS.items():
        part = chosen_from(full, images, classes)
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
        together += part["annotations"]
    for image in full["images"]:
        looked_for = {k for images, ks in PARTS.values() if image["id"] in images for k in ks}
        there = {one["category_id"] for one in together if one["image_id"] == image["id"]}
        image.update({NEG: sorted(looked_for - there), NOT_EXHAUSTIVE: []})
    (tmp_path / "fields.json").write_text(json.dumps({**full, "annotations": together}))
    for image in full["images"]:
        del image[NEG], image[NOT_EXHAUSTIVE]
    (tmp_path / "plain.json").write_text(json.dumps({**full, "annotations": together}))
    return tmp_path


def part(root: Path, name: str, folder: str = "train") -> tuple[AnnotationSet, Path]:
    return read_coco(root / f"{name}.json"), root / folder


def merged(root: Path, *names: str) -> AnnotationSet:
    return merge([part(root, name) for name in names])[0]


def training(root: Path, **options: Any) -> DetectionData:
    options = {"train_annotations": ["one.json", "two.json"], "annotated": "exhaustive", **options}
    data = coco_data(root, test_annotations=None, test_images=None, **options)
    data.setup("fit")
    return data


# -- the same as the fields of LVIS ------------------------------------------------------


def test_a_merged_set_is_that_of_the_fields(root: Path) -> None:
    found, expected = merged(root, "one", "two"), read_coco(root / "fields.json")
    assert found.categories == expected.categories
    assert found.image_ids.tolist() == expected.image_ids.tolist()
    assert found.file_names == expected.file_names
    for name in ("ids", "image", "labels", "bboxes", "boxes", "areas", "crowd", "sizes"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    status = found.annotated_as("exhaustive").status
    assert status.tolist() == expected.status.tolist()
    assert status.tolist() == [
        *[[COMPLETE, COMPLETE, UNLOOKED]] * 2, *[[COMPLETE] * 3] * 2,
        *[[UNLOOKED, UNLOOKED, COMPLETE]] * 2,
    ]  # fmt: skip
    # Without a word about the rest, what is in the category list of a file may lack objects.
    assert found.status.tolist()[0] == [PARTIAL, PARTIAL, UNLOOKED]
    assert found.repairs == {"pictures of several annotation files": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["comining", "original"])
def test_losses_are_those_of_the_fields(root: Path, method: str) -> None:
    """Some steps of training, to the last bit; and what is mined and evaluated."""
    options = [
        "data=custom", f"data.root={root}", "data.val_annotations=val.json", "data.val_images=val",
        "data.train_images=train", "data.min_size=48", "data.batch_size=2", "data.num_workers=0",
        "trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "sparsity=full",
        "pictures.every_n_steps=0", f"method={method}", "tau=0.008",
    ]  # fmt: skip
    given = {
        "list": ["data.train_annotations=[one.json,two.json]", "data.annotated=exhaustive"],
        "fields": ["data.train_annotations=fields.json"],
        "nothing": ["data.train_annotations=plain.json"],
    }
    results = {name: train(root / name, *options, *more) for name, more in given.items()}
    rows = {}
    for name in given:
        with (root / name / "metrics.csv").open() as lines:
            rows[name] = [
                {key: value for key, value in row.items() if key != "train/images_per_s"}
                for row in csv.DictReader(lines)
            ]
    assert len(rows["list"]) >= 4
    assert rows["list"] == rows["fields"]
    assert rows["list"] != rows["nothing"]
    for key in ("metrics", "class_ap", "mining", "mining_classes"):
        assert results["list"][key] == results["fields"][key]
    known = [results[name]["data"]["train"]["known"] for name in ("list", "fields")]
    assert known[0] == known[1]
    assert (known[0]["complete"], known[0]["not_looked_for"], known[0]["partial"]) == (12, 6, 0)
    if method == "comining":
        # Complete classes are never mined, and the others are.
        mined = [row for row in rows["list"] if row.get("mining/pseudo_labels_per_image")]
        assert mined


# -- names, ids, folders -----------------------------------------------------------------


def test_one_file_is_what_it_was(root: Path) -> None:
    alone = part(root, "one")
    assert merge([alone]) is alone


def test_ids_that_clash_are_counted_on(root: Path) -> None:
    """Other pictures with the same ids of images and annotations; the classes by name."""
    write_coco(root, [[(2, 2, 9, 9, 1)], [(3, 3, 9, 9, 2)]], split="other")
    found, folder = merge([part(root, "one"), part(root, "other", "other")])
    assert folder == root
    assert found.file_names == [
        *(f"train/00{n}.png" for n in (1, 2, 3, 4)), "other/001.png", "other/002.png",
    ]  # fmt: skip
    assert found.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert len(set(found.ids.tolist())) == len(found.ids)
    assert found.image[-2:].tolist() == [4, 5]
    assert found.categories.names == ("class 1", "class 2", "class 3")
    assert found.said_of_all.tolist() == [[UNSAID, UNSAID, UNLOOKED]] * 4 + [[UNSAID] * 3] * 2


def test_classes_meet_by_name_and_not_by_id(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "class 3"}, {"id": 2, "name": "class 1"}]
        for one in content["annotations"]:
            one["category_id"] = 1

    edit_json(root / "two.json", change)
    found = merged(root, "one", "two")
    assert found.categories.names == ("class 1", "class 2", "class 3")
    assert len(set(found.categories.ids)) == 3
    names = [found.categories.names[label] for label in found.labels]
    expected = read_coco(root / "fields.json")
    assert names == [expected.categories.names[label] for label in expected.labels]
    # In the images of the second file, class 1 was looked for and class 2 was not.
    assert found.said_of_all[4:].tolist() == [[UNSAID, UNLOOKED, UNSAID]] * 2


def test_the_order_of_files_changes_nothing_but_the_order(root: Path) -> None:
    one, other = merged(root, "one", "two"), merged(root, "two", "one")

    def facts(found: AnnotationSet) -> set[tuple[Any, ...]]:
        status = {
            (found.file_names[image], found.categories.names[label], int(code))
            for (image, label), code in np.ndenumerate(found.said_of_all)
        }
        rows = zip(found.image.tolist(), found.labels.tolist(), found.bboxes.tolist(), strict=True)
        return status | {
            (found.file_names[image], found.categories.names[label], *bbox)
            for image, label, bbox in rows
        }

    assert facts(one) == facts(other)
    assert other.file_names[0] == "003.png"


def test_the_same_box_in_two_files_counts_once(root: Path) -> None:
    shutil.copy(root / "one.json", root / "three.json")
    found = merged(root, "one", "three", "two")
    assert len(found.ids) == len(read_coco(root / "fields.json").ids)
    assert found.repairs["annotations of several files, counted once"] == 6


def test_the_stronger_word_about_a_picture_holds(root: Path) -> None:
    """Looked for by one file is looked for."""
    write_coco(root, RECORDS[:1])
    shutil.copy(root / "train.json", root / "b.json")
    edit_json(root / "train.json", lambda c: c["images"][0].update({NEG: [], NOT_EXHAUSTIVE: [3]}))
    edit_json(root / "b.json", lambda c: c["images"][0].update({NEG: [2], NOT_EXHAUSTIVE: [1]}))
    for names in (("train", "b"), ("b", "train")):
        assert merged(root, *names).said_of_all.tolist() == [[COMPLETE] * 3]


def test_different_sizes_of_the_same_picture_are_refused(root: Path) -> None:
    edit_json(root / "two.json", lambda content: content["images"][0].update(width=65))
    words = r"two.json: image 3 \(003.png\) is 65x48 px, and 64x48 in another file"
    with pytest.raises(DataError, match=words):
        merged(root, "one", "two")


def test_a_folder_for_each_file(root: Path) -> None:
    shutil.copytree(root / "train", root / "elsewhere" / "pictures")
    data = training(root, train_images=["train", "elsewhere/pictures"])
    assert data.train_set is not None
    found = data.train_set.annotations
    assert len(found.image_ids) == 8  # other files are other pictures
    assert found.file_names[-1] == "elsewhere/pictures/006.png"
    last = data.train_set[SampleKey(0, len(data.train_set) - 1)]
    assert last.knowledge.rate.tolist() == [[0, 0, 1]]
    assert last.annotated.labels.tolist() == [2]


# -- the data module ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_images": ["train"]}, "names 2 files and data.train_images 1 folders"),
        ({"train_images": ["train"] * 3}, "names 2 files and data.train_images 3 folders"),
        (
            {"train_annotations": "one.json", "train_images": ["train"] * 2},
            "names 1 files and data.train_images 2 folders",
        ),
        ({"train_annotations": []}, "names no file"),
        ({"train_annotations": ["one.json", "one.json"]}, "names a file twice"),
        ({"train_annotations": ["one.json", "./one.json"]}, "names a file twice"),
        ({"train_annotations": ["one.json", 3]}, "data.train_annotations"),
    ],
)
def test_bad_lists_are_refused_by_option(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        training(root, **options)


def test_an_absent_file_of_a_list_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"missing for train: .*none.json\n"):
        training(root, train_annotations=["one.json", "none.json"])


def test_a_validation_split_may_have_some_of_the_classes(root: Path) -> None:
    """Where sets are merged; its other classes were not looked for."""

    def lack(content: dict[str, Any]) -> None:
        content.update(chosen_from(content, (1, 2, 3), (3,)))

    edit_json(root / "val.json", lack)
    data = training(root)
    found = data.evaluated["val"]
    assert found.categories.names == data.categories.names
    assert found.status.tolist() == [[UNLOOKED, UNLOOKED, COMPLETE]] * 3
    with pytest.raises(DataError, match="differ: 'class 1'"):  # a misspelt class, more likely
        training(root, train_annotations="fields.json")
    edit_json(root / "val.json", lambda content: content["categories"][0].update(name="x"))
    with pytest.raises(DataError, match=r"'x' \(id 3\) is in .*val.json only"):
        training(root)


def test_a_share_of_a_merged_set_keeps_what_is_known(root: Path) -> None:
    data = training(root, val_annotations=None, val_images=None, val_fraction=0.5)
    assert data.train_set is not None
    expected = read_coco(root / "fields.json")
    rows = {name: row.tolist() for name, row in zip(expected.file_names, expected.status)}
    seen = []
    for found in (data.train_set.annotations, data.evaluated["val"]):
        assert len(found.image_ids)
        seen += found.file_names
        assert [rows[name] for name in found.file_names] == found.status.tolist()
    assert sorted(seen) == expected.file_names


def test_sparsity_erases_from_a_merged_set(root: Path) -> None:
    """Whole classes may lack objects then; what nobody looked for stays so, and is not judged."""
    protocol = instantiate_file(CONFIG_FOLDER / "sparsity" / "hard.yaml", {})
    found = merged(root, "one", "two").annotated_as("exhaustive")
    erasure = protocol.apply(found)
    assert erasure.erased.any()
    expected = np.where(found.status == COMPLETE, PARTIAL, found.status)
    assert np.array_equal(erasure.status, expected)
    classes = instantiate_file(CONFIG_FOLDER / "sparsity" / "classes.yaml", {"fraction": 0.4})
    of_classes = classes.apply(found)
    assert (of_classes.status[found.status == UNLOOKED] == UNLOOKED).all()
    assert (of_classes.status == COMPLETE).any()


def test_what_is_mined_of_classes_nobody_looked_for_is_not_judged(root: Path) -> None:
    data = coco_data(
        root, train_annotations=["one.json", "two.json"], test_annotations=None, test_images=None
    )
    data.sparsity = instantiate_file(CONFIG_FOLDER / "sparsity" / "hard.yaml", {})
    data.setup("fit")
    assert data.train_set is not None
    assert data.train_set[SampleKey(0, 0)].judged.tolist() == [True, True, False]


def test_an_ignored_class_of_one_of_the_files(root: Path) -> None:
    data = training(root, ignore_category="class 3")
    assert data.train_set is not None
    found = data.train_set.annotations
    assert found.categories.names == ("class 1", "class 2")
    assert (found.labels == -1).sum() == 4
    assert found.status.tolist()[0] == [COMPLETE, COMPLETE]
    assert found.status.tolist()[-1] == [UNLOOKED, UNLOOKED]


# -- the command line --------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["a b.json", "Bücher.json"], ["it's.json", "x (1).json"], ["日本.json", "a=b.json"]]
)
def test_lists_of_any_paths_arrive(
    root: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell hands them over, relative to data.root or to where one stands."""
    monkeypatch.chdir(root.parent)
    for name, of_part in zip(names, PARTS, strict=True):
        (root / f"{of_part}.json").rename(root / name)
    arguments = readable([f"data.root={root}", f"data.train_annotations=[{','.join(names)}]"])
    parsed = OverridesParser.create().parse_override(arguments[1]).value()
    assert [str(name) for name in parsed] == names
    data = training(root, train_annotations=[str(name) for name in parsed])
    assert data.summary()["train"]["images"] == 6
    quoted = ",".join(f'"{name}"' for name in names)
    again = readable([f"data.root={root}", f"data.train_annotations=[{quoted}]"])
    assert OverridesParser.create().parse_override(again[1]).value() == parsed
