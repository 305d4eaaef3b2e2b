"""Faster R-CNN against torchvision's own code, and what is sampled by hand."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from comining.detectors.faster_rcnn import FasterRCNNDetector
from comining.detectors.region_samples import Samples, padded_rows, sample
from comining.errors import ConfigError
from comining.structures import Boxes, Knowledge
from tests.helpers import boxes, composed, detector, images

SMALL = ("data.min_size=64", "data.max_size=128")
TRUTH = boxes([(8, 8, 40, 40, 0), (30, 20, 60, 50, 1)], [(5, 5, 30, 60, 2)], [])


def faster_rcnn(*overrides: str) -> FasterRCNNDetector:
    built: Any = detector("faster_rcnn", 3, *SMALL, *overrides)
    assert isinstance(built, FasterRCNNDetector)
    return built


@pytest.fixture
def built() -> FasterRCNNDetector:
    return faster_rcnn()


class OurSampler:
    """Takes the place of torchvision's, with what :func:`sample` draws."""

    def __init__(self, of: Any, seeds: list[int]):
        self.count, self.share = of.batch_size_per_image, of.positive_fraction
        self.seeds = seeds

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        ours = [torch.where(own < 0, -1, torch.where(own >= 1, 0, 1)) for own in labels]
        drawn = sample(ours, 1, self.count, self.share, self.seeds)
        masks = [
            torch.zeros_like(own, dtype=torch.uint8).index_fill(0, rows[real], 1)
            for own, rows, real in zip(ours, drawn.rows, drawn.real, strict=True)
        ]
        pairs = list(zip(masks, ours, strict=True))
        return [m * (own == 0) for m, own in pairs], [m * (own == 1) for m, own in pairs]


def torchvisions_losses(built: FasterRCNNDetector, batch: list[Tensor], truth: Boxes) -> Any:
    net = copy.deepcopy(built.net)
    net.rpn.fg_bg_sampler = OurSampler(net.rpn.fg_bg_sampler, built._seeds("rpn", len(batch)))
    heads = net.roi_heads
    heads.fg_bg_sampler = OurSampler(heads.fg_bg_sampler, built._seeds("roi", len(batch)))
    targets = [{"boxes": own.boxes, "labels": own.labels + 1} for own in truth.split()]
    return net, net([image / 255 for image in batch], targets)


NAMES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box": "loss_box_reg",
}


@pytest.mark.parametrize("overrides", [(), ("backbone=resnet18",), ("detector.rpn_samples=16",)])
def test_losses_and_gradients_equal_torchvisions_on_the_same_samples(
    overrides: tuple[str, ...],
) -> None:
    built = faster_rcnn(*overrides, "detector.roi_samples=24")
    built.seed_samples([7, 8, 9])
    batch = images(3)
    ours = built.losses(built.predict(batch), TRUTH)
    net, theirs = torchvisions_losses(built, batch, TRUTH)
    assert ours.keys() == NAMES.keys()
    for name, other in NAMES.items():
        assert ours[name] > 0
        torch.testing.assert_close(ours[name], theirs[other], rtol=1e-5, atol=1e-6)
    torch.stack(list(ours.values())).sum().backward()
    torch.stack(list(theirs.values())).sum().backward()
    pairs = [*zip(built.net.parameters(), net.parameters(), strict=True)]
    assert sum(mine.grad is not None for mine, _ in pairs) > 20
    for mine, other in pairs:
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 144), (50, 200), (30, 30)])
def test_detections_are_those_of_torchvisions_forward(
    built: FasterRCNNDetector, size: tuple[int, int]
) -> None:
    built.eval()
    built.net.roi_heads.score_thresh = 0.0
    batch = [*images(2, *size), *images(1, 70, 60)]
    with torch.no_grad():
        expected = built.net([image.float() / 255 for image in batch])
    found = built.detect(batch)
    for one, other in zip(found.split(), expected, strict=True):
        assert len(one) > 5
        assert torch.equal(one.boxes, other["boxes"])
        assert torch.equal(one.labels + 1, other["labels"])
        assert torch.equal(one.known_scores, other["scores"])


def test_weights_load_into_torchvisions_builder_and_detect_the_same() -> None:
    ours = faster_rcnn("backbone=resnet50", "detector.score_threshold=0.0").eval()
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=128,
        box_score_thresh=0.0,
    )  # fmt: skip
    theirs.load_state_dict(ours.net.state_dict())
    theirs.eval()
    image = images(1, 64, 96)[0]
    found = ours.detect([image])
    with torch.no_grad():
        expected = theirs([image / 255])[0]
    assert len(found) > 10
    torch.testing.assert_close(found.boxes, expected["boxes"])
    torch.testing.assert_close(found.scores, expected["scores"])
    assert torch.equal(found.labels + 1, expected["labels"])


def test_options_are_those_of_torchvisions_builder() -> None:
    ours = faster_rcnn("backbone=resnet50").net
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios
    for one, other in ((ours.rpn, theirs.rpn), (ours.roi_heads, theirs.roi_heads)):
        assert vars(one.fg_bg_sampler) == vars(other.fg_bg_sampler)
        assert vars(one.proposal_matcher) == vars(other.proposal_matcher)
        assert vars(one.box_coder) == vars(other.box_coder)
    assert ours.rpn._pre_nms_top_n == theirs.rpn._pre_nms_top_n
    assert ours.rpn._post_nms_top_n == theirs.rpn._post_nms_top_n
    assert ours.rpn.nms_thresh == theirs.rpn.nms_thresh
    theirs.eval()
    with torch.no_grad():
        theirs([image / 255 for image in images(1, 128, 128)])
    assert ours.roi_heads.box_roi_pool.scales == theirs.roi_heads.box_roi_pool.scales
    mappers = [net.roi_heads.box_roi_pool.map_levels for net in (ours, theirs)]
    assert vars(mappers[0]) == vars(mappers[1])


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [("slim", [8, 16, 32]), ("efficientnet_lite0", [8, 16, 32]), ("resnet18", [4, 8, 16, 32])],
)
def test_every_backbone_is_pooled_by_its_strides(backbone: str, strides: list[int]) -> None:
    built = faster_rcnn(f"backbone={backbone}")
    pool = built.net.roi_heads.box_roi_pool
    assert pool.scales == [1 / stride for stride in strides]
    # torchvision would infer 1/4 for a stride of 8 here, from 40 px that are padded to 64.
    losses = built.losses(built.predict(images(1, 40, 40)), boxes([(4, 4, 30, 30, 1)]))
    assert pool.scales == [1 / stride for stride in strides]
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_views_of_one_forward_split_into_what_each_gives_alone(built: FasterRCNNDetector) -> None:
    batch = images(4)
    with torch.no_grad():
        together = built.predict(batch).split(2)
        alone = [built.predict(batch[:2]), built.predict(batch[2:])]
    for part, one in zip(together, alone, strict=True):
        torch.testing.assert_close(part.objectness, one.objectness, atol=1e-5, rtol=1e-4)
        assert len(part) == 2
        theirs = built.losses(one, TRUTH.of_range(0, 2))
        for name, loss in built.losses(part, TRUTH.of_range(0, 2)).items():
            torch.testing.assert_close(loss, theirs[name], atol=1e-4, rtol=1e-3)


# -- samples -----------------------------------------------------------------------------


def test_samples_depend_on_their_seeds_alone(built: FasterRCNNDetector) -> None:
    predictions = built.predict(images(2))
    truth = TRUTH.of_range(0, 2)

    def losses(*seeds: int) -> Tensor:
        built.seed_samples(seeds)
        torch.manual_seed(len(seeds) + seeds[0])  # of no consequence
        return torch.stack(list(built.losses(predictions, truth).values()))

    assert torch.equal(losses(1, 2), losses(1, 2))
    assert not torch.equal(losses(1, 2), losses(1, 3))


def test_an_image_draws_the_same_whatever_else_is_in_the_batch() -> None:
    labels = [torch.tensor([0, 3, 3, -1, 1, 3, 3, 3] * 4), torch.tensor([3] * 9)]
    both = sample(labels, 3, 8, 0.25, [5, 6])
    alone = sample(labels[1:], 3, 8, 0.25, [6])
    assert both.real.tolist() == [[True] * 8] * 2
    assert torch.equal(both.rows[1], alone.rows[0])
    drawn = labels[0][both.rows[0]]
    assert (drawn < 3).sum() == 2  # a quarter
    assert (drawn == -1).sum() == 0
    assert both.rows[0].tolist() == sorted(set(both.rows[0].tolist()))


def test_few_regions_are_all_drawn_and_none_leaves_an_empty_row() -> None:
    drawn = sample([torch.tensor([-1, 0, 2]), torch.tensor([-1])], 2, 8, 0.5, [0, 0])
    assert drawn.rows[0][drawn.real[0]].tolist() == [1, 2]
    assert drawn.real[1].tolist() == [False, False]
    assert padded_rows([torch.zeros(0, dtype=torch.int64)]).real.tolist() == [[False]]
    values = torch.arange(6.0).view(2, 3)
    assert Samples(drawn.rows, drawn.real).of(values)[0].tolist() == [1.0, 2.0]


def test_images_without_objects_and_without_samples_train(built: FasterRCNNDetector) -> None:
    predictions = built.predict(images(2))
    everything = Knowledge.of(
        torch.full((2, 3), torch.nan), boxes(*[[(-999, -999, 999, 999, -1)]] * 2), 0.5
    )
    for knowledge in (None, everything):
        losses = built.losses(predictions, boxes([], []), knowledge=knowledge)
        total = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(total, list(built.net.roi_heads.parameters()),
                                        retain_graph=True)  # fmt: skip
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert losses["box"] == losses["rpn_box"] == 0
        assert (total > 0) == (knowledge is None)


def test_in_bf16_the_losses_are_near_and_what_leaves_the_network_is_float32(
    built: FasterRCNNDetector,
) -> None:
    batch = images(3, 96, 144)
    # The same proposals for both, which are chosen by rank.
    exact = built.predict(batch)
    losses = built.losses(exact, TRUTH)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = built.predict(batch)
        assert rounded.features["0"].dtype == torch.bfloat16
        for one in (rounded.objectness, rounded.deltas, rounded.anchors, *rounded.proposals):
            assert one.dtype == torch.float32
        assert torch.equal(rounded.anchors, exact.anchors)
        rounded.proposals, rounded.proposal_scores = exact.proposals, exact.proposal_scores
        found = built.candidates(rounded, 0.0)
        assert found.boxes.dtype == found.known_scores.dtype == torch.float32
        for name, loss in built.losses(rounded, TRUTH).items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, losses[name], rtol=0.05, atol=1e-3)
            loss.backward(retain_graph=True)
    # Mining came before, without gradient, and must not take it from the losses.
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "roi_samples=3",
            "detector.roi_samples=3 with detector.roi_positive_share=0.25: no positive",
        ),
        ("roi_positive_share=0.0", "detector.roi_samples=64 with detector.roi_positive_share=0.0"),
        (
            "rpn_samples=1",
            "detector.rpn_samples=1 with detector.rpn_positive_share=0.5: no positive",
        ),
        ("roi_foreground_iou=0.0", "detector.roi_foreground_iou=0: all regions would be positive"),
        ("rpn_background_iou=0.8", "detector.rpn_background_iou=0.8 is larger than detector.rpn_f"),
    ],
)
def test_options_that_leave_nothing_to_learn_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        faster_rcnn(f"detector.{option}")


@pytest.mark.parametrize(("backbone", "count"), [("slim", 32), ("resnet18", 100)])
def test_fewer_proposals_are_mined_with_a_small_head(backbone: str, count: int) -> None:
    chosen = composed("detector=faster_rcnn", f"backbone={backbone}")
    assert chosen.detector.candidate_proposals == count
