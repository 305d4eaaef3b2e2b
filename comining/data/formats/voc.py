"""Pascal VOC: one XML file per picture."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from comining.data.annotation_builder import AnnotationBuilder
from comining.data.annotations import AnnotationSet, Categories
from comining.data.formats.annotation_format import (
    AnnotationFormat,
    ReadOptions,
    Split,
    keeps_unlabelled,
    numbered_categories,
    px,
    split_folders,
)
from comining.data.formats.picture_folder import (
    by_stem,
    files_below,
    in_order,
    is_picture,
    size_of,
)
from comining.data.formats.xml_elements import XmlElement, as_number, as_side, read_xml
from comining.data.record_values import short
from comining.errors import DataError

LISTS = ("train", "val", "test", "trainval")  # below ImageSets/Main


class Voc(AnnotationFormat):
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, or XML files next to the pictures.

    Corners are taken as written: a box is ``xmax - xmin`` wide. (The devkit counts pixels from 1
    and includes the last; most tools that write VOC today count from 0 and do not.) Classes are
    sorted by name, or in the order of ``data.names``. ``difficult`` objects are read like all
    others, or as regions to ignore, and counted. Areas are those of the boxes.
    """

    title: ClassVar[str] = "Pascal VOC"

    def recognise(self, root: Path) -> str | None:
        for home in _homes(root):
            if any((home / "Annotations").rglob("*.xml")):
                return f"{(home / 'Annotations').relative_to(root)}/*.xml"
        for folder in (root, *split_folders(root).values()):
            first = next(iter(sorted(folder.glob("*.xml"))), None)
            if first is not None and re.search(rb"<annotation[\s>]", _head(first)):
                return str(first.relative_to(root))
        return None

    def find_splits(self, root: Path) -> dict[str, Split]:
        homes = _homes(root)
        if len(homes) > 1:
            raise DataError(
                f"{root}: several VOC sets ({', '.join(str(h.relative_to(root)) for h in homes)}); "
                f"choose one with data.root={homes[0]}"
            )
        folders = _devkit_splits(homes[0]) if homes else _folder_splits(root)
        classes = _Classes([file for split in folders.values() for file in split.labels.values()])
        return {
            name: Split(split.path, (split.path,), functools.partial(_read_split, split, classes))
            for name, split in folders.items()
        }


@dataclass(frozen=True)
class _VocSplit:
    """The files of a split.

    Args:
        path: of the list or folder, for messages.
        labels: picture path without suffix to XML file, which may be absent.
        pictures: candidates for the pictures of the split.
        folder: base of the file names.
    """

    path: Path
    labels: dict[Path, Path]
    pictures: list[Path]
    folder: Path


def _homes(root: Path) -> list[Path]:
    """Folders of the devkit's layout: ``root``, or those in it, as in ``VOCdevkit/VOC2012``."""
    if (root / "Annotations").is_dir():
        return [root]
    below = [*root.glob("*/Annotations"), *root.glob("VOCdevkit/*/Annotations")]
    return sorted(folder.parent for folder in below if folder.is_dir())


def _devkit_splits(home: Path) -> dict[str, _VocSplit]:
    annotations, pictures = home / "Annotations", home / "JPEGImages"
    if not pictures.is_dir():
        raise DataError(f"{pictures}: no such folder; the pictures of {annotations} belong there")
    files = [file for file in files_below(pictures) if is_picture(file)]
    lists = {name: home / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
    lists = {name: file for name, file in lists.items() if file.is_file()}
    if not lists:
        labels = {
            pictures / file.relative_to(annotations).with_suffix(""): file
            for file in files_below(annotations)
            if file.suffix == ".xml"
        }
        return {"train": _VocSplit(annotations, labels, files, pictures)}
    trainval = lists.pop("trainval", None)  # train and val together
    if trainval is not None and "train" not in lists:
        lists["train"] = trainval
    splits = {}
    for name, file in lists.items():
        names = _listed(file)
        # As comining.data.convert writes splits that share file names.
        own = bool(names) and all(one.startswith(f"{name}/") for one in names)
        labels = {pictures / one: annotations / f"{one}.xml" for one in names}
        splits[name] = _VocSplit(file, labels, files, pictures / name if own else pictures)
    return splits


def _listed(file: Path) -> list[str]:
    """The pictures of a list, one per line, without suffix."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not a UTF-8 text") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{file}: line {number}: {short(name)} leaves the folder of annotations"
            )
        name = path.with_suffix("").as_posix() if is_picture(path) else path.as_posix()
        if found.setdefault(name, number) != number:
            raise DataError(f"{file}: line {number}: the same as line {found[name]}")
    return list(found)


def _folder_splits(root: Path) -> dict[str, _VocSplit]:
    """Folders named after splits with XML files next to the pictures, or one such folder."""
    folders = {
        split: folder for split, folder in split_folders(root).items() if any(folder.rglob("*.xml"))
    } or {"train": root}
    splits = {}
    for split, folder in folders.items():
        files = files_below(folder)
        pictures = [file for file in files if is_picture(file)]
        labels = {file.with_suffix(""): file for file in files if file.suffix == ".xml"}
        if not labels:
            raise DataError(f"{root}: no VOC set: neither Annotations/ nor an XML file")
        # Without a list, all pictures of the folder belong to the set.
        for picture in pictures:
            labels.setdefault(picture.with_suffix(""), picture.with_suffix(".xml"))
        splits[split] = _VocSplit(folder, labels, pictures, folder)
    return splits


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(2000)
    except OSError:
        return b""  # reported when it is read


# -- reading -----------------------------------------------------------------------------


class _Classes:
    """The classes of a set, over all of its splits, whose files are read for that once.

    Args:
        labels: the XML files of all splits.
    """

    def __init__(self, labels: list[Path]):
        self.labels = labels

    @functools.cached_property
    def by_name(self) -> Categories:
        present = [file for file in self.labels if file.is_file()]
        names = {entry.value("name") for file in present for entry in _root(file).all("object")}
        where = str(self.labels[0].parent) if self.labels else "VOC"
        return numbered_categories(sorted(names), where)


def _root(file: Path) -> XmlElement:
    root = read_xml(file)
    if root.tag != "annotation":
        raise DataError(f"{root.where}: not a VOC file, which begins with annotation")
    return root


def _read_split(
    split: _VocSplit, classes: _Classes, options: ReadOptions
) -> tuple[AnnotationSet, Path]:
    if options.names is None:
        categories = classes.by_name
    else:
        categories = numbered_categories(options.names, "data.names")
    builder = AnnotationBuilder(split.path, categories, options.on_invalid_box)
    stems = by_stem(split.pictures)
    roots = {stem: _root(file) for stem, file in split.labels.items() if file.is_file()}
    pictures = {
        _picture(stem, file, stems, roots.get(stem)): stem for stem, file in split.labels.items()
    }
    image_id = annotation_id = 0
    for picture in in_order(pictures, split.folder):
        stem = pictures[picture]
        root = roots.get(stem)
        rule = options.missing_labels or "error"
        if root is None and not keeps_unlabelled(builder, rule, split.labels[stem], picture):
            continue
        image_id += 1
        where = f"{split.path}: image {image_id}" if root is None else str(root.file)
        size = (_size(root) if root is not None else None) or size_of(picture, where)
        if root is not None and _size(root) is None:
            builder.repairs["sizes taken from the picture because the file has none"] += 1
        name = picture.relative_to(split.folder).as_posix()
        builder.add_image(where, image_id, name, *size)
        for entry in root.all("object") if root is not None else ():
            annotation_id += 1
            label = _label(entry, categories)
            difficult = bool(entry.find("difficult")) and entry.value("difficult") not in ("", "0")
            if difficult:
                done = {"object": "read like all others", "ignore": "ignored"}[options.difficult]
                builder.repairs[f"objects marked as difficult, {done} (data.difficult)"] += 1
            builder.add_annotation(
                entry.where, annotation_id, image_id, label, _bbox(entry),
                ignore=difficult and options.difficult == "ignore",
            )  # fmt: skip
    return builder.build(), split.folder


def _picture(
    stem: Path, label_file: Path, stems: dict[Path, list[Path]], root: XmlElement | None
) -> Path:
    """The picture of an XML file: of the same name, whatever its suffix, as in the devkit.

    ``filename`` is used if there is none or several of that name. (Renaming or converting pictures
    often leaves it outdated.)
    """
    candidates = stems.get(stem, [])
    if len(candidates) == 1:
        return candidates[0]
    name = root.find("filename") if root is not None else None
    if name is not None and name.text.strip():
        file = stem.parent / Path(name.text.strip().replace("\\", "/")).name
        if file in stems.get(file.with_suffix(""), []):
            return file
    if not candidates:
        raise DataError(f"{label_file}: no picture of this name: {stem}.*")
    names = ", ".join(file.name for file in candidates)
    raise DataError(f"{label_file}: several pictures of this name ({names}) and no filename")


def _size(root: XmlElement) -> tuple[int, int] | None:
    """(height, width), px; None if it is absent, or 0 as some tools write it."""
    size = root.find("size")
    if size is None:
        return None
    height, width = (as_side(size.where, k, size.value(k)) for k in ("height", "width"))
    return (height, width) if height and width else None


def _label(entry: XmlElement, categories: Categories) -> int:
    name = entry.value("name")
    if name not in categories.names:
        raise DataError(f"{entry.where}: name {short(name)} is not among the classes (data.names)")
    return categories.names.index(name)


def _bbox(entry: XmlElement) -> tuple[float, float, float, float]:
    box = entry.find("bndbox")
    if box is None:
        raise DataError(f"{entry.where}: bndbox is missing")
    xmin, ymin, xmax, ymax = (
        as_number(box.where, key, box.value(key)) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return px(xmin), px(ymin), px(xmax - xmin), px(ymax - ymin)
