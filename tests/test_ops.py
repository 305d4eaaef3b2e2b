"""Ranks, suppression and overlaps on cases that can be checked by hand."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from comining import ops
from comining.ops import iou_in_image, rank_in_group, suppress, widest_float
from comining.structures import Boxes
from tests.helpers import assert_equal, boxes


def rounded(scores: Tensor) -> list[float]:
    return [round(score, 4) for score in scores.tolist()]


def random_boxes(
    counts: list[int], num_classes: int, seed: int, *, scores: bool = True, side: float = 60.0
) -> Boxes:
    """So many boxes in each image, in places of 200 x 200 px where many of them overlap."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    corner = torch.rand(count, 2, generator=generator) * 200
    size = 5 + torch.rand(count, 2, generator=generator) * side
    return Boxes(
        torch.cat([corner, corner + size], dim=1),
        torch.randint(num_classes, (count,), generator=generator),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        len(counts),
        torch.rand(count, generator=generator) if scores else None,
    )


def test_rank_in_group_counts_from_the_start_of_each_group() -> None:
    group = torch.tensor([0, 0, 2, 2, 2, 7])
    assert rank_in_group(group).tolist() == [0, 1, 0, 1, 2, 0]
    assert rank_in_group(group[:0]).tolist() == []


# -- suppression -------------------------------------------------------------------------


def test_nms_is_by_class_and_by_image_and_keeps_the_best() -> None:
    box = (10, 10, 30, 30)
    near = (11, 11, 31, 31)  # IoU 0.82
    kept = suppress(
        boxes(
            [(*box, 0, 0.8), (*near, 0, 0.9), (*near, 1, 0.6)], [(*box, 0, 0.7), (*near, 0, 0.5)]
        ),
        num_classes=2,
        iou_threshold=0.5,
        max_per_image=100,
    )
    assert kept.image.tolist() == [0, 0, 1]
    assert rounded(kept.known_scores) == [0.9, 0.6, 0.7]


def test_the_best_of_each_image_are_kept() -> None:
    rows = [(20 * k, 0, 20 * k + 10, 10, 0, 0.5 + k / 100) for k in range(8)]
    kept = suppress(boxes(rows, rows), 1, 0.5, max_per_image=3)
    assert kept.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert rounded(kept.known_scores) == [0.57, 0.56, 0.55] * 2


@pytest.mark.parametrize("one_nms", [True, False])
def test_many_images_and_classes_do_not_blur_the_boxes(
    one_nms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets reach 32 * 80 * 1400 px, where float32 has steps of a quarter of a pixel."""
    monkeypatch.setattr(ops, "MAX_BOXES_OF_ONE_NMS", 1_000 if one_nms else 0)
    # In the last image and class, IoU a little above 0.5 (one survives) and a little below (two).
    for length, survivors in ((500.2, 1), (499.8, 2)):
        filler = (0.0, 0.0, 1400.0, 1400.0, 0, 0.99)
        first = (333.4, 5.0, 333.4 + 1000.0, 6.0, 79, 0.9)
        second = (333.4, 5.0, 333.4 + length, 6.0, 79, 0.8)
        rows = boxes([filler], *[[]] * 30, [first, second])
        iou = box_iou(rows.boxes[1:2], rows.boxes[2:])
        assert (iou > 0.5).item() == (survivors == 1)
        assert len(suppress(rows, 80, 0.5, 100)) == 1 + survivors


COUNTS = [[30] * 12, [0, 90, 1, 0, 60, 0], [200], [0, 0, 3]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_one_nms_and_one_for_each_image_keep_the_same_boxes(
    counts: list[int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = random_boxes(counts, 5, seed)
    together = suppress(candidates, 5, 0.5, 12)
    monkeypatch.setattr(ops, "MAX_BOXES_OF_ONE_NMS", 0)
    assert_equal(suppress(candidates, 5, 0.5, 12), together)
    assert together.counts == [
        min(12, len(batched_nms(one.boxes.double(), one.known_scores.double(), one.labels, 0.5)))
        for one in candidates.split()
    ]
    assert len(together) < len(candidates) or sum(counts) == 3


def test_no_nms_sees_more_boxes_than_an_image_has_or_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One over 32 images of 1,000 candidates takes 40 times as long as 32 of them."""
    sizes: list[int] = []

    def watched(corners: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        sizes.append(len(corners))
        return nms(corners, scores, iou_threshold)

    monkeypatch.setattr(ops, "nms", watched)
    suppress(random_boxes([1_000] * 32, 80, 0), 80, 0.5, 100)
    assert sizes == [1_000] * 32
    sizes.clear()
    suppress(random_boxes([30] * 32, 80, 0), 80, 0.5, 100)
    assert sizes == [960]  # few boxes are worth a single call
    assert max(sizes) <= ops.MAX_BOXES_OF_ONE_NMS


@pytest.mark.parametrize("limit", [0, 1_000])
def test_without_float64_on_the_device_suppression_is_the_same(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = random_boxes([40, 0, 80], 3, 0)
    expected = suppress(candidates, 3, 0.5, 100)
    monkeypatch.setattr(ops, "MAX_BOXES_OF_ONE_NMS", limit)
    monkeypatch.setattr(ops, "widest_float", lambda device: torch.float32)
    kept = suppress(candidates, 3, 0.5, 100)
    assert_equal(kept, expected)
    assert kept.boxes.dtype == kept.known_scores.dtype == torch.float32


def test_mps_has_no_float64() -> None:
    assert widest_float(torch.device("mps")) == torch.float32
    assert widest_float(torch.device("cpu")) == torch.float64
    assert widest_float(torch.device("cuda", 1)) == torch.float64


# -- overlaps ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_in_an_image_are_torchvisions_to_the_last_bit(seed: int) -> None:
    ours = random_boxes([7, 0, 12, 5, 1], 4, seed, side=150)
    others = random_boxes([3, 6, 0, 9, 1], 4, seed + 10, scores=False, side=150)
    iou, labels = iou_in_image(ours, others)
    assert iou.shape == labels.shape == (25, 9)
    first = 0
    for mine, theirs in zip(ours.split(), others.split(), strict=True):
        rows, count = slice(first, first + len(mine)), len(theirs)
        first += len(mine)
        assert torch.equal(iou[rows, :count], box_iou(mine.boxes, theirs.boxes))
        assert torch.equal(labels[rows, :count], theirs.labels.expand(len(mine), count))
        assert (iou[rows, count:] == 0).all()
        assert (labels[rows, count:] == -1).all()
    assert (iou > 0).sum() > 20


def test_overlaps_of_nothing_and_of_empty_boxes() -> None:
    iou, labels = iou_in_image(boxes([], []), boxes([(0, 0, 1, 1, 0)] * 3, []))
    assert iou.shape == labels.shape == (0, 3)
    iou, labels = iou_in_image(boxes([(0, 0, 9, 9, 2)], []), boxes([], []))
    assert iou.tolist() == [[0]]
    assert labels.tolist() == [[-1]]
    point = boxes([(5, 5, 5, 5, 0)])
    assert iou_in_image(point, point)[0].tolist() == [[0]]  # not 0 / 0
