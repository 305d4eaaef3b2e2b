"""Strong pictures, and boxes that follow them there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from comining.data.color_operations import OPERATIONS, ColorOperation
from comining.data.geometry import Geometry
from comining.data.strong_view import FILL, StrongView, Warp
from comining.structures import Boxes, Images
from tests.helpers import assert_equal, batch_of, boxes, images

OPTIONS: dict[str, Any] = {
    "translate": 0.1, "shear": 30.0, "squares": (1, 5), "square_side": 0.2,
    "min_visible": 0.3, "min_box_size": 1.0,
}  # fmt: skip
CPU = torch.device("cpu")


def plain(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> StrongView:
    """A strong view that leaves the colours as they are, and erases nothing."""
    view = StrongView(**{**OPTIONS, "squares": (0, 0), **changed})
    monkeypatch.setattr(view.operation, "change", lambda image, generator: image)
    return view


def fixed(*warps: Warp) -> Geometry:
    """The geometry of pictures of 100 x 60 px that are moved or sheared like this."""
    view = StrongView(**OPTIONS)
    view.warp = lambda position, seed: warps[position]  # type: ignore[method-assign]
    return view.geometry([(60, 100)] * len(warps), range(len(warps)), 0, CPU)


# -- the picture -------------------------------------------------------------------------


def test_a_picture_depends_on_seed_and_position_alone() -> None:
    view = StrongView(**OPTIONS)
    same = images(1) * 4
    before = same[0].clone()
    together = view(same, [0, 1, 2, 3], seed=0)
    assert torch.equal(same[0], before)
    assert all(one.shape == before.shape and one.dtype == torch.uint8 for one in together)
    assert len({tuple(one.flatten().tolist()) for one in together}) == 4
    assert torch.equal(view(same[:1], [2], seed=0)[0], together[2])
    assert not torch.equal(view(same[:1], [2], seed=1)[0], together[2])


def test_a_drawn_rectangle_is_found_where_its_box_is_mapped_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the picture itself, at all the shifts and shears that are drawn for 60 positions."""
    view = plain(monkeypatch)
    drawn = torch.zeros(3, 80, 120, dtype=torch.uint8)
    left, top, right, bottom = 50, 28, 74, 44
    drawn[:, top:bottom, left:right] = 255
    box = boxes([(left, top, right, bottom, 2)])
    kinds = set()
    for position in range(60):
        (picture,) = view([drawn], [position], seed=3)
        geometry = view.geometry([(80, 120)], [position], 3, CPU)
        warp = view.warp(position, 3)
        kinds.add((warp.translate != 0, warp.shear[0] != 0, warp.shear[1] != 0))
        rows, columns = (picture[0] > FILL + 60).nonzero(as_tuple=True)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        mapped = geometry.forward(box)
        # The sharp corners of a sheared rectangle fade within a pixel or two.
        torch.testing.assert_close(mapped.boxes[0], found, atol=2.5, rtol=0)
        torch.testing.assert_close(geometry.backward(mapped).boxes, box.boxes, atol=1e-3, rtol=0)
    assert kinds == {(True, False, False), (False, True, False), (False, False, True)}


def test_shifts_and_shears_are_drawn_from_their_whole_range() -> None:
    warps = [StrongView(**OPTIONS).warp(position, 0) for position in range(600)]
    shifts = torch.tensor([warp.translate for warp in warps])
    angles = torch.tensor([warp.shear for warp in warps])
    assert ((shifts != 0) ^ (angles != 0).any(dim=1)).all()  # one of the two, never both
    for values, limit in ((shifts, 0.1), (angles[:, 0], 30.0), (angles[:, 1], 30.0)):
        assert -limit <= values.min() < -0.95 * limit
        assert 0.95 * limit < values.max() <= limit
    assert abs((shifts != 0).float().mean() - 0.5) < 0.07


def test_squares_are_grey_and_of_the_size_that_is_said() -> None:
    view = StrongView(**{**OPTIONS, "squares": (1, 1), "square_side": 0.5})
    white = torch.full((3, 40, 80), 255, dtype=torch.uint8)
    sides = []
    for position in range(200):
        picture = view.erase(white, torch.Generator().manual_seed(position))
        rows, columns = (picture[0] == FILL).nonzero(as_tuple=True)
        if len(rows):
            sides.append(int(rows.max() - rows.min()) + 1)
            assert sides[-1] == int(columns.max() - columns.min()) + 1
            assert len(rows) == sides[-1] ** 2
    assert len(sides) > 180  # the others are under half a pixel
    assert min(sides) <= 2
    assert 18 <= max(sides) <= 20
    assert (white == 255).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_colour_operation_gives_a_picture(name: str, strength: float) -> None:
    image = images(1, 24, 24)[0] // 2 + 20  # 20 ... 147
    before = image.clone()
    changed = OPERATIONS[name](image, strength)
    assert changed.shape == image.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(image, before)
    assert torch.equal(changed, image) == (name in UNCHANGED[strength])


UNCHANGED = {
    0.0: ("identity",),
    0.5: ("identity", "color", "contrast", "brightness", "sharpness"),
    1.0: ("identity", "solarize", "posterize"),
}


def test_each_of_the_nine_is_drawn_equally_often() -> None:
    assert len(OPERATIONS) == 9
    drawn: list[str] = []
    operation = ColorOperation(p=1.0)
    original = dict(OPERATIONS)
    try:
        for name in OPERATIONS:
            OPERATIONS[name] = lambda image, _, name=name: drawn.append(name) or image
        operation(images(1, 2, 2) * 900, range(900), seed=0)
    finally:
        OPERATIONS.update(original)
    assert len(drawn) == 900
    assert all(60 < drawn.count(name) < 145 for name in OPERATIONS)


# -- boxes by hand -----------------------------------------------------------------------

SHIFTED = Warp(0.1, (0.0, 0.0))  # 10 px to the right
SHEARED = Warp(0.0, (-26.565051, 0.0))  # x' = x + 0.5 * (y - 30)


def test_a_shift_and_a_shear_by_hand() -> None:
    mapped = fixed(SHIFTED, SHEARED).forward(
        boxes([(20, 10, 40, 30, 0)], [(20, 10, 40, 30, 1), (20, 30, 40, 50, 2)])
    )
    expected = [[30, 10, 50, 30], [10, 10, 40, 30], [20, 30, 50, 50]]
    torch.testing.assert_close(mapped.boxes, torch.tensor(expected).float(), atol=1e-4, rtol=0)
    assert mapped.labels.tolist() == [0, 1, 2]
    assert mapped.counts == [1, 2]


def test_a_box_that_is_no_hull_has_no_way_back() -> None:
    """At this shear the hull of a box 20 px high is at least 10 px wide."""
    geometry = fixed(SHEARED)
    found = boxes([(20, 10, 29, 30, 0, 0.9), (20, 10, 31, 30, 1, 0.8)])
    back = geometry.backward(found)
    assert back.labels.tolist() == [1]
    assert back.known_scores.tolist() == pytest.approx([0.8])
    expected = torch.tensor([[30.0, 10, 31, 30]])
    torch.testing.assert_close(back.boxes, expected, atol=1e-4, rtol=0)


def test_objects_are_cut_at_the_border_and_dropped_where_too_little_remains() -> None:
    geometry = fixed(SHIFTED)
    rows = [(60, 0, 99, 9, 0), (82, 0, 92, 9, 1), (86, 0, 96, 9, 2), (80, 0, 90, 9, 3)]
    seen = geometry.objects(boxes(rows))
    # 30, 8, 4 and 10 px of 39, 10, 10 and 10 are left; below .3 of a box nothing is.
    assert seen.labels.tolist() == [0, 1, 2, 3]
    assert seen.boxes.tolist() == [
        [70, 0, 100, 9],
        [92, 0, 100, 9],
        [96, 0, 100, 9],
        [90, 0, 100, 9],
    ]
    nearly_gone = boxes([(88, 0, 98, 9, 0), (99, 0, 100, 9, 1)])
    assert len(geometry.objects(nearly_gone)) == 0
    assert replace(geometry, min_visible=0.2).objects(nearly_gone).labels.tolist() == [0]
    thin = boxes([(10, 10, 30, 10.5, 0)])
    assert len(geometry.objects(thin)) == 0


def test_a_batch_in_a_picture_keeps_every_part_of_an_ignored_region() -> None:
    batch = batch_of(boxes([(88, 0, 98, 9, 0), (10, 10, 30, 30, 1)]), boxes([(0, 0, 5, 5, 2)]))
    known = replace(batch.knowledge, ignored=boxes([(88, 0, 98, 9, -1)]))
    batch = replace(batch, knowledge=known, images=Images.of(images(1, 60, 100)))
    seen = fixed(SHIFTED).batch(batch)
    assert seen.annotated.labels.tolist() == [1]
    assert seen.annotated.boxes.tolist() == [[20, 10, 40, 30]]
    assert seen.erased.boxes.tolist() == [[10, 0, 15, 5]]
    assert seen.knowledge.ignored.boxes.tolist() == [[98, 0, 100, 9]]
    assert seen.knowledge.ignored.labels.tolist() == [-1]
    assert seen.images is batch.images
    assert batch.annotated.boxes.tolist()[0] == [88, 0, 98, 9]


def test_no_boxes_stay_no_boxes() -> None:
    geometry = fixed(SHIFTED, SHEARED)
    for nothing in (Boxes.empty(2), Boxes.empty(2, scores=True)):
        for mapped in (geometry.forward, geometry.backward, geometry.objects):
            assert_equal(mapped(nothing), nothing)


def test_unchanged_pictures_leave_boxes_where_they_are() -> None:
    geometry = fixed(Warp(0.0, (0.0, 0.0)))
    there = boxes([(3.25, 4.5, 17.125, 40, 1, 0.5)])
    assert_equal(geometry.objects(there), there)
    assert_equal(geometry.backward(there), there)


def test_large_boxes_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the largest shear in images of COCO's size, to a hundredth of a pixel."""
    view = plain(monkeypatch, shear=30.0)
    sizes, positions = [(800, 1333)] * 50, range(50)
    geometry = view.geometry(sizes, positions, 0, CPU)
    corners = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 700
    rows = torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]),
                      torch.maximum(corners[:, :2], corners[:, 2:]) + 1], dim=1)  # fmt: skip
    there = Boxes.of_images(list(rows.split(1)), [torch.zeros(1, dtype=torch.int64)] * 50)
    back: Tensor = geometry.backward(geometry.forward(there)).boxes
    torch.testing.assert_close(back, rows, atol=0.01, rtol=0)
