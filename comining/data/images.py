"""Opening image files that somebody else wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from comining.errors import DataError

# 268 MB as RGB; from here on Pillow, too, warns of files that decode to gigabytes.
MAX_PIXELS = 89_478_485
# What image sets come in. Pillow knows 40 more, among them ones that run Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Formats whose 16 bits may come as the mode "I", which is one of 32 bits elsewhere.
WIDENED = ("PNG", "PPM")
EXIF_ORIENTATION, TILE_WIDTH, TILE_LENGTH = 0x0112, 0x0142, 0x0143
# px: smaller tiles may exceed a small image, as the last ones of every image do.
LARGEST_TILE = 2**20


def load_image(
    file: Path,
    size: tuple[int, int] | None = None,
    *,
    exif: Literal["ignore", "apply"] = "ignore",
) -> Tensor:
    """Decode an image file to RGB [3, H, W] uint8.

    Grey, palette and CMYK images are converted, alpha is left out, of 16 bits the upper 8 are
    kept.

    Args:
        size: (height, width) that the image must have; compared before anything is decoded.
        exif: "apply" turns the pixels as the EXIF orientation says, and as a viewer shows them.
            COCO's boxes usually refer to the pixels as they are stored.

    Raises:
        DataError: naming the file.
    """
    with open_image(file, str(file)) as image:
        if size is not None:
            check_size(image, size, str(file))
        if exif == "apply":
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut at 255: a white image
            grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            array = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


@contextmanager
def open_image(file: Path, where: str) -> Iterator[Image.Image]:
    """Open an image file without decoding it; whatever fails inside names the file.

    Args:
        where: the words that name the file in an error.

    Raises:
        DataError: the file is no image of a common format, damaged, or too large to decode.
    """
    try:
        with warnings.catch_warnings():
            # Refused below, and with an exact limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # A palette with several transparent colours; transparency is left out.
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"its {image.width}x{image.height} px exceed the limit of {MAX_PIXELS:,}"
                    )
                tile = _tile_pixels(image)
                if tile > max(image.width * image.height, LARGEST_TILE):
                    raise ValueError(f"its tiles of {tile:,} px are larger than the image")
                if image.mode == "F" or (image.mode == "I" and image.format not in WIDENED):
                    raise ValueError("pixels of 32 bits have no known range; store 8 or 16")
                yield image
    except DataError:
        raise
    except Exception as error:  # whatever the bytes lead the decoder to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason})") from error


def _tile_pixels(image: Image.Image) -> int:
    """Of a TIFF file, which is decoded tile by tile, whatever the size of the image; else 0."""
    if not isinstance(image, TiffImageFile):
        return 0
    return int(image.tag_v2.get(TILE_WIDTH, 0)) * int(image.tag_v2.get(TILE_LENGTH, 0))


def check_size(image: Image.Image, size: tuple[int, int], where: str) -> None:
    """Compare an image that is not yet decoded with its (height, width) in the annotation file.

    Raises:
        DataError: they differ.
    """
    if image.size == (size[1], size[0]):
        return
    turned = ""
    if image.size == size and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
        turned = ": its EXIF orientation is not applied, boxes refer to the pixels as stored"
    raise DataError(
        f"{where}: is {image.width}x{image.height} px, the annotation file says "
        f"{size[1]}x{size[0]}{turned}"
    )
