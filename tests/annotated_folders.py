"""Small data sets in every format, written by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comining.data.annotations import AnnotationSet

SIZE = (64, 48)  # width, height
Box = tuple[float, float, float, float, str]  # xywh, class
# For every picture its boxes; decimals that floating point does not hold exactly.
RECORDS: dict[str, list[Box]] = {
    "a.png": [(1.25, 2.5, 10.13, 12.07, "dog"), (20.01, 20.02, 30.03, 20.04, "cat")],
    "b.png": [(5.0, 5.0, 8.0, 8.0, "cat")],
    "c.png": [],
}
NAMES = ["cat", "dog"]


def picture(file: Path, size: tuple[int, int] = SIZE) -> Path:
    """Noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    return file


def text(file: Path, content: str) -> Path:
    """A text file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def coco_content(records: dict[str, list[Box]], names: list[str] = NAMES) -> dict[str, Any]:
    """A COCO file, numbered by the rule of the other formats."""
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for i, name in enumerate(sorted(records), start=1)
        ],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }
    for image, name in enumerate(sorted(records), start=1):
        for x, y, w, h, label in records[name]:
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": image, "category_id": names.index(label) + 1}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )
    return content


def coco(root: Path, folder: str = "images", file: str = "annotations/train.json") -> Path:
    """COCO files."""
    for name in RECORDS:
        picture(root / folder / name)
    text(root / file, json.dumps(coco_content(RECORDS)))
    return root


def yolo_row(box: Box, size: tuple[int, int] = SIZE, names: list[str] = NAMES) -> str:
    """A row with six decimals, as most tools write it."""
    x, y, w, h, label = box
    shares = ((x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1])
    return f"{names.index(label)} " + " ".join(f"{share:.6f}" for share in shares)


def yolo(root: Path, images: str = "images/train", labels: str = "labels/train") -> Path:
    """YOLO with data.yaml."""
    text(root / "data.yaml", f"train: {images}\nnames: {json.dumps(NAMES)}\nnc: 2\n")
    for name, boxes in RECORDS.items():
        picture(root / images / name)
        rows = "".join(yolo_row(box) + "\n" for box in boxes)
        text(root / labels / f"{Path(name).stem}.txt", rows)
    return root


def voc_text(name: str, boxes: list[Box], size: tuple[int, int] = SIZE, more: str = "") -> str:
    """An XML file of VOC."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>"
        f"<ymin>{y}</ymin><xmax>{round(x + w, 6)}</xmax><ymax>{round(y + h, 6)}</ymax></bndbox>"
        f"{more}</object>\n"
        for x, y, w, h, label in boxes
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )


def voc(root: Path, split: str | None = "train") -> Path:
    """VOC in the devkit's layout."""
    for name, boxes in RECORDS.items():
        picture(root / "JPEGImages" / name)
        text(root / "Annotations" / f"{Path(name).stem}.xml", voc_text(name, boxes))
    if split is not None:
        text(root / "ImageSets" / "Main" / f"{split}.txt", "c\na\nb\n")
    return root


def cvat(root: Path) -> Path:
    """CVAT for images 1.1, one task."""
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    images = ""
    for number, (name, boxes) in enumerate(RECORDS.items()):
        picture(root / "images" / name)
        shapes = "".join(
            f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{round(x + w, 6)}" '
            f'ybr="{round(y + h, 6)}" occluded="0" z_order="0"></box>\n'
            for x, y, w, h, label in boxes
        )
        images += f'<image id="{number}" name="{name}" width="64" height="48">\n{shapes}</image>\n'
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}\n{images}</annotations>"
    text(root / "annotations.xml", content)
    return root


def labelme_shape(box: Box) -> dict[str, Any]:
    """A rectangle of LabelMe."""
    x, y, w, h, label = box
    corners = [[x, y], [round(x + w, 6), round(y + h, 6)]]
    return {"label": label, "points": corners, "shape_type": "rectangle", "flags": {}}


def labelme(root: Path) -> Path:
    """LabelMe: JSON files beside pictures."""
    for name, boxes in RECORDS.items():
        picture(root / name)
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [labelme_shape(box) for box in boxes],
            "imagePath": name,
            "imageData": "AAAA",
            "imageHeight": SIZE[1],
            "imageWidth": SIZE[0],
        }
        text(root / f"{Path(name).stem}.json", json.dumps(content))
    return root


WRITERS = {"yolo": yolo, "voc": voc, "cvat": cvat, "labelme": labelme, "coco_folder": coco}


def boxes_by_name(found: AnnotationSet) -> dict[str, list[tuple[float, ...]]]:
    """For every file name its (x, y, w, h, label) in order, to 1e-6 px."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in found.file_names}
    for image, bbox, label in zip(found.image, found.bboxes.tolist(), found.labels.tolist()):
        rows[found.file_names[image]].append((*(round(side, 6) for side in bbox), label))
    return {name: sorted(boxes) for name, boxes in rows.items()}
