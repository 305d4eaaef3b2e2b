"""Annotations with the most probable proposals, in files for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comining.completion.completed_set import check_new, with_proposals, write_coco
from comining.completion.proposal_folder import ProposalFolder
from comining.completion.proposals import Proposal
from comining.completion.tool_files import (
    LOCAL_FILES,
    cvat_xml,
    label_studio_config,
    label_studio_tasks,
)
from comining.data.export_files import check_output, write_export
from comining.data.formats.coco import parse_coco
from comining.data.image_files import check_images
from comining.data.set_export import YoloExport
from comining.runs.files import replace_file, write_json

Pictures = Literal["copy", "link", "none"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of files for other programs.

    Args:
        pictures: of a YOLO set: copies, hard links, or none.
        address: prefix of the file names in Label Studio's tasks.
    """

    pictures: Pictures = "copy"
    address: str = LOCAL_FILES


def _completed(
    folder: ProposalFolder, proposals: Sequence[Proposal], output: Path, options: ExportOptions
) -> list[str]:
    write_coco(output / "completed.json", with_proposals(folder.content, proposals))
    return []


def _cvat(
    folder: ProposalFolder, proposals: Sequence[Proposal], output: Path, options: ExportOptions
) -> list[str]:
    text = cvat_xml(folder.annotations, proposals)
    replace_file(output / "cvat.xml", lambda opened: opened.write(text.encode()))
    return _left_out(folder)


def _label_studio(
    folder: ProposalFolder, proposals: Sequence[Proposal], output: Path, options: ExportOptions
) -> list[str]:
    tasks = label_studio_tasks(folder.annotations, proposals, options.address)
    config = label_studio_config(folder.annotations)
    replace_file(output / "label_studio_config.xml", lambda opened: opened.write(config.encode()))
    write_json(output / "label_studio.json", tasks)
    return _left_out(folder)


def _yolo(
    folder: ProposalFolder, proposals: Sequence[Proposal], output: Path, options: ExportOptions
) -> list[str]:
    content = with_proposals(folder.content, proposals)
    completed = parse_coco(folder.annotations.path, content, on_invalid_box="drop")
    if options.pictures != "none":
        completed, _ = check_images(completed, folder.images, sizes=False)
    export = YoloExport().export({"train": (completed, folder.images)})
    write_export(export, output / "yolo", options.pictures)
    return [f"{what}: {count}" for what, count in export.losses.items()]


def _left_out(folder: ProposalFolder) -> list[str]:
    regions = int(folder.annotations.crowd.sum())
    return [f"crowds and other regions to ignore, left out: {regions}"] if regions else []


Writer = Callable[[ProposalFolder, Sequence[Proposal], Path, ExportOptions], list[str]]
# For every kind of export: its writer, which returns the losses, and its main output.
EXPORTS: dict[str, tuple[Writer, str]] = {
    "coco": (_completed, "completed.json"),
    "cvat": (_cvat, "cvat.xml"),
    "label_studio": (_label_studio, "label_studio.json"),
    "yolo": (_yolo, "yolo"),
}


def check_outputs(kinds: Sequence[str], output: Path) -> None:
    """Refuse to overwrite anything.

    Raises:
        DataError: an output exists.
    """
    for kind in kinds:
        if kind == "yolo":
            check_output(output / "yolo")
        else:
            check_new(output / EXPORTS[kind][1])
    if "label_studio" in kinds:
        check_new(output / "label_studio_config.xml")


def write_exports(
    folder: ProposalFolder,
    proposals: Sequence[Proposal],
    kinds: Sequence[str],
    output: Path,
    options: ExportOptions,
) -> dict[str, list[str]]:
    """Write the annotations of a folder with some of its proposals.

    Args:
        kinds: keys of :data:`EXPORTS`.
        output: the folder to write into.

    Returns:
        For the path of each, what it cannot hold, with counts.

    Raises:
        DataError: the format cannot hold the set at all, or a picture is missing.
        OSError: the disk is full, or a picture cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    return {
        str(output / EXPORTS[kind][1]): EXPORTS[kind][0](folder, proposals, output, options)
        for kind in kinds
    }
