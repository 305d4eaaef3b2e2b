"""The kind of a file by its first bytes: a picture that we decode, another picture, or neither.

Nothing is decoded here. Names may lie (a phone's HEIC that is called ``.jpg``) or say nothing.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from comining.data.images import FORMATS, open_image
from comining.errors import DataError

HEAD = 512  # bytes that are looked at

# A file with one of these suffixes is meant to be a picture, whatever its content.
SUFFIXES = {
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip

# Kinds that Pillow cannot read, or that we do not let it read: offset, bytes, name.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"P7\n", "PAM"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIU\0", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (128, b"DICM", "DICOM"),
)
# The brands of an ISO media file ("ftyp"), which may also hold a film.
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"crx ": "camera raw",
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC",
    b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF",
}  # fmt: skip
# Kinds without a signature of their own. A camera's raw file is a TIFF file as well, of which
# Pillow would read the small preview.
_BY_SUFFIX = {
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef",
         ".raf", ".rw2", ".srw"),
        "camera raw",
    ),
    ".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".psd": "Photoshop", ".dcm": "DICOM",
    ".svg": "SVG", ".svgz": "SVG", ".ico": "icon", ".icns": "icon", ".tga": "TGA", ".pcx": "PCX",
    ".exr": "OpenEXR", ".eps": "EPS",
}  # fmt: skip


def foreign_kind(head: bytes, suffix: str) -> str | None:
    """The name of a picture kind that cannot be decoded here, or None.

    Args:
        head: the first :data:`HEAD` bytes of a file.
        suffix: of its name, lower case.
    """
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(_size(head), HEAD), 4))]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        # HEIF is only the container of HEIC and AVIF.
        return next((kind for kind in kinds if kind != "HEIF"), next(iter(kinds), None))
    if head.lstrip().startswith((b"<svg", b"<?xml", b"<!--")) and b"<svg" in head:
        return "SVG"
    named = _BY_SUFFIX.get(suffix)
    if named == "camera raw" or not is_decodable(head):
        return named
    return None  # a PNG that is called .heic


def is_decodable(head: bytes) -> bool:
    """Whether a file with this head is one that :func:`comining.data.images.load_image` opens."""
    Image.init()
    prefix = head[:16].ljust(16, b"\0")
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    # Without WebP support, Pillow's answer is a text.
    return bool(head) and any(accept is not None and accept(prefix) is True for accept in accepts)


def is_picture(file: Path, head: bytes) -> bool:
    """Whether a file is to be decoded: it looks like a picture, or is named like one."""
    if file.suffix.lower() in SUFFIXES:
        return True
    if not is_decodable(head):
        return False
    if not head.startswith((b"BM", b"P")):
        return True
    # The signature is two letters that any text may begin with ("BMW"): check the whole header.
    try:
        with open_image(file, str(file)):
            return True
    except DataError:
        return False


def _size(head: bytes) -> int:
    """Of the first box of an ISO media file, bytes."""
    return int.from_bytes(head[:4], "big")
