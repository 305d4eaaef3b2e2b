"""The detectors against torchvision's own code and against hand-made cases."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

import comining.detectors.dense as base
import comining.detectors.torchvision_detector as shared
from comining.detectors.dense import DenseDetector
from comining.detectors.detector import Background, Regions
from comining.ops import resized_shape
from comining.structures import Assignment, Boxes, DensePredictions
from tests.helpers import boxes, composed, detector, images, random_predictions

NAMES = ("retinanet", "fcos")


@pytest.fixture(params=NAMES)
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def crowd(count: int, seed: int, height: int = 64, width: int = 96) -> Boxes:
    """Random boxes of all sizes; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    corners, labels = [], []
    for number in range(count):
        amount = 0 if number == count - 1 else 12
        corner = torch.rand(amount, 2, generator=generator) * torch.tensor([width - 9, height - 9])
        size = 3 + torch.rand(amount, 2, generator=generator) ** 2 * 60
        end = torch.minimum(corner + size, torch.tensor([float(width), float(height)]))
        corners.append(torch.cat([corner, end], dim=1))
        labels.append(torch.randint(3, (amount,), generator=generator))
    return Boxes.of_images(corners, labels)


# -- the forward -------------------------------------------------------------------------


def test_predict_is_the_networks_own_forward(built: DenseDetector) -> None:
    batch = images(2)
    built.eval()
    with torch.no_grad():
        ours = built.predict(batch)
        padded, _ = built.net.transform([image / 255 for image in batch])
        assert padded.image_sizes == [(96, 144)] * 2  # the embedded set's size
        shrunk, _ = built.net.transform([image / 255 for image in images(2, 96, 144)])
        features = list(built.net.backbone(shrunk.tensors).values())
        theirs = built.net.head(features)
        anchors = built.net.anchor_generator(shrunk, features)
        ours = built.predict(images(2, 96, 144))
    torch.testing.assert_close(ours.logits, theirs["cls_logits"])
    torch.testing.assert_close(ours.deltas, theirs["bbox_regression"])
    assert torch.equal(ours.anchors, anchors[0])
    assert sum(ours.anchors_per_level) == len(ours.anchors) == ours.logits.shape[1]


def test_images_of_different_sizes_are_padded_with_neutral_grey(built: DenseDetector) -> None:
    small, large = images(1, 40, 50)[0], images(1, 64, 96)[0]
    batch = built._normalize_and_pad([small, large], [(40, 50), (64, 96)])
    assert batch.shape == (2, 3, 64, 96)
    assert batch[0, :, 40:].abs().sum() == 0
    assert batch[0, :, :, 50:].abs().sum() == 0
    expected = built.net.transform.normalize(small / 255)
    torch.testing.assert_close(batch[0, :, :40, :50], expected)


def test_anchors_are_made_once_for_a_padded_shape(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built.predict(images(1, 50, 70)).anchors
    assert built.predict(images(3, 64, 96)).anchors is first  # both are padded to 64 x 96
    others = [built.predict(images(1, 64, 128)).anchors, built.predict(images(1, 96, 64)).anchors]
    assert all(not torch.equal(first, one) for one in others)
    monkeypatch.setattr(shared, "MAX_ANCHOR_SHAPES", 3)
    built.predict(images(1, 32, 32))
    assert len(built.anchors_of) == 3
    again = built.predict(images(1, 64, 96)).anchors
    assert again is not first
    assert torch.equal(again, first)


def test_anchors_made_in_validation_can_be_trained_with(built: DenseDetector) -> None:
    """Lightning validates in inference mode, whose tensors autograd refuses."""
    built.eval()
    with torch.inference_mode():
        built.detect(images(1, 96, 144))
    built.train()
    predictions = built.predict(images(1, 96, 144))
    losses = built.losses(predictions, boxes([(8, 8, 60, 60, 1)]))
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in built.net.head.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("size", [(96, 144), (50, 200), (30, 30)])
def test_detections_are_those_of_torchvisions_forward(
    built: DenseDetector, size: tuple[int, int]
) -> None:
    built.eval()
    built.net.score_thresh = 0.0
    batch = [*images(2, *size), *images(1, 70, 60)]
    with torch.no_grad():
        expected = built.net([image.float() / 255 for image in batch])
    detections = built.detect(batch)
    assert detections.num_images == 3
    for one, other in zip(detections.split(), expected, strict=True):
        assert len(one)
        assert torch.equal(one.boxes, other["boxes"])
        assert torch.equal(one.labels, other["labels"])
        assert torch.equal(one.known_scores, other["scores"])


# -- options for speed -------------------------------------------------------------------


def losses_of(built: DenseDetector) -> Tensor:
    predictions = built.predict(images(2))
    losses = built.losses(predictions, crowd(3, 0).of_range(0, 2))
    return torch.stack(list(losses.values()))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_parts_keep_names_and_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real compiler takes a minute; what stands around it is the same for every backend.
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain = detector(name, 3)
    compiled = detector(name, 3, "detector.compile=true")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(compiled).state_dict().keys() == plain.state_dict().keys()
    expected, got = losses_of(plain), losses_of(compiled)
    torch.testing.assert_close(got, expected)
    assert len(graphs) == 3  # backbone, head and focal loss
    expected.sum().backward()
    got.sum().backward()
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_changes_the_layout_only(name: str) -> None:
    plain, other = detector(name, 3), detector(name, 3, "detector.channels_last=true")
    state = other.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    weight = other.net.head.classification_head.cls_logits.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    batch = other._normalize_and_pad(images(2), [(64, 96)] * 2)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(losses_of(other), losses_of(plain))
    plain.eval()
    other.eval()
    plain.net.score_thresh = other.net.score_thresh = 0.0
    one, two = plain.detect(images(1)), other.detect(images(1))
    assert len(one) > 10
    torch.testing.assert_close(one.known_scores, two.known_scores)


def test_views_of_one_forward_split_into_what_each_gives_alone(built: DenseDetector) -> None:
    batch = images(4)
    built.eval()
    with torch.no_grad():
        together = built.predict(batch).split(2)
        alone = [built.predict(batch[:2]), built.predict(batch[2:])]
    for part, one in zip(together, alone, strict=True):
        torch.testing.assert_close(part.logits, one.logits, atol=1e-5, rtol=1e-4)
        assert part.image_sizes == one.image_sizes


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_into_torchvisions_builder_and_detect_the_same(name: str) -> None:
    ours = detector(name, 5, "backbone=resnet50", "detector.score_threshold=0.0").eval()
    settings = {"weights": None, "weights_backbone": None, "num_classes": 5}
    sizes = {"min_size": ours.net.transform.min_size[0], "max_size": ours.net.transform.max_size}
    nms = composed(f"detector={name}").detector.nms_threshold
    tests = {"score_thresh": 0.0, "nms_thresh": nms, "detections_per_img": 100}
    theirs = getattr(torchvision_detection, f"{name}_resnet50_fpn")(**settings, **sizes, **tests)
    theirs.load_state_dict(ours.net.state_dict())
    theirs.eval()
    image = images(1, 64, 96)[0]
    found = ours.detect([image])
    with torch.no_grad():
        expected = theirs([image / 255])[0]
    assert len(found) > 10
    torch.testing.assert_close(found.boxes, expected["boxes"])
    torch.testing.assert_close(found.scores, expected["scores"])
    assert torch.equal(found.labels, expected["labels"])


def test_detect_gives_boxes_of_the_image_as_it_came(built: DenseDetector) -> None:
    built.eval()
    built.net.score_thresh = 0.0
    for height, width in ((50, 200), (30, 30)):
        found = built.detect(images(1, height, width))
        assert len(found)
        assert found.boxes[:, 2].max() <= width
        assert found.boxes[:, 3].max() <= height
    built.train()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        built.detect(images(1))


@pytest.mark.parametrize("size", [(3, 5000), (4000, 1), (2, 200_000)])
def test_strips_are_detected_in_as_they_are_trained_on(
    built: DenseDetector, size: tuple[int, int]
) -> None:
    """torchvision's own resize leaves a side of 0 px of them, and fails."""
    built.eval()
    built.net.score_thresh = 0.0
    strip = images(1, *size)[0]
    ordinary = images(2, 70, 60)
    limits = (built.net.transform.min_size[-1], built.net.transform.max_size)
    resized = built._resize(strip.float() / 255)
    assert min(resized.shape[-2:]) == 1
    assert resized.shape[-2:] == resized_shape(*size, *limits)
    with_strip = built.detect([ordinary[0], strip]).split()
    assert len(with_strip[1])
    limit = torch.tensor([size[1], size[0]] * 2) * (1 + 1e-6)
    assert (with_strip[1].boxes <= limit).all()
    assert (with_strip[1].boxes >= 0).all()
    with pytest.raises(RuntimeError, match="sizes should be greater than 0"):
        built.net([strip.float() / 255])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_frozen_parts_are_the_papers(name: str) -> None:
    net = detector("retinanet", 3, f"backbone={name}").net
    frozen = {key.split(".")[2] for key, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not [key for key, _ in net.named_parameters() if ".bn" in key]  # no batch norm learns
    assert net.anchor_generator.sizes[0][0] == 32


# -- assignment --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_retinanet_assignment_equals_torchvisions_matcher(seed: int) -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 3)
    truth = crowd(3, seed)
    assignment = built.assign(predictions, truth)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for image, one in enumerate(truth.split()):
        expected = torch.full((len(predictions.anchors),), 3)
        if len(one):
            matched = matcher(box_iou(one.boxes, predictions.anchors))
            expected = torch.where(matched >= 0, one.labels[matched.clamp(min=0)], expected)
            expected[matched == Matcher.BETWEEN_THRESHOLDS] = -1
            positive = matched >= 0
            assert positive.any()
            torch.testing.assert_close(
                assignment.boxes[image][positive], one.boxes[matched[positive]]
            )
        assert torch.equal(assignment.labels[image], expected)


def test_every_box_trains_an_anchor_however_small(built: DenseDetector) -> None:
    """RetinaNet by its low-quality matches; FCOS where a point falls into the box."""
    truth = boxes([(42, 22, 50, 34, 1)], [(0, 0, 96, 64, 2)])
    assignment = built.assign(random_predictions(built, 2), truth)
    assert [set(row[p].tolist()) for row, p in zip(assignment.labels, assignment.positive)] == [
        {1},
        {2},
    ]


def test_fcos_assignment_by_hand() -> None:
    built = detector("fcos", 3)
    predictions = random_predictions(built, 1)
    # Points of level 0 lie at multiples of 8, those of level 1 at multiples of 16.
    large = (3.0, 0.0, 93.0, 64.0, 0)  # near its centre (48, 32) no side is 64 px away: level 0
    small = (44.0, 28.0, 60.0, 44.0, 1)  # inside, wins where they compete
    assignment = built.assign(predictions, boxes([large, small]))
    first = predictions.anchors_per_level[0]
    centres = predictions.anchors[:first, :2] + 4
    near = ((centres - torch.tensor([48.0, 32.0])).abs() < 12).all(1)  # 1.5 strides of 8 px
    inside = ((centres > torch.tensor([44.0, 28.0])) & (centres < torch.tensor([60.0, 44.0]))).all(
        1
    )
    near_small = ((centres - torch.tensor([52.0, 36.0])).abs() < 12).all(1) & inside
    expected = torch.full((first,), 3)
    expected[near] = 0
    expected[near_small] = 1
    assert set(expected.tolist()) == {0, 1, 3}
    assert torch.equal(assignment.labels[0, :first], expected)
    assert (assignment.labels[0, first:] == 3).all()


def test_fcos_sends_large_boxes_to_higher_levels() -> None:
    built = detector("fcos", 3)
    predictions = random_predictions(built, 1, 256, 256)
    assignment = built.assign(predictions, boxes([(0, 0, 256, 256, 2)]))  # 128 px to each side
    level = assignment.positive[0].split(predictions.anchors_per_level)
    assert [bool(part.any()) for part in level] == [False, True, True, False]  # 64-128, 128-256


@pytest.mark.parametrize("pairs", [1, 20_000])
def test_memory_bound_does_not_change_the_result(
    built: DenseDetector, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    predictions, truth = random_predictions(built, 5), crowd(5, 1)
    order = torch.tensor([n for count in truth.counts for n in range(count)])
    truth = truth[order < 3 * truth.image]
    assert truth.counts == [0, 3, 6, 9, 0]
    sizes: list[int] = []
    match = built.match

    def watched(predictions: DensePredictions, boxes: Tensor, labels: Tensor) -> Any:
        sizes.append(len(labels))
        assert labels.numel() * len(predictions.anchors) <= pairs or len(labels) == 1
        return match(predictions, boxes, labels)

    whole = built.assign(predictions, truth)
    monkeypatch.setattr(base, "MAX_PAIRS", {"cpu": pairs})
    monkeypatch.setattr(built, "match", watched)
    parts = built.assign(predictions, truth)
    assert sum(sizes) == 5
    assert torch.equal(whole.labels, parts.labels)
    positive = whole.positive
    assert torch.equal(whole.boxes[positive], parts.boxes[positive])


def test_a_batch_is_cut_where_a_part_would_grow_too_large() -> None:
    def parts(*counts: int) -> list[tuple[int, int]]:
        return [(part.start, part.stop) for part in base.chunks(counts, limit=10)]

    assert parts(2, 2, 2, 2, 2) == [(0, 5)]
    assert parts(2, 2, 2, 4, 2) == [(0, 3), (3, 5)]  # four images with room for 4 need 16
    assert parts(99, 1, 1) == [(0, 1), (1, 3)]
    assert parts(*[0] * 12) == [(0, 10), (10, 12)]


def test_a_box_more_in_one_image_does_not_touch_the_others(built: DenseDetector) -> None:
    predictions = random_predictions(built, 2)
    few = built.assign(predictions, boxes([(8, 8, 40, 40, 0)], []))
    rows = [(2.0 * k, 5.0, 2.0 * k + 20, 30.0, 1) for k in range(30)]
    many = built.assign(predictions, boxes([(8, 8, 40, 40, 0)], rows))
    assert torch.equal(few.labels[0], many.labels[0])


# -- losses ------------------------------------------------------------------------------


def test_retinanet_losses_equal_torchvisions_for_one_image() -> None:
    """Of one image torchvision's mean of ratios and our ratio of sums are the same number."""
    built = detector("retinanet", 3, "detector.smooth_l1_beta=1e-9")
    predictions = random_predictions(built, 2)
    truth = crowd(3, 0).of_image(0)
    one = predictions.split(1)[0]
    ours = built.losses(one, truth)
    matched = built.net.proposal_matcher(box_iou(truth.boxes, one.anchors))
    heads = {"cls_logits": one.logits, "bbox_regression": one.deltas}
    wanted = [{"boxes": truth.boxes, "labels": truth.labels}]
    theirs = built.net.head.compute_loss(wanted, heads, [one.anchors], [matched])
    torch.testing.assert_close(ours["classification"], theirs["classification"])
    # torchvision's L1 is the limit of the smooth L1 for beta to 0
    torch.testing.assert_close(ours["box"], theirs["bbox_regression"], rtol=1e-4, atol=0)


def test_losses_are_sums_over_the_batch_by_its_positives(built: DenseDetector) -> None:
    predictions, truth = random_predictions(built, 2), crowd(3, 2).of_range(0, 2)
    both = built.losses(predictions, truth)["classification"]
    parts, positives = [], []
    for one, target in zip(predictions.split(1), truth.split(), strict=True):
        positives.append(built.assign(one, target).positive.sum())
        parts.append(built.losses(one, target)["classification"] * positives[-1])
    assert positives[0] != positives[1]
    torch.testing.assert_close(both, sum(parts) / sum(positives))


def test_an_image_without_boxes_is_all_background(built: DenseDetector) -> None:
    predictions = random_predictions(built, 2)
    predictions.logits.requires_grad_()
    predictions.deltas.requires_grad_()
    nothing = boxes([], [])
    assert (built.assign(predictions, nothing).labels == 3).all()
    losses = built.losses(predictions, nothing)
    assert losses["classification"] > 0
    assert losses["box"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(predictions.logits.grad).all()


@pytest.mark.parametrize("shape", ["anchor", "class"])
def test_weights_act_on_the_classification_only(built: DenseDetector, shape: str) -> None:
    predictions, truth = random_predictions(built, 2), crowd(3, 2).of_range(0, 2)
    plain = built.losses(predictions, truth)

    def weighted(weight: float) -> dict[str, Tensor]:
        def background(regions: Regions) -> Background:
            size = regions.labels.shape if shape == "anchor" else regions.logits.shape
            return Background(torch.full(size, weight))

        return built.losses(predictions, truth, background)

    assert_same(weighted(1.0), plain)
    assert_same(built.losses(predictions, truth, lambda regions: Background()), plain)
    halved = weighted(0.5)
    torch.testing.assert_close(halved.pop("classification"), plain.pop("classification") / 2)
    assert_same(halved, plain)


def test_a_background_rule_sees_the_regions_of_its_branch_once(built: DenseDetector) -> None:
    predictions, truth = random_predictions(built, 2), crowd(3, 2).of_range(0, 2)
    seen: list[Regions] = []

    def background(regions: Regions) -> Background:
        seen.append(regions)
        return Background()

    built.losses(predictions, truth, background)
    (regions,) = seen
    assignment = built.assign(predictions, truth)
    assert regions.num_classes == 3
    assert torch.equal(regions.logits, predictions.logits)
    assert torch.equal(regions.labels, assignment.labels)
    assert torch.equal(regions.positive, assignment.positive)
    assert torch.equal(regions.negative, assignment.labels == 3)
    assert torch.equal(regions.anchors, predictions.anchors)
    assert torch.equal(regions.overlap(truth), built.overlap(predictions, truth))
    others = crowd(3, 4).of_range(1, 3)
    assert torch.equal(regions.assign(others), built.assign(predictions, others).labels)


def test_further_losses_of_the_background_are_divided_by_the_positives(
    built: DenseDetector,
) -> None:
    predictions, truth = random_predictions(built, 2), crowd(3, 2).of_range(0, 2)
    further = {"confusion": torch.tensor(30.0), "other": torch.tensor(-1.5)}
    losses = built.losses(predictions, truth, lambda regions: Background(terms=further))
    positives = built.assign(predictions, truth).positive.sum()
    assert positives > 1
    for name, term in further.items():
        assert torch.equal(losses.pop(name), term / positives)
    assert_same(losses, built.losses(predictions, truth))


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_positive_means_a_class() -> None:
    assignment = Assignment(torch.tensor([[-1, 0, 2, 3]]), torch.zeros(1, 4, 4), num_classes=3)
    assert assignment.positive.tolist() == [[False, True, True, False]]
