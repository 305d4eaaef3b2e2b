"""Bad annotation files are refused by name, odd ones are mended and counted."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comining.data.formats.coco import read_coco
from comining.data.image_files import check_images
from comining.errors import DataError
from tests.helpers import edit_json, real_data, write_coco

Content = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_coco(tmp_path, [[(1, 2, 10, 12, 1), (20, 20, 30, 20, 3)], [(5, 5, 8, 8, 2)], []])


def test_a_good_file_becomes_columns(file: Path) -> None:
    found = read_coco(file)
    assert found.categories.ids == (1, 2, 3)
    assert found.image_ids.tolist() == [1, 2, 3]
    assert found.sizes.tolist() == [[48, 64]] * 3
    assert found.image.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [0, 2, 1]
    assert found.boxes.tolist() == [[1, 2, 11, 14], [20, 20, 50, 40], [5, 5, 13, 13]]
    assert found.areas.tolist() == [120, 600, 64]
    assert not found.crowd.any()
    assert not found.repairs


def test_labels_follow_category_ids_not_their_order(file: Path) -> None:
    def renumber(content: Content) -> None:
        for category, new in zip(content["categories"], (90, 7, 13)):
            category["id"] = new
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 90, 2: 7, 3: 13}[annotation["category_id"]]

    found = read_coco(edit_json(file, renumber))
    assert found.categories.ids == (7, 13, 90)
    assert found.categories.names == ("class 2", "class 3", "class 1")
    assert found.labels.tolist() == [2, 1, 0]


def annotation(**changes: Any) -> Any:
    return lambda content: content["annotations"][1].update(changes)


def image(**changes: Any) -> Any:
    return lambda content: content["images"][1].update(changes)


BAD = {
    "unknown image": (annotation(image_id=99), "annotation 2: image_id 99 is not among the images"),
    "unknown category": (annotation(category_id=9), "annotation 2: category_id 9 is not among"),
    "duplicate annotation": (annotation(id=1), r"annotations\[1\]: annotation id 1 occurs twice"),
    "duplicate image": (image(id=1), r"images\[1\]: image id 1 occurs twice"),
    "duplicate category": (
        lambda c: c["categories"][1].update(id=1),
        r"categories\[1\]: category id 1 occurs twice",
    ),
    "duplicate name": (
        lambda c: c["categories"][1].update(name="class 1"),
        r"categories\[1\]: category name 'class 1' occurs twice",
    ),
    "NaN": (annotation(bbox=[1, 2, float("nan"), 4]), "annotation 2: .* is not finite"),
    "infinite": (annotation(bbox=[1, 2, float("inf"), 4]), "annotation 2: .* is not finite"),
    "huge number": (annotation(bbox=[1, 2, 10**400, 4]), "annotation 2: .* is too large"),
    "negative": (annotation(bbox=[30, 30, -10, 5]), "annotation 2: .* has a negative side"),
    "empty": (annotation(bbox=[3, 3, 0, 5]), "annotation 2: .* is empty"),
    "outside": (annotation(bbox=[64, 3, 10, 5]), "annotation 2: .* lies outside"),
    "corners instead of sizes": (
        annotation(bbox=[40, 30, 60, 44]),
        "annotation 2: .* lies outside",
    ),
    "three numbers": (annotation(bbox=[1, 2, 3]), "annotation 2: bbox must be four numbers"),
    "words": (annotation(bbox=["one", 2, 3, 4]), "annotation 2: bbox must be four numbers"),
    "area": (annotation(area="big"), "annotation 2: area must be a number, got 'big'"),
    "crowd": (annotation(iscrowd=2), "annotation 2: iscrowd must be 0 or 1, got 2"),
    "id of the wrong type": (annotation(id="x"), r"annotations\[1\]: id must be a whole number"),
    "true as a number": (annotation(image_id=True), "image_id must be a whole number"),
    "id beyond 64 bits": (annotation(id=2**63), "id must be a whole number of 64 bits"),
    "missing key": (
        lambda c: c["annotations"][1].pop("bbox"),
        r"annotations\[1\]: 'bbox' is missing",
    ),
    "missing size": (lambda c: c["images"][1].pop("width"), r"images\[1\]: 'width' is missing"),
    "flat image": (image(height=0), "image 2: height and width must be positive"),
    "path out": (image(file_name="a/../../x.png"), "image 2: .* leaves the image folder"),
    "path out, Windows": (image(file_name="..\\x.png"), "image 2: .* leaves the image folder"),
    "no name": (image(file_name=""), "image 2: file_name must be a path"),
    "no section": (lambda c: c.pop("annotations"), "'annotations' is missing"),
    "section of the wrong type": (lambda c: c.update(images={}), "'images' is a dict, not a list"),
    "record of the wrong type": (
        lambda c: c["images"].append(5),
        r"images\[3\] is not an object",
    ),
    "no categories": (lambda c: c.update(categories=[], annotations=[]), "no categories"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "no images"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records_are_named(file: Path, kind: str) -> None:
    change, words = BAD[kind]
    edit_json(file, change)
    with pytest.raises(DataError, match=words) as error:
        read_coco(file)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "<html></html>", "[" * 100_000, '{"images'])
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"not a (JSON|COCO annotation) file"):
        read_coco(file)


def test_binary_and_absent_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(DataError, match="no such annotation file"):
        read_coco(file)
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not a JSON file"):
        read_coco(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path)


def test_invalid_boxes_can_be_left_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(file, annotation(bbox=[3, 3, 0, 5]))
    found = read_coco(file, on_invalid_box="drop")
    assert found.ids.tolist() == [1, 3]
    assert sum(found.repairs.values()) == 1


def test_harmless_oddities_are_mended_and_counted_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: Content) -> None:
        first, second, third = content["annotations"]
        first["bbox"] = [-1, 2, 10, 12]  # overhangs by a pixel
        second["bbox"] = [34.5, 20, 30.5, 28]  # likewise, on the other side
        for one in (first, third):
            del one["area"], one["iscrowd"]

    edit_json(file, change)
    with caplog.at_level(logging.WARNING):
        found = read_coco(file)
    assert found.boxes[:2].tolist() == [[0, 2, 9, 14], [34.5, 20, 64, 48]]
    assert found.bboxes[0].tolist() == [-1, 2, 10, 12]  # evaluation sees the file's own
    assert found.areas[0] == 120
    assert len(caplog.records) == 1
    assert "border: 2" in caplog.text
    assert "the file has none: 2" in caplog.text


def test_crowds_are_marked(file: Path) -> None:
    found = read_coco(edit_json(file, annotation(iscrowd=1)))
    assert found.crowd.tolist() == [False, True, False]


def test_the_fingerprint_is_of_the_content(file: Path) -> None:
    before = read_coco(file).fingerprint()
    edit_json(file, lambda c: c["annotations"].reverse())
    edit_json(file, lambda c: c["images"].reverse())
    assert read_coco(file).fingerprint() == before
    edit_json(file, annotation(category_id=2))
    assert read_coco(file).fingerprint() != before


# -- image files -------------------------------------------------------------------------


def test_image_files_are_checked(file: Path) -> None:
    found = read_coco(file)
    folder = file.parent / "train"
    check_images(found, folder, sizes=True)

    Image.fromarray(np.zeros((48, 65, 3), np.uint8)).save(folder / "002.png")
    with pytest.raises(DataError, match=r"image 2: .*002\.png: is 65x48 px, .* says 64x48"):
        check_images(found, folder, sizes=True)
    check_images(found, folder, sizes=False)

    for content in (b"", b"<html>404</html>"):
        (folder / "002.png").write_bytes(content)
        with pytest.raises(DataError, match=r"image 2: .*002\.png: not a readable image"):
            check_images(found, folder, sizes=True)

    (folder / "002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images is missing, the first is image 2: .*002"):
        check_images(found, folder, sizes=False)
    with pytest.raises(DataError, match="no such image folder"):
        check_images(found, folder / "none", sizes=False)


# -- real files --------------------------------------------------------------------------


def test_coco128_is_read() -> None:
    root = real_data("coco128")
    file = root / "annotations" / "instances_train2017.json"
    found = read_coco(file)
    check_images(found, root / "train2017", sizes=True)
    raw = json.loads(file.read_text())
    assert len(found.image_ids) == 128
    assert len(found.categories) == 80
    assert len(found.ids) == len(raw["annotations"]) == 939
    assert found.crowd.sum() == 10
    assert (
        found.categories.names[found.labels[0]]
        == {c["id"]: c["name"] for c in raw["categories"]}[raw["annotations"][0]["category_id"]]
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_is_read(split: str) -> None:
    root = real_data("bccd")
    found = read_coco(root / "annotations" / f"instances_{split}.json")
    check_images(found, root / "images", sizes=True)
    assert found.categories.names == ("RBC", "WBC", "Platelets")
