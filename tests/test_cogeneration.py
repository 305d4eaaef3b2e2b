"""Steps 1-3 and Eq. 1 on cases that can be checked by hand."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from comining.methods.mining import clip, drop_annotated, merge, suppress
from comining.ops import rank_in_group
from comining.structures import Candidates, Detections
from tests.helpers import detector, random_predictions, targets


def candidates(*rows: tuple[int, float, float, float, float, int, float]) -> Candidates:
    """From (image, x1, y1, x2, y2, label, score)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)
    return Candidates(table[:, 1:5], table[:, 5].long(), table[:, 6], table[:, 0].long())


def scores(found: Candidates) -> list[float]:
    return [round(score, 4) for score in found.scores.tolist()]


def test_rank_in_group_counts_from_the_start_of_each_group() -> None:
    group = torch.tensor([0, 0, 2, 2, 2, 7])
    assert rank_in_group(group).tolist() == [0, 1, 0, 1, 2, 0]
    assert rank_in_group(group[:0]).tolist() == []


# -- step 1 ------------------------------------------------------------------------------


def test_threshold_is_strict_and_on_the_class_probability() -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 1)
    predictions.logits.fill_(-9)
    predictions.logits[0, 5, 1] = 0.0  # probability 0.5, exactly
    predictions.logits[0, 9, 2] = 0.01
    assert built.decode(predictions, 0.5).labels.tolist() == [2]
    assert built.decode(predictions, 0.49).labels.tolist() == [2, 1]
    assert len(built.decode(predictions, 0.51)) == 0
    assert len(built.decode(predictions, 1.0)) == 0


def test_fcos_thresholds_the_class_and_ranks_with_the_centerness() -> None:
    built = detector("fcos", 3)
    predictions = random_predictions(built, 1)
    assert predictions.centerness is not None
    predictions.logits.fill_(-9)
    predictions.logits[0, 5, 1] = 1.0
    predictions.centerness[0, 5] = -4.0  # a low centerness lowers the score but does not drop
    found = built.decode(predictions, 0.6)
    expected = (torch.tensor(1.0).sigmoid() * torch.tensor(-4.0).sigmoid()).sqrt()
    assert found.scores.tolist() == pytest.approx([expected.item()])


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_step_1_equals_a_loop_over_images_and_levels(name: str) -> None:
    built = detector(name, 3)
    built.candidates_per_level = 20
    predictions = random_predictions(built, 3)
    found = built.decode(predictions, 0.4)
    expected = []
    for image in range(3):
        start = 0
        for count in predictions.anchors_per_level:
            level = slice(start, start + count)
            start += count
            probability = predictions.logits[image, level].sigmoid().flatten()
            values, index = probability.sort(descending=True, stable=True)
            index = index[:20][values[:20] > 0.4]
            boxes = built.decode_boxes(
                predictions.deltas[image, level][index // 3], predictions.anchors[level][index // 3]
            )
            expected += [
                (image, label, *box) for label, box in zip((index % 3).tolist(), boxes.tolist())
            ]
    got = [
        (image, label, *box)
        for image, label, box in zip(
            found.image.tolist(), found.labels.tolist(), found.boxes.tolist()
        )
    ]
    assert len(got) > 60  # several levels reach their limit
    assert got == expected


def test_one_level_cannot_crowd_out_another() -> None:
    built = detector("retinanet", 2)
    built.candidates_per_level = 3
    predictions = random_predictions(built, 1)
    first = predictions.anchors_per_level[0]
    predictions.logits.fill_(-9)
    predictions.logits[0, :10, 0] = torch.linspace(2, 3, 10)
    predictions.logits[0, first, 1] = 1.0
    assert built.decode(predictions, 0.5).labels.tolist() == [0, 0, 0, 1]


# -- step 2 ------------------------------------------------------------------------------


def test_nms_is_by_class_and_by_image_and_keeps_the_best() -> None:
    box = (10, 10, 30, 30)
    near = (11, 11, 31, 31)  # IoU 0.82
    found = suppress(
        candidates(
            (1, *box, 0, 0.7),
            (0, *box, 0, 0.8),
            (0, *near, 0, 0.9),
            (0, *near, 1, 0.6),
            (1, *near, 0, 0.5),
        ),
        num_classes=2,
        nms_threshold=0.5,
        max_per_image=100,
    )
    assert found.image.tolist() == [0, 0, 1]
    assert scores(found) == [0.9, 0.6, 0.7]


def test_the_best_of_each_image_are_kept() -> None:
    rows = [(i, 20 * k, 0, 20 * k + 10, 10, 0, 0.5 + k / 100) for k in range(8) for i in (0, 1)]
    found = suppress(candidates(*rows), 1, 0.5, max_per_image=3)
    assert found.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert scores(found) == [0.57, 0.56, 0.55] * 2


def test_many_images_and_classes_do_not_blur_the_boxes() -> None:
    """Offsets reach 32 * 80 * 1400 px, where float32 has steps of a quarter of a pixel."""
    # In the last image and class, IoU a little above 0.5 (one survives) and a little below (two).
    for length, survivors in ((500.2, 1), (499.8, 2)):
        first = (31, 333.4, 5.0, 333.4 + 1000.0, 6.0, 79, 0.9)
        second = (31, 333.4, 5.0, 333.4 + length, 6.0, 79, 0.8)
        filler = (0, 0.0, 0.0, 1400.0, 1400.0, 0, 0.99)
        rows = candidates(filler, first, second)
        iou = box_iou(rows.boxes[1:2], rows.boxes[2:])
        assert (iou > 0.5).item() == (survivors == 1)
        assert len(suppress(rows, 80, 0.5, 100)) == 1 + survivors


@pytest.mark.parametrize("seed", range(3))
def test_batched_steps_equal_image_after_image(seed: int) -> None:
    built = detector("retinanet", 3)
    predictions = random_predictions(built, 4, seed=seed)
    together = suppress(built.decode(predictions, 0.6), 3, 0.5, 100).per_image(4)
    for one, alone in zip(together, predictions.split(1)):
        single = suppress(built.decode(alone, 0.6), 3, 0.5, 100).per_image(1)[0]
        assert len(one) > 5
        assert torch.equal(one.boxes, single.boxes)
        assert torch.equal(one.labels, single.labels)
        assert torch.equal(one.scores, single.scores)


# -- clipping ----------------------------------------------------------------------------


def test_clip_uses_the_size_of_each_image_and_drops_slivers() -> None:
    found = clip(
        candidates(
            (0, -5, -5, 200, 200, 0, 0.9),
            (1, -5, -5, 200, 200, 0, 0.8),
            (0, 99.5, 10, 150, 20, 0, 0.7),  # half a pixel is left
            (0, 120, 10, 150, 20, 0, 0.6),  # outside
        ),
        image_sizes=[(50, 100), (80, 60)],
        min_size=1.0,
    )
    assert found.boxes.tolist() == [[0, 0, 100, 50], [0, 0, 60, 80]]


# -- step 3 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("class_aware", "kept"), [(True, [0.7, 0.6]), (False, [0.6])])
def test_annotated_boxes_are_dropped(class_aware: bool, kept: list[float]) -> None:
    found = drop_annotated(
        candidates(
            (0, 0, 0, 10, 10, 0, 0.9),  # the annotation itself
            (0, 0, 0, 10, 10, 1, 0.7),  # its place, another class
            (1, 0, 0, 10, 10, 0, 0.6),  # its place in another image
        ),
        [targets((0, 0, 10, 10, 0)), targets()],
        overlap_threshold=0.4,
        class_aware=class_aware,
    )
    assert scores(found) == kept


def test_the_overlap_must_exceed_the_threshold() -> None:
    pair = candidates((0, 0, 0, 10, 4, 0, 0.9))  # IoU 0.4 with the annotation
    annotated = [targets((0, 0, 10, 10, 0))]
    overlap = box_iou(pair.boxes, annotated[0].boxes).item()
    assert len(drop_annotated(pair, annotated, overlap, True)) == 1
    assert len(drop_annotated(pair, annotated, overlap - 1e-4, True)) == 0


# -- empty cases, Eq. 1 ------------------------------------------------------------------


def test_nothing_found_stays_nothing() -> None:
    none = candidates()
    assert len(suppress(none, 3, 0.5, 100)) == 0
    assert len(clip(none, [(5, 5)], 1.0)) == 0
    assert len(drop_annotated(none, [targets((0, 0, 1, 1, 0))], 0.4, True)) == 0
    assert [len(one) for one in none.per_image(3)] == [0, 0, 0]
    found = candidates((0, 0, 0, 9, 9, 0, 0.9))
    assert len(drop_annotated(found, [targets()], 0.4, True)) == 1


def test_merge_appends_pseudo_labels_to_annotations() -> None:
    def detections(*boxes: list[float]) -> Detections:
        table: Tensor = torch.tensor(boxes).reshape(-1, 4)
        return Detections(table, torch.full((len(table),), 2), torch.ones(len(table)))

    merged = merge([targets((1, 1, 2, 2, 0)), targets()], [detections([3, 3, 4, 4]), detections()])
    assert merged[0].boxes.tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert merged[0].labels.tolist() == [0, 2]
    assert len(merged[1]) == 0
