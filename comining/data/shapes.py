"""The embedded data set: drawn shapes, written as a COCO annotation file and JPEG images.

It only writes files, once; everything else reads them like COCO. The number of objects per image is
long-tailed, as in COCO: from many images with one or two objects a detector learns scores that can
be thresholded although annotations are missing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from comining.data.set_writer import SetWriter
from comining.errors import DataError
from comining.option_types import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
OVERSAMPLING = 2  # drawn larger and reduced, so that edges are smooth

Points = list[tuple[float, float]]


class DrawShapes(SetWriter):
    """Draws the set once; an existing set with the same recipe is kept.

    Args:
        train_images, val_images, test_images: how many to draw; the same seed draws the same.
        image_size: side of the square pictures, px.
        object_size: smallest and largest diameter of a shape, px.
        objects: smallest and largest number of shapes per image; small numbers are more frequent.
        seed: of the drawing; independent of the seed of training.
    """

    def __init__(
        self,
        *,
        train_images: PositiveInt,
        val_images: PositiveInt,
        test_images: PositiveInt,
        image_size: PositiveInt,
        object_size: tuple[PositiveInt, PositiveInt],
        objects: tuple[PositiveInt, PositiveInt],
        seed: NonNegativeInt,
    ):
        self.counts = {"train": train_images, "val": val_images, "test": test_images}
        self.image_size = image_size
        self.object_size = tuple(object_size)
        self.objects = tuple(objects)
        self.seed = seed
        for name, (low, high) in {"object_size": self.object_size, "objects": self.objects}.items():
            if low > high:
                raise ValueError(
                    f"data.prepare.{name} must be [smallest, largest], got {[low, high]}"
                )
        if self.object_size[1] > image_size:
            raise ValueError("data.prepare.object_size is larger than data.prepare.image_size")

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that the files depend on."""
        return {
            "version": 2,
            "counts": self.counts,
            "image_size": self.image_size,
            "object_size": list(self.object_size),
            "objects": list(self.objects),
            "seed": self.seed,
        }

    def __call__(self, root: str) -> None:
        """Write ``root/annotations/{train,val,test}.json`` and ``root/{train,val,test}/*.jpg``.

        The set is drawn next to ``root`` and then renamed, so that a killed run or simultaneous
        runs leave no half-drawn set.

        Raises:
            DataError: ``root`` holds something else, or a set drawn by another recipe.
        """
        folder = Path(root)
        marker = folder / "shapes.json"
        if marker.exists():
            if json.loads(marker.read_text()) != self.recipe:
                raise DataError(
                    f"{folder} holds shapes drawn by another recipe than data.prepare now says; "
                    "delete that folder or choose another data.root"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f"{folder} is not empty and holds no shapes; choose another data.root; for your "
                "own data add data=auto sparsity=full, or take experiment=own"
            )
        log.info("drawing %d shape images into %s", sum(self.counts.values()), folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for number, split in enumerate(self.counts):
                self._write_split(draft, split, number)
            (draft / marker.name).write_text(json.dumps(self.recipe, indent=2))
            draft.chmod(0o755)
            try:
                os.replace(draft, folder)
            except OSError:
                if not marker.exists():  # otherwise another run has drawn the same set meanwhile
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _write_split(self, draft: Path, split: str, number: int) -> None:
        (draft / "annotations").mkdir(exist_ok=True)
        (draft / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(self.counts[split]):
            rng = np.random.default_rng([self.seed, number, index])
            picture, boxes, labels = self.draw(rng)
            name = f"{index:06d}.jpg"
            picture.save(draft / split / name, quality=90)
            image_id = index + 1
            images.append(
                {
                    "id": image_id,
                    "file_name": name,
                    "width": self.image_size,
                    "height": self.image_size,
                }
            )
            for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
                width, height = right - left, bottom - top
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label + 1,
                        "bbox": [round(side, 2) for side in (left, top, width, height)],
                        "area": round(width * height, 2),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (draft / "annotations" / f"{split}.json").write_text(json.dumps(content))

    def draw(
        self, rng: np.random.Generator
    ) -> tuple[Image.Image, list[tuple[float, float, float, float]], list[int]]:
        """One picture, its boxes (xyxy, px) and labels."""
        scale = OVERSAMPLING
        side = self.image_size * scale
        picture = _ground(rng, side)
        pen = ImageDraw.Draw(picture)
        low, high = self.objects
        wanted = min(high, low + int(rng.geometric(0.4)) - 1)
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        for _ in range(20 * wanted):  # crowded pictures may end with fewer
            if len(boxes) == wanted:
                break
            radius = rng.uniform(self.object_size[0], self.object_size[1]) / 2
            x, y = rng.uniform(radius, self.image_size - radius, size=2)
            label = int(rng.integers(len(SHAPES)))
            outlines = _outlines(SHAPES[label], x, y, radius, rng.uniform(0, 2 * math.pi))
            xs, ys = zip(*outlines[0], strict=True)
            box = (min(xs), min(ys), max(xs), max(ys))
            if any(_overlap(box, other) > 0.1 for other in boxes):
                continue
            colour = tuple(int(c) for c in rng.integers(0, 256, size=3))
            under = [picture.getpixel((int(px * scale), int(py * scale))) for px, py in [(x, y)]]
            if max(abs(a - b) for a, b in zip(colour, under[0], strict=True)) < 60:  # type: ignore[arg-type]
                continue  # not visible on its background
            for number, outline in enumerate(outlines):
                points = [(px * scale, py * scale) for px, py in outline]
                pen.polygon(points, fill=colour if number == 0 else under[0])
            boxes.append(box)
            labels.append(label)
        return picture.resize((self.image_size,) * 2, Image.Resampling.BOX), boxes, labels


def _ground(rng: np.random.Generator, side: int) -> Image.Image:
    """A background: blurred coarse noise around a random colour, with fine grain."""
    cells = int(rng.integers(4, 12))
    coarse = rng.normal(rng.uniform(40, 215, size=3), rng.uniform(8, 30), size=(cells, cells, 3))
    picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((side, side))
    picture = picture.filter(ImageFilter.GaussianBlur(2))
    grain = rng.normal(0, 6, size=(side, side, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def _outlines(shape: str, x: float, y: float, radius: float, turn: float) -> list[Points]:
    """Polygons of a shape: its outline, and for a ring the hole in it."""
    if shape in ("circle", "ring"):
        rim = _regular(x, y, [radius] * 40, turn)
        return [rim] if shape == "circle" else [rim, _regular(x, y, [radius * 0.55] * 40, turn)]
    if shape == "square":
        return [_regular(x, y, [radius] * 4, turn)]
    if shape == "triangle":
        return [_regular(x, y, [radius] * 3, turn)]
    if shape == "star":
        return [_regular(x, y, [radius, radius * 0.4] * 5, turn)]
    arm, width = radius * 0.95, radius * 0.3  # a cross, corner by corner
    corners = [(arm, width), (width, width), (width, arm), (-width, arm), (-width, width),
               (-arm, width), (-arm, -width), (-width, -width), (-width, -arm), (width, -arm),
               (width, -width), (arm, -width)]  # fmt: skip
    cos, sin = math.cos(turn), math.sin(turn)
    return [[(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in corners]]


def _regular(x: float, y: float, radii: Sequence[float], turn: float) -> Points:
    angles = [turn + 2 * math.pi * k / len(radii) for k in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection as a share of the smaller box."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return width * height / min(areas)
