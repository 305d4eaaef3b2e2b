"""Annotations and proposals as files that annotation tools import: CVAT and Label Studio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from comining.completion.proposal_folder import by_image
from comining.completion.proposals import Proposal
from comining.data.annotation_builder import fit_box
from comining.data.annotations import AnnotationSet
from comining.data.formats.annotation_format import px
from comining.errors import DataError

# Where Label Studio serves files below its LOCAL_FILES_DOCUMENT_ROOT.
LOCAL_FILES = "/data/local-files/?d="
# Characters that is_text accepts but XML 1.0 does not allow.
NOT_IN_XML = re.compile("[\ufffe\uffff]")


@dataclass(frozen=True)
class ToolBox:
    """A box of an image: an annotation, or a proposal."""

    label: str
    box: tuple[float, float, float, float]  # xyxy px, cut at the image border
    proposal: Proposal | None


@dataclass(frozen=True)
class ToolImage:
    """An image with its boxes, annotations first."""

    name: str  # path in the image folder, with /
    height: int  # px
    width: int
    boxes: list[ToolBox]


def tool_images(annotations: AnnotationSet, proposals: Sequence[Proposal]) -> Iterator[ToolImage]:
    """All images of a set with their objects and their proposals; without regions to ignore."""
    names = annotations.categories.names
    name_of = dict(zip(annotations.categories.ids, names, strict=True))
    rows: list[list[int]] = [[] for _ in annotations.image_ids]
    for row in (~annotations.crowd).nonzero()[0].tolist():
        rows[annotations.image[row]].append(row)
    proposed = by_image(proposals)
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        height, width = annotations.sizes[position].tolist()
        boxes = []
        for row in rows[position]:
            x1, y1, x2, y2 = annotations.boxes[row].tolist()
            boxes.append(ToolBox(names[annotations.labels[row]], (x1, y1, x2, y2), None))
        for proposal in proposed.get(image_id, []):
            _, box = fit_box(proposal.bbox, width, height)
            boxes.append(ToolBox(name_of[proposal.category_id], box, proposal))
        name = str(PurePosixPath(annotations.file_names[position].replace("\\", "/")))
        yield ToolImage(name, height, width, boxes)


def cvat_xml(annotations: AnnotationSet, proposals: Sequence[Proposal]) -> str:
    """The text of a file of CVAT for images 1.1.

    Proposals have ``source="auto"`` and the attribute ``probability``, which CVAT keeps if the
    labels of the task have it.

    Raises:
        DataError: a name has a character that XML does not allow.
    """
    names = annotations.categories.names
    for name in (*names, *annotations.file_names):
        if NOT_IN_XML.search(name):
            raise DataError(f"{annotations.path}: the name {name!r} cannot be written as XML")
    attribute = (
        "<attribute><name>probability</name><mutable>False</mutable><input_type>text</input_type>"
        "<default_value></default_value><values></values></attribute>"
    )
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "  <version>1.1</version>",
        "  <meta>",
        "    <task>",
        f"      <size>{len(annotations.image_ids)}</size>",
        "      <mode>annotation</mode>",
        "      <labels>",
        *(
            f"        <label><name>{escape(name)}</name><type>any</type>"
            f"<attributes>{attribute}</attributes></label>"
            for name in names
        ),
        "      </labels>",
        "    </task>",
        "  </meta>",
    ]
    for number, image in enumerate(tool_images(annotations, proposals)):
        lines.append(
            f'  <image id="{number}" name={quoteattr(image.name)} width="{image.width}" '
            f'height="{image.height}">'
        )
        lines += [_cvat_box(box) for box in image.boxes]
        lines.append("  </image>")
    return "\n".join([*lines, "</annotations>", ""])


def _cvat_box(box: ToolBox) -> str:
    corners = zip(("xtl", "ytl", "xbr", "ybr"), box.box)
    place = " ".join(f'{key}="{px(value):.15g}"' for key, value in corners)
    source = "manual" if box.proposal is None else "auto"
    start = (
        f'    <box label={quoteattr(box.label)} source="{source}" occluded="0" {place} z_order="0">'
    )
    if box.proposal is None:
        return f"{start}</box>"
    probability = f"{box.proposal.probability:.4f}"
    return f'{start}<attribute name="probability">{probability}</attribute></box>'


def label_studio_tasks(
    annotations: AnnotationSet, proposals: Sequence[Proposal], address: str = LOCAL_FILES
) -> list[dict[str, Any]]:
    """Tasks of Label Studio, one for each image, with a prediction where there is a box.

    The prediction holds the annotations and the proposals of the image, so that submitting it loses
    none; a proposal has its probability as ``score``. The score of the prediction is their mean, by
    which Label Studio orders tasks.

    Args:
        address: in front of the file names, which are quoted as in a URL.
    """
    tasks = []
    for image in tool_images(annotations, proposals):
        task: dict[str, Any] = {"data": {"image": address + quote(image.name)}}
        if image.boxes:
            prediction: dict[str, Any] = {
                "model_version": "comining",
                "result": [
                    _label_studio_region(image, number, box)
                    for number, box in enumerate(image.boxes, start=1)
                ],
            }
            proposed = [one.proposal.probability for one in image.boxes if one.proposal is not None]
            if proposed:
                prediction["score"] = fmean(proposed)
            task["predictions"] = [prediction]
        tasks.append(task)
    return tasks


def _label_studio_region(image: ToolImage, number: int, box: ToolBox) -> dict[str, Any]:
    x1, y1, x2, y2 = box.box
    region: dict[str, Any] = {
        "id": f"annotated{number}" if box.proposal is None else f"proposal{box.proposal.id}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x1 / image.width,
            "y": 100 * y1 / image.height,
            "width": 100 * (x2 - x1) / image.width,
            "height": 100 * (y2 - y1) / image.height,
            "rotation": 0,
            "rectanglelabels": [box.label],
        },
    }
    if box.proposal is not None:
        region["score"] = box.proposal.probability
        region["meta"] = {"text": ["proposed"]}
    return region


def label_studio_config(annotations: AnnotationSet) -> str:
    """The labelling configuration that the tasks are for."""
    labels = "".join(
        f"    <Label value={quoteattr(name)}/>\n" for name in annotations.categories.names
    )
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n</View>\n'
    )
