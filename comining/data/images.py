"""Opens untrusted image files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import Field
from torch import Tensor
from torchvision.io import decode_png, read_file

from comining.data.record_values import is_lfs_pointer
from comining.errors import DataError

# Whether pictures are turned by their EXIF orientation, or used as stored.
Exif = Literal["ignore", "apply"]
# Bits of a sample that hold values, in files with more than 8; auto: all bits of the file.
BitDepth = Literal["auto"] | Annotated[int, Field(ge=8, le=16)]

# 268 MB as RGB; from here on Pillow, too, warns of files that decode to gigabytes.
MAX_PIXELS = 89_478_485
# The usual formats of image sets. Pillow knows 40 more, some of which run Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Formats whose 16 bits may come as the mode "I", which is one of 32 bits elsewhere.
WIDENED = ("PNG", "PPM")
BITS_PER_SAMPLE, EXIF_ORIENTATION, TILE_WIDTH, TILE_LENGTH = 0x0102, 0x0112, 0x0142, 0x0143
# px: smaller tiles may exceed a small image, as the last ones of every image do.
LARGEST_TILE = 2**20
# How a stored picture [H, W, ...] is turned upright: swap its axes, then reverse rows and columns.
TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1), 5: (True, 1, 1),
    6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip


def load_image(
    file: Path,
    size: tuple[int, int] | None = None,
    *,
    exif: Exif = "ignore",
    bit_depth: BitDepth = "auto",
) -> Tensor:
    """Decode an image file to RGB [3, H, W] uint8.

    Grey, palette and CMYK images are converted, alpha is dropped, and only the first page or frame
    is used. Of more than 8 bits per sample the upper 8 are kept.

    Args:
        size: (height, width) that the image must have; compared before anything is decoded.
        exif: ``apply`` turns the picture by its EXIF orientation, as viewers do; ``ignore`` keeps
            the pixels as stored, to which COCO's boxes refer.
        bit_depth: how many of the more than 8 bits hold values: 12 takes the upper 8 of the lower
            12. Larger values become 255.

    Raises:
        DataError: naming the file.
    """
    with open_image(file, str(file)) as image:
        if size is not None:
            check_size(image, size, str(file), exif)
        turn = orientation(image) if exif == "apply" else 1
        bits = value_bits(image, bit_depth)
        if image.mode.startswith("I"):  # more than 8 bits, which Pillow would cut at 255
            array = np.repeat(_upper_8(np.asarray(image), bits)[:, :, None], 3, axis=2)
        elif is_deep(image) and bits < 16:  # Pillow keeps the upper 8 of the 16 that are stored
            array = _upper_8(_deep_colours(image, file), bits)
        else:
            array = np.array(image.convert("RGB"))
    return torch.from_numpy(_turned(array, turn)).permute(2, 0, 1)


def is_deep(image: Image.Image) -> bool:
    """Whether a sample of a not yet decoded image has more than 8 bits of unknown use.

    Also False for a PGM or PPM file that gives its largest value: Pillow scales by it.
    """
    tiles: list[Any] = getattr(image, "tile", [])
    if not tiles:
        return False
    codec, _, _, arguments = tiles[0]
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) > 8)
    if image.format == "PPM":
        return bool(arguments == "I;16B" or (codec != "raw" and arguments[-1] == 65535))
    return image.format == "PNG" and str(arguments).endswith("16B")


def value_bits(image: Image.Image, bit_depth: BitDepth) -> int:
    """The number of bits per sample with values in a deep image, by the option and its header."""
    if bit_depth != "auto" and is_deep(image):
        return bit_depth
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITS_PER_SAMPLE, (16,))))
    return 16


def largest_value(file: Path, bit_depth: BitDepth) -> tuple[int, int]:
    """The largest value of a deep image, and the largest that it could have by ``bit_depth``.

    Raises:
        DataError: the file cannot be decoded.
    """
    with open_image(file, str(file)) as image:
        bits = value_bits(image, bit_depth)
        if image.mode.startswith("I"):
            largest = int(np.asarray(image).max())
        elif bits < 16:
            largest = int(_deep_colours(image, file).max())
        else:  # the lower 8 bits are unknown here
            largest = int(np.asarray(image.convert("RGB")).max()) << 8 | 255
    return largest, 2**bits - 1


def _upper_8(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    upper = np.right_shift(values.astype(np.uint32), np.uint32(bits - 8))
    return np.minimum(upper, 255).astype(np.uint8)


def _deep_colours(image: Image.Image, file: Path) -> NDArray[np.uint16]:
    """All 16 bits [H, W, 3] of a colour image, of which Pillow decodes only 8."""
    if image.format != "PNG":
        raise ValueError(
            f"data.bit_depth below 16 is for grey pictures and PNG files, this is {image.format} "
            "in colour"
        )
    stored: NDArray[np.uint16] = decode_png(read_file(str(file))).numpy()  # [channels, H, W]
    colours = stored[:3] if len(stored) >= 3 else np.repeat(stored[:1], 3, axis=0)  # without alpha
    return colours.transpose(1, 2, 0)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a not yet decoded image: 1 upright, 2 ... 8 as in EXIF.

    1 for TIFF files: the tag is part of that format, and decoding applies it. An unreadable tag is
    ignored, as in viewers.
    """
    if isinstance(image, TiffImageFile):
        return 1
    try:
        # Not the method of PNG files, which would decode all pixels to look behind them.
        value = Image.Image.getexif(image).get(EXIF_ORIENTATION)
    except Exception:  # whatever the bytes lead the parser to
        return 1
    return int(value) if value in TURNS else 1


def pages(image: Image.Image) -> int:
    """The number of pages or frames of a file, up to the first damaged one."""
    if image.format == "MPO":  # phones store a preview or a depth map behind the picture
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # whatever the bytes lead the parser to
        return 1


def _turned(array: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] turned upright by its EXIF orientation."""
    if turn == 1:
        return array
    exchange, down, right = TURNS[turn]
    upright = array.swapaxes(0, 1) if exchange else array
    return np.ascontiguousarray(upright[::down, ::right])


@contextmanager
def open_image(file: Path, where: str) -> Iterator[Image.Image]:
    """Open an image file without decoding it; errors inside the context name the file.

    Args:
        where: the words that name the file in an error.

    Raises:
        DataError: the file is not an image of a common format, damaged, or too large to decode.
    """
    try:
        with warnings.catch_warnings():
            # Refused below, with an exact limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # A palette with several transparent colours; transparency is dropped.
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
    except Exception as error:  # broken bytes may raise anything
        if isinstance(error, UnidentifiedImageError) and is_lfs_pointer(file):
            raise DataError(f"{where}: is a Git LFS pointer; run git lfs pull") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason})") from error


def _tile_pixels(image: Image.Image) -> int:
    """The pixels of a tile of a TIFF file, which is decoded tile by tile; else 0."""
    if not isinstance(image, TiffImageFile):
        return 0
    return int(image.tag_v2.get(TILE_WIDTH, 0)) * int(image.tag_v2.get(TILE_LENGTH, 0))


def check_size(
    image: Image.Image, size: tuple[int, int], where: str, exif: Exif = "ignore"
) -> None:
    """Compare a not yet decoded image with its (height, width) in the annotation file.

    Args:
        exif: ``apply`` compares with the size of the turned picture.

    Raises:
        DataError: they differ.
    """
    found = (image.height, image.width)
    turns = orientation(image) >= 5
    if exif == "apply" and turns:
        found = found[::-1]
    if found == size:
        return
    reason = ""
    if found == size[::-1] and turns:
        reason = (
            "; its EXIF orientation is applied, data.exif=ignore takes the pixels as stored"
            if exif == "apply"
            else "; its EXIF orientation is not applied, data.exif=apply turns it"
        )
    raise DataError(
        f"{where}: is {found[1]}x{found[0]} px, the annotation file says "
        f"{size[1]}x{size[0]}{reason}"
    )
