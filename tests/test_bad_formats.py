"""What is said of bad files in other formats than COCO: the last table of ``docs/bad-input.md``.

``python -m tests.test_bad_formats`` prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from comining.config import CONFIG_FOLDER
from comining.errors import DataError
from tests.annotated_folders import RECORDS, WRITERS, text, voc_text
from tests.helpers import edit_json
from tests.test_auto import data

DOCUMENT = CONFIG_FOLDER.parent / "docs" / "bad-input.md"
DROP = "(on_invalid_box=drop leaves such annotations out)"


class Row(NamedTuple):
    """One kind of bad input; ``says`` is the whole message, DIR the folder, ``...`` anything."""

    format: str
    kind: str
    how: str
    spoil: Callable[[Path], object]
    says: str


def row_of_yolo(line: str) -> Callable[[Path], object]:
    return lambda root: text(root / "labels/train/b.txt", f"\n{line}\n")


def description(content: str) -> Callable[[Path], object]:
    return lambda root: text(root / "data.yaml", content)


def voc_file(before: str, after: str) -> Callable[[Path], object]:
    content = voc_text("b.png", RECORDS["b.png"])
    return lambda root: text(root / "Annotations/b.xml", content.replace(before, after))


def shape(**changes: object) -> Callable[[Path], object]:
    return lambda root: edit_json(root / "b.json", lambda c: c["shapes"][0].update(changes))


def cvat_file(before: str, after: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        file = root / "annotations.xml"
        file.write_text(file.read_text().replace(before, after))

    return spoil


def without_labels(root: Path) -> None:
    for file in (root / "labels/train").iterdir():
        file.unlink()


LABELS = "DIR/labels/train/b.txt: line 2: "
XML = "DIR/Annotations/b.xml: "
ROWS = [
    Row("yolo", "class without a name", "class 2 of 2", row_of_yolo("2 .5 .5 .1 .1"),
        LABELS + "class '2' is not a whole number 0 ... 1"),
    Row("yolo", "pixels instead of shares", "", row_of_yolo("0 32 24 10 10"),
        LABELS + "32 is not a number from 0 to 1: coordinates are shares of the picture's width "
        f"and height {DROP}"),
    Row("yolo", "not a number", "", row_of_yolo("0 .5 x .1 .1"), LABELS + "'x' is not a number"),
    Row("yolo", "four columns", "", row_of_yolo("0 .5 .5 .1"),
        LABELS + "4 columns are neither a box (class cx cy w h) nor a polygon (class x1 y1 x2 y2 "
        "x3 y3 ...)"),
    Row("yolo", "the same row twice", "", row_of_yolo("0 .5 .5 .1 .1\n0 .5 .5 .1 .1"),
        f"DIR/labels/train/b.txt: line 3: the same as line 2 {DROP}"),
    Row("yolo", "labels elsewhere", "no label file at all", without_labels,
        "DIR/images/train: none of its 3 pictures has a label file; looked in DIR/labels/train"),
    Row("yolo", "names missing", "", description("train: images/train"),
        "DIR/data.yaml: names must be a list of class names, got None"),
    Row("yolo", "folder absent", "", description("train: images/x\nnames: [cat, dog]"),
        "DIR/data.yaml: train: images/x: no such folder or file (below DIR)"),
    Row("voc", "no XML", "", lambda root: text(root / "Annotations/b.xml", "x"),
        XML + "not an XML file (syntax error: line 1, column 0)"),
    Row("voc", "entities", "a few nested ones are gigabytes",
        voc_file("<annotation>", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>'),
        XML + "line 1: declares entities, which are not expanded"),
    Row("voc", "corner missing", "", voc_file("xmax", "x2"),
        XML + "line 2: bndbox: xmax is missing"),
    Row("voc", "size of another picture", "", voc_file("<width>64", "<width>65"),
        "DIR/ImageSets/Main/train.txt: image 2: DIR/JPEGImages/b.png: is 64x48 px, the annotation "
        "file says 65x48"),
    Row("voc", "label file missing", "", lambda root: (root / "Annotations/b.xml").unlink(),
        XML + "no such label file, of the picture DIR/JPEGImages/b.png; data.missing_labels says "
        "what that means: empty (nothing to be seen), skip (nobody has looked)"),
    Row("cvat", "CVAT for video", "", cvat_file("<image ", '<track id="0"/><image '),
        "DIR/annotations.xml: line ...: track: a file of CVAT for video; export the task as CVAT "
        "for images 1.1"),
    Row("cvat", "label that is not in meta", "", cvat_file('<box label="cat"', '<box label="cow"'),
        "DIR/annotations.xml: line ...: box: label 'cow' is not among the classes"),
    Row("labelme", "shape unknown", "", shape(shape_type="star"),
        "DIR/b.json: shapes[0]: shape_type 'star' is unknown"),
    Row("labelme", "box without area", "`data.on_invalid_box=error`",
        shape(points=[[5, 5], [5, 9]]),
        f"DIR/b.json: shapes[0]: bbox (5.0, 5.0, 0.0, 4.0) in image 2 of 64x48 px is empty {DROP}"),
    Row("auto", "two formats", "YOLO beside COCO", lambda root: WRITERS["coco_folder"](root),
        "DIR: looks like COCO (annotations/train.json) and YOLO (data.yaml); choose one of "
        "data=coco_folder, data=yolo"),
    Row("coco_folder", "splits that are not clear", "two files named after none",
        lambda root: [(root / "annotations/train.json").rename(root / "annotations/monday.json"),
                      text(root / "annotations/friday.json", json.dumps({"images": []}))],
        "DIR: it is not clear which splits annotations/friday.json, annotations/monday.json hold; "
        "choose with data=custom data.train_annotations=FILE data.train_images=FOLDER"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.format}-{row.kind}")
def test_it_is_refused_in_one_line(tmp_path: Path, row: Row) -> None:
    root = WRITERS["yolo" if row.format == "auto" else row.format](tmp_path / "set")
    row.spoil(root)
    with pytest.raises(DataError) as error:
        data(row.format, root, on_invalid_box="error").setup("fit")
    says = re.escape(row.says).replace("DIR", re.escape(str(root))).replace(r"\.\.\.", ".*")
    assert re.fullmatch(says, str(error.value)), error.value


def table() -> str:
    lines = ["| format | what | how | message |", "|---|---|---|---|"]
    lines += [f"| `{row.format}` | {row.kind} | {row.how} | `{row.says}` |" for row in ROWS]
    return "\n".join(lines)


def test_the_document_has_these_rows() -> None:
    """If this fails: python -m tests.test_bad_formats, between the two marks."""
    marks = r"<!-- bad formats: begin -->\n(.*?)\n<!-- bad formats: end -->"
    found = re.search(marks, DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == table()


if __name__ == "__main__":
    print(table())
