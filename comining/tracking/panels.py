"""The sections and panels of a dashboard, for every logger that has dashboards.

Panels name figures by regular expressions, because the names of views and classes depend on the
method and on the data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Panel:
    """A plot of figures over steps.

    Args:
        figures: regular expressions, each of which matches whole names of figures.
        stacked: draw the figures on top of each other, because they are shares of a whole.
    """

    title: str
    figures: tuple[str, ...]
    stacked: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under a heading.

    Args:
        pictures: keys of logged pictures with boxes, for loggers that show these.
    """

    title: str
    panels: tuple[Panel, ...] = ()
    pictures: tuple[str, ...] = ()


SECTIONS = (
    Section("Pseudo-labels per image", (
        Panel("Mean", ("mining/pseudo_labels_per_image",)),
        Panel("Maximum", ("mining/pseudo_labels_max",)),
        Panel("Each view", ("mining/[^/]+/pseudo_labels_per_image",)),
        Panel("Each class", ("mining/class/.+/pseudo_labels_per_image",)),
        Panel("Share of all targets", ("mining/share_of_targets",)),
        Panel("Mean score", ("mining/score",)),
    )),
    Section("Are they right? (where the truth is known)", (
        Panel("Precision", ("mining/precision",)),
        Panel("Recall of the erased annotations", ("mining/recall",)),
        Panel("What mined boxes are", (
            "mining/precision", "mining/duplicate", "mining/wrong_class",
            "mining/poor_localisation", "mining/background",
        ), stacked=True),
        Panel("Precision of each class", ("mining/class/.+/precision",)),
        Panel("Recall of each class", ("mining/class/.+/recall",)),
        Panel("Agreement: mined in the other view, too", ("mining/agreement",)),
    )),
    Section("Where candidates are dropped, per image", (
        Panel("Score threshold (step 1)", ("mining/dropped_by_score",)),
        Panel("Suppression (step 2)", ("mining/dropped_by_nms",)),
        Panel("Image border", ("mining/dropped_by_border",)),
        Panel("Overlap with annotations (step 3)", ("mining/dropped_by_annotation",)),
    )),
    Section("Annotation rates and score thresholds", (
        Panel("Estimated rate of each class", ("rate/.+",)),
        Panel("Score threshold that the method sets itself", ("threshold/.+",)),
    )),
    Section("AP on the validation split", (
        Panel("AP", ("val/AP",)),
        Panel("AP50", ("val/AP50",)),
        Panel("AR100", ("val/AR100",)),
        Panel("AP of each class", ("val/class/.+",)),
    )),
    Section("Losses", (
        Panel("Total", ("train/loss",)),
        Panel("Classification of each view", ("train/[^/]+/classification",)),
        Panel("Box of each view", ("train/[^/]+/box",)),
        Panel("Centerness of each view (FCOS)", ("train/[^/]+/centerness",)),
        Panel("Confusion of each view (background recalibration)", ("train/[^/]+/confusion",)),
        Panel("Region proposals of each view (Faster R-CNN)", ("train/[^/]+/rpn_.+",)),
        Panel("Consistency (sparsedet)", ("train/[^/]+/consistency",)),
    )),
    Section("Pictures", pictures=("pictures/mined", "pictures/detections")),
    Section("Throughput and optimization", (
        Panel("Images per second", ("train/images_per_s",)),
        Panel("Learning rate", ("train/lr",)),
        Panel("Gradient norm", ("train/gradient_norm",)),
    )),
)  # fmt: skip


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """The names of figures that match a pattern of a panel."""
    return [name for name in names if re.fullmatch(pattern, name)]


def sections_of(names: Collection[str]) -> tuple[Section, ...]:
    """The sections without the figures that are not among these names.

    Sections of pictures stay.
    """
    left = []
    for section in SECTIONS:
        panels = tuple(
            replace(panel, figures=figures)
            for panel in section.panels
            if (figures := tuple(one for one in panel.figures if matching(one, names)))
        )
        if panels or section.pictures:
            left.append(replace(section, panels=panels))
    return tuple(left)


def custom_scalars(
    sections: Sequence[Section] = SECTIONS,
) -> dict[str, dict[str, list[str | list[str]]]]:
    """The sections as TensorBoard's custom scalars: {section: {panel: ["Multiline", patterns]}}.

    TensorBoard has no stacked areas, and no pictures there.
    """
    return {
        section.title: {
            panel.title: ["Multiline", [f"^{one}$" for one in panel.figures]]
            for panel in section.panels
        }
        for section in sections
        if section.panels
    }
