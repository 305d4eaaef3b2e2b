"""Boxes in pictures: where they are, and that layers can be told apart."""

import numpy as np
import pytest
import torch

from comining.tracking.drawing import (
    ANNOTATED,
    DETECTED,
    ERASED,
    IGNORED,
    MINED,
    MINED_BY,
    Layer,
    captioned,
    panel,
    sheet,
)

GREY = torch.full((3, 60, 80), 128, dtype=torch.uint8)
BOX = torch.tensor([[10.0, 10.0, 60.0, 50.0]])


def pixels(layers: list[Layer], scale: float = 1.0) -> np.ndarray:
    return np.asarray(panel(GREY, layers, scale))


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    found: np.ndarray = (picture == np.array(colour)).all(axis=-1)
    return found


def test_a_solid_box_is_drawn_on_its_border_and_nowhere_else() -> None:
    drawn = has(pixels([Layer(ANNOTATED, BOX)]), ANNOTATED.colour)
    rows, columns = np.nonzero(drawn)
    assert abs(rows.min() - 10) <= 1
    assert abs(rows.max() - 50) <= 1
    assert abs(columns.min() - 10) <= 1
    assert abs(columns.max() - 60) <= 1
    assert drawn[10, 12:58].all()
    assert not drawn[14:46, 14:56].any()


def test_layers_differ_in_colour_and_in_line_style() -> None:
    shares = []
    for style in (ANNOTATED, ERASED, MINED):
        drawn = has(pixels([Layer(style, BOX)]), style.colour)
        shares.append(drawn[9:12, 12:58].any(axis=0).mean())
    assert shares[0] == 1  # solid
    assert 0.4 < shares[1] < 0.9  # dashed
    assert 0.2 < shares[2] < 1  # dotted
    assert len({ANNOTATED.colour, ERASED.colour, MINED.colour}) == 3
    assert len({ANNOTATED.dash, ERASED.dash, MINED.dash}) == 3


def test_a_region_to_ignore_is_hatched_and_no_box_is() -> None:
    """In a colour of its own, far from that of all boxes."""
    inside = (slice(15, 45), slice(15, 55))
    drawn = has(pixels([Layer(IGNORED, BOX)]), IGNORED.colour)
    assert drawn[9:12, 12:58].any(axis=0).all()  # its border is solid
    assert 0.03 < drawn[inside].mean() < 0.15  # thin lines
    rows, columns = np.nonzero(drawn[inside])
    assert len(set((rows + columns).tolist())) <= 6  # which are diagonals
    for style in (ANNOTATED, ERASED, MINED, *MINED_BY.values(), DETECTED):
        assert not has(pixels([Layer(style, BOX)]), style.colour)[inside].any()
        distance = np.abs(np.subtract(style.colour, IGNORED.colour)).max()
        assert distance > 80, style.name


@pytest.mark.parametrize(
    "box", [[0.0, 0.0, 80.0, 60.0], [-30.0, -9.0, 300.0, 99.0], [5, 5, 5, 5], [5, 5, 8, 50]]
)
def test_diagonals_stay_inside_their_region(box: list[float]) -> None:
    drawn = has(pixels([Layer(IGNORED, torch.tensor([box], dtype=torch.float32))]), IGNORED.colour)
    rows, columns = np.nonzero(drawn)
    assert box[0] - 1 <= columns.min() <= columns.max() <= box[2] + 1
    assert box[1] - 1 <= rows.min() <= rows.max() <= box[3] + 1


def test_boxes_in_the_same_place_all_stay_visible() -> None:
    layers = [Layer(style, BOX) for style in (ANNOTATED, ERASED, MINED)]
    picture = pixels(layers, scale=2.0)
    assert picture.shape == (120, 160, 3)
    for style in (ANNOTATED, ERASED, MINED):
        assert has(picture, style.colour).sum() > 30


@pytest.mark.parametrize(
    "box", [[0.0, 0.0, 80.0, 60.0], [-30.0, -9.0, 300.0, 99.0], [5.0, 5.0, 5.0, 5.0]]
)
def test_boxes_at_and_beyond_the_border_are_drawn_inside(box: list[float]) -> None:
    picture = pixels([Layer(ANNOTATED, torch.tensor([box]), ["a long caption 0.99"])])
    assert picture.shape == (60, 80, 3)
    assert has(picture, ANNOTATED.colour).any()


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_a_box_of_any_style_shows_on_any_ground(ground: int) -> None:
    image = torch.full((3, 60, 80), ground, dtype=torch.uint8)
    for style in (ANNOTATED, ERASED, MINED, IGNORED):
        drawn = np.asarray(panel(image, [Layer(style, BOX)])).astype(int)
        border = np.abs(drawn[9:12, 12:58] - ground).max(axis=(0, 2))
        # Dots on black leave short gaps in black on a black ground, and none on any other.
        assert (border > 80).mean() > (0.4 if ground == 0 else 0.99)


def test_no_caption_is_cut() -> None:
    picture = panel(GREY, [])
    words = "Platelets 0.69\naugmented, image 123456789"
    page = np.asarray(captioned(picture, words))
    wide = np.asarray(captioned(panel(GREY, [], scale=4.0), words))
    assert (page[33:, :80] == 128).all()
    assert page.shape[1] > 80
    ink = [(one[:33] < 128).any(axis=-1) for one in (page, wide)]
    assert ink[0].sum() == ink[1].sum() > 100


def test_without_boxes_the_picture_is_the_image() -> None:
    assert (pixels([Layer(MINED, torch.zeros(0, 4))]) == 128).all()


def test_a_sheet_holds_all_panels_and_a_legend() -> None:
    panels = [panel(GREY, []) for _ in range(5)]
    page = sheet(panels, columns=2, styles=[ANNOTATED, ERASED, MINED], title="Five")
    assert page.width >= 2 * 80
    assert page.height >= 3 * 60
    picture = np.asarray(page)
    assert has(picture, (128, 128, 128)).sum() >= 5 * 60 * 80
    for style in (ANNOTATED, ERASED, MINED):
        assert has(picture[-30:], style.colour).any()
