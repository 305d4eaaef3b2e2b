"""The image files of an annotation set: that they are there, and what is said of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from comining.data.annotations import AnnotationSet
from comining.data.images import check_size, open_image
from comining.errors import DataError


def check_images(annotations: AnnotationSet, folder: str | Path, sizes: bool) -> None:
    """Check that every image of the file exists and, if ``sizes``, has the size the file says.

    Only the header of an image is read. ``folder`` may be a link; a link below it may not lead out
    of it, so that an annotation file cannot name what else the machine holds.

    Raises:
        DataError: naming the annotation file, the image id and the image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder (images of {annotations.path})")
    inside: dict[Path, bool] = {}  # folders that have been looked at
    columns = zip(annotations.image_ids, annotations.file_names, annotations.sizes, strict=True)
    for image_id, name, (height, width) in columns:
        file = folder / name
        where = f"{annotations.path}: image {image_id}: {file}"
        try:
            mode = file.lstat().st_mode
            if file.parent not in inside:
                inside[file.parent] = _lies_in(file.parent, folder)
            leaves = not inside[file.parent] or (stat.S_ISLNK(mode) and not _lies_in(file, folder))
            if leaves:
                raise DataError(f"{where}: a link that leaves the image folder")
            if not stat.S_ISREG(file.stat().st_mode):
                raise DataError(f"{where}: not a file")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{where}: no such file") from None
        except OSError as error:  # a name that is too long, links in a circle
            raise DataError(f"{where}: cannot be read ({error.strerror})") from None
        if sizes:
            with open_image(file, where) as image:
                check_size(image, (int(height), int(width)), where)


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
