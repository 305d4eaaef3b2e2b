"""Every format ends in the same set; what is wrong in a file is named by file and line."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from comining.config import CONFIG_FOLDER
from comining.data.annotations import AnnotationSet
from comining.data.formats.annotation_format import ReadOptions
from comining.data.formats.auto import known_formats
from comining.data.formats.coco import read_coco
from comining.data.image_files import check_images
from comining.errors import DataError
from tests.annotated_folders import (
    NAMES,
    RECORDS,
    SIZE,
    WRITERS,
    coco_content,
    cvat,
    labelme,
    picture,
    text,
    voc,
    voc_text,
    yolo,
    yolo_row,
)
from tests.helpers import edit_json


def read(root: Path, name: str, split: str = "train", **options: Any) -> tuple[AnnotationSet, Path]:
    found, folder = known_formats()[name].find_splits(root)[split].read(ReadOptions(**options))
    check_images(found, folder, sizes=True)
    return found, folder


@pytest.fixture
def expected(tmp_path: Path) -> AnnotationSet:
    return read_coco(text(tmp_path / "expected.json", json.dumps(coco_content(RECORDS))))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_set(
    tmp_path: Path, name: str, expected: AnnotationSet
) -> None:
    found, _ = read(WRITERS[name](tmp_path / "set"), name)
    assert found.file_names == ["a.png", "b.png", "c.png"]
    assert found.bboxes.tolist() == expected.bboxes.tolist()
    assert found.repairs == {}
    assert found.fingerprint() == expected.fingerprint()


def test_every_yaml_is_a_format_and_tested() -> None:
    assert known_formats().keys() == WRITERS.keys()
    assert all((CONFIG_FOLDER / "data" / f"{name}.yaml").exists() for name in WRITERS)


# -- YOLO --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"),
        ("train/images", "train/labels"),
        ("images", "labels"),
        ("train", "train"),
        ("images/train", "images/train"),
    ],
)
def test_yolo_finds_label_files(
    tmp_path: Path, images: str, labels: str, expected: AnnotationSet
) -> None:
    found, folder = read(yolo(tmp_path / "set", images, labels), "yolo")
    assert folder == tmp_path / "set" / images
    assert found.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    "description",
    [
        "path: .\ntrain: images/train\nnames: {0: cat, 1: dog}",
        "path: ../datasets/absent\ntrain: images/train\nnames:\n- cat\n- dog",
        "path: ROOT\ntrain: [images/train]\nval:\ntest: null\nnames: {1: dog, 0: cat}",
        "train: ../images/train\nnames: [cat, dog]",
        "train: ROOT/images/train\nnames: [cat, dog]",
        "train: list.txt\nnames: [cat, dog]",
        "train: images/train\ntest: test-dev.txt\nnames: [cat, dog]",
    ],
)
def test_data_yaml_as_tools_write_it(
    tmp_path: Path, description: str, expected: AnnotationSet
) -> None:
    root = yolo(tmp_path / "set")
    text(root / "data.yaml", description.replace("ROOT", str(root)))
    text(root / "list.txt", "./images/train/b.png\nimages/train/a.png\n\nimages/train/c.png\n")
    assert set(known_formats()["yolo"].find_splits(root)) == {"train"}
    assert read(root, "yolo")[0].fingerprint() == expected.fingerprint()


def test_one_of_several_descriptions_is_chosen(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    for name in ("one.yaml", "two.yml"):
        text(root / name, f"train: images/train\nnames: [{name[:3]}, dog]")
    text(root / "other.yaml", "x: [")
    assert read(root, "yolo")[0].categories.names == ("cat", "dog")  # data.yaml
    (root / "data.yaml").unlink()
    with pytest.raises(
        DataError, match=r"\(one\.yaml, two\.yml\); choose one with data\.root=.*one"
    ):
        read(root, "yolo")
    assert read(root / "two.yml", "yolo")[0].categories.names == ("two", "dog")


def test_yolo_names_stay_texts(tmp_path: Path) -> None:
    """Yaml reads these as a truth value, a number and nothing."""
    root = yolo(tmp_path)
    text(root / "data.yaml", "train: images/train\nnames: [no, 1, null, 'a: b']")
    assert read(root, "yolo")[0].categories.names == ("no", "1", "null", "a: b")


def test_yolo_without_a_description(tmp_path: Path, expected: AnnotationSet) -> None:
    """As coco128 comes in its archive."""
    root = yolo(tmp_path / "set", "images/train2017", "labels/train2017")
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"neither data.yaml nor classes.txt.*data\.names"):
        read(root, "yolo")
    assert read(root, "yolo", names=NAMES)[0].fingerprint() == expected.fingerprint()
    text(root / "classes.txt", "cat\ndog\n")
    assert read(root, "yolo")[0].fingerprint() == expected.fingerprint()


def test_yolo_of_darknet(tmp_path: Path, expected: AnnotationSet) -> None:
    """CVAT's YOLO 1.1."""
    root = yolo(tmp_path / "set", "obj_train_data", "obj_train_data")
    (root / "data.yaml").unlink()
    text(root / "obj.names", "cat\ndog\n")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    text(root / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in RECORDS))
    assert read(root, "yolo")[0].fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("side", [63, 640, 1333, 6000])
def test_six_decimals_give_back_hundredths_of_a_pixel(tmp_path: Path, side: int) -> None:
    boxes = [
        (k * side / 100 // 0.01 / 100, 1.23, 0.07 + k / 100, side / 3 // 0.01 / 100, "cat")
        for k in range(60)
    ]
    root = yolo(tmp_path)
    picture(root / "images/train/a.png", (side, side))
    text(
        root / "labels/train/a.txt",
        "\n".join(yolo_row(box, (side, side)) for box in boxes),
    )
    found, _ = read(root, "yolo")
    read_back = [tuple(b) for b in found.bboxes[found.image == 0].tolist()]
    assert read_back == [tuple(round(side, 2) for side in box[:4]) for box in boxes]


@pytest.mark.parametrize(
    ("row", "bbox", "repair"),
    [
        ("1 0.25 0.25 0.5 0.25 0.75 0.5", (16, 12, 32, 12), "boxes taken from polygons"),
        ("1 .1 .1 .9 .1 .9 .9 .1 .9", (6.4, 4.8, 51.2, 38.4), "boxes taken from polygons"),
        ("1 0.5 0.5 0.5 0.5 0.87", (16, 12, 32, 24), "a sixth column (confidence or track)"),
        ("1 0.5 0.5 0.5 0.5 0.87 12", (16, 12, 32, 24), "confidence and track left out"),
        ("1.0 5e-1 0.5 0.5 0.5", (16, 12, 32, 24), None),
        ("1 0.5 0.5 1.000001 0.5", (0, 12, 64, 24), None),
    ],
)
def test_rows_of_yolo(
    tmp_path: Path, row: str, bbox: tuple[float, ...], repair: str | None
) -> None:
    root = yolo(tmp_path)
    text(root / "labels/train/b.txt", row)
    found, _ = read(root, "yolo")
    assert tuple(found.bboxes[2].tolist()) == bbox
    assert found.labels[2] == 1
    assert [key for key in found.repairs if repair is None or not key.startswith(repair)] == []
    assert len(found.repairs) == (repair is not None)


def test_keypoints_of_yolo_are_left_out(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    text(root / "data.yaml", "train: images/train\nnames: [cat, dog]\nkpt_shape: [2, 3]")
    text(root / "labels/train/b.txt", "1 0.5 0.5 0.5 0.5 0.4 0.4 2 0.6 0.6 2")
    found, _ = read(root, "yolo")
    assert found.bboxes[2].tolist() == [16, 12, 32, 24]
    assert found.repairs == {"keypoints left out": 1}


BAD_ROWS = {
    "2 0.5 0.5 0.1 0.1": r"class '2' is not a whole number 0 \.\.\. 1",
    "-1 0.5 0.5 0.1 0.1": "class '-1' is not",
    "0.5 0.5 0.5 0.1 0.1": "class '0.5' is not",
    "cat 0.5 0.5 0.1 0.1": "class 'cat' is not",
    "1_0 0.5 0.5 0.1 0.1": "class '1_0' is not",
    "0 nan 0.5 0.1 0.1": "is not a number from 0 to 1",
    "0 0.5 inf 0.1 0.1": "is not a number from 0 to 1",
    "0 320 240 50 60": "320 is not a number from 0 to 1",
    "0 0.5 0.5 -0.1 0.1": "-0.1 is not a number from 0 to 1",
    "0 0.5 0.5 0 0.1": "is empty",
    "0 0.5 x 0.1 0.1": "'x' is not a number",
    "0,0.5,0.5,0.1,0.1": "class '0,0.5,0.5,0.1,0.1' is not",
    "0 0.5 0.5 0.1": "4 columns are neither a box",
    "0": "1 columns are neither a box",
    "0 .1 .1 .2 .2 .3 .3 .4": "8 columns are neither a box",
    "0 .1 .1 .2 .2 .3 1": "which one is not clear",
    "0 0.125 0.1875 0.125 0.166667\n0 0.125 0.1875 0.125 0.166667": "line 2: the same as line 1",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, row: str) -> None:
    file = text(yolo(tmp_path) / "labels/train/b.txt", f"{row}\n")
    with pytest.raises(DataError, match=BAD_ROWS[row]) as error:
        read(tmp_path, "yolo")
    assert re.match(rf"{re.escape(str(file))}: line \d: ", str(error.value))
    if "(on_invalid_box=drop" in str(error.value):
        found, _ = read(tmp_path, "yolo", on_invalid_box="drop")
        assert found.repairs["annotations dropped because their box is invalid"] == 1


BAD_YAML = {
    "{": "not a yaml file",
    "[]": "its top level is not a mapping",
    "train: images/train": "names must be a list of class names, got None",
    "train: images/train\nnames: cat": "names must be a list of class names, got 'cat'",
    "train: images/train\nnames: []": "names must be a list",
    "train: images/train\nnames: [[cat]]": "class 0 must be a word",
    "train: images/train\nnames: [cat, cat]": "class 'cat' occurs twice",
    "train: images/train\nnames: {0: cat, 2: dog}": r"names must be numbered 0 \.\.\. 1",
    "train: images/train\nnames: [cat, dog]\nnc: 3": "nc is '3', but names has 2",
    "train: images/none\nnames: [cat, dog]": "train: images/none: no such folder or file",
    "train: {a: b}\nnames: [cat, dog]": "train must be a folder, a list of folders",
    "train: images/train\nval: images/none\nnames: [cat, dog]": "val: images/none: no such folder",
    "train: images/train\npath: [x]\nnames: [cat, dog]": "path must be one folder",
    f"train: images/train\nnames: [{'x' * 5}, {'y' * 10**6}]": None,
}


@pytest.mark.parametrize("content", BAD_YAML, ids=range(len(BAD_YAML)))
def test_bad_descriptions_are_named(tmp_path: Path, content: str) -> None:
    file = text(yolo(tmp_path) / "data.yaml", content)
    if BAD_YAML[content] is None:  # odd, and no fault
        assert len(read(tmp_path, "yolo")[0].categories) == 2
        return
    with pytest.raises(DataError, match=BAD_YAML[content]) as error:
        read(tmp_path, "yolo")
    assert str(error.value).startswith(str(file))
    assert len(str(error.value)) < 500


def test_a_missing_and_an_empty_label_file_are_two_facts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/b.txt").unlink()
    kept, _ = read(root, "yolo")
    assert kept.file_names == ["a.png", "b.png", "c.png"]  # as in Ultralytics' programs
    assert list(kept.repairs.values()) == [1]
    assert "b.png" not in read(root, "yolo", missing_labels="skip")[0].file_names
    assert read(root, "yolo", missing_labels="skip")[0].image_ids.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"b\.txt: no such label file, .*b\.png"):
        read(root, "yolo", missing_labels="error")
    for name in "ac":
        (root / f"labels/train/{name}.txt").unlink()
    with pytest.raises(DataError, match="none of its 3 pictures has a label file; looked in"):
        read(root, "yolo")


def test_label_files_without_a_picture_are_counted(tmp_path: Path) -> None:
    (yolo(tmp_path) / "images/train/b.png").unlink()
    assert read(tmp_path, "yolo")[0].repairs == {"label files without a picture, left out": 1}


def test_sizes_of_yolo_are_those_of_the_pictures(tmp_path: Path) -> None:
    text(yolo(tmp_path) / "images/train/b.png", "no picture")
    with pytest.raises(DataError, match=r"image 2: .*b\.png: not a readable image"):
        read(tmp_path, "yolo")


# -- VOC ---------------------------------------------------------------------------------


def test_voc_beside_pictures_and_in_splits(tmp_path: Path, expected: AnnotationSet) -> None:
    """As Roboflow and LabelImg have it."""
    root = tmp_path / "set"
    for split in ("train", "valid"):
        for name, boxes in RECORDS.items():
            picture(root / split / name)
            text(root / split / f"{Path(name).stem}.xml", voc_text(name, boxes))
    assert read(root, "voc")[0].fingerprint() == expected.fingerprint()
    assert read(root, "voc", "val")[0].fingerprint() == expected.fingerprint()
    assert read(root / "train", "voc")[0].fingerprint() == expected.fingerprint()


def test_voc_in_a_folder_of_the_root(tmp_path: Path, expected: AnnotationSet) -> None:
    """As the repository of BCCD has it, and the devkit."""
    voc(tmp_path / "repository" / "BCCD")
    found, folder = read(tmp_path / "repository", "voc")
    assert folder == tmp_path / "repository" / "BCCD" / "JPEGImages"
    assert found.fingerprint() == expected.fingerprint()
    voc(tmp_path / "repository" / "VOCdevkit" / "VOC2012")
    with pytest.raises(DataError, match=r"several VOC sets \(BCCD, VOCdevkit/VOC2012\)"):
        read(tmp_path / "repository", "voc")


def test_voc_lists_choose_pictures(tmp_path: Path) -> None:
    root = voc(tmp_path, None)
    assert set(known_formats()["voc"].find_splits(root)) == {"train"}
    main = root / "ImageSets/Main"
    text(main / "trainval.txt", "a\nb\n")
    text(main / "test.txt", "c\n")
    text(main / "cat_trainval.txt", "a 1\nb -1\n")
    assert read(root, "voc")[0].file_names == ["a.png", "b.png"]
    assert read(root, "voc", "test")[0].file_names == ["c.png"]
    assert read(root, "voc", "test")[0].categories.names == ("cat", "dog")  # those of all splits
    text(main / "train.txt", "b.png\n")
    assert read(root, "voc")[0].file_names == ["b.png"]


def test_voc_classes_and_oddities(tmp_path: Path) -> None:
    root = voc(tmp_path)
    found, _ = read(root, "voc", names=["dog", "bird", "cat"])
    assert found.categories.names == ("dog", "bird", "cat")
    assert found.labels.tolist() == [0, 2, 2]
    content = voc_text("other name.png", RECORDS["b.png"], (0, 0))
    part = "<part><name>head</name><bndbox><xmin>0</xmin></bndbox></part>"
    content = content.replace("<difficult>0", "<difficult>1").replace(
        "</object>", f"{part}</object>"
    )
    text(root / "Annotations/b.xml", content)
    found, _ = read(root, "voc")
    assert found.sizes.tolist() == [[SIZE[1], SIZE[0]]] * 3
    assert found.bboxes[2].tolist() == [5, 5, 8, 8]
    assert found.repairs == {
        "sizes taken from the picture because the file has none": 1,
        "objects marked as difficult, read like all others (data.difficult)": 1,
    }


ONE = voc_text("b.png", RECORDS["b.png"])
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
BAD_XML = {
    "no XML": ("hello", "b.xml: not an XML file"),
    "empty": ("", "b.xml: not an XML file"),
    "cut": (ONE[:80], "b.xml: not an XML file"),
    "bomb": (BOMB + ONE.replace("b.png", "&b;"), "b.xml: line 1: declares entities"),
    "file": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + ONE,
        "b.xml: line 1: declares entities",
    ),
    "encoding": ('<?xml version="1.0" encoding="klingon"?>' + ONE, "b.xml: not an XML file"),
    "another root": ("<x/>", "line 1: x: not a VOC file"),
    "no name": (ONE.replace("<name>cat</name>", ""), "line 2: object: name is missing"),
    "no box": (ONE.replace("bndbox", "box"), "line 2: object: bndbox is missing"),
    "no corner": (ONE.replace("xmax", "x2"), "line 2: bndbox: xmax is missing"),
    "word": (ONE.replace("<xmin>5.0", "<xmin>left"), "xmin must be a number, got 'left'"),
    "NaN": (ONE.replace("<xmin>5.0", "<xmin>nan"), "line 2: object: bbox .* is not finite"),
    "inverted": (ONE.replace("<xmax>13.0", "<xmax>1"), "object: bbox .* has a negative side"),
    "no area": (ONE.replace("<xmax>13.0", "<xmax>5"), "object: bbox .* is empty"),
    "other size": (ONE.replace("<width>64", "<width>65"), "b.png: is 64x48 px, .* says 65x48"),
    "size a word": (ONE.replace("<width>64", "<width>x"), "size: width must be a number"),
    "half a pixel": (
        ONE.replace("<width>64", "<width>.5"),
        "width must be a whole number of pixels",
    ),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_bad_xml_is_named(tmp_path: Path, kind: str) -> None:
    content, words = BAD_XML[kind]
    text(voc(tmp_path) / "Annotations/b.xml", content)
    with pytest.raises(DataError, match=words):
        read(tmp_path, "voc")


def test_bad_voc_folders_are_named(tmp_path: Path) -> None:
    root = voc(tmp_path)
    lists = root / "ImageSets/Main/train.txt"
    text(lists, "a\nb\na\n")
    with pytest.raises(DataError, match=r"train\.txt: line 3: the same as line 1"):
        read(root, "voc")
    text(lists, "../a\n")
    with pytest.raises(DataError, match=r"line 1: '\.\./a' leaves the folder"):
        read(root, "voc")
    text(lists, "a\nz\n")
    with pytest.raises(DataError, match=r"z\.xml: no picture of this name"):
        read(root, "voc")
    picture(root / "JPEGImages/z.png")
    with pytest.raises(DataError, match=r"z\.xml: no such label file"):
        read(root, "voc")
    assert read(root, "voc", missing_labels="empty")[0].file_names == ["a.png", "z.png"]
    assert read(root, "voc", missing_labels="skip")[0].file_names == ["a.png"]
    with pytest.raises(DataError, match=r"line 2: object: name 'dog' is not among the classes"):
        read(root, "voc", names=["cat"], missing_labels="skip")
    picture(root / "JPEGImages/a.jpg")
    assert read(root, "voc", missing_labels="skip")[0].file_names == ["a.png"]  # <filename>


# -- CVAT --------------------------------------------------------------------------------


def cvat_image(root: Path, shapes: str) -> AnnotationSet:
    file = cvat(root) / "annotations.xml"
    content = file.read_text()
    start = content.index('name="b.png"')
    before, _, after = content[start:].partition("<box")
    file.write_text(content[:start] + before + shapes + after[after.index("</box>") + 6 :])
    return read(root, "cvat")[0]


@pytest.mark.parametrize(
    ("shape", "bbox"),
    [
        ('<box label="cat" xtl="1" ytl="2" xbr="11" ybr="5"/>', (1, 2, 10, 3)),
        ('<polygon label="cat" points="1,2;11.5,2;4,9"/>', (1, 2, 10.5, 7)),
        ('<mask label="cat" rle="3, 4" left="3" top="4" width="5" height="6"/>', (3, 4, 5, 6)),
        ('<ellipse label="cat" cx="20" cy="20" rx="5" ry="3"/>', (15, 17, 10, 6)),
        ('<ellipse label="cat" cx="20" cy="20" rx="5" ry="3" rotation="90"/>', (17, 15, 6, 10)),
        ('<box label="cat" xtl="10" ytl="20" xbr="30" ybr="24" rotation="90"/>', (18, 12, 4, 20)),
    ],
)
def test_shapes_of_cvat(tmp_path: Path, shape: str, bbox: tuple[float, ...]) -> None:
    found = cvat_image(tmp_path, shape)
    assert tuple(found.bboxes[2].tolist()) == bbox
    assert sum(found.repairs.values()) == (shape.count("rotation") or not shape.startswith("<box"))


def test_shapes_of_cvat_without_a_box_are_counted(tmp_path: Path) -> None:
    found = cvat_image(tmp_path, '<points label="cat" points="1,2"/><tag label="dog"/>')
    assert len(found.ids) == 2
    assert sum(found.repairs.values()) == 2


BAD_SHAPES = {
    '<box label="cow" xtl="1" ytl="2" xbr="11" ybr="5"/>': "label 'cow' is not among the classes",
    '<box xtl="1" ytl="2" xbr="11" ybr="5"/>': "box: label is missing",
    '<box label="cat" xtl="1" ytl="2" xbr="11"/>': "box: ybr is missing",
    '<box label="cat" xtl="1" ytl="2" xbr="x" ybr="5"/>': "box: xbr must be a number",
    '<box label="cat" xtl="9" ytl="2" xbr="1" ybr="5"/>': "box: bbox .* negative side",
    '<box label="cat" xtl="1" ytl="2" xbr="11" ybr="5" rotation="nan"/>': "is not finite",
    '<polygon label="cat" points=""/>': "polygon: x must be a number",
    '<polygon label="cat" points="nan,2;3,4;5,6"/>': "polygon: bbox .* is not finite",
    '<star label="cat"/>': "star: unknown shape",
}


@pytest.mark.parametrize("shape", BAD_SHAPES)
def test_bad_shapes_of_cvat_are_named(tmp_path: Path, shape: str) -> None:
    with pytest.raises(
        DataError, match=rf"annotations\.xml: line \d+: \w+: .*|{BAD_SHAPES[shape]}"
    ) as error:
        cvat_image(tmp_path, shape)
    assert re.search(BAD_SHAPES[shape], str(error.value))


def test_subsets_of_cvat_are_splits(tmp_path: Path) -> None:
    file = cvat(tmp_path) / "annotations.xml"
    content = file.read_text()
    for name, subset in (("a", "Train"), ("b", "Validation")):
        content = content.replace(f'name="{name}.png"', f'name="{name}.png" subset="{subset}"')
        (tmp_path / "images" / subset).mkdir()
        (tmp_path / f"images/{name}.png").rename(tmp_path / "images" / subset / f"{name}.png")
    file.write_text(content.replace('name="c.png"', 'name="c.png" subset="Test"'))
    assert read(tmp_path, "cvat", "val")[0].file_names == ["b.png"]
    assert read(tmp_path, "cvat", "val")[1] == tmp_path / "images" / "Validation"
    assert read(tmp_path, "cvat", "test")[1] == tmp_path / "images"
    file.write_text(content.replace('name="c.png"', 'name="c.png" subset="odd"'))
    with pytest.raises(DataError, match="subset 'odd' is not train, validation or test"):
        read(tmp_path, "cvat")
    file.write_text("<annotations>\n<track id='0' label='cat'/></annotations>")
    with pytest.raises(DataError, match="line 2: track: a file of CVAT for video"):
        read(tmp_path, "cvat")


# -- LabelMe -----------------------------------------------------------------------------


def shape(**changes: Any) -> dict[str, Any]:
    return {"label": "cat", "points": [[1, 2], [11, 5]], "shape_type": "rectangle", **changes}


@pytest.mark.parametrize(
    ("changes", "bbox"),
    [
        ({"points": [[11, 5], [1, 2]]}, (1, 2, 10, 3)),
        ({"points": [[1, 2], [11, 2], [11, 5], [1, 5]]}, (1, 2, 10, 3)),
        ({"shape_type": "polygon", "points": [[1, 2], [8, 2], [4, 9]]}, (1, 2, 7, 7)),
        ({"shape_type": None, "points": [[1, 2], [8, 2], [4, 9]]}, (1, 2, 7, 7)),
        ({"shape_type": "circle", "points": [[20, 20], [23, 24]]}, (15, 15, 10, 10)),
        ({"shape_type": "mask", "mask": "AAAA"}, (1, 2, 10, 3)),
    ],
)
def test_shapes_of_labelme(
    tmp_path: Path, changes: dict[str, Any], bbox: tuple[float, ...]
) -> None:
    edit_json(labelme(tmp_path) / "b.json", lambda c: c.update(shapes=[shape(**changes)]))
    assert tuple(read(tmp_path, "labelme")[0].bboxes[2].tolist()) == bbox


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": None}, "not a LabelMe file: shapes must be a list"),
        ({"shapes": [5]}, r"shapes\[0\] is not an object"),
        ({"shapes": [shape(label=5)]}, r"shapes\[0\]: label must be a word, got 5"),
        ({"shapes": [shape(points=5)]}, r"shapes\[0\]: points must be pairs of numbers"),
        ({"shapes": [shape(points=[[1, "2"]])]}, r"shapes\[0\]: points must be pairs of numbers"),
        ({"shapes": [shape(points=[[1, 2]])]}, r"shapes\[0\]: a rectangle of 1 points"),
        ({"shapes": [shape(shape_type="star")]}, r"shapes\[0\]: shape_type 'star' is unknown"),
        ({"shapes": [shape(shape_type="circle", points=[[1, 2]] * 3)]}, "a circle of 3 points"),
        ({"shapes": [shape(points=[[1, 2], [1, 5]])]}, r"shapes\[0\]: bbox .* is empty"),
        ({"imagePath": None}, "imagePath must be a path"),
        ({"imageWidth": "64"}, "imageHeight and imageWidth must be whole, got '64'"),
        ({"imageWidth": 65}, r"b\.png: is 64x48 px, .* says 65x48"),
        ({"imagePath": "a.png"}, r"b\.json: .*a\.png is the picture of .*a\.json, too"),
    ],
)
def test_bad_labelme_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    edit_json(labelme(tmp_path) / "b.json", lambda content: content.update(change))
    with pytest.raises(DataError, match=words):
        read(tmp_path, "labelme")


def test_pictures_of_labelme(tmp_path: Path, expected: AnnotationSet) -> None:
    root = labelme(tmp_path / "set")
    # The path of another machine, and one that leads out of the set.
    edit_json(root / "a.json", lambda c: c.update(imagePath="C:\\pictures\\a.png"))
    edit_json(root / "b.json", lambda c: c.update(imagePath="../b.png", imageHeight=None))
    picture(tmp_path / "b.png")
    assert read(root, "labelme")[0].fingerprint() == expected.fingerprint()
    picture(root / "z.png")
    assert "z.png" not in read(root, "labelme")[0].file_names  # nobody has looked at it
    assert "z.png" in read(root, "labelme", missing_labels="empty")[0].file_names
    with pytest.raises(DataError, match=r"z\.json: no such label file"):
        read(root, "labelme", missing_labels="error")
    (root / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.json: neither its picture .* nor one of its name"):
        read(root, "labelme")


def test_lines_and_points_of_labelme_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(
        labelme(tmp_path) / "b.json",
        lambda c: c["shapes"].append(shape(shape_type="point", points=[[1, 2]], label="spot")),
    )
    with caplog.at_level(logging.WARNING):
        found, _ = read(tmp_path, "labelme")
    assert found.categories.names == ("cat", "dog")
    assert "left out because it has no box: point: 1" in caplog.text


# -- other programs ----------------------------------------------------------------------


def test_globox_agrees(tmp_path: Path) -> None:
    """On YOLO and VOC. (supervision takes 1 from the upper left corner of VOC.)"""
    globox = pytest.importorskip("globox", reason="pip install globox")
    root = yolo(tmp_path / "yolo")
    theirs = globox.AnnotationSet.from_yolo_v5(
        folder=root / "labels/train", image_folder=root / "images/train", image_extension=".png"
    )
    assert compare_with_globox(theirs, read(root, "yolo")[0], 1e-3, by_number=True) > 1
    root = voc(tmp_path / "voc")
    theirs = globox.AnnotationSet.from_pascal_voc(root / "Annotations")
    assert compare_with_globox(theirs, read(root, "voc")[0], 1e-6, by_number=False) > 1


def compare_with_globox(theirs: Any, ours: AnnotationSet, close: float, by_number: bool) -> int:
    """Check every box of ours against theirs; the number of boxes."""
    for position, name in enumerate(ours.file_names):
        labels = [ours.categories.names[k] for k in ours.labels[ours.image == position]]
        if by_number:
            labels = [str(NAMES.index(label)) for label in labels]
        boxes = ours.bboxes[ours.image == position].tolist()
        found = [one for one in theirs if one.image_id == name]
        assert len(found) == 1
        assert [box.label for box in found[0].boxes] == labels
        for box, (x, y, w, h) in zip(found[0].boxes, boxes, strict=True):
            assert (box.xmin, box.ymin) == pytest.approx((x, y), abs=close)
            assert (box.width, box.height) == pytest.approx((w, h), abs=close)
    return len(ours.boxes)


def test_supervision_agrees_on_yolo(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="pip install supervision")
    root = yolo(tmp_path)
    theirs = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(root / "labels/train"), str(root / "data.yaml")
    )
    ours, _ = read(root, "yolo")
    assert tuple(theirs.classes) == ours.categories.names
    for path, _, found in theirs:
        image = ours.image == ours.file_names.index(Path(path).name)
        assert found.xyxy.reshape(-1, 4) == pytest.approx(ours.boxes[image], abs=1e-3)
        assert found.class_id.tolist() == ours.labels[image].tolist()
