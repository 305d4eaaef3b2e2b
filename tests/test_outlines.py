"""Outlines of objects: read, kept in one column, and drawn as pycocotools draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from comining.data.annotations import AnnotationSet
from comining.data.category_matching import match_categories, without_category
from comining.data.formats.annotation_format import ReadOptions
from comining.data.formats.coco import read_coco
from comining.data.formats.cvat import Cvat
from comining.data.formats.labelme import LabelMe
from comining.data.formats.yolo import Yolo
from comining.data.merged_sets import merge
from comining.data.outlines import FINE_WINDOW, Outline, Outlines, encoded
from tests.annotated_folders import picture, text
from tests.helpers import edit_json, write_coco

HEIGHT, WIDTH = 48, 64
WHOLE = (0, 0, WIDTH, HEIGHT)


def polygon(*corners: tuple[float, float]) -> np.ndarray[Any, Any]:
    return np.array(corners, dtype=np.float64)


STAR = polygon((10, 5), (14.5, 20.25), (30, 20), (17, 28), (24, 44), (9, 33), (3, 40), (5, 20))
OTHER = polygon((40, 30), (60, 30), (50, 45))


def random_mask(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    coarse = rng.random((HEIGHT // 8, WIDTH // 8)) < 0.4
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


def runs_of(mask: np.ndarray[Any, Any]) -> Outline:
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff([0, *edges, len(flat)])
    runs = runs if not flat[0] else np.concatenate([[0], runs])
    return Outline(runs=runs.astype(np.int64), height=mask.shape[0])


@pytest.mark.parametrize("window", [WHOLE, (7, 3, 33, 41), (0, 0, 1, 1), (63, 47, 64, 48)])
@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_pycocotools(seed: int, window: tuple[int, int, int, int]) -> None:
    mask = random_mask(seed)
    outline = runs_of(mask)
    rle = coco_mask.encode(np.asfortranarray(mask))
    left, top, right, bottom = window
    expected = coco_mask.decode(rle)[top:bottom, left:right]
    assert (outline.cover(window) == expected).all()
    assert outline.box == tuple(coco_mask.toBbox(rle))


@pytest.mark.parametrize("window", [WHOLE, (2, 3, 33, 46)])
def test_polygons_are_nearly_those_of_pycocotools(window: tuple[int, int, int, int]) -> None:
    flat = [part.reshape(-1).tolist() for part in (STAR, OTHER)]
    rle = coco_mask.merge(coco_mask.frPyObjects(flat, HEIGHT, WIDTH))
    left, top, right, bottom = window
    expected = coco_mask.decode(rle)[top:bottom, left:right].astype(float)
    found = Outline([STAR, OTHER]).cover(window)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert abs(found.sum() - expected.sum()) < 0.05 * expected.sum()
    clear = (found < 0.2) | (found > 0.8)
    assert (found[clear].round() == expected[clear]).mean() > 0.98
    assert clear.mean() > 0.85


def test_a_rectangle_covers_its_pixels() -> None:
    square = Outline([polygon((10, 8), (20, 8), (20, 14), (10, 14))])
    share = square.cover(WHOLE)
    assert (share[8:14, 10:20] == 1).all()
    assert share.sum() == pytest.approx(60, rel=0.1)
    large = (0, 0, 2, FINE_WINDOW)  # drawn coarsely
    assert square.cover((10, 8, 12, 9)).tolist() == [[1, 1]]
    assert Outline([polygon((0, 0), (2, 0), (2, 9), (0, 9))]).cover(large)[:9].min() == 1


def test_what_is_kept_comes_back() -> None:
    given = [
        Outline([STAR, OTHER]), None, runs_of(random_mask(0)), Outline([OTHER]),
        runs_of(np.ones((HEIGHT, WIDTH), dtype=np.uint8)),
    ]  # fmt: skip
    kept = Outlines.of([encoded(one, HEIGHT, WIDTH) for one in given])
    assert len(kept) == 5
    assert [kept.has(row) for row in range(5)] == [True, False, True, True, True]

    def check(found: Outlines, rows: list[int]) -> None:
        assert len(found) == len(rows)
        for row, original in enumerate(rows):
            outline, expected = found.get(row, HEIGHT), given[original]
            if expected is None:
                assert outline is None
            else:
                assert outline is not None
                assert (outline.cover(WHOLE) == expected.cover(WHOLE)).all()

    check(kept, [0, 1, 2, 3, 4])
    check(kept.of_rows(np.array([3, 1, 0])), [3, 1, 0])
    check(kept.of_rows(np.array([False, True, True, False, True])), [1, 2, 4])
    check(kept.of_rows(np.zeros(5, dtype=np.bool_)), [])
    joined = Outlines.joined([kept.of_rows(np.array([4, 1])), Outlines.none(1), kept])
    check(joined.of_rows(np.array([0, 1, 3, 4, 5])), [4, 1, 0, 1, 2])
    assert joined.get(2, HEIGHT) is None
    assert len(Outlines.of([])) == 0


def test_corners_far_outside_do_not_overflow() -> None:
    far = Outline([polygon((-1e12, 10), (1e12, 10), (1e12, 30), (-1e12, 30))])
    kept = Outlines.of([encoded(far, HEIGHT, WIDTH)]).get(0, HEIGHT)
    assert kept is not None
    assert kept.cover(WHOLE)[11:29].min() == 1


# -- reading -----------------------------------------------------------------------------

BOX = (10, 8, 20, 12, 1)
FITTING = [[10, 8, 30, 8, 20, 20]]


def with_segmentations(root: Path, *segmentations: Any, split: str = "train") -> Path:
    """A set with an object of the same box for each."""
    file = write_coco(root, [[BOX] for _ in segmentations], split=split)

    def change(content: Any) -> None:
        for record, segmentation in zip(content["annotations"], segmentations, strict=True):
            record["segmentation"] = segmentation

    return edit_json(file, change)


def having(found: AnnotationSet) -> list[bool]:
    assert found.outlines is not None
    return [found.outlines.has(row) for row in range(len(found.ids))]


def test_outlines_are_kept_on_request_only(tmp_path: Path) -> None:
    file = with_segmentations(tmp_path, FITTING, [], None)
    plain, found = read_coco(file), read_coco(file, outlines=True)
    assert plain.outlines is None
    assert having(found) == [True, False, False]
    assert found.repairs == plain.repairs
    assert found.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("x", "cannot be read"),
        ([[1, 2, "a", 4, 5, 6]], "cannot be read"),
        ({"size": [9, 9], "counts": [81]}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": "~"}, "cannot be read"),
        ([[0, 0, 5, 0, 5, 5]], "do not fit their box"),  # of another object
        ([[1e300, 0, 5, 0, 5, 5]], "do not fit their box"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "do not fit their box"),
    ],
)
def test_an_outline_that_cannot_be_used_is_counted(
    tmp_path: Path, segmentation: Any, words: str
) -> None:
    """A set that trains without pasting trains with it: the object is pasted by its box."""
    file = with_segmentations(tmp_path, FITTING, segmentation)
    assert not read_coco(file).repairs
    found = read_coco(file, outlines=True)
    assert having(found) == [True, False]
    assert [name for name in found.repairs if words in name] == list(found.repairs)
    assert list(found.repairs.values()) == [1]


def test_outlines_stay_with_their_annotations(tmp_path: Path) -> None:
    """Through a choice of images, other labels, a class that is ignored, and merged files."""
    one = read_coco(with_segmentations(tmp_path, None, FITTING, None), outlines=True)
    two = read_coco(with_segmentations(tmp_path, FITTING, None, split="more"), outlines=True)
    assert having(one.of_images(np.array([True, False, True]))) == [False, False]
    assert having(one.of_images(np.array([False, True, True]))) == [True, False]
    assert having(without_category(one, "class 3")) == [False, True, False]
    assert having(match_categories(one, two.categories, "")) == [False, True, False]
    merged, _ = merge([(one, tmp_path / "train"), (two, tmp_path / "more")])
    assert having(merged) == [False, True, False, True, False]
    same, _ = merge([(one, tmp_path / "train"), (one, tmp_path / "train")])  # repeated rows go
    assert having(same) == [False, True, False]


def test_regions_to_ignore_keep_none(tmp_path: Path) -> None:
    file = with_segmentations(tmp_path, FITTING, FITTING)
    edit_json(file, lambda content: content["annotations"][1].update(iscrowd=1))
    assert having(read_coco(file, outlines=True)) == [True, False]
    assert having(read_coco(file, crowd="object", outlines=True)) == [True, True]


def test_polygons_of_other_formats_are_outlines(tmp_path: Path) -> None:
    """YOLO, LabelMe and CVAT."""
    yolo = tmp_path / "yolo"
    picture(yolo / "images" / "a.png")
    text(yolo / "labels" / "a.txt", "0 0.2 0.2 0.6 0.2 0.4 0.7\n0 0.5 0.5 0.25 0.25\n")
    text(yolo / "data.yaml", "train: images\nnames: [dog]\n")
    points = [[10, 8], [30, 8], [20, 20]]
    labelme = tmp_path / "labelme"
    picture(labelme / "a.png")
    shapes = [
        {"label": "dog", "points": points, "shape_type": "polygon"},
        {"label": "dog", "points": points[:2], "shape_type": "circle"},
    ]
    file = {"imagePath": "a.png", "shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    text(labelme / "a.json", json.dumps(file))
    cvat = tmp_path / "cvat"
    picture(cvat / "images" / "a.png")
    text(
        cvat / "annotations.xml",
        f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="dog" points="10,8;30,8;20,20"/>'
        '<box label="dog" xtl="1" ytl="2" xbr="20" ybr="30"/></image></annotations>',
    )
    for root, format in ((yolo, Yolo()), (labelme, LabelMe()), (cvat, Cvat())):
        split = format.find_splits(root)["train"]
        found, _ = split.read(ReadOptions(outlines=True))
        assert having(found) == [True, False], root
        assert found.outlines is not None
        outline = found.outlines.get(0, HEIGHT)
        assert outline is not None
        assert outline.fits(tuple(found.bboxes[0].tolist()))
        assert split.read(ReadOptions())[0].outlines is None
