"""The location of pictures, label files and class names of a YOLO set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from comining.data.formats.annotation_format import split_folders, split_of
from comining.data.formats.picture_folder import files_below, is_picture
from comining.data.record_values import short
from comining.errors import DataError

log = logging.getLogger(__name__)

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
NOTHING = ("", "null", "~", "Null", "NULL")


@dataclass(frozen=True)
class YoloDescription:
    """The description of a set by ``data.yaml``, or by the folders alone.

    Args:
        root: folder of the set.
        file: the source of the description, for messages.
        names: of the classes; None if they are unknown.
        places: picture folders and lists of pictures for every split.
        keypoint_values: columns that follow the box in a pose data set; None for others.
    """

    root: Path
    file: Path
    names: list[str] | None
    places: dict[str, list[Path]]
    keypoint_values: int | None = None


def show_of_yolo(root: Path) -> str | None:
    """What shows that a folder is a YOLO set; see ``AnnotationFormat.recognise``."""
    try:
        files = [root] if root.is_file() else _yaml_files(root)
    except DataError:  # reported when it is read
        return "data.yaml"
    if files:
        return ", ".join(file.name for file in files)
    if (root / "obj.data").is_file():
        return "obj.data"
    for folder in (root, *(place for place in sorted(root.iterdir()) if place.is_dir())):
        labels = folder / "labels"
        if (folder / "images").is_dir() and labels.is_dir() and any(labels.rglob("*.txt")):
            return f"{(folder / 'labels').relative_to(root)}/"
    return None


def describe_root(root: Path) -> YoloDescription:
    """Find splits and class names of a YOLO set.

    Args:
        root: its folder, or its ``data.yaml``.

    Raises:
        DataError: naming the file and the key that is wrong.
    """
    if root.is_file():
        return _from_yaml(root)
    files = _yaml_files(root)
    if len(files) > 1:
        raise DataError(
            f"{root}: several files describe a data set ({', '.join(f.name for f in files)}); "
            f"choose one with data.root={files[0]}"
        )
    if files:
        return _from_yaml(files[0])
    if (root / "obj.data").is_file():
        return _from_darknet(root / "obj.data")
    return _from_folders(root)


def pictures_of(place: Path, root: Path) -> list[Path]:
    """The pictures of a folder, or those in a list with one path per line.

    Raises:
        DataError: naming the list and its line.
    """
    if place.is_dir():
        return [file for file in files_below(place) if is_picture(file)]
    found: dict[Path, int] = {}
    for number, line in enumerate(_lines(place), start=1):
        if not line:
            continue
        candidates = [place.parent / line, root / line, root / line.removeprefix("data/")]
        picture = _first_that_exists(candidates)
        if picture is None:
            raise DataError(f"{place}: line {number}: {short(line)}: no such file")
        if found.setdefault(picture, number) != number:
            raise DataError(f"{place}: line {number}: the same as line {found[picture]}")
    return list(found)


def label_folder(pictures: Path) -> Path:
    """The folder of the label files of a folder's pictures.

    As in Ultralytics' programs, the last ``images`` of its path becomes ``labels``; if there is no
    such folder, label files are next to the pictures.
    """
    parts = list(pictures.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        if Path(*parts).is_dir():
            return Path(*parts)
    return pictures


# -- data.yaml ---------------------------------------------------------------------------


def _yaml_files(root: Path) -> list[Path]:
    """The files that describe a set: ``data.yaml``, or else all others that look like it."""
    for name in ("data.yaml", "data.yml"):
        if (root / name).is_file():
            return [root / name]
    found = []
    for file in sorted(file for file in root.iterdir() if file.suffix in (".yaml", ".yml")):
        try:
            content = _read_yaml(file)
        except DataError:  # some other file, or one of another program
            continue
        if "names" in content and SPLIT_KEYS.keys() & content.keys():
            found.append(file)
    return found


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        # BaseLoader reads all scalars as text: a class may be named `no`, `1` or `null`.
        content = yaml.BaseLoader(file.read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: not a yaml file ({reason})") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: not the description of a data set: its top level is not a mapping"
        )
    return content


def _from_yaml(file: Path) -> YoloDescription:
    content = _read_yaml(file)
    names = _names(file, content)
    root = file.parent
    base = root
    path = content.get("path", "")
    if not isinstance(path, str):
        raise DataError(f"{file}: path must be one folder, got {short(path)}")
    if path not in NOTHING and (root / Path(path).expanduser()).is_dir():
        base = root / Path(path).expanduser()  # else the set was moved, next to its file
    places: dict[str, list[Path]] = {}
    for key, split in SPLIT_KEYS.items():
        entries = content.get(key, "")
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries):
            raise DataError(f"{file}: {key} must be a folder, a list of folders or a text file")
        entries = [one for one in entries if one not in NOTHING]
        if not entries:
            continue
        if split in places:
            raise DataError(f"{file}: {key} names the split {split} a second time")
        found = []
        for entry in entries:
            # Roboflow writes ../train/images but means train/images next to the file.
            beside = entry.removeprefix("../")
            place = _first_that_exists([base / entry, root / entry, base / beside, root / beside])
            if place is None and split == "test":
                continue
            if place is None:
                raise DataError(f"{file}: {key}: {entry}: no such folder or file (below {base})")
            found.append(place)
        # The test split of COCO is published without labels, and is only needed at the end.
        if split == "test" and not any(_is_annotated(place, root) for place in found):
            log.warning("%s: test: %s has no label files: no test split", file, entries[0])
        else:
            places[split] = found
    return YoloDescription(root, file, names, places, _keypoint_values(file, content))


def _is_annotated(place: Path, root: Path) -> bool:
    """Whether any picture of a folder or list has a label file."""
    return any(
        (label_folder(picture.parent) / f"{picture.stem}.txt").is_file()
        for picture in pictures_of(place, root)
    )


def _names(file: Path, content: Mapping[str, Any]) -> list[str]:
    """The class names by number, from a list or from a mapping of numbers."""
    names = content.get("names")
    if isinstance(names, dict):
        numbers = [int(key) for key in names if isinstance(key, str) and key.isdecimal()]
        if sorted(numbers) != list(range(len(names))):
            last = len(names) - 1
            raise DataError(
                f"{file}: names must be numbered 0 ... {last}, got {short(list(names))}"
            )
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names must be a list of class names, got {short(names)}")
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise DataError(f"{file}: nc is {short(count)}, but names has {len(names)}")
    return names


def _keypoint_values(file: Path, content: Mapping[str, Any]) -> int | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or not all(
        isinstance(one, str) and one.isdecimal() for one in shape
    ):
        raise DataError(f"{file}: kpt_shape must be two whole numbers, got {short(shape)}")
    product = 1
    for one in shape:
        product *= int(one)
    return product


# -- without data.yaml -------------------------------------------------------------------


def _from_darknet(file: Path) -> YoloDescription:
    """``obj.data`` as Darknet reads and CVAT's "YOLO 1.1" writes it: lines ``key = value``."""
    root = file.parent
    pairs = (line.partition("=") for line in _lines(file) if "=" in line)
    values = {key.strip(): value.strip() for key, _, value in pairs}

    def place(value: str) -> Path:
        found = _first_that_exists([root / value, root / value.removeprefix("data/")])
        if found is None:
            raise DataError(f"{file}: {short(value)}: no such file")
        return found

    if "names" not in values:
        raise DataError(f"{file}: names is missing")
    names = [line for line in _lines(place(values["names"])) if line]
    places = {split: [place(values[key])] for key, split in SPLIT_KEYS.items() if key in values}
    return YoloDescription(root, file, names, places)


def _from_folders(root: Path) -> YoloDescription:
    """``images/train`` and ``labels/train``, or ``train/images`` and ``train/labels``."""
    names = next(
        (
            [line for line in _lines(root / name) if line]
            for name in NAME_FILES
            if (root / name).is_file()
        ),
        None,
    )
    images = root / "images"
    places: dict[str, list[Path]] = {}
    if images.is_dir():
        places = {split: [folder] for split, folder in split_folders(images).items()}
        others = sorted(
            one.name for one in images.iterdir() if one.is_dir() and split_of(one.name) is None
        )
        if places and others:
            raise DataError(f"{images}: {', '.join(others[:5])} is not named after a split")
        places = places or {"train": [images]}
    else:
        places = {
            split: [folder / "images"]
            for split, folder in split_folders(root).items()
            if (folder / "images").is_dir()
        }
    if not places:
        raise DataError(
            f"{root}: no YOLO set: there is no data.yaml, and neither images/ nor train/images/"
        )
    return YoloDescription(root, root, names, places)


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not a UTF-8 text") from None


def _first_that_exists(candidates: Iterable[Path]) -> Path | None:
    for path in candidates:
        if os.path.exists(path):  # False, too, for a name that no file can have
            return Path(os.path.normpath(path))
    return None
