"""The quality of proposals where the missing objects are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from comining.completion.decisions import Decision
from comining.completion.proposal_folder import ProposalFolder, RateEstimate
from comining.completion.proposals import Proposal, with_precision
from comining.data.dataset import TrainingSet
from comining.data.formats.coco import read_coco
from comining.errors import DataError

RIGHT_OVERLAP = 0.5
CALIBRATION_BINS = 10
PRECISIONS = (0.9, 0.75, 0.5)


@dataclass(frozen=True)
class Truth:
    """The missing objects by image id: category ids [n] and boxes [n, 4] xyxy px."""

    objects: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]]
    annotated: Mapping[str, int]  # of each class, how many are annotated
    missing: Mapping[str, int]  # and how many are not

    @classmethod
    def of_training(cls, train: TrainingSet) -> Truth:
        """The annotations that sparsity has erased from a training set.

        Raises:
            DataError: nothing was erased.
        """
        if not train.knows_truth:
            raise DataError(
                f"{train.annotations.path}: nothing was erased from it, so the missing objects are "
                "unknown; --truth FILE names a COCO file with all objects"
            )
        annotations = train.annotations
        ids = np.array(annotations.categories.ids, dtype=np.int64)
        objects = {
            int(image_id): (ids[annotations.labels[rows]], annotations.boxes[rows])
            for image_id, rows in zip(annotations.image_ids, train.erased_rows, strict=True)
        }
        kept, erased = (
            np.bincount(annotations.labels[rows], minlength=len(ids))
            for rows in (train.kept, np.concatenate(train.erased_rows))
        )
        return cls.of_counts(objects, annotations.categories.names, kept, erased)

    @classmethod
    def of_file(cls, file: Path, folder: ProposalFolder) -> Truth:
        """The objects of a complete COCO file that are not among the folder's annotations."""
        complete, known = read_coco(file), folder.annotations
        if complete.categories != known.categories:
            raise DataError(f"{file}: its categories are not those of {known.path}")
        position = {image_id: n for n, image_id in enumerate(complete.image_ids.tolist())}
        ids = np.array(known.categories.ids, dtype=np.int64)
        objects = {}
        count = len(ids)
        missing, annotated = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for image, image_id in enumerate(known.image_ids.tolist()):
            if image_id not in position:
                raise DataError(f"{file}: it has no image {image_id}")
            rows = (complete.image == position[image_id]) & ~complete.crowd
            own = (known.image == image) & ~known.crowd
            labels, boxes = complete.labels[rows], complete.boxes[rows]
            covered = _covered(labels, boxes, known.labels[own], known.boxes[own])
            objects[image_id] = (ids[labels[~covered]], boxes[~covered])
            missing += np.bincount(labels[~covered], minlength=count)
            annotated += np.bincount(known.labels[own], minlength=count)
        return cls.of_counts(objects, known.categories.names, annotated, missing)

    @classmethod
    def of_counts(
        cls,
        objects: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]],
        names: Sequence[str],
        annotated: NDArray[np.int64],
        missing: NDArray[np.int64],
    ) -> Truth:
        """Create it from numbers [K] of the classes."""
        return cls(
            objects,
            dict(zip(names, annotated.tolist(), strict=True)),
            dict(zip(names, missing.tolist(), strict=True)),
        )

    @property
    def number(self) -> int:
        """How many objects are missing."""
        return sum(self.missing.values())


def _covered(
    labels: NDArray[np.int64],
    boxes: NDArray[np.float64],
    known_labels: NDArray[np.int64],
    known_boxes: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which boxes match an annotated one, each of which is matched once."""
    overlap = _overlap(boxes, known_boxes)
    overlap[labels[:, None] != known_labels] = 0
    covered = np.zeros(len(labels), dtype=np.bool_)
    for column in range(len(known_labels)):
        free = np.where(covered, 0, overlap[:, column])
        if len(free) and free.max() > 0.9:
            covered[free.argmax()] = True
    return covered


def _overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy())


def right_ones(
    proposals: Sequence[Proposal], truth: Truth, correct_boxes: bool = False
) -> tuple[NDArray[np.bool_], list[Decision]]:
    """Which proposals are missing objects, and the decisions of a perfect reviewer.

    A proposal is right if it covers a missing object of its class with an IoU of at least 0.5, and
    no earlier proposal does; the reviewer changes the class if it covers one of another class.

    Args:
        proposals: in the order in which they are decided on.
        correct_boxes: the reviewer gives the object's own box in place of the proposed one.
    """
    taken: dict[int, NDArray[np.bool_]] = {
        image_id: np.zeros(len(labels), dtype=np.bool_)
        for image_id, (labels, _) in truth.objects.items()
    }
    right = np.zeros(len(proposals), dtype=np.bool_)
    decisions = []

    def corrected(corners: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
        x1, y1, x2, y2 = map(float, corners)
        return (x1, y1, x2 - x1, y2 - y1) if correct_boxes else None

    for row, proposal in enumerate(proposals):
        categories, boxes = truth.objects[proposal.image_id]
        left, top, width, height = proposal.bbox
        box = np.array([[left, top, left + width, top + height]], dtype=np.float64)
        overlap = _overlap(box, boxes)[0] if len(boxes) else np.zeros(0)
        overlap = np.where(taken[proposal.image_id], 0, overlap)
        own = np.where(categories == proposal.category_id, overlap, 0)
        if len(own) and own.max() >= RIGHT_OVERLAP:
            right[row] = True
            best = int(own.argmax())
            taken[proposal.image_id][best] = True
            decisions.append(
                Decision(id=proposal.id, decision="accept", bbox=corrected(boxes[best]))
            )
        elif len(overlap) and overlap.max() >= RIGHT_OVERLAP:
            best = int(overlap.argmax())
            taken[proposal.image_id][best] = True
            decisions.append(
                Decision(
                    id=proposal.id,
                    decision="class",
                    category_id=int(categories[best]),
                    bbox=corrected(boxes[best]),
                )
            )
        else:
            decisions.append(Decision(id=proposal.id, decision="reject"))
    return right, decisions


@dataclass(frozen=True)
class Judgement:
    """The quality of proposals.

    Args:
        cuts: for each wanted precision, the number of chosen proposals, their true precision and
            recall.
        calibration: rows of mean probability, share of right proposals and count, one per bin.
        calibration_error: expected calibration error (Naeini et al., AAAI 2015).
        rates: of each class, the true rate and the estimate, if there is one.
    """

    count: int
    number_missing: int
    number_right: int
    cuts: dict[float, tuple[int, float, float]]
    calibration: list[tuple[float, float, int]]
    calibration_error: float
    rates: dict[str, tuple[float, RateEstimate | None]]


def judge(folder: ProposalFolder, truth: Truth) -> Judgement:
    """Compare proposals with the missing objects."""
    likely = sorted(folder.proposals, key=lambda one: (-one.probability, -one.score, one.id))
    right, _ = right_ones(likely, truth)
    of_id = {one.id: bool(r) for one, r in zip(likely, right, strict=True)}
    cuts = {}
    for precision in PRECISIONS:
        taken = [of_id[one.id] for one in with_precision(likely, precision)]
        share = float(np.mean(taken)) if taken else float("nan")
        cuts[precision] = (len(taken), share, sum(taken) / max(truth.number, 1))
    probability = np.array([one.probability for one in likely])
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    calibration, error = [], 0.0
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        if inside.any():
            expected, true = float(probability[inside].mean()), float(right[inside].mean())
            calibration.append((expected, true, int(inside.sum())))
            error += abs(expected - true) * float(inside.mean())
    rates = {
        name: (
            truth.annotated[name] / max(truth.annotated[name] + truth.missing[name], 1),
            folder.source.rates.get(name),
        )
        for name in folder.source.classes
    }
    return Judgement(len(likely), truth.number, int(right.sum()), cuts, calibration, error, rates)


def judgement_lines(judged: Judgement) -> list[str]:
    """A judgement as Markdown."""
    lines = [
        f"{judged.count} proposals, {judged.number_missing} missing objects, of which "
        f"{judged.number_right} are proposed",
        "",
        "| wanted precision | proposals | true precision | recall |",
        "|---|---|---|---|",
    ]
    for precision, (count, share, recall) in judged.cuts.items():
        true = f"{share:.2f}" if count else "-"
        lines.append(f"| {precision:g} | {count} | {true} | {recall:.2f} |")
    lines += [
        "",
        f"Expected calibration error: {judged.calibration_error:.3f}",
        "",
        "| probability | right | proposals |",
        "|---|---|---|",
        *(f"| {p:.2f} | {true:.2f} | {count} |" for p, true, count in judged.calibration),
        "",
        "| class | truly annotated | estimate | interval |",
        "|---|---|---|---|",
    ]
    for name, (true_rate, estimate) in judged.rates.items():
        found = "-" if estimate is None else f"{estimate.rate:.2f}"
        interval = (
            "-" if estimate is None else f"{estimate.interval[0]:.2f} to {estimate.interval[1]:.2f}"
        )
        lines.append(f"| {name} | {true_rate:.2f} | {found} | {interval} |")
    return lines
