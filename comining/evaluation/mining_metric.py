"""Judging what is mined: we know what was erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

from comining.ops import rank_in_group
from comining.structures import Batch, Detections, StepResult, Targets

# A mined box is right if it covers an erased one of its class by this IoU, as in AP50.
RIGHT_IOU = 0.5
# Under it, a box that touches an object of its class is badly placed; below this it is elsewhere.
TOUCHING_IOU = 0.1

# What a mined box can be; :func:`judge` returns positions in this list.
KINDS = ("right", "duplicate", "wrong_class", "poor_localisation", "background")
# Where candidates get lost: Step 1, Step 2, at the image border, Step 3.
STAGES = ("score", "nms", "border", "annotation")

# What is summed over images, for every view.
SUMS = ("images", "mined", *KINDS, "erased", "kept", "score_sum", "in_other_view", *STAGES)

Figures = dict[str, float | None]


def judge(
    mined: Sequence[Detections], erased: Sequence[Targets], kept: Sequence[Targets]
) -> Tensor:
    """What kind of box every pseudo-label is.

    ``right``: an erased annotation of its class, found again (IoU >= 0.5, one to one: the best of
    several). ``duplicate``: as good, but of an annotation that is kept or has been found by a
    better one. ``wrong_class``: it covers an annotation of another class. ``poor_localisation``:
    it touches one of its class (IoU 0.1 ... 0.5). ``background``: none of these.

    Args:
        mined, erased, kept: of the same B images.

    Returns:
        [P] int64 positions in :data:`KINDS`, for the P mined boxes of all images, image after
        image.
    """
    device = mined[0].boxes.device
    boxes, labels, image = _flat(mined, device)
    found = right_ones(mined, erased)
    same, other = (
        torch.zeros_like(found, dtype=boxes.dtype),
        torch.zeros_like(found, dtype=boxes.dtype),
    )
    for truth in (erased, kept):
        true_boxes, true_labels, true_image = _flat(truth, device)
        if len(labels) and len(true_labels):
            overlap = box_iou(boxes, true_boxes) * (image[:, None] == true_image)
            equal = labels[:, None] == true_labels
            same = torch.maximum(same, (overlap * equal).amax(dim=1))
            other = torch.maximum(other, (overlap * ~equal).amax(dim=1))
    kind = torch.full_like(labels, KINDS.index("background"))
    kind[same >= TOUCHING_IOU] = KINDS.index("poor_localisation")
    kind[other >= RIGHT_IOU] = KINDS.index("wrong_class")
    kind[same >= RIGHT_IOU] = KINDS.index("duplicate")
    kind[found] = KINDS.index("right")
    return kind


def right_ones(mined: Sequence[Detections], erased: Sequence[Targets]) -> Tensor:
    """Which mined boxes are erased annotations, found again.

    One to one: of several boxes on the same erased annotation, only the best is right.

    Args:
        mined, erased: of the same B images.

    Returns:
        [P] bool for the P mined boxes of all images, image after image.
    """
    device = mined[0].boxes.device
    boxes, labels, image = _flat(mined, device)
    erased_boxes, erased_labels, of = _flat(erased, device)
    if not len(labels) or not len(erased_labels):
        return torch.zeros(len(labels), dtype=torch.bool, device=device)
    overlap = box_iou(boxes, erased_boxes)
    comparable = (image[:, None] == of) & (labels[:, None] == erased_labels)
    best, claimed = torch.where(comparable, overlap, -1).max(dim=1)
    # Boxes that cover nothing claim a place of their own, so that they do not compete.
    claimed = torch.where(best >= RIGHT_IOU, claimed, len(erased_labels))
    order = torch.cat([one.scores for one in mined]).argsort(descending=True, stable=True)
    order = order[claimed[order].argsort(stable=True)]
    first = rank_in_group(claimed[order]) == 0
    right = torch.zeros_like(first)
    right[order] = first
    return right & (claimed < len(erased_labels))


def in_other_view(mined: Sequence[Detections], other: Sequence[Detections]) -> Tensor:
    """Which boxes of one view the other view mined, too (same class, IoU >= 0.5).

    Returns:
        [P] bool for the P boxes of ``mined``, image after image.
    """
    device = mined[0].boxes.device
    boxes, labels, image = _flat(mined, device)
    other_boxes, other_labels, of = _flat(other, device)
    if not len(labels) or not len(other_labels):
        return torch.zeros(len(labels), dtype=torch.bool, device=device)
    comparable = (image[:, None] == of) & (labels[:, None] == other_labels)
    close: Tensor = box_iou(boxes, other_boxes) >= RIGHT_IOU
    return (close & comparable).any(dim=1)


def _flat(
    of_images: Sequence[Detections] | Sequence[Targets], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [P, 4], labels [P] and images [P] of B images in a row."""
    counts = torch.tensor([len(one) for one in of_images])
    image = torch.arange(len(of_images)).repeat_interleave(counts).to(device)
    return (
        torch.cat([one.boxes for one in of_images]),
        torch.cat([one.labels for one in of_images]),
        image,
    )


@dataclass
class MiningFigures:
    """What a :class:`MiningScore` comes to; None where there is nothing to divide by."""

    together: Figures  # means over the views that mine
    views: dict[str, Figures]
    classes: list[Figures]  # K, over all views: pseudo-labels per image, precision, recall


class MiningScore(Metric):
    """How much each view mines, where candidates get lost, and how right the rest is.

    Everything is a sum over images (but one maximum), kept on the device: adding a batch waits
    for nothing, and processes add up.

    Args:
        views: that are trained on, in the order of the rows.
        num_classes: K.
    """

    full_state_update = False
    sums: Tensor  # [V, len(SUMS)] float64
    most: Tensor  # [V] float64: pseudo-labels of one image, at the most
    classes: Tensor  # [3, K] float64: mined, right, erased, of all views

    def __init__(self, views: Sequence[str], num_classes: int) -> None:
        super().__init__()
        self.views = tuple(views)
        shape = (len(self.views), len(SUMS))
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        most = torch.zeros(len(self.views), dtype=torch.float64)
        self.add_state("most", most, dist_reduce_fx="max")
        classes = torch.zeros(3, num_classes, dtype=torch.float64)
        self.add_state("classes", classes, dist_reduce_fx="sum")

    def update(self, sums: Tensor, most: Tensor, classes: Tensor) -> None:
        """Add what :meth:`measure` returned for some images."""
        self.sums += sums
        self.most = torch.maximum(self.most, most)
        self.classes += classes

    def measure(self, result: StepResult, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of one batch, to be added to any number of scores."""
        device = self.sums.device
        sums, most, classes = (
            torch.zeros_like(state) for state in (self.sums, self.most, self.classes)
        )
        for row, view in enumerate(self.views):
            if view not in result.mined:
                continue
            mined = result.mined[view]
            kinds = judge(mined, batch.erased, batch.targets)
            known = {
                "images": len(mined),
                "mined": len(kinds),
                "erased": sum(map(len, batch.erased)),
                "kept": sum(map(len, batch.targets)),
            }
            for name, value in known.items():
                sums[row, SUMS.index(name)] = value
            first = SUMS.index(KINDS[0])
            sums[row, first : first + len(KINDS)] = (
                kinds[:, None] == torch.arange(len(KINDS), device=device)
            ).sum(dim=0)
            sums[row, SUMS.index("score_sum")] = torch.cat([one.scores for one in mined]).sum()
            others = [other for name, other in result.mined.items() if name != view]
            if others:
                sums[row, SUMS.index("in_other_view")] = in_other_view(mined, others[0]).sum()
            if view in result.passed:
                passed = result.passed[view].sum(dim=0)
                sums[row, -len(STAGES) :] = (passed[:-1] - passed[1:]).to(sums.dtype)
            most[row] = max(map(len, mined))
            labels = torch.cat([one.labels for one in mined])
            right = (kinds == KINDS.index("right")).to(classes.dtype)
            classes[0].index_add_(0, labels, torch.ones_like(right))
            classes[1].index_add_(0, labels, right)
            erased = torch.cat([one.labels for one in batch.erased])
            ones = torch.ones(len(erased), dtype=classes.dtype, device=device)
            classes[2].index_add_(0, erased, ones)
        return sums, most, classes

    def compute(self) -> MiningFigures:
        """Over all processes."""
        rows = dict(zip(self.views, zip(self.sums.tolist(), self.most.tolist()), strict=True))
        images = self.sums[:, SUMS.index("images")].sum().item()
        return MiningFigures(
            together=_figures(self.sums.sum(dim=0).tolist(), self.most.max().item()),
            views={view: _figures(row, most) for view, (row, most) in rows.items()},
            classes=[
                {
                    "pseudo_labels_per_image": _ratio(mined, images),
                    "precision": _ratio(right, mined),
                    "recall": _ratio(right, erased),
                }
                for mined, right, erased in self.classes.T.tolist()
            ],
        )


def headline(figures: Mapping[str, float | None]) -> Figures:
    """The three figures that tell most."""
    return {k: figures[k] for k in ("pseudo_labels_per_image", "precision", "recall")}


def _figures(row: Sequence[float], most: float) -> Figures:
    n = dict(zip(SUMS, row, strict=True))
    return {
        "pseudo_labels_per_image": _ratio(n["mined"], n["images"]),
        "pseudo_labels_max": most if n["images"] else None,
        "share_of_targets": _ratio(n["mined"], n["mined"] + n["kept"]),
        "score": _ratio(n["score_sum"], n["mined"]),
        "agreement": _ratio(n["in_other_view"], n["mined"]),
        "precision": _ratio(n["right"], n["mined"]),
        "recall": _ratio(n["right"], n["erased"]),
        **{kind: _ratio(n[kind], n["mined"]) for kind in KINDS[1:]},
        **{f"dropped_by_{stage}": _ratio(n[stage], n["images"]) for stage in STAGES},
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
