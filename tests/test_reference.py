"""Every number that the authors' code computed must come out of ours."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from comining.methods.method import Supervision
from comining.ops import suppress
from comining.structures import Boxes, DensePredictions
from tests.helpers import batch_of, detector, method

FOLDER = Path(os.environ.get("COMINING_REFERENCE", Path(__file__).parent / "reference"))
CASES = sorted(FOLDER.glob("*.npz"))
VIEWS = ("original", "augmented")


class Case:
    """One file of inputs and of the authors' results."""

    def __init__(self, path: Path):
        self.data = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
        self.anchor_based = "anchors" in self.data
        kind = "anchors" if self.anchor_based else "points"
        self.per_level = self.data[f"num_{kind}_per_level"].tolist()
        if self.anchor_based:
            self.anchors = self.data["anchors"]
        else:
            half = self.data["strides"].unsqueeze(1) / 2
            self.anchors = torch.cat([self.data["points"] - half, self.data["points"] + half], 1)
        self.detector = detector("retinanet" if self.anchor_based else "fcos", num_classes=5)
        numbers = range(len(self.data["logits_original"]))
        self.annotated = Boxes.of_images(
            [self.data[f"gt_boxes_{i}"].reshape(-1, 4) for i in numbers],
            [self.data[f"gt_labels_{i}"] for i in numbers],
        )
        self.method = method(
            "comining",
            score_threshold=self.data["tau"].item(),
            overlap_threshold=self.data["theta2"].item(),
            nms_threshold=0.5 if self.anchor_based else 0.6,
            clip_boxes=False,
        )

    def inputs(self, *views: str) -> dict[str, Tensor]:
        """Leaves with a gradient: raw outputs of the head for these views, view after view."""
        names = ("logits", "deltas") if self.anchor_based else ("logits", "deltas", "centerness")
        return {
            name: torch.cat(
                [
                    self.logits_without_ties(view)
                    if name == "logits"
                    else self.data[f"{name}_{view}"]
                    for view in views
                ]
            ).requires_grad_()
            for name in names
        }

    def logits_without_ties(self, view: str) -> Tensor:
        """The logits of a view, equal ones told apart as in the authors' run.

        Some inputs hold exactly equal logits. Which of them NMS meets first is up to an unstable
        sort, and differs between processors; the algorithm does not say. Nudges of less than 1e-4
        make the authors' order the only one: first what they kept, as they listed it.
        """
        logits = self.data[f"logits_{view}"].clone()
        threshold = self.data["tau"].logit()
        for image, rows in enumerate(logits):
            kept = self.data[f"pseudo_{view}_boxes_{image}"].reshape(-1, 4)
            labels = self.data[f"pseudo_{view}_labels_{image}"]
            values, counts = rows[rows > threshold].unique(return_counts=True)
            for value in values[counts > 1]:
                anchor, label = (rows == value).nonzero(as_tuple=True)
                deltas = self.data[f"deltas_{view}"][image, anchor]
                if not self.anchor_based:
                    deltas = deltas / self.data["strides"][anchor].unsqueeze(-1)
                boxes = self.detector.decode_boxes(deltas, self.anchors[anchor])
                same = (boxes[:, None] - kept).abs().amax(dim=-1) < 1e-3
                same &= label[:, None] == labels
                place = torch.where(same.any(1), same.int().argmax(1), len(kept))
                rows[anchor, label] = value - 3e-6 * (1 + place)
        return logits

    def predictions(self, inputs: dict[str, Tensor]) -> DensePredictions:
        deltas = inputs["deltas"]
        if not self.anchor_based:  # theirs are pixels, torchvision's are strides
            deltas = deltas / self.data["strides"].unsqueeze(-1)
        height, width = self.data["image_size"].tolist()
        return DensePredictions(
            logits=inputs["logits"],
            deltas=deltas,
            anchors=self.anchors,
            anchors_per_level=self.per_level,
            image_sizes=[(height, width)] * len(deltas),
            auxiliary={n: inputs[n].squeeze(-1) for n in self.detector.auxiliary_outputs.values()},
        )

    def targets(self) -> Mapping[str, Boxes]:
        """Annotations and exchanged pseudo-labels of every view."""
        predictions = self.predictions(self.inputs(*VIEWS))
        batch = batch_of(self.annotated)
        supervision: Supervision = self.method.supervise(
            self.detector, predictions, {}, batch, step=0
        )
        return {view: supervision.targets(view, self.annotated) for view in VIEWS}


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_there_are_cases_of_both_detectors() -> None:
    assert {path.stem.split("-")[0] for path in CASES} >= {"retinanet", "fcos"}


@pytest.mark.parametrize("view", VIEWS)
def test_pseudo_labels_before_the_drop_step(case: Case, view: str) -> None:
    predictions = case.predictions(case.inputs(view))
    miner = case.method.miner
    candidates = case.detector.candidates(predictions, miner.score_threshold)
    kept = suppress(candidates, 5, miner.nms_threshold, miner.max_per_image)
    assert kept.num_images == case.annotated.num_images
    for i, one in enumerate(kept.split()):
        assert one.labels.tolist() == case.data[f"pseudo_{view}_labels_{i}"].tolist()
        torch.testing.assert_close(
            one.boxes, case.data[f"pseudo_{view}_boxes_{i}"], atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            one.known_scores, case.data[f"pseudo_{view}_scores_{i}"], atol=2e-5, rtol=0
        )


def test_merged_targets_are_exchanged(case: Case) -> None:
    targets = case.targets()
    for view in VIEWS:
        assert targets[view].num_images == case.annotated.num_images
        for i, target in enumerate(targets[view].split()):
            assert target.labels.tolist() == case.data[f"targets_{view}_labels_{i}"].tolist()
            torch.testing.assert_close(
                target.boxes, case.data[f"targets_{view}_boxes_{i}"], atol=1e-3, rtol=0
            )


@pytest.mark.parametrize("view", VIEWS)
def test_assignment_losses_and_gradients(case: Case, view: str) -> None:
    inputs = case.inputs(view)
    predictions = case.predictions(inputs)
    targets = case.targets()[view]
    assignment = case.detector.assign(predictions, targets)
    assert torch.equal(assignment.labels, case.data[f"assigned_{view}"])

    losses = case.detector.losses(predictions, targets)
    terms = {"classification": "cls", "box": "reg", "centerness": "ctr"}
    assert len(losses) == (2 if case.anchor_based else 3)
    for name, value in losses.items():
        torch.testing.assert_close(
            value, case.data[f"loss_{terms[name]}_{view}"], rtol=1e-4, atol=1e-7
        )
    torch.stack(list(losses.values())).sum().backward()
    for name, leaf in inputs.items():
        assert leaf.grad is not None
        expected = case.data[f"grad_{name}_{view}_sum"]
        torch.testing.assert_close(leaf.grad.abs().sum(), expected, rtol=1e-4, atol=1e-7)


def test_the_method_puts_the_steps_together(case: Case) -> None:
    """From head outputs to the sum of Eq. 2, by the code that trains."""

    inputs = case.inputs(*VIEWS)
    case.detector.predict = lambda images: case.predictions(inputs)  # type: ignore[method-assign]
    images = {view: [torch.empty(0)] * case.annotated.num_images for view in VIEWS}
    result = case.method(case.detector, images, batch_of(case.annotated), step=0)
    expected = sum(case.data[key] for key in case.data if key.startswith("loss_"))
    torch.testing.assert_close(result.total, expected, rtol=1e-4, atol=1e-7)
