"""``review.html``: the page on which a person decides on proposals.

It opens from the disk, without a server or network: ``review_data.js`` and ``thumbnails/`` are next
to it. The source of the page is in ``page/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from comining.completion.proposal_folder import ProposalFolder, by_image
from comining.completion.proposals import Proposal, digest
from comining.data.annotations import AnnotationSet
from comining.data.image_files import check_images
from comining.data.images import check_size, load_image, open_image, orientation
from comining.data.knowledge import COMPLETE
from comining.runs.files import replace_file

PAGE_FILE = "review.html"
DATA_FILE = "review_data.js"
THUMBNAILS = "thumbnails"
# px of the longer side: enough to judge most objects by, and small enough for thousands.
THUMBNAIL = 640
# px, if a browser cannot show the picture itself in the orientation of its boxes.
LARGE_THUMBNAIL = 1600
QUALITY = 82  # of JPEG
SHOWN_BY_BROWSERS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP")


@dataclass(frozen=True)
class PagePicture:
    """A picture of the page.

    Args:
        thumbnail: address of a small copy, relative to the page.
        full: address of the picture itself; None if a browser would not show it as it is read here.
    """

    thumbnail: str
    full: str | None


def write_review_page(folder: ProposalFolder, *, progress: bool = True) -> Path:
    """Write the page into a folder of proposals, with its data and thumbnails.

    It shows the images that have a proposal, in the order of the proposals.

    Args:
        progress: show a bar, on a terminal.

    Returns:
        the page.

    Raises:
        DataError: a picture is missing, cannot be read, or has another size than the annotation
            file says.
    """
    proposed = by_image(folder.proposals)
    chosen = np.isin(folder.annotations.image_ids, list(proposed))
    annotations, _ = check_images(folder.annotations.of_images(chosen), folder.images, sizes=False)
    (folder.path / THUMBNAILS).mkdir(exist_ok=True)
    position = {image: row for row, image in enumerate(annotations.image_ids.tolist())}
    rows = [position[image] for image in proposed]
    pictures = [
        _write_thumbnail(folder, annotations, row)
        for row in tqdm(rows, unit="picture", disable=None if progress else True, desc="thumbnails")
    ]
    _write_text(folder.path / DATA_FILE, _script(page_data(folder, annotations, rows, pictures)))
    _write_text(folder.path / PAGE_FILE, page_text())
    return folder.path / PAGE_FILE


def page_text() -> str:
    """The page in one file, with its style and its script."""
    parts = files("comining.completion") / "page"
    page = (parts / "review.html").read_text(encoding="utf-8")
    for mark, name in (("/* style */", "review.css"), ("/* script */", "review.js")):
        page = page.replace(mark, "\n" + (parts / name).read_text(encoding="utf-8"))
    return page


def page_data(
    folder: ProposalFolder,
    annotations: AnnotationSet,
    rows: Sequence[int],
    pictures: Sequence[PagePicture],
) -> dict[str, Any]:
    """The data of the page; numbers for images and classes are positions in their lists.

    Args:
        annotations: of the images of the page.
        rows: positions in ``annotations``, in the order of the page.
        pictures: of these rows.
    """
    categories = annotations.categories
    place = {row: number for number, row in enumerate(rows)}
    image_at = {int(annotations.image_ids[row]): number for row, number in place.items()}
    label = {category: number for number, category in enumerate(categories.ids)}
    status = annotations.status

    def rate(name: str) -> list[float] | None:
        estimate = folder.source.rates.get(name)
        return None if estimate is None else [estimate.rate, *estimate.interval]

    def proposal_row(one: Proposal) -> list[float]:
        box = [_short(side) for side in one.bbox]
        numbers = [round(one.score, 4), round(one.probability, 4)]
        return [one.id, image_at[one.image_id], label[one.category_id], *box, *numbers]

    columns = zip(annotations.image.tolist(), annotations.labels.tolist(),
                  annotations.bboxes.tolist(), annotations.crowd.tolist())  # fmt: skip
    return {
        "version": 1,
        "hash": digest(folder.proposals),
        "title": annotations.path.name,
        "classes": [
            [category, name, rate(name)]
            for category, name in zip(categories.ids, categories.names, strict=True)
        ],
        "images": [
            [
                int(annotations.image_ids[row]),
                annotations.file(row).replace("\\", "/"),
                *annotations.sizes[row].tolist()[::-1],
                picture.thumbnail,
                picture.full,
            ]
            for row, picture in zip(rows, pictures, strict=True)
        ],
        "annotations": [
            [place[image], number, *(_short(side) for side in bbox), int(ignored)]
            for image, number, bbox, ignored in columns
        ],
        "complete": [
            [place[row], number] for row, number in np.argwhere(status == COMPLETE).tolist()
        ],
        "proposals": [proposal_row(one) for one in folder.proposals],
    }


def _short(side: float) -> float:
    """Pixels, rounded to visible decimals."""
    return round(side, 2)


def _script(data: dict[str, Any]) -> str:
    # ASCII only, so that neither the encoding nor Unicode line separators matter, and no name can
    # close the script element.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"window.REVIEW_DATA = {text};\n"


def _write_text(file: Path, text: str) -> None:
    replace_file(file, lambda opened: opened.write(text.encode()))


def _write_thumbnail(folder: ProposalFolder, annotations: AnnotationSet, row: int) -> PagePicture:
    """Write a small copy of a picture, as it is read for training."""
    file = folder.images / annotations.file(row)
    height, width = annotations.sizes[row].tolist()
    exif = folder.source.exif
    where = f"{annotations.path}: image {annotations.image_ids[row]}: {file}"
    with open_image(file, where) as image:
        check_size(image, (height, width), where, exif)
        # Browsers turn pictures as their EXIF orientation says.
        as_read = orientation(image) == 1 or exif == "apply"
        shown = as_read and image.format in SHOWN_BY_BROWSERS
    pixels = load_image(file, exif=exif, bit_depth=folder.source.bit_depth)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    side = THUMBNAIL if shown else LARGE_THUMBNAIL
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    name = f"{THUMBNAILS}/{annotations.image_ids[row]}.jpg"
    picture.save(folder.path / name, "JPEG", quality=QUALITY)
    return PagePicture(name, _address(file, folder.path) if shown else None)


def _address(file: Path, folder: Path) -> str | None:
    """The address of a file relative to the page; None if there is none (another drive)."""
    try:
        relative = os.path.relpath(file, folder)
    except ValueError:
        return None
    return quote(os.fsencode(Path(relative).as_posix()))
