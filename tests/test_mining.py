"""Steps 1-3 and Eq. 1 on cases that can be checked by hand."""

import pytest
import torch
from torchvision.ops import box_iou

from comining.methods.mining import Miner, clip, drop_annotated
from comining.ops import suppress
from comining.structures import Boxes
from tests.helpers import assert_equal, boxes, detector, random_predictions


def rounded(scores: torch.Tensor) -> list[float]:
    return [round(score, 4) for score in scores.tolist()]


# -- step 1 ------------------------------------------------------------------------------


def test_threshold_is_strict_and_on_the_class_probability() -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 1)
    predictions.logits.fill_(-9)
    predictions.logits[0, 5, 1] = 0.0  # probability 0.5, exactly
    predictions.logits[0, 9, 2] = 0.01
    assert built.candidates(predictions, 0.5).labels.tolist() == [2]
    assert built.candidates(predictions, 0.49).labels.tolist() == [2, 1]
    assert len(built.candidates(predictions, 0.51)) == 0
    assert len(built.candidates(predictions, 1.0)) == 0


def test_fcos_thresholds_the_class_and_ranks_with_the_centerness() -> None:
    built = detector("fcos", 3)
    predictions = random_predictions(built, 1)
    predictions.logits.fill_(-9)
    predictions.logits[0, 5, 1] = 1.0
    # A low centerness lowers the score but does not drop the box.
    predictions.auxiliary["centerness"][0, 5] = -4.0
    candidates = built.candidates(predictions, 0.6)
    expected = (torch.tensor(1.0).sigmoid() * torch.tensor(-4.0).sigmoid()).sqrt()
    assert candidates.known_scores.tolist() == pytest.approx([expected.item()])


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_step_1_equals_a_loop_over_images_and_levels(name: str) -> None:
    built = detector(name, 3)
    built.candidates_per_level = 20
    predictions = random_predictions(built, 3)
    candidates = built.candidates(predictions, 0.4)
    expected = []
    for image in range(3):
        start = 0
        for count in predictions.anchors_per_level:
            level = slice(start, start + count)
            start += count
            probability = predictions.logits[image, level].sigmoid().flatten()
            values, index = probability.sort(descending=True, stable=True)
            index = index[:20][values[:20] > 0.4]
            decoded = built.decode_boxes(
                predictions.deltas[image, level][index // 3], predictions.anchors[level][index // 3]
            )
            expected += [
                (image, label, *box) for label, box in zip((index % 3).tolist(), decoded.tolist())
            ]
    got = [
        (image, label, *box)
        for image, label, box in zip(
            candidates.image.tolist(), candidates.labels.tolist(), candidates.boxes.tolist()
        )
    ]
    assert len(got) > 60  # several levels reach their limit
    assert got == expected
    assert candidates.num_images == 3


def test_one_level_cannot_crowd_out_another() -> None:
    built = detector("retinanet", 2)
    built.candidates_per_level = 3
    predictions = random_predictions(built, 1)
    first = predictions.anchors_per_level[0]
    predictions.logits.fill_(-9)
    predictions.logits[0, :10, 0] = torch.linspace(2, 3, 10)
    predictions.logits[0, first, 1] = 1.0
    assert built.candidates(predictions, 0.5).labels.tolist() == [0, 0, 0, 1]


# -- step 2 ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_batched_steps_equal_image_after_image(seed: int) -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 4, seed=seed)
    together = suppress(built.candidates(predictions, 0.6), 3, 0.5, 100)
    for of_image, alone in zip(together.split(), predictions.split(1), strict=True):
        single = suppress(built.candidates(alone, 0.6), 3, 0.5, 100)
        assert len(single) > 5
        assert_equal(of_image, single)


# -- clipping ----------------------------------------------------------------------------


def test_clip_uses_the_size_of_each_image_and_drops_slivers() -> None:
    clipped = clip(
        boxes(
            [
                (-5, -5, 200, 200, 0, 0.9),
                (99.5, 10, 150, 20, 0, 0.7),  # half a pixel remains
                (120, 10, 150, 20, 0, 0.6),  # outside
            ],
            [(-5, -5, 200, 200, 0, 0.8)],
        ),
        image_sizes=[(50, 100), (80, 60)],
        min_size=1.0,
    )
    assert clipped.boxes.tolist() == [[0, 0, 100, 50], [0, 0, 60, 80]]
    assert clipped.counts == [1, 1]
    assert rounded(clipped.known_scores) == [0.9, 0.8]


# -- step 3 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("class_aware", "kept"), [(True, [0.7, 0.6]), (False, [0.6])])
def test_annotated_boxes_are_dropped(class_aware: bool, kept: list[float]) -> None:
    remaining = drop_annotated(
        boxes(
            [
                (0, 0, 10, 10, 0, 0.9),  # the annotation itself
                (0, 0, 10, 10, 1, 0.7),  # its place, another class
            ],
            [(0, 0, 10, 10, 0, 0.6)],  # its place in another image
        ),
        boxes([(0, 0, 10, 10, 0)], []),
        overlap_threshold=0.4,
        class_aware=class_aware,
    )
    assert rounded(remaining.known_scores) == kept


def test_the_overlap_must_exceed_the_threshold() -> None:
    pair = boxes([(0, 0, 10, 4, 0, 0.9)])  # IoU 0.4 with the annotation
    annotated = boxes([(0, 0, 10, 10, 0)])
    overlap = box_iou(pair.boxes, annotated.boxes).item()
    assert len(drop_annotated(pair, annotated, overlap, True)) == 1
    assert len(drop_annotated(pair, annotated, overlap - 1e-4, True)) == 0


# -- all steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_the_miner_goes_the_steps_in_turn_and_counts_what_remains(name: str) -> None:
    built = detector(name, 3)
    predictions = random_predictions(built, 3)
    annotated = boxes([(8, 8, 60, 60, 0), (0, 0, 40, 30, 1)], [(10, 5, 90, 60, 2)], [])
    miner = Miner(0.7, 0.5, 0.1, True, 20, clip_boxes=True, min_box_size=4.0)
    pseudo_labels, remaining = miner(built, predictions, annotated)
    steps = [built.candidates(predictions, 0.7)]
    steps.append(suppress(steps[-1], 3, 0.5, 20))
    steps.append(clip(steps[-1], predictions.image_sizes, 4.0))
    steps.append(drop_annotated(steps[-1], annotated, 0.1, True))
    assert_equal(pseudo_labels, steps[-1])
    all_scores = predictions.logits[0].numel()
    assert remaining.tolist() == [
        [all_scores, *(step.counts[image] for step in steps)] for image in range(3)
    ]
    assert (remaining[:, 1:].sum(0).diff() < 0).all()  # each step drops some
    unclipped, _ = Miner(0.7, 0.5, 0.1, True, 20, False, 4.0)(built, predictions, annotated)
    assert_equal(unclipped, drop_annotated(steps[1], annotated, 0.1, True))


# -- empty cases, Eq. 1 ------------------------------------------------------------------


def test_nothing_found_stays_nothing() -> None:
    none = boxes([], [], [], scores=True)
    annotated = boxes([(0, 0, 1, 1, 0)], [], [])
    for nothing in (
        suppress(none, 3, 0.5, 100),
        clip(none, [(5, 5)] * 3, 1.0),
        drop_annotated(none, annotated, 0.4, True),
    ):
        assert_equal(nothing, Boxes.empty(3, scores=True))
        assert [len(of_image) for of_image in nothing.split()] == [0, 0, 0]
    one = boxes([(0, 0, 9, 9, 0, 0.9)])
    assert len(drop_annotated(one, boxes([]), 0.4, True)) == 1


def test_targets_are_the_annotations_and_then_the_pseudo_labels() -> None:
    pseudo_labels = boxes([(3, 3, 4, 4, 2, 1.0)], [])
    targets = boxes([(1, 1, 2, 2, 0)], []).followed_by(pseudo_labels)
    assert_equal(targets, boxes([(1, 1, 2, 2, 0), (3, 3, 4, 4, 2)], []))
