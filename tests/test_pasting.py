"""Objects that are pasted: where, how large, what they hide, and that nothing else changes."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from comining.config import CONFIG_FOLDER, instantiate
from comining.data import pasting
from comining.data.annotations import AnnotationSet
from comining.data.crops import Crop, CropCache, blend, softened
from comining.data.dataset import Sample, TrainingSet, collate
from comining.data.formats.coco import read_coco
from comining.data.pasting import ObjectPaster, covered
from comining.data.sampler import SampleKey
from comining.data.sparsity import Erasure
from comining.errors import ConfigError
from comining.structures import Batch, Boxes
from comining.training.callbacks.pictures import _layers, _styles
from comining.training.pointless import pointless
from tests.annotated_folders import WRITERS
from tests.ddp import TWO, train
from tests.helpers import assert_equal, boxes, composed, detector, edit_json, real_data
from tests.test_datamodule import attach, coco_data

WIDTH, HEIGHT = 96, 64
GROUND = 100
# The red of an object tells its class and that it is one; its left half has less blue.
REDS = {1: 255, 2: 220, 3: 185}
Row = tuple[int, int, int, int, int]  # xywh, category


def draw(rows: list[Row], width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A grey picture with a coloured rectangle for every object."""
    picture = np.full((height, width, 3), GROUND, dtype=np.uint8)
    for x, y, w, h, category in rows:
        picture[y : y + h, x : x + w] = (REDS[category], 0, 200)
        picture[y : y + h, x : x + w // 2, 2] = 60
    return picture


def write(root: Path, *images: list[Row], split: str = "train", **fields: Any) -> Path:
    """A COCO set of such pictures.

    Args:
        fields: of annotations: for each name a list of values, one for every annotation; None
            leaves the field out.
    """
    (root / split).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": k, "name": f"class {k}"} for k in REDS]
    for number, rows in enumerate(images, start=1):
        Image.fromarray(draw(rows)).save(root / split / f"{number}.png")
        size = {"width": WIDTH, "height": HEIGHT}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        for x, y, w, h, category in rows:
            row = len(content["annotations"])
            given = {name: values[row] for name, values in fields.items()}
            content["annotations"].append(
                {"id": row + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                | {"bbox": [x, y, w, h], "area": w * h}
                | {name: value for name, value in given.items() if value is not None}
            )
    file = root / f"{split}.json"
    file.write_text(json.dumps(content))
    return file


def stream(
    file: Path,
    *,
    paste: int = 3,
    erased: list[int] | None = None,
    ignored: list[int] | None = None,
    min_size: int = HEIGHT,
    flip: float = 0.0,
    seed: int = 0,
) -> TrainingSet:
    """A training set over a file; ``erased`` and ``ignored`` are rows of it."""
    annotations = read_coco(file, outlines=paste > 0)
    gone, regions = (np.zeros(len(annotations.ids), dtype=np.bool_) for _ in range(2))
    gone[erased or []] = True
    regions[ignored or []] = True
    erasure = Erasure(gone | regions, regions, annotations.status)
    return TrainingSet(
        annotations, erasure, file.parent / file.stem, min_size=min_size, max_size=1333, flip=flip,
        seed=seed, paste=paste,
    )  # fmt: skip


def samples(data: TrainingSet, count: int = 40, item: int = 0) -> list[Sample]:
    return [data[SampleKey(position, item)] for position in range(count)]


def pasted_boxes(sample: Sample) -> Boxes:
    count = len(sample.annotated)
    return sample.annotated[torch.arange(count - sample.pasted, count)]


def intersect(one: Tensor, other: Tensor) -> Tensor:
    """Shared areas [N, M] of boxes."""
    corner = torch.maximum(one[:, None, :2], other[:, :2])
    end = torch.minimum(one[:, None, 2:], other[:, 2:])
    return (end - corner).clamp(min=0).prod(dim=-1)


def content(image: Tensor, box: Tensor) -> list[float]:
    """The box around what has no green below a box and 3 px around it, with parts of pixels."""
    left, top, right, bottom = box.tolist()
    x, y = max(0, int(left) - 3), max(0, int(top) - 3)
    part = 1 - image[1, y : int(bottom) + 4, x : int(right) + 4].float() / GROUND
    columns, rows = part.amax(dim=0), part.amax(dim=1)
    inside_x, inside_y = (line > 0.5 for line in (columns, rows))
    at_x, at_y = inside_x.nonzero().flatten(), inside_y.nonzero().flatten()
    return [x + int(at_x[0]), y + int(at_y[0]), x + int(at_x[-1]) + 1, y + int(at_y[-1]) + 1]


# An image with room, and one that has the objects; polygons are the rectangles themselves.
SOURCES: list[Row] = [(4, 4, 20, 12, 1), (40, 8, 12, 18, 2), (66, 30, 14, 14, 3)]


def rectangle(row: Row) -> list[list[int]]:
    x, y, w, h, _ = row
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture(params=["boxes", "outlines"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Objects with and without outlines; the first image has one of its own, in a corner."""
    corner: Row = (0, 0, 8, 8, 3)
    outlines = [rectangle(row) for row in [corner, *SOURCES]]
    if request.param == "boxes":
        return write(tmp_path, [corner], SOURCES)
    return write(tmp_path, [corner], SOURCES, segmentation=outlines)


# -- nothing but the stream --------------------------------------------------------------


def test_a_sample_is_a_function_of_seed_and_position(file: Path) -> None:
    data, again = stream(file, flip=0.5), stream(file, flip=0.5)
    assert again.paster is not None
    again.paster.crops.limit = 0  # keeps nothing: what is kept must not matter
    first = samples(data)
    for position in reversed(range(len(first))):
        other = again[SampleKey(position, 0)]
        assert torch.equal(other.image, first[position].image)
        assert_equal(other.annotated, first[position].annotated)
    moved = samples(stream(file, flip=0.5, seed=1))
    assert any(not torch.equal(a.image, b.image) for a, b in zip(first, moved, strict=True))
    assert len({tuple(pasted_boxes(one).boxes.flatten().tolist()) for one in first}) > 35


def batches(root: Path, start: int = 0, rank: int = 0, ranks: int = 1, **options: Any) -> list[Any]:
    data = coco_data(root, batch_size=4, min_size=HEIGHT, flip=0.5, **options)
    data.setup("fit")
    attach(data, rank, ranks, global_step=start, max_steps=5, accumulate_grad_batches=1)
    return list(data.train_dataloader())


def test_workers_ranks_and_a_late_start_see_the_same(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path, [(0, 0, 8, 8, 3)], SOURCES, [(20, 20, 9, 9, 2)], split=split)
    whole = batches(tmp_path, paste=2)
    assert sum(sum(batch.pasted) for batch in whole) > 20
    halves = [batches(tmp_path, rank=rank, ranks=2, paste=2) for rank in (0, 1)]
    for late, batch in enumerate(batches(tmp_path, start=2, paste=2, num_workers=1), start=2):
        assert torch.equal(batch.images.pixels, whole[late].images.pixels)
        assert_equal(batch.annotated, whole[late].annotated)
        assert batch.pasted == whole[late].pasted
    for number, batch in enumerate(whole):
        shares = [half[number] for half in halves]
        pixels = torch.cat([share.images.pixels for share in shares])
        assert torch.equal(pixels, batch.images.pixels)
        assert shares[0].pasted + shares[1].pasted == batch.pasted


def test_without_pasting_nothing_changes(tmp_path: Path) -> None:
    """And with it neither order, size nor flip of the images do, nor what is evaluated."""
    for split in ("train", "val", "test"):
        write(tmp_path, [(0, 0, 8, 8, 3)], SOURCES, split=split)
    plain, zero, three = (
        batches(tmp_path),
        batches(tmp_path, paste=0),
        batches(tmp_path, paste=3),
    )
    for batch, same_one, other in zip(plain, zero, three, strict=True):
        assert torch.equal(batch.images.pixels, same_one.images.pixels)
        assert_equal(batch.annotated, same_one.annotated)
        assert not any(same_one.pasted)
        assert other.image_ids == batch.image_ids
        assert (
            torch.equal(other.knowledge.rate, batch.knowledge.rate)
            or other.knowledge.rate.isnan().all()
        )
        for n, image in enumerate(batch.images):
            own = batch.annotated.of_image(n)
            assert torch.equal(other.annotated.of_image(n).boxes[: len(own)], own.boxes)
            for left, top, right, bottom in own.boxes.int().tolist():
                inside = (slice(None), slice(top, bottom), slice(left, right))
                assert torch.equal(other.images[n][inside], image[inside])
    off, on = (coco_data(tmp_path, paste=paste) for paste in (0, 3))
    for data in (off, on):
        data.setup()
    assert off.train_set is not None
    assert off.train_set.annotations.outlines is None
    for split in ("val", "test"):
        assert on.evaluated[split].outlines is None
        first, second = (getattr(data, f"{split}_set") for data in (off, on))
        for index in range(len(first)):
            assert torch.equal(first[index][1], second[index][1])
    assert on.summary() == off.summary()  # fingerprints, repairs, what is known


# -- where and how large -----------------------------------------------------------------


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("min_size", [HEIGHT, 50, 100])
def test_a_box_is_that_of_the_object_and_inside_the_image(
    file: Path, min_size: int, flip: float
) -> None:
    seen = 0
    for sample in samples(stream(file, min_size=min_size, flip=flip)):
        height, width = sample.image.shape[-2:]
        pasted = pasted_boxes(sample)
        assert pasted.boxes.dtype == torch.float32
        assert (pasted.boxes >= 0).all()
        assert (pasted.boxes <= torch.tensor([width, height] * 2)).all()
        assert ((pasted.boxes[:, 2:] - pasted.boxes[:, :2]) >= 1).all()
        for box, label in zip(pasted.boxes, pasted.labels.tolist(), strict=True):
            around = box + torch.tensor([-5.0, -5, 5, 5])
            if (intersect(around[None], sample.annotated.boxes) > 0).sum() > 1:
                continue  # another one is in what is looked at
            assert content(sample.image, box) == pytest.approx(box.tolist(), abs=1.01)
            x, y = (box[:2] + box[2:]).int() // 2
            assert sample.image[0, y, x] == pytest.approx(REDS[label + 1], abs=2)
            seen += 1
    assert seen > 30


def test_an_object_is_mirrored_as_often_as_an_image(file: Path) -> None:
    for flip, low, high in ((0.0, 0, 0), (0.5, 0.3, 0.7), (1.0, 1, 1)):
        mirrored = []
        for sample in samples(stream(file, flip=flip), 30):
            for left, top, right, bottom in pasted_boxes(sample).boxes.tolist():
                y, quarter = int((top + bottom) / 2), (right - left) / 4
                blue = sample.image[2, y]
                mirrored.append(bool(blue[int(left + quarter)] > blue[int(right - quarter)]))
        assert low <= sum(mirrored) / len(mirrored) <= high


def test_an_object_has_the_size_that_its_own_image_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that it is pasted into has another resolution."""
    file = write(tmp_path, [(0, 0, 8, 8, 3)], [(10, 10, 16, 8, 1)])
    large = np.kron(draw([]), np.ones((4, 4, 1), dtype=np.uint8))
    large[:40, :40] = (REDS[3], 0, 0)
    Image.fromarray(large).save(tmp_path / "train" / "1.png")

    def enlarge(content: Any) -> None:
        content["images"][0] |= {"width": 4 * WIDTH, "height": 4 * HEIGHT}
        content["annotations"][0] |= {"bbox": [0, 0, 40, 40], "area": 1600}

    edit_json(file, enlarge)
    monkeypatch.setattr(pasting, "SCALE", 1.0)
    data = stream(file, min_size=2 * HEIGHT)
    sides = {
        tuple((box[2:] - box[:2]).tolist())
        for sample in samples(data)
        for box, label in zip(pasted_boxes(sample).boxes, pasted_boxes(sample).labels, strict=True)
        if label == 0
    }
    assert sides == {(32.0, 16.0)}  # twice, as its own image; not half, as the one it comes into
    monkeypatch.setattr(pasting, "SCALE", 1.25)
    widths = [
        float(box[2] - box[0])
        for sample in samples(data)
        for box, label in zip(pasted_boxes(sample).boxes, pasted_boxes(sample).labels, strict=True)
        if label == 0
    ]
    assert 32 / 1.25 - 1 <= min(widths) < 28
    assert 36 < max(widths) <= 32 * 1.25 + 1


def test_at_their_own_size_pixels_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of the box the background fades out, and the image itself begins."""
    monkeypatch.setattr(pasting, "SCALE", 1.0)
    file = write(tmp_path, [(0, 0, 8, 8, 3)], [(30, 20, 20, 20, 1)])
    source = draw([(30, 20, 20, 20, 1)])
    source[source[..., 1] == GROUND] = 0  # another ground
    Image.fromarray(source).save(tmp_path / "train" / "2.png")
    data = stream(file, paste=1)
    assert data.paster is not None
    data.paster.rows_of_class = [np.array([1])]
    (before,) = samples(stream(file, paste=0), 1)
    for sample in samples(data, 20):
        ((left, top, right, bottom),) = pasted_boxes(sample).boxes.int().tolist()
        expected = torch.from_numpy(source[20:40, 30:50]).permute(2, 0, 1)
        assert torch.equal(sample.image[:, top:bottom, left:right], expected)
        far = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        far[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
        assert torch.equal(sample.image[:, far], before.image[:, far])
        if left >= 3 and right <= WIDTH - 3:
            row = sample.image[1, (top + bottom) // 2]
            assert row[left - 3 : left].tolist() == [100, 75, 25]
            assert row[right : right + 3].tolist() == [25, 75, 100]


TRIANGLE = [[30, 20, 50, 20, 30, 40]]


def triangle_mask() -> dict[str, Any]:
    """The same as a run-length mask: pixels whose centre lies inside."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = (x > 30) & (y > 20) & (x + y < 70)
    flat = inside.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, len(flat)]).tolist()}


@pytest.mark.parametrize("kind", ["polygon", "mask"])
@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_an_outline_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, scale: float
) -> None:
    monkeypatch.setattr(pasting, "SCALE", scale)
    outline = TRIANGLE if kind == "polygon" else triangle_mask()
    rows: list[Row] = [(30, 20, 20, 20, 1)]
    file = write(tmp_path, [(0, 0, 8, 8, 3)], rows, segmentation=[None, outline])
    data = stream(file, paste=1)
    assert data.paster is not None
    data.paster.rows_of_class = [np.array([1])]
    for sample in samples(data, 20):
        (box,) = pasted_boxes(sample).boxes.tolist()
        left, top, right, bottom = box
        assert right - left == pytest.approx(bottom - top, abs=2)
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        across = (x - left) / (right - left) + (y - top) / (bottom - top)
        soft = 2.5 / (right - left)
        inside = (x > left + 2) & (y > top + 2) & (across < 1 - soft)
        beyond = (across > 1 + soft) | (x < left - 2) | (y < top - 2)
        beyond[:8, :8] = False
        green = sample.image[1].numpy()
        assert inside.any()
        assert (green[inside] <= 3).all()
        assert (green[beyond] >= GROUND - 3).all()
        between = green[~inside & ~beyond]
        assert ((between > 10) & (between < 90)).sum() > 15  # the edge is soft


def test_nothing_is_covered(file: Path, tmp_path: Path) -> None:
    """Neither annotations, nor regions to ignore, nor other pasted objects."""

    def region(content: Any) -> None:
        content["annotations"].append(
            {"id": 9, "image_id": 1, "category_id": 1, "bbox": [50, 30, 40, 30], "area": 1200}
            | {"iscrowd": 1}
        )

    edit_json(file, region)
    data = stream(file, paste=5)
    before = data.load(tmp_path / "train" / "1.png", (HEIGHT, WIDTH))
    counts: Counter[int] = Counter()
    for sample in samples(data, 60):
        pasted = pasted_boxes(sample).boxes
        own = sample.annotated.boxes[: len(sample.annotated) - sample.pasted]
        taken = torch.cat([own, sample.knowledge.ignored.boxes])
        assert len(taken) == 2
        assert not intersect(pasted, taken).any()
        assert not intersect(pasted, pasted).fill_diagonal_(0).any()
        assert torch.equal(sample.image[:, :8, :8], before[:, :8, :8])
        assert torch.equal(sample.image[:, 30:60, 50:90], before[:, 30:60, 50:90])
        counts[sample.pasted] += 1
    assert max(counts) >= 4
    full = ObjectPaster.__call__
    assert data.paster is not None
    everything = torch.tensor([[0.0, 0.0, WIDTH, HEIGHT]])
    nothing = full(data.paster, before, everything, random.Random(0))
    assert nothing.image is before
    assert len(nothing.boxes) == 0


# -- which objects -----------------------------------------------------------------------


def test_classes_are_chosen_equally_often(tmp_path: Path) -> None:
    many: list[Row] = [(x, y, 8, 8, 1) for x in range(0, 90, 9) for y in (30, 50)]
    file = write(tmp_path, [(0, 0, 8, 8, 2)], many, [(40, 8, 8, 8, 3)])
    counts = Counter(
        label
        for sample in samples(stream(file), 100)
        for label in pasted_boxes(sample).labels.tolist()
    )
    assert sum(counts.values()) > 200
    assert max(counts.values()) < 1.4 * min(counts[label] for label in range(3))


def test_what_is_no_source(tmp_path: Path) -> None:
    """Erased annotations, regions to ignore, tiny objects, and those that fill their image."""
    rows: list[Row] = [
        (0, 0, 8, 8, 1),
        (20, 0, 3, 20, 1),  # 3 px
        (40, 0, 10, 10, 1),  # erased
        (0, 30, 10, 10, 1),  # a crowd
        (60, 0, 10, 10, 1),  # a region to ignore
    ]
    file = write(tmp_path, rows, [(0, 0, 90, 60, 2)], iscrowd=[0, 0, 0, 1, 0, 0])
    data = stream(file, erased=[2], ignored=[4])
    assert data.paster is not None
    assert [of_class.tolist() for of_class in data.paster.rows_of_class] == [[0]]
    assert data.paster.never_pasted == [1]
    # What is tiny once resized.
    small = stream(file, min_size=HEIGHT // 2, erased=[2], ignored=[4])
    assert small.paster is not None
    assert [of_class.tolist() for of_class in small.paster.rows_of_class] == [[0]]
    smaller = stream(file, min_size=HEIGHT // 4, erased=[2], ignored=[4])
    assert smaller.paster is not None
    assert smaller.paster.never_pasted == [0, 1]
    assert not samples(smaller, 3)[0].pasted  # and that is no error


def test_what_others_cover_is_no_source_unless_there_is_nothing_else(tmp_path: Path) -> None:
    rows: list[Row] = [
        (0, 0, 20, 20, 1), (40, 40, 20, 20, 1), (52, 40, 20, 20, 2),  # 40 %
        (0, 20, 20, 20, 1), (0, 37, 20, 20, 1),  # 15 %
    ]  # fmt: skip
    data = stream(write(tmp_path, rows))
    assert data.paster is not None
    assert [of_class.tolist() for of_class in data.paster.rows_of_class] == [[0, 3, 4], [2]]
    # Regions to ignore cover, too; what is erased is not known of.
    erased, ignored = (
        stream(write(tmp_path, rows), erased=[2]),
        stream(write(tmp_path, rows), ignored=[2]),
    )
    assert erased.paster is not None
    assert ignored.paster is not None
    assert [one.tolist() for one in erased.paster.rows_of_class] == [[0, 1, 3, 4]]
    assert [one.tolist() for one in ignored.paster.rows_of_class] == [[0, 3, 4]]


def test_covered_compares_all_pairs_of_an_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images: list[list[Row]] = [
        [(int(x), int(y), 12, 9, 1) for x, y in rng.integers(0, (80, 50), (count, 2))]
        for count in (1, 17, 0, 9)
    ]
    annotations = read_coco(write(tmp_path, *images))
    chosen = rng.random(len(annotations.ids)) < 0.8
    expected = []
    for row, box in enumerate(annotations.boxes):
        others = chosen & (annotations.image == annotations.image[row])
        others[row] = False
        shares = intersect(torch.tensor(box)[None], torch.tensor(annotations.boxes[others])) / 108
        expected.append(bool(chosen[row]) and bool((shares > pasting.COVERED).any()))
    assert covered(annotations, chosen).tolist() == expected
    assert 3 < sum(expected) < len(expected) - 3


def test_one_image_pastes_from_itself(tmp_path: Path) -> None:
    data = stream(write(tmp_path, [(0, 0, 20, 20, 1)]))
    assert sum(sample.pasted for sample in samples(data, 10)) > 15


# -- what is hidden ----------------------------------------------------------------------


class Always(random.Random):
    """Chance that always puts an object at one of two places, in turn."""

    def __init__(self, *places: tuple[int, int]):
        super().__init__(0)
        self.coordinates = [side for place in places for side in place]

    def randint(self, a: int, b: int) -> int:
        return self.coordinates.pop(0)

    def uniform(self, a: float, b: float) -> float:
        return 0.0


def test_what_is_covered_is_hidden_also_by_two_together(tmp_path: Path) -> None:
    rows: list[Row] = [(30, 20, 20, 20, 1)]
    file = write(tmp_path, [(0, 0, 8, 8, 1)], rows, segmentation=[None, rectangle(rows[0])])
    data = stream(file, paste=1)
    paster = data.paster
    assert paster is not None
    paster.rows_of_class = [np.array([1])]
    image = torch.full((3, HEIGHT, WIDTH), GROUND, dtype=torch.uint8)
    old = torch.tensor(
        [
            [10.0, 10, 30, 30],
            [10, 10, 30, 47],
            [10, 10, 30, 53],
            [60, 40, 61, 41],
            [12, 12, 12.2, 12.2],
        ]
    )
    one = paster(image, torch.zeros(0, 4), Always((7, 7)))
    assert one.boxes.tolist() == [[10, 10, 30, 30]]
    assert one.visible(old).tolist() == [False, False, True, True, False]
    paster.count = 2
    wide = torch.tensor([[5.0, 10, 69, 30], [5, 10, 80, 60]])
    assert one.visible(wide).all()  # of the first 31 % are covered
    two = paster(image, torch.zeros(0, 4), Always((7, 7), (37, 7)))
    assert two.boxes.tolist() == [[10, 10, 30, 30], [40, 10, 60, 30]]
    assert two.visible(wide).tolist() == [False, True]


def test_an_outline_hides_no_more_than_it_covers(tmp_path: Path) -> None:
    rows: list[Row] = [(30, 20, 20, 20, 1)]
    for outline, seen in ((TRIANGLE, True), (rectangle(rows[0]), False)):
        file = write(tmp_path, [(0, 0, 8, 8, 1)], rows, segmentation=[None, outline])
        paster = stream(file, paste=1).paster
        assert paster is not None
        paster.rows_of_class = [np.array([1])]
        image = torch.full((3, HEIGHT, WIDTH), GROUND, dtype=torch.uint8)
        result = paster(image, torch.zeros(0, 4), Always((7, 7)))
        corner = torch.tensor([[18.0, 18, 30, 30]])
        assert result.visible(corner).tolist() == [seen]


def test_erased_truth_and_pseudo_labels_follow_and_knowledge_stays(tmp_path: Path) -> None:
    everywhere: list[Row] = [(x, y, 6, 6, 2) for x in range(10, 90, 8) for y in range(10, 56, 8)]
    file = write(tmp_path, [(0, 0, 8, 8, 3), *everywhere], SOURCES)
    erased = list(range(1, 1 + len(everywhere)))
    plain, data = stream(file, paste=0, erased=erased), stream(file, erased=erased)
    lying = [(x, y, x + w, y + h, k - 1, 0.9) for x, y, w, h, k in everywhere]
    data.pseudo_labels = {1: boxes(lying)}
    before = plain[SampleKey(0, 0)]
    gone = 0
    for sample in samples(data, 20):
        assert torch.equal(sample.erased.boxes, sample.pseudo_labels.boxes)
        assert len(sample.pseudo_labels.known_scores) == len(sample.pseudo_labels)
        left = {tuple(box) for box in sample.erased.boxes.tolist()}
        for box in before.erased.boxes:
            share = intersect(box[None], pasted_boxes(sample).boxes).sum() / 36
            if share > 0.75 or share == 0:  # the soft border counts in part
                assert (tuple(box.tolist()) in left) == (share == 0)
                gone += bool(share)
        assert torch.equal(sample.judged, before.judged)
        assert torch.equal(sample.knowledge.rate.isnan(), before.knowledge.rate.isnan())
    assert gone > 20


def test_a_complete_class_stays_complete(tmp_path: Path) -> None:
    file = write(tmp_path, [(0, 0, 8, 8, 3)], SOURCES)

    def fields(content: Any) -> None:
        for image in content["images"]:
            image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}

    data = stream(edit_json(file, fields))
    (sample,) = samples(data, 1)
    assert sample.pasted
    assert sample.knowledge.rate.tolist() == [[1, 0, 1]]  # class 2: nobody looked for it


# -- memory ------------------------------------------------------------------------------


def test_crops_are_kept_by_their_bytes() -> None:
    cache = CropCache(1000)
    small, large = (Crop(torch.zeros(3, side, side, dtype=torch.uint8), None) for side in (10, 19))
    masked = Crop(small.pixels, torch.zeros(10, 10, dtype=torch.uint8))
    assert (small.bytes, large.bytes, masked.bytes) == (300, 1083, 400)
    for row in range(3):
        cache.put(row, small)
    assert cache.get(0) is small  # used last now
    cache.put(3, masked)
    assert [row for row in range(4) if cache.get(row) is not None] == [0, 2, 3]
    assert cache.bytes == 1000
    cache.put(9, large)
    assert cache.get(9) is None
    assert cache.bytes == 1000


def test_a_crop_does_not_hold_its_image(file: Path) -> None:
    data = stream(file)
    samples(data, 10)
    assert data.paster is not None
    kept = list(data.paster.crops.crops.values())
    assert kept
    for crop in kept:
        assert crop.pixels.untyped_storage().nbytes() == crop.pixels.numel()


def test_blending_and_softening() -> None:
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    hidden = torch.zeros(4, 4)
    opacity = torch.tensor([[0.0, 0.5], [1.0, 1.0]])
    blend(image, hidden, torch.zeros(3, 2, 2, dtype=torch.uint8), opacity, 3, -1)  # overhangs
    assert image[0, :2].tolist() == [[200, 200, 200, 0], [200] * 4]
    assert hidden.sum() == 1
    soft = softened(torch.tensor([[[[0.0, 0, 1, 1, 1]] * 3]]))
    assert soft[0, 0].tolist() == [[0, 0.25, 0.75, 1, 1]] * 3


# -- what is seen and said ---------------------------------------------------------------


def test_pasted_boxes_have_a_style_of_their_own(file: Path) -> None:
    data = stream(file)
    batch = collate([data[SampleKey(position, position % 2)] for position in range(4)])
    assert sum(batch.pasted) > 4
    own, pasted = batch.own_and_pasted()
    assert own.counts == [1, 3, 1, 3]
    assert pasted.counts == batch.pasted
    assert "pasted" in [style.name for style in _styles(batch)]
    parts = [own, pasted, batch.erased, batch.knowledge.ignored, batch.pseudo_labels]
    layers = _layers(_styles(batch)[-1], *(part.of_image(0) for part in parts))
    assert [(layer.style.name, len(layer.boxes)) for layer in layers][:2] == [
        ("annotated", 1), ("pasted", batch.pasted[0]),
    ]  # fmt: skip
    plain = stream(file, paste=0)
    without = collate([plain[SampleKey(0, 0)]])
    assert "pasted" not in [style.name for style in _styles(without)]
    for one in (without, Batch(**{**vars(without), "pasted": []})):
        assert [len(part) for part in one.own_and_pasted()] == [1, 0]


def test_a_class_that_cannot_be_pasted_is_said(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path, SOURCES, [(0, 0, 94, 62, 2)], SOURCES[:1] + SOURCES[2:], split=split)
    edit_json(tmp_path / "train.json", lambda content: content["annotations"].pop(1))
    data = coco_data(tmp_path, paste=2, batch_size=2)
    data.setup("fit")
    (line,) = pointless(data, detector("retinanet", 3))
    assert line.startswith(f"{tmp_path}/train.json: data.paste=2 pastes nothing of the classes ")
    assert "'class 2'" in line
    off = coco_data(tmp_path, batch_size=2)
    off.setup("fit")
    assert list(pointless(off, detector("retinanet", 3))) == []


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_grey_and_transparent_pictures(tmp_path: Path, mode: str) -> None:
    file = write(tmp_path, [(0, 0, 8, 8, 3)], SOURCES)
    for number in (1, 2):
        picture = tmp_path / "train" / f"{number}.png"
        Image.open(picture).convert(mode).save(picture)
    for sample in samples(stream(file), 5):
        assert sample.image.shape == (3, HEIGHT, WIDTH)
        assert sample.pasted
        for box in pasted_boxes(sample).boxes.tolist():
            x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
            assert sample.image[:, y, x].tolist() != [GROUND] * 3


@pytest.mark.parametrize("name", ["yolo", "voc", "labelme", "cvat", "coco_folder"])
def test_every_format_is_pasted_from(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    cfg = composed(f"data={name}", "sparsity=full", "data.paste=3", "data.min_size=48")
    cfg.data.root = str(tmp_path)
    data = instantiate(cfg.data, "data", sparsity=instantiate(cfg.sparsity, "sparsity"), seed=0)
    data.setup("fit")
    assert data.train_set is not None
    assert sum(sample.pasted for sample in samples(data.train_set, 10)) > 5


def test_the_outlines_of_real_images_are_pasted() -> None:
    folder = real_data("coco128")
    file = next((folder / "annotations").glob("*.json"))
    annotations: AnnotationSet = read_coco(file, "drop", outlines=True)
    assert annotations.outlines is not None
    objects = np.flatnonzero(~annotations.crowd)
    with_outline = np.mean([annotations.outlines.has(row) for row in objects])
    assert with_outline > 0.99
    assert annotations.outlines.numbers.nbytes < 1000 * len(objects)


def test_the_commands_of_the_page_compose() -> None:
    """Each asks for pasting."""
    page = (CONFIG_FOLDER.parent / "docs" / "pasting.md").read_text()
    commands = re.findall(r"^python train\.py (.*data\.paste=\d.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        cfg = composed(*shlex.split(command))
        assert cfg.data.paste >= 2
        instantiate(cfg.data, "data", sparsity=instantiate(cfg.sparsity, "sparsity"), seed=0)
    cfg = composed("data.paste=-1")
    with pytest.raises(ConfigError, match=r"data\.paste"):
        instantiate(cfg.data, "data", sparsity=instantiate(cfg.sparsity, "sparsity"), seed=0)


# -- whole runs --------------------------------------------------------------------------

# Without mining, in which a rounded score decides about a whole box.
OPTIONS = ("data.paste=3", "sparsity=extreme", "method=original")


@pytest.mark.slow
def test_two_processes_and_a_run_that_goes_on_are_those_of_one(tmp_path: Path) -> None:
    done = train(tmp_path, "hydra.run.dir=one", "checkpoint.every_n_steps=3", *OPTIONS)
    assert done.returncode == 0, done.stderr
    done = train(tmp_path, "hydra.run.dir=two", *OPTIONS, *TWO)
    assert done.returncode == 0, done.stderr
    tables = [
        list(csv.DictReader((tmp_path / run / "metrics.csv").open())) for run in ("one", "two")
    ]
    losses = [[float(row["train/loss"]) for row in rows if row["train/loss"]] for rows in tables]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # sums in another order
    checkpoint = tmp_path / "one" / "checkpoints" / "step_000003.ckpt"
    # And with processes that decode.
    done = train(tmp_path, "hydra.run.dir=on", f"ckpt={checkpoint}", "data.num_workers=2", *OPTIONS)
    assert done.returncode == 0, done.stderr
    states = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("one", "on")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 6
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(states[1]["state_dict"][name], value), name
