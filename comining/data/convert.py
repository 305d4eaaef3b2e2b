"""Write a data set in another format: ``python -m comining.data.convert SOURCE OUT --to yolo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from comining.data.annotations import AnnotationSet
from comining.data.export_files import check_output, write_export
from comining.data.formats.annotation_format import ReadOptions
from comining.data.formats.auto import known_formats, recognise
from comining.data.image_files import check_images
from comining.data.set_export import CocoExport, SetExport, VocExport, YoloExport

EXPORTS: dict[str, SetExport] = {"coco": CocoExport(), "yolo": YoloExport(), "voc": VocExport()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    formats = known_formats()
    parser = argparse.ArgumentParser(
        prog="python -m comining.data.convert",
        description="Write all splits of a data set in another format, with their pictures. Boxes "
        "and classes are written, and what else the format can hold of ids, areas, regions to "
        "ignore and what is known of classes; what it cannot hold is counted. Outlines of objects "
        "are not written.",
    )
    parser.add_argument("source", type=Path, help="the folder of the set")
    parser.add_argument("output", type=Path, help="a folder to make")
    parser.add_argument("--to", choices=sorted(EXPORTS), required=True)
    parser.add_argument(
        "--from", choices=sorted(formats), dest="source_format",
        help="the format of the source; default: recognised by its files",
    )  # fmt: skip
    parser.add_argument("--images", choices=("copy", "link", "none"), default="copy")
    parser.add_argument("--missing-labels", choices=("empty", "skip", "error"))
    parser.add_argument("--on-invalid-box", choices=("error", "drop"), default="error")
    parser.add_argument("--names", help="class names in the order of their labels, comma-separated")
    parser.add_argument(
        "--difficult", choices=("object", "ignore"), default="object",
        help="how objects that VOC marks as difficult are read: as objects, or regions to ignore",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    names = None if given.names is None else given.names.split(",")
    options = ReadOptions(
        on_invalid_box=given.on_invalid_box, missing_labels=given.missing_labels, names=names,
        difficult=given.difficult,
    )  # fmt: skip
    try:
        check_output(given.output)
        name = given.source_format
        if name is None:
            name, shown = recognise(given.source)
            print(f"{given.source} looks like {formats[name].title} (--from {name}), by {shown}")
        sets = read_sets(given.source, name, options, pictures=given.images != "none")
        export = EXPORTS[given.to].export(sets)
        write_export(export, given.output, given.images)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for split, (one, _) in sets.items():
        print(f"{split}: {len(one.image_ids)} images, {len(one.ids)} annotations")
    for what, count in export.losses.items():
        print(f"not kept by {EXPORTS[given.to].title}: {what}: {count}")
    print(f"written: {given.output}")


def read_sets(
    source: Path, name: str, options: ReadOptions, *, pictures: bool
) -> dict[str, tuple[AnnotationSet, Path]]:
    """All splits of a set, each with the folder of its images.

    Args:
        name: of the format, as in ``data=NAME``.
        pictures: whether the pictures must exist.

    Raises:
        DataError: naming the file and the record that is wrong.
    """
    sets = {}
    for split, one in known_formats()[name].find_splits(source).items():
        annotations, folder = one.read(options)
        if pictures:
            annotations, _ = check_images(annotations, folder, sizes=False)
        sets[split] = (annotations, folder)
    return sets


if __name__ == "__main__":
    main()
