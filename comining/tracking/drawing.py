"""Pictures of boxes, in layers that differ in colour and line style.

The colours are those of Okabe and Ito (2008), which colour-blind people can distinguish; every line
has a dark rim, so that it is visible on any background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RIM = (0, 0, 0)
PAPER = (255, 255, 255)
# Minimum width for captions, px: enough for any class of COCO, its score, the view and the image.
CAPTION = 240


@dataclass(frozen=True)
class Style:
    """The drawing style of a layer of boxes."""

    name: str  # in the legend
    colour: tuple[int, int, int]
    dash: tuple[int, int] | None  # lengths of stroke and gap, px; None for a solid line
    hatch: int | None = None  # px between diagonals across the box; None for none


ANNOTATED = Style("annotated", (86, 180, 233), None)
PASTED = Style("pasted", (0, 158, 115), (12, 4))
ERASED = Style("erased", (230, 159, 0), (9, 6))
MINED = Style("mined", (255, 255, 255), (3, 4))
MINED_BY = {
    "original": Style("mined by original", (255, 255, 255), (3, 4)),
    "augmented": Style("mined by augmented", (240, 228, 66), (14, 3)),
    "strong": Style("mined by strong", (213, 94, 0), (2, 3)),
}
# Hatched, because it is a region, not an object.
IGNORED = Style("ignored", (204, 121, 167), None, hatch=12)
DETECTED = Style("detected", (240, 228, 66), (7, 3))


@dataclass
class Layer:
    """Boxes to draw in one style."""

    style: Style
    boxes: Tensor  # [N, 4] xyxy px of the image
    captions: Sequence[str] = ()  # N words, or none


def panel(image: Tensor, layers: Sequence[Layer], scale: float = 1.0) -> Image.Image:
    """An image with its boxes.

    Args:
        image: [3, H, W] uint8.
        layers: drawn in this order; each layer lies 2 px outside of the one before, so that boxes
            in the same place all stay visible.
        scale: enlargement.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else None)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    taken: list[tuple[int, int, int]] = []  # left, right, top of the captions so far
    for depth, layer in enumerate(layers):
        for number, box in enumerate((layer.boxes.cpu() * scale).tolist()):
            left, top = (max(1, round(side) - 2 * depth) for side in box[:2])
            right = min(size[0] - 2, round(box[2]) + 2 * depth)
            bottom = min(size[1] - 2, round(box[3]) + 2 * depth)
            _rectangle(pen, left, top, max(left, right), max(top, bottom), layer.style)
            if layer.captions:
                words = layer.captions[number]
                x = min(left, size[0] - int(pen.textlength(words, font=font)) - 2)
                end = x + int(pen.textlength(words, font=font))
                y = top - 15 if top >= 15 else min(bottom + 1, size[1] - 15)
                # Captions of boxes in the same place stand below each other.
                while any(x < r and end > left_ and abs(y - t) < 13 for left_, r, t in taken):
                    y += 13
                if y > size[1] - 13:
                    continue
                taken.append((x, end, y))
                pen.text((x, y), words, layer.style.colour, font, stroke_width=2, stroke_fill=RIM)
    return picture


def crop(
    image: Tensor, box: Tensor, layers: Sequence[Layer], margin: float = 0.6
) -> tuple[Tensor, list[Layer]]:
    """The square around a box, with its layers shifted accordingly.

    Args:
        image: [3, H, W] uint8.
        box: [4] xyxy px.
        margin: added on each side, as a share of the box's longer side.
    """
    height, width = image.shape[-2:]
    left, top, right, bottom = box.tolist()
    half = max(right - left, bottom - top, 8.0) * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    first_x, first_y = max(0, int(x - half)), max(0, int(y - half))
    last_x, last_y = min(width, int(x + half) + 1), min(height, int(y + half) + 1)
    first_x, first_y = min(first_x, width - 1), min(first_y, height - 1)
    part = image[:, first_y : max(last_y, first_y + 1), first_x : max(last_x, first_x + 1)]
    shift = torch.tensor([first_x, first_y, first_x, first_y], dtype=torch.float32)
    limits = torch.tensor([part.shape[2], part.shape[1]] * 2, dtype=torch.float32)
    moved = []
    for layer in layers:
        boxes = layer.boxes.cpu() - shift
        inside = (boxes[:, :2] < limits[:2]).all(dim=1) & (boxes[:, 2:] > 0).all(dim=1)
        captions = [words for words, shown in zip(layer.captions, inside.tolist()) if shown]
        moved.append(Layer(layer.style, boxes[inside], captions))
    return part, moved


def captioned(picture: Image.Image, caption: str, lines: Sequence[str] = ()) -> Image.Image:
    """A picture under its caption, of one line or more; ``lines`` are written into the picture.

    A picture narrower than its caption is padded with white, up to :data:`CAPTION` px; longer
    captions are cut and end in an ellipsis.
    """
    font = ImageFont.load_default(12)
    rows = [_shortened(row, font, max(picture.width, CAPTION)) for row in caption.split("\n")]
    band = 3 + 15 * len(rows)
    width = max([picture.width, *(math.ceil(font.getlength(row)) for row in rows)])
    page = Image.new("RGB", (width, picture.height + band), PAPER)
    page.paste(picture, (0, band))
    pen = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        pen.text((0, 2 + 15 * number), row, RIM, font)
    large = ImageFont.load_default(16)
    for number, words in enumerate(lines):
        pen.text((10, band + 12 + 24 * number), words, RIM, large)
    return page


def _shortened(words: str, font: Any, width: int) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1].rstrip()
    return words + "…"


def sheet(
    panels: Sequence[Image.Image], columns: int, styles: Sequence[Style], title: str
) -> Image.Image:
    """Panels in rows under a title, with a legend of the styles below."""
    gap, band = 8, 30
    width = max(picture.width for picture in panels)
    height = max(picture.height for picture in panels)
    rows = -(-len(panels) // columns)
    font = ImageFont.load_default(16)
    words = [title, "".join(style.name for style in styles)]
    longest = max(int(font.getlength(text)) for text in words) + len(styles) * 80 + 2 * gap
    page = (max(columns * (width + gap) + gap, longest), rows * (height + gap) + gap + 2 * band)
    picture = Image.new("RGB", page, PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((gap, 6), title, RIM, font)
    for number, one in enumerate(panels):
        row, column = divmod(number, columns)
        picture.paste(one, (gap + column * (width + gap), band + gap + row * (height + gap)))
    x, y = gap, page[1] - band + 4
    for style in styles:
        pen.rectangle((x, y, x + 44, y + 20), fill=(110, 110, 110))
        _rectangle(pen, x + 5, y + 4, x + 39, y + 16, style)
        pen.text((x + 52, y), style.name, RIM, font)
        x += 52 + int(pen.textlength(style.name, font=font)) + 28
    return picture


def _rectangle(
    pen: ImageDraw.ImageDraw, left: int, top: int, right: int, bottom: int, style: Style
) -> None:
    if style.hatch is not None:
        _diagonals(pen, left, top, right, bottom, style.colour, style.hatch)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    # The rim has no gaps: without it, white dots on a white background would be invisible.
    for width, colour, dash in ((4, RIM, None), (2, style.colour, style.dash)):
        for (x0, y0), (x1, y1) in pairwise(corners):
            length = abs(x1 - x0) + abs(y1 - y0)
            stroke, gap = dash or (length, 1)
            for start in range(0, max(1, length), stroke + gap):
                end = min(start + stroke, length)
                at = [start / max(1, length), end / max(1, length)]
                points = [(round(x0 + (x1 - x0) * t), round(y0 + (y1 - y0) * t)) for t in at]
                pen.line(points, fill=colour, width=width)


def _diagonals(
    pen: ImageDraw.ImageDraw,
    left: int,
    top: int,
    right: int,
    bottom: int,
    colour: tuple[int, int, int],
    distance: int,
) -> None:
    """Thin lines from the lower left to the upper right, cut at the box."""
    width, height = right - left, bottom - top
    for along in range(distance, width + height, distance):  # x + y of a line, in the box
        start, end = max(0, along - height), min(along, width)
        x, y = left + start, top + along - start
        for shift, ink in ((1, RIM), (0, colour)):  # dark below, as with all lines
            pen.line((x, y + shift, left + end, top + along - end + shift), fill=ink)
