"""Judges mined boxes by the annotations that were erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from comining.ops import iou_in_image, rank_in_group, widest_float
from comining.structures import Batch, Boxes, StepResult

# A mined box is right if its IoU with an erased one of its class is at least this, as in AP50.
RIGHT_IOU = 0.5
# Below that, a box is poorly localised if its IoU with one of its class is at least this.
TOUCHING_IOU = 0.1

# What a mined box can be; :func:`judge` returns positions in this list.
KINDS = ("right", "duplicate", "wrong_class", "poor_localisation", "background")
# Where candidates are dropped: Step 1, Step 2, at the image border, Step 3.
STAGES = ("score", "nms", "border", "annotation")

# Sums over images, for every view; kinds and erased ones only where they can be judged.
COUNTED = ("erased", "kept", "score_sum", "in_other_view")
SUMS = ("images", "mined", "judged", *KINDS, *COUNTED, *STAGES)

Figures = dict[str, float | None]


def judge(mined: Boxes, erased: Boxes, annotated: Boxes) -> Tensor:
    """What kind of box every pseudo-label is.

    ``right``: an erased annotation of its class, found again (IoU >= 0.5, one to one: the best of
    several). ``duplicate``: as good, but of an annotation that was kept, or that a better box has
    found. ``wrong_class``: it covers an annotation of another class. ``poor_localisation``: it
    touches one of its class (IoU 0.1 ... 0.5). ``background``: none of these.

    Args:
        mined, erased, annotated: of the same B images.

    Returns:
        [N] int64 positions in :data:`KINDS`, for the N mined boxes.
    """
    same = torch.zeros_like(mined.boxes[:, 0])
    other = torch.zeros_like(same)
    for truth in (erased, annotated):
        iou, labels = iou_in_image(mined, truth)
        equal = labels == mined.labels[:, None]
        same = torch.maximum(same, (iou * equal).amax(dim=1))
        other = torch.maximum(other, (iou * ~equal).amax(dim=1))
    kind = torch.full_like(mined.labels, KINDS.index("background"))
    kind[same >= TOUCHING_IOU] = KINDS.index("poor_localisation")
    kind[other >= RIGHT_IOU] = KINDS.index("wrong_class")
    kind[same >= RIGHT_IOU] = KINDS.index("duplicate")
    kind[are_right(mined, erased)] = KINDS.index("right")
    return kind


def are_right(mined: Boxes, erased: Boxes) -> Tensor:
    """Which mined boxes are erased annotations, found again.

    One to one: of several boxes on the same erased annotation, only the best is right.

    Args:
        mined: with scores.
        erased: of the same B images.

    Returns:
        [N] bool for the N mined boxes.
    """
    iou, labels = iou_in_image(mined, erased)
    best, claimed = torch.where(labels == mined.labels[:, None], iou, -1).max(dim=1)
    claimed = mined.image * iou.shape[1] + claimed
    # Boxes that cover nothing get an index of their own, so that they do not compete.
    nothing = erased.num_images * iou.shape[1]
    claimed = torch.where(best >= RIGHT_IOU, claimed, nothing)
    order = mined.known_scores.argsort(descending=True, stable=True)
    order = order[claimed[order].argsort(stable=True)]
    first = rank_in_group(claimed[order]) == 0
    right = torch.zeros_like(first)
    right[order] = first
    return right & (claimed < nothing)


def in_other_view(mined: Boxes, other: Boxes) -> Tensor:
    """Which boxes of one view were mined in the other view, too (same class, IoU >= 0.5).

    Returns:
        [N] bool for the N boxes of ``mined``.
    """
    iou, labels = iou_in_image(mined, other)
    return ((iou >= RIGHT_IOU) & (labels == mined.labels[:, None])).any(dim=1)


@dataclass
class MiningFigures:
    """The results of a :class:`MiningScore`; None where the divisor is 0.

    Shares of right and wrong boxes refer to the pseudo-labels that can be judged, see
    :class:`Batch`: on data without erased annotations there are none.
    """

    together: Figures  # means over the views that mine
    views: dict[str, Figures]
    classes: list[Figures]  # K, over all views: pseudo-labels per image, precision, recall


class MiningScore(Metric):
    """How much each view mines, where candidates are dropped, and how many of the rest are right.

    Everything is a sum over images (except one maximum), kept on the device: adding a batch does
    not synchronise with it, and processes add up.

    Args:
        views: the training views, in the order of the rows.
        num_classes: K.
        device: where the sums are kept, in float64 if it supports that.
    """

    full_state_update = False
    sums: Tensor  # [V, len(SUMS)] float
    most: Tensor  # [V] float: largest number of pseudo-labels of one image
    classes: Tensor  # [4, K] float: mined, judged, right, erased, of all views

    def __init__(
        self, views: Sequence[str], num_classes: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.views = tuple(views)
        device = torch.device(device)
        dtype = widest_float(device)
        shape = (len(self.views), len(SUMS))
        self.add_state("sums", torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        most = torch.zeros(len(self.views), dtype=dtype)
        self.add_state("most", most, dist_reduce_fx="max")
        classes = torch.zeros(4, num_classes, dtype=dtype)
        self.add_state("classes", classes, dist_reduce_fx="sum")
        self.to(device)

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
            if view not in result.pseudo_labels:
                continue
            mined = result.pseudo_labels[view]
            kinds = judge(mined, batch.erased, batch.annotated)
            judged = batch.judged[mined.image, mined.labels]
            erased = batch.judged[batch.erased.image, batch.erased.labels]
            known: dict[str, float | Tensor] = {
                "images": mined.num_images,
                "mined": len(mined),
                "judged": judged.sum(),
                "erased": erased.sum(),
                "kept": len(batch.annotated),
            }
            for name, value in known.items():
                sums[row, SUMS.index(name)] = value
            first = SUMS.index(KINDS[0])
            of_kind = kinds[:, None] == torch.arange(len(KINDS), device=device)
            sums[row, first : first + len(KINDS)] = (of_kind & judged[:, None]).sum(dim=0)
            sums[row, SUMS.index("score_sum")] = mined.known_scores.sum()
            others = [other for name, other in result.pseudo_labels.items() if name != view]
            if others:
                sums[row, SUMS.index("in_other_view")] = in_other_view(mined, others[0]).sum()
            if view in result.remaining_counts:
                remaining = result.remaining_counts[view].sum(dim=0)
                sums[row, -len(STAGES) :] = (remaining[:-1] - remaining[1:]).to(sums.dtype)
            most[row] = mined.counts_on_device().max()
            right = (kinds == KINDS.index("right")) & judged
            for number, (labels, counted) in enumerate(
                (
                    (mined.labels, torch.ones_like(judged)),
                    (mined.labels, judged),
                    (mined.labels, right),
                    (batch.erased.labels, erased),
                )
            ):
                classes[number].index_add_(0, labels, counted.to(classes.dtype))
        return sums, most, classes

    def compute(self) -> MiningFigures:
        """The figures over all processes."""
        rows = dict(zip(self.views, zip(self.sums.tolist(), self.most.tolist()), strict=True))
        images = self.sums[:, SUMS.index("images")].sum().item()
        return MiningFigures(
            together=_figures(self.sums.sum(dim=0).tolist(), self.most.max().item()),
            views={view: _figures(row, most) for view, (row, most) in rows.items()},
            classes=[
                {
                    "pseudo_labels_per_image": _ratio(mined, images),
                    "precision": _ratio(right, judged),
                    "recall": _ratio(right, erased),
                }
                for mined, judged, right, erased in self.classes.T.tolist()
            ],
        )


def headline(figures: Mapping[str, float | None]) -> Figures:
    """The three most important figures."""
    return {k: figures[k] for k in ("pseudo_labels_per_image", "precision", "recall")}


def _figures(row: Sequence[float], most: float) -> Figures:
    n = dict(zip(SUMS, row, strict=True))
    return {
        "pseudo_labels_per_image": _ratio(n["mined"], n["images"]),
        "pseudo_labels_max": most if n["images"] else None,
        "share_of_targets": _ratio(n["mined"], n["mined"] + n["kept"]),
        "score": _ratio(n["score_sum"], n["mined"]),
        "agreement": _ratio(n["in_other_view"], n["mined"]),
        "precision": _ratio(n["right"], n["judged"]),
        "recall": _ratio(n["right"], n["erased"]),
        **{kind: _ratio(n[kind], n["judged"]) for kind in KINDS[1:]},
        **{f"dropped_by_{stage}": _ratio(n[stage], n["images"]) for stage in STAGES},
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
