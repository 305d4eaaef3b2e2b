"""COCO files as tools write them: one sensible reading is read and counted, two are an error."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from comining.data.annotations import AnnotationSet, Categories
from comining.data.category_matching import match_categories
from comining.data.file_names import without_roots
from comining.data.formats.coco import read_coco
from comining.data.formats.segmentation import segmentation_box
from comining.data.image_files import check_images
from comining.data.record_values import integer, number, whole
from comining.errors import DataError
from comining.evaluation.coco_evaluator import CocoEvaluator
from tests.helpers import boxes, edit_json, write_coco
from tests.test_datamodule import coco_data

Content = dict[str, Any]
RECORDS = [[(1, 2, 10, 12, 1), (20, 20, 30, 20, 3)], [(5, 5, 8, 8, 2)], []]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_coco(tmp_path, RECORDS)  # type: ignore[arg-type]


def each(section: str, change: Any) -> Any:
    def apply(content: Content) -> None:
        for record in content[section]:
            change(record)

    return apply


# -- numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5), (5.0, 5), ("5", 5), (" 5 ", 5), ("996.0000", 996), ("-3", -3), ("007", 7),
        (908400416500.0, 908400416500), (str(2**62), 2**62), (2.0**53 - 1, 2**53 - 1),
        (5.5, None), ("5.5", None), ("5x", None), ("", None), ("1e3", None), ("1_0", None),
        ("٣", None), (True, None), (None, None), ([5], None), (2.0**53, None), (float("nan"), None),
        (float("inf"), None),
    ],
)  # fmt: skip
def test_whole_numbers_are_read_however_they_are_written(value: object, expected: object) -> None:
    assert whole(value) == expected
    if expected is not None:
        repairs: Counter[str] = Counter()
        assert integer("x", {"id": value}, "id", repairs) == expected
        assert repairs.total() == (type(value) is not int)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.5", 1.5), ("-.5", -0.5), ("1e2", 100), ("3.", 3), (2, 2), ("1,5", None), ("", None),
        ("nan", None), ("inf", None), ("0x10", None), (True, None), (None, None),
    ],
)  # fmt: skip
def test_texts_are_numbers_if_they_have_one_reading(value: object, expected: object) -> None:
    assert number(value) == expected


def test_a_set_that_is_all_text_and_floats_is_the_same_set(file: Path) -> None:
    before = read_coco(file).fingerprint()

    def as_text(content: Content) -> None:
        for one in content["images"]:
            one.update(id=str(one["id"]), width=float(one["width"]), height=f"{one['height']}.0")
        for one in content["categories"]:
            one["id"] = float(one["id"])
        for one in content["annotations"]:
            one.update(image_id=float(one["image_id"]), category_id=str(one["category_id"]))
            one.update(bbox=[str(side) for side in one["bbox"]], area=str(one["area"]))
            one.update(iscrowd="false")

    found = read_coco(edit_json(file, as_text))
    assert found.fingerprint() == before
    assert found.repairs == {
        "whole numbers written as floats": 3 + 3 + 3,
        "numbers written as text": 2 * 3 + 3 + 4 * 3 + 3,
        "truth values written as text or as true and false": 3,
    }


def test_repairs_are_in_the_summary_of_every_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        path = write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
        edit_json(path, each("annotations", lambda one: one.update(area=None)))
    data = coco_data(tmp_path)
    data.setup("fit")
    for facts in data.summary().values():
        assert facts["repairs"] == {"areas computed from the box because the file has none": 3}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("1", True), ("TRUE", True), (1.0, True), ("0", False), (None, False)],
)
def test_crowds_are_read_however_they_are_written(
    file: Path, value: object, expected: bool
) -> None:
    edit_json(file, lambda c: c["annotations"][1].update(iscrowd=value))
    assert read_coco(file).crowd.tolist() == [False, expected, False]


@pytest.mark.parametrize("value", [2, -1, "yes", "", [], 0.5])
def test_what_is_no_truth_value_is_refused(file: Path, value: object) -> None:
    edit_json(file, lambda c: c["annotations"][1].update(iscrowd=value))
    with pytest.raises(DataError, match="annotation 2: iscrowd must be 0 or 1"):
        read_coco(file)


def test_names_of_classes_may_be_numbers(file: Path) -> None:
    edit_json(file, each("categories", lambda one: one.update(name=one["id"])))
    found = read_coco(file)
    assert found.categories.names == ("1", "2", "3")
    assert found.repairs == {"category names written as numbers": 3}


# -- the root category -------------------------------------------------------------------


def categories(*rows: tuple[Any, str, Any]) -> Any:
    def change(content: Content) -> None:
        content["categories"] = [
            {"id": k, "name": name, "supercategory": above} for k, name, above in rows
        ]

    return change


CLASSES = [(1, "a", "things"), (2, "b", "things"), (3, "c", "things")]


@pytest.mark.parametrize(
    "rows",
    [
        [(0, "things", "none"), *CLASSES],
        [*CLASSES, (0, "things", "None")],
        [("0", "things", "none"), *CLASSES],
        [(9, "things", "none"), *CLASSES],
        [(0, "a", "none"), (1, "a", "a"), (2, "b", "a"), (3, "c", "a")],
        [(0, "things", "none"), (1, "a", "0"), (2, "b", 0), (3, "c", "things")],
    ],
)
def test_an_unused_root_is_left_out(file: Path, rows: Any) -> None:
    found = read_coco(edit_json(file, categories(*rows)))
    assert found.categories == Categories((1, 2, 3), ("a", "b", "c"))
    assert found.labels.tolist() == [0, 2, 1]
    assert list(found.repairs.values()).count(1) >= 1


@pytest.mark.parametrize(
    "rows",
    [
        [(1, "a", "none"), (2, "b", "none"), (3, "c", "none"), (4, "d", "none")],  # no root
        [(0, "things", "none"), (1, "a", "x"), (2, "b", "things"), (3, "c", "things")],
        [(0, "things", None), *CLASSES],  # a class above others, as taxonomies have it
        [(0, "things", "things"), *CLASSES],
        [(0, "things", "entity"), *CLASSES],
    ],
)
def test_a_class_that_merely_is_not_used_stays(file: Path, rows: Any) -> None:
    assert len(read_coco(edit_json(file, categories(*rows))).categories) == 4


@pytest.mark.parametrize("used", [0, 0.0, "0", "0.0"])
def test_a_root_that_is_used_stays(file: Path, used: object) -> None:
    edit_json(file, categories((0, "things", "none"), *CLASSES))
    edit_json(file, lambda c: c["annotations"][0].update(category_id=used))
    found = read_coco(file)
    assert found.categories.names == ("things", "a", "b", "c")
    assert found.labels.tolist() == [0, 3, 2]


def test_a_single_class_is_no_root(file: Path) -> None:
    edit_json(file, categories((1, "a", "none")))
    edit_json(file, each("annotations", lambda one: one.update(category_id=1)))
    assert read_coco(file).categories.names == ("a",)


def test_a_root_that_training_has_is_back_in_validation(tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
        edit_json(path, categories((0, "things", "none"), *CLASSES))
    edit_json(tmp_path / "train.json", lambda c: c["annotations"][0].update(category_id=0))
    train, val = (read_coco(tmp_path / f"{split}.json") for split in ("train", "val"))
    matched = match_categories(val, train.categories, train.path)
    assert matched.categories == train.categories
    assert matched.labels.tolist() == [1, 3, 2]
    with pytest.raises(DataError, match=r"differ: 'things' \(id 0\) is in .*train\.json only"):
        match_categories(train, val.categories, val.path)


# -- boxes from segmentations ------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[1, 2, 9, 2, 9, 8.5, 1, 8.5]], (1, 2, 8, 6.5)),
        ([[1, 2, 9, 2, 9, 8], [20, 1, 22, 1, 22, 3]], (1, 1, 21, 7)),
        ([1, 2, 9, 2, 9, 8], (1, 2, 8, 6)),
        ([[1, 2], [9, 2], [9, 8]], (1, 2, 8, 6)),
        ([["1", "2", "9", "2", "9", "8"]], (1, 2, 8, 6)),
        ([[1, 2, 9, 2, 9, 8], [30, 30]], (1, 2, 8, 6)),  # a stray click
        ([[30, 30]], None), ([[1, 2, 9, 2]], None), ([], None), (None, None), ([[]], None),
    ],
)  # fmt: skip
def test_the_box_of_polygons(segmentation: object, expected: object) -> None:
    assert segmentation_box("x", segmentation, (48, 64), Counter()) == expected


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3]], [[1, 2, "x", 4, 5, 6]], [[1, 2, None, 4, 5, 6]], "polygon", 5, [{"x": 1}],
     [[10**400, 2, 9, 2, 9, 8]], {}.keys],
)  # fmt: skip
def test_what_is_no_polygon_is_refused(segmentation: object) -> None:
    with pytest.raises(DataError, match=r"^x: .*polygon"):
        segmentation_box("x", segmentation, (48, 64), Counter())


@pytest.mark.parametrize("seed", range(40))
def test_the_box_of_a_mask_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 30, 2))
    pixels = (rng.random((height, width)) < rng.choice([0.02, 0.3, 1.0])).astype(np.uint8)
    compressed = coco_mask.encode(np.asfortranarray(pixels))
    expected = tuple(coco_mask.toBbox(compressed).tolist()) if pixels.any() else None
    mask = {"size": [height, width], "counts": compressed["counts"].decode()}
    assert segmentation_box("x", mask, (height, width), Counter()) == expected
    column_wise = pixels.flatten(order="F").tolist()
    counts, value = [0], 0
    for pixel in column_wise:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    mask["counts"] = counts
    assert segmentation_box("x", mask, (height, width), Counter()) == expected


def test_broken_masks_are_refused_and_nothing_is_read_beyond_them() -> None:
    size = (48, 64)
    whole_mask = coco_mask.encode(np.asfortranarray(np.eye(*size, dtype=np.uint8)))
    text = whole_mask["counts"].decode()
    rng = random.Random(0)
    for _ in range(300):
        letters = list(text)
        for _ in range(rng.randint(1, 3)):
            letters[rng.randrange(len(letters))] = chr(rng.choice([32, 48, 80, 111, 127, 300]))
        broken = "".join(letters[: rng.randint(0, len(letters))])
        with contextlib.suppress(DataError):
            box = segmentation_box("x", {"size": list(size), "counts": broken}, size, Counter())
            assert box is None or (box[0] + box[2] <= 64 and box[1] + box[3] <= 48)
    for size_of_mask in ([64, 48], [48], None, [48.5, 64], [-48, -64], "48x64", [True, True]):
        with pytest.raises(DataError, match=r"size .* of the mask"):
            segmentation_box("x", {"size": size_of_mask, "counts": text}, size, Counter())
    for counts in (None, {}, [-1, 3073], [1.5], [3071], 5, "o" * 100):
        with pytest.raises(DataError, match="counts of the mask"):
            segmentation_box("x", {"size": list(size), "counts": counts}, size, Counter())


@pytest.mark.parametrize("box", [[], None, [None] * 4])
def test_an_empty_box_is_dropped_where_boxes_may_be(file: Path, box: object) -> None:
    edit_json(file, lambda c: c["annotations"][1].update(bbox=box, segmentation=[]))
    with pytest.raises(DataError, match=r"annotation 2: bbox is empty, .*on_invalid_box=drop"):
        read_coco(file)
    found = read_coco(file, on_invalid_box="drop")
    assert found.ids.tolist() == [1, 3]
    assert found.repairs == {"annotations dropped because their box is invalid": 1}


def test_a_polygon_without_area_is_an_invalid_box(file: Path) -> None:
    flat = [[3, 3, 9, 3, 20, 3]]
    edit_json(file, lambda c: c["annotations"][1].update(bbox=[], segmentation=flat))
    with pytest.raises(DataError, match=r"annotation 2: bbox \(3\.0, .* is empty"):
        read_coco(file)
    assert read_coco(file, on_invalid_box="drop").ids.tolist() == [1, 3]


def test_a_box_goes_before_its_segmentation(file: Path) -> None:
    before = read_coco(file).fingerprint()
    edit_json(file, each("annotations", lambda one: one.update(segmentation=[[1, 1, 2, 2, 2, 3]])))
    assert read_coco(file).fingerprint() == before


# -- crowds ------------------------------------------------------------------------------


@pytest.mark.parametrize(("crowds", "warned"), [(0, False), (1, False), (2, True), (3, True)])
def test_most_annotations_crowds_is_said_once(
    file: Path, crowds: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(file, lambda c: [one.update(iscrowd=1) for one in c["annotations"][:crowds]])
    assert read_coco(file).crowd.sum() == crowds
    assert caplog.text.count(f"{crowds} of 3 annotations are marked as crowds") == warned
    assert caplog.text.count("data.crowd=object") == warned
    caplog.clear()
    taken = read_coco(file, crowd="object")
    assert not taken.crowd.any()
    assert taken.repairs == ({"crowds taken as objects": crowds} if crowds else {})
    assert "set aside" not in caplog.text


def test_crowds_as_objects_reach_training_and_evaluation(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        path = write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
        edit_json(path, each("annotations", lambda one: one.update(iscrowd=1)))
    with pytest.raises(DataError, match=r"all 3 annotations are crowds.*data\.crowd"):
        coco_data(tmp_path).setup("fit")
    data = coco_data(tmp_path, crowd="object")
    data.setup("fit")
    assert data.summary()["train"]["kept"] == 3
    evaluator = CocoEvaluator(data.evaluated["val"])
    evaluator.update([1], boxes([(1, 2, 11, 14, 0, 0.9)]))
    assert evaluator.compute()["AR100"] == pytest.approx(100 / 3)


# -- classes of several splits -----------------------------------------------------------


def renumbered(content: Content) -> None:
    """The same classes with other ids, in another order."""
    new = {1: 30, 2: 7, 3: 12}
    for one in content["categories"]:
        one["id"] = new[one["id"]]
    for one in content["annotations"]:
        one["category_id"] = new[one["category_id"]]


def test_classes_of_splits_are_matched_by_name(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
    edit_json(tmp_path / "val.json", renumbered)
    data = coco_data(tmp_path)
    data.setup("fit")
    assert data.categories == Categories((1, 2, 3), ("class 1", "class 2", "class 3"))
    val = data.evaluated["val"]
    assert val.labels.tolist() == [0, 2, 1]
    assert val.categories == Categories((30, 7, 12), ("class 1", "class 2", "class 3"))
    evaluator = CocoEvaluator(val)
    found = boxes([(1, 2, 11, 14, 0, 0.9), (20, 20, 50, 40, 2, 0.9)], [(9, 9, 20, 20, 1, 0.9)])
    evaluator.update([1, 2], found)
    assert [row["category_id"] for row in evaluator.results()] == [30, 12, 7]  # the file's own
    evaluator.compute()
    assert evaluator.class_ap == pytest.approx({"class 1": 100, "class 2": 0, "class 3": 100})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["categories"][1].update(name="Class 2"),
         r"'class 2' \(id 2\) is in .*train\.json only, 'Class 2' \(id 2\) is in .*val\.json only; "
         r"they differ in capital letters only: rename one$"),
        (lambda c: c["categories"].append({"id": 4, "name": "d"}),
         r"differ: 'd' \(id 4\) is in .*val\.json only$"),
    ],
)  # fmt: skip
def test_the_first_difference_of_classes_is_named(tmp_path: Path, change: Any, words: str) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
    edit_json(tmp_path / "val.json", change)
    with pytest.raises(DataError, match=words):
        coco_data(tmp_path).setup("fit")


def test_a_set_with_equal_classes_is_untouched(file: Path) -> None:
    found = read_coco(file)
    other = Categories((4, 5, 6), found.categories.names)
    assert match_categories(found, found.categories, "x") is found
    assert match_categories(found, other, "x").categories.ids == (1, 2, 3)


# -- names of image files ----------------------------------------------------------------


def checked(file: Path) -> AnnotationSet:
    return check_images(read_coco(file), file.parent / "train", sizes=True)[0]


def stored_as(file: Path, *names: str) -> None:
    """The pictures under other names in their folder."""
    for position, name in enumerate(names, start=1):
        target = file.parent / "train" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "train" / f"{position:03d}.png").rename(target)


def named(*names: str) -> Any:
    def change(content: Content) -> None:
        for record, name in zip(content["images"], names):
            record["file_name"] = name

    return change


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_composed_or_not(file: Path, forms: Any) -> None:
    in_file, on_disk = (unicodedata.normalize(form, "Zürich/é_Å.png") for form in forms)
    assert in_file != on_disk
    stored_as(file, "001.png", on_disk)
    edit_json(file, named("001.png", in_file))
    fingerprint = read_coco(file).fingerprint()
    found = checked(file)
    assert found.file(1) == on_disk
    assert found.fingerprint() == fingerprint  # of the file, not of the disk
    assert found.repairs == {"file names with letters composed in another way": 1}


def test_two_ways_to_compose_side_by_side_stay_two_files(file: Path) -> None:
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    stored_as(file, *names)
    edit_json(file, named(*names))
    found = checked(file)
    assert [found.file(0), found.file(1)] == names
    assert not found.repairs


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("sub\\a.png", "sub/a.png"), (".\\sub\\a.png", "sub/a.png"), ("train/a.png", "a.png"),
        ("train\\sub\\a.PNG", "sub/a.png"), ("./train/a.png", "a.png"), ("a.JPG", "a.jpg"),
        ("A.png", "A.PNG"),
    ],
)  # fmt: skip
def test_names_with_one_sensible_reading_are_found(file: Path, name: str, stored: str) -> None:
    stored_as(file, "001.png", stored)
    edit_json(file, named("001.png", name))
    found = checked(file)
    assert found.file(1) == stored
    assert found.repairs


@pytest.mark.parametrize("name", ["sub\\a.png", "./002.png", "sub/a.png"])
def test_a_name_that_is_there_is_taken_as_it_is(file: Path, name: str) -> None:
    """Also one with a backslash, which Linux allows."""
    stored_as(file, "001.png", name)
    edit_json(file, named("001.png", name))
    found = checked(file)
    assert found.file(1) == name
    assert not found.repairs


@pytest.mark.parametrize("name", ["A.png", "other/a.png", "a.jpg", "a", "trai/a.png", "train"])
def test_names_with_two_readings_are_missing(file: Path, name: str) -> None:
    stored_as(file, "001.png", "a.png")
    edit_json(file, named("001.png", name))
    with pytest.raises(DataError, match="1 of 3 images is missing, the first is image 2"):
        checked(file)


def test_two_suffixes_to_choose_from_are_none(file: Path) -> None:
    stored_as(file, "001.png", "a.jpg")
    (file.parent / "train" / "a.JPg").write_bytes((file.parent / "train" / "a.jpg").read_bytes())
    edit_json(file, named("001.png", "a.JPG"))
    with pytest.raises(DataError, match="1 of 3 images is missing"):
        checked(file)


def test_two_images_found_in_one_file_are_refused(file: Path) -> None:
    stored_as(file, "sub/a.png")
    edit_json(file, named("sub\\a.png", "train/sub/a.png"))
    with pytest.raises(DataError, match=r"image 2: file_name .* is that of image 1, too"):
        checked(file)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/home/x/img/1.png", "/home/x/img/2.png"], ["1.png", "2.png"]),
        (["C:\\img\\a\\1.png", "C:\\img\\b\\1.png"], ["a/1.png", "b/1.png"]),
        (["\\\\server\\share\\1.png", "2.png"], ["1.png", "2.png"]),
        (["s3://bucket/1.png"], ["1.png"]),
        (["file:///data/1.png", "file:///data/sub/2.png"], ["1.png", "sub/2.png"]),
        (["/1.png", "/sub/2.png"], ["1.png", "sub/2.png"]),
        (["a/1.png", "C:1.png"], ["a/1.png", "C:1.png"]),
    ],
)
def test_absolute_names_are_relative_to_the_folder_they_share(
    names: list[str], expected: list[str]
) -> None:
    repairs: Counter[str] = Counter()
    assert without_roots(names, repairs) == expected
    assert repairs.total() == sum(one != other for one, other in zip(names, expected))


def test_absolute_names_never_leave_the_image_folder(file: Path) -> None:
    secret = file.parent / "secret.png"
    secret.write_bytes((file.parent / "train" / "001.png").read_bytes())
    edit_json(file, named(str(secret)))
    with pytest.raises(DataError, match=r"1 of 3 images is missing, .*train/secret\.png$"):
        checked(file)
    edit_json(file, named("/data/001.png", "001.png"))
    with pytest.raises(DataError, match=r"image 2: file_name '001\.png' is that of image 1"):
        checked(file)


def test_all_missing_images_are_counted(file: Path) -> None:
    folder = file.parent / "train"
    for name in ("001.png", "002.png"):
        (folder / name).unlink()
    expected = f"{file}: 2 of 3 images are missing, the first is image 1: {folder}/001.png"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        checked(file)


@pytest.mark.parametrize("place", ["train/images", "pictures/deep"])
def test_where_missing_images_lie_is_said(file: Path, place: str) -> None:
    target = file.parent / place
    target.mkdir(parents=True)
    for name in ("001.png", "002.png", "003.png"):
        (file.parent / "train" / name).rename(target / name)
    with pytest.raises(DataError, match=r"3 of 3 images are missing, .*001\.png; a file") as error:
        checked(file)
    assert str(error.value).endswith(f"; a file of that name lies in {target}")


def test_a_namesake_of_another_split_is_no_hint(file: Path) -> None:
    write_coco(file.parent, RECORDS, split="val")  # type: ignore[arg-type]
    (file.parent / "train" / "002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images is missing, .*train/002\.png$"):
        checked(file)


def test_the_loaders_open_what_was_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val", "test"):
        path = write_coco(tmp_path, RECORDS, split=split)  # type: ignore[arg-type]
        edit_json(
            path, each("images", lambda one: one.update(file_name="sub\\" + one["file_name"]))
        )
        for picture in sorted((tmp_path / split).iterdir()):
            (tmp_path / split / "sub").mkdir(exist_ok=True)
            picture.rename(tmp_path / split / "sub" / picture.name)
    data = coco_data(tmp_path)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert caplog.text.count("file names with \\ read as /: 3") == 3
    (batch,) = data.val_dataloader()
    assert len(batch.images) == 3


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def test_git_lfs_pointers_are_called_that(file: Path) -> None:
    (file.parent / "train" / "002.png").write_bytes(LFS)
    with pytest.raises(DataError, match=r"image 2: .*002\.png: is a Git LFS pointer; run git lfs"):
        checked(file)
    file.write_bytes(LFS)
    with pytest.raises(DataError, match=r"train\.json: is a Git LFS pointer; run git lfs pull"):
        read_coco(file)
