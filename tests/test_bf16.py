"""bf16 rounds what the network computes, and nothing of what is made of it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from comining.detectors.dense import DenseDetector
from comining.structures import Boxes
from tests.helpers import detector, images

HEIGHT, WIDTH = 96, 1344


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def half() -> torch.autocast:
    """What ``trainer.precision=bf16-mixed`` switches on."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def small_objects(count: int) -> Boxes:
    """Boxes of 8 to 32 px all over the image; bf16 knows every eighth number only beyond 1024."""
    generator = torch.Generator().manual_seed(0)
    corners, labels = [], []
    for _ in range(count):
        size = 8 + 24 * torch.rand(20, 2, generator=generator)
        corner = torch.rand(20, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - size)
        labels.append(torch.randint(3, (20,), generator=generator))
        corners.append(torch.cat([corner, corner + size], dim=1))
    return Boxes.of_images(corners, labels)


def bf16_anchors(built: DenseDetector) -> Tensor:
    """What torchvision makes of bf16 features."""
    net = copy.deepcopy(built.net)  # its generator would keep the rounded anchors
    batch = torch.zeros(1, 3, HEIGHT, WIDTH)
    features = [feature.bfloat16() for feature in net.backbone(batch).values()]
    anchors: Tensor = net.anchor_generator(ImageList(batch, [(HEIGHT, WIDTH)]), features)[0]
    return anchors.float()


def test_small_objects_are_assigned_as_in_float32(built: DenseDetector) -> None:
    truth = small_objects(2)
    exact = built.predict(images(2, HEIGHT, WIDTH))
    expected = built.assign(exact, truth)
    with half():
        rounded = built.predict(images(2, HEIGHT, WIDTH))
        assignment = built.assign(rounded, truth)
    assert not torch.equal(rounded.logits, exact.logits)  # bf16 was on
    assert torch.equal(rounded.anchors, exact.anchors)
    assert torch.equal(assignment.labels, expected.labels)
    positive = expected.positive
    assert positive.sum() > 50
    assert torch.equal(assignment.boxes[positive], expected.boxes[positive])
    # The trap is there: with torchvision's own anchors many would have been assigned otherwise.
    rounded.anchors = bf16_anchors(built)
    assert not torch.equal(rounded.anchors, exact.anchors)
    moved = built.assign(rounded, truth).labels
    assert (moved != expected.labels)[positive].float().mean() > 0.05


def test_what_leaves_the_network_is_float32(built: DenseDetector) -> None:
    with half():
        predictions = built.predict(images(1))
        candidates = built.candidates(predictions, 0.0)
        losses = built.losses(predictions, small_objects(1))
    for one in (predictions.logits, predictions.deltas, predictions.anchors, *losses.values()):
        assert one.dtype == torch.float32
    assert set(predictions.auxiliary) == set(built.auxiliary_outputs.values())
    assert all(part.dtype == torch.float32 for part in predictions.auxiliary.values())
    assert len(candidates)
    assert candidates.boxes.dtype == candidates.known_scores.dtype == torch.float32


def test_losses_are_near_those_of_float32(built: DenseDetector) -> None:
    batch, truth = images(2, HEIGHT, WIDTH), small_objects(2)

    def losses() -> Tensor:
        predictions = built.predict(batch)
        return torch.stack(list(built.losses(predictions, truth).values()))

    exact = losses()
    with half():
        rounded = losses()
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    rounded.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_inference_decodes_in_float32(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    built.eval()
    built.net.score_thresh = 0.0
    postprocess = built.net.postprocess_detections
    monkeypatch.setattr(
        built.net, "postprocess_detections", lambda *args: seen.append(args) or postprocess(*args)
    )
    exact = built.detect(images(1, 96, 144))
    with half():
        rounded = built.detect(images(1, 96, 144))
    for one in (exact, rounded):
        assert len(one)
        assert one.boxes.dtype == one.known_scores.dtype == torch.float32
    (outputs, anchors, _), (half_outputs, half_anchors, _) = seen
    for expected, level in zip(anchors[0], half_anchors[0], strict=True):
        assert torch.equal(level, expected)
    for name, levels in half_outputs.items():
        assert all(level.dtype == torch.float32 for level in levels)
        for expected, level in zip(outputs[name], levels, strict=True):
            torch.testing.assert_close(level, expected, atol=0.02, rtol=0.05)


def test_boxes_in_bf16_are_those_of_float32_to_less_than_a_pixel(
    built: DenseDetector,
) -> None:
    built.eval()
    batch = images(1, HEIGHT, WIDTH)
    with torch.no_grad():
        exact = built.predict(batch)
        with half():
            rounded = built.predict(batch)
    first = exact.anchors_per_level[0]  # the finest level
    boxes, others = (
        built.decode_boxes(one.deltas[0, :first], one.anchors[:first]) for one in (exact, rounded)
    )
    # Rounded are the deltas, a part in 256 of them; anchors would be off by 4 px at this width.
    assert (boxes - others).abs().max() < 1
