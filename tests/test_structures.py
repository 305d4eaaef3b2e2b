"""Boxes, images and batches against values worked out by hand."""

import pytest
import torch

from comining.structures import Batch, Boxes, EvaluationBatch, Images, StepResult
from tests.helpers import assert_equal, batch_of, boxes

A, B, C, D = (1, 2, 3, 4, 0), (5, 6, 7, 8, 1), (9, 10, 11, 12, 2), (13, 14, 15, 16, 0)


def of_four_images() -> Boxes:
    """One box, none, two, none."""
    return boxes([A], [], [B, C], [])


def with_scores() -> Boxes:
    return boxes([(*A, 0.1)], [], [(*B, 0.2), (*C, 0.3)], [])


# -- putting together and taking apart ---------------------------------------------------


def test_boxes_of_images_lie_in_flat_columns() -> None:
    batch = with_scores()
    assert batch.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.image.tolist() == [0, 2, 2]
    assert batch.image.dtype == batch.labels.dtype == torch.int64
    assert batch.known_scores.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert batch.num_images == 4
    assert len(batch) == 3
    assert batch.counts == [1, 0, 2, 0]
    assert batch.counts_on_device().tolist() == [1, 0, 2, 0]


def test_counts_are_found_where_nobody_gave_them() -> None:
    known = of_four_images()
    plain = Boxes(known.boxes, known.labels, known.image, 4)
    assert plain.known_counts is None
    assert plain.counts == [1, 0, 2, 0]
    assert plain.counts_on_device().tolist() == [1, 0, 2, 0]
    assert Boxes(known.boxes[:0], known.labels[:0], known.image[:0], 2).counts == [0, 0]


def test_images_of_a_batch_are_batches_of_one() -> None:
    batch = with_scores()
    assert_equal(batch.of_image(0), boxes([(*A, 0.1)]))
    assert_equal(batch.of_image(1), boxes([], scores=True))
    assert_equal(batch.of_image(2), boxes([(*B, 0.2), (*C, 0.3)]))
    assert_equal(batch.of_image(3), boxes([], scores=True))
    for position, of_image in enumerate(batch.split()):
        assert_equal(of_image, batch.of_image(position))
    assert of_four_images().of_image(2).scores is None


def test_a_range_of_images_counts_from_zero() -> None:
    batch = with_scores()
    assert_equal(batch.of_range(1, 3), boxes([], [(*B, 0.2), (*C, 0.3)]))
    assert_equal(batch.of_range(3, 4), boxes([], scores=True))
    assert_equal(batch.of_range(0, 4), batch)
    assert batch.of_range(2, 2).num_images == 0


def test_taking_apart_and_putting_together_changes_nothing() -> None:
    parts = with_scores().split()
    again = Boxes.of_images(
        [part.boxes for part in parts],
        [part.labels for part in parts],
        [part.known_scores for part in parts],
    )
    assert_equal(again, with_scores())


def test_repeating_is_copy_after_copy() -> None:
    batch = boxes([(*A, 0.1)], [], [(*B, 0.2)])
    twice = batch.repeat(2)
    assert_equal(twice, boxes([(*A, 0.1)], [], [(*B, 0.2)], [(*A, 0.1)], [], [(*B, 0.2)]))
    assert twice.image.tolist() == [0, 2, 3, 5]
    assert_equal(twice.of_range(3, 6), batch)
    assert_equal(batch.repeat(1), batch)
    assert_equal(boxes([], []).repeat(3), boxes([], [], [], [], [], []))


def test_following_boxes_stand_behind_those_of_their_own_image() -> None:
    first, second = boxes([A], [], [B]), boxes([(*C, 0.9)], [(*D, 0.8)], [])
    assert_equal(first.followed_by(second), boxes([A, C], [D], [B]))
    assert_equal(second.followed_by(first), boxes([C, A], [D], [B]))
    assert first.followed_by(second).counts == [2, 1, 1]
    nothing = Boxes.empty(3, scores=True)
    assert_equal(first.followed_by(nothing), first)
    assert_equal(nothing.followed_by(first), first)
    assert_equal(nothing.followed_by(nothing), boxes([], [], []))


def test_counts_stay_right_where_only_one_side_knows_them() -> None:
    first = boxes([A], [B, C])
    masked = first[torch.tensor([True, False, True])]
    assert masked.followed_by(first).counts == [2, 3]
    assert first.followed_by(masked).counts == [2, 3]


# -- choosing rows -----------------------------------------------------------------------


def test_rows_are_chosen_by_mask_or_index_and_the_counts_follow() -> None:
    batch = with_scores()
    assert batch.counts == [1, 0, 2, 0]  # known before, and not true of what is chosen
    by_mask = batch[torch.tensor([False, False, True])]
    assert_equal(by_mask, boxes([], [], [(*C, 0.3)], []))
    assert by_mask.counts == by_mask.counts_on_device().tolist() == [0, 0, 1, 0]
    assert_equal(by_mask.of_image(2), boxes([(*C, 0.3)]))
    by_index = batch[torch.tensor([0, 2, 1])]
    assert by_index.labels.tolist() == [0, 2, 1]
    assert by_index.counts == [1, 0, 2, 0]
    nothing = batch[torch.zeros(3, dtype=torch.bool)]
    assert_equal(nothing, Boxes.empty(4, scores=True))
    assert len(batch[torch.ones(3, dtype=torch.bool)].repeat(2).of_image(6)) == 2


def test_scores_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="no scores"):
        _ = of_four_images().known_scores


# -- the padded form ---------------------------------------------------------------------


def test_padding_fills_up_to_the_fullest_image() -> None:
    table, labels = of_four_images().padded()
    assert table.shape == (4, 2, 4)
    assert table.tolist() == [
        [[1, 2, 3, 4], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[5, 6, 7, 8], [9, 10, 11, 12]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert labels.tolist() == [[0, -1], [-1, -1], [1, 2], [-1, -1]]


def test_padding_of_no_boxes_has_one_empty_column() -> None:
    for nothing in (boxes([], []), Boxes.empty(2), Boxes.empty(2, scores=True)):
        table, labels = nothing.padded()
        assert table.tolist() == [[[0, 0, 0, 0]]] * 2
        assert labels.tolist() == [[-1], [-1]]


def test_padding_after_a_mask() -> None:
    table, labels = of_four_images()[torch.tensor([False, True, True])].padded()
    assert labels.tolist() == [[-1, -1], [-1, -1], [1, 2], [-1, -1]]
    assert table[2].tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]


# -- empty -------------------------------------------------------------------------------


def test_empty_batches_answer_everything() -> None:
    nothing = Boxes.empty(3)
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.scores is None
    assert nothing.counts == nothing.counts_on_device().tolist() == [0, 0, 0]
    assert [len(of_image) for of_image in nothing.split()] == [0, 0, 0]
    assert nothing.repeat(2).num_images == 6
    assert len(Boxes.empty(3, scores=True).known_scores) == 0
    assert Boxes.empty(0).split() == []


# -- devices -----------------------------------------------------------------------------


def test_moving_takes_all_columns_along_and_keeps_the_counts() -> None:
    for batch in (with_scores(), of_four_images()):
        moved = batch.to("meta")
        columns = [moved.boxes, moved.labels, moved.image]
        columns += [] if batch.scores is None else [moved.known_scores]
        assert all(column.device.type == "meta" for column in columns)
        assert moved.counts == [1, 0, 2, 0]  # without a look at the device
        assert_equal(batch.to("cpu"), batch)


def test_moving_a_batch_takes_all_its_parts_along() -> None:
    batch = batch_of(of_four_images())
    moved = batch.to("meta")
    known = moved.knowledge
    for part in (moved.annotated, moved.erased, known.ignored, moved.pseudo_labels):
        assert part.boxes.device.type == part.image.device.type == "meta"
    for tensor in (moved.images.pixels, known.rate, moved.judged):
        assert tensor.device.type == "meta"
    assert moved.image_ids == batch.image_ids
    assert moved.positions == batch.positions
    pictures = EvaluationBatch([3], batch.images).to("meta")
    assert pictures.images.pixels.device.type == "meta"
    assert pictures.image_ids == [3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinning_takes_all_columns_along() -> None:
    batch: Batch = batch_of(of_four_images(), pseudo_labels=with_scores()).pin_memory()
    known = batch.knowledge
    for part in (batch.annotated, batch.erased, known.ignored, batch.pseudo_labels):
        columns = [part.boxes, part.labels, part.image]
        columns += [] if part.scores is None else [part.scores]
        assert all(column.is_pinned() for column in columns if len(column))
    assert batch.images.pixels.is_pinned()
    assert known.rate.is_pinned()
    assert batch.judged.is_pinned()
    assert_equal(batch.pseudo_labels, with_scores())


# -- images ------------------------------------------------------------------------------


def test_images_of_any_size_share_one_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 5), (3, 2, 2), (3, 6, 1)]
    pictures = [
        torch.randint(256, shape, dtype=torch.uint8, generator=generator) for shape in shapes
    ]
    together = Images.of([pictures[0].flip(-1), *pictures[1:]])  # a flip is no plain layout
    assert together.sizes == [(4, 5), (2, 2), (6, 1)]
    assert together.pixels.shape == (3 * (20 + 4 + 6),)
    assert len(together) == 3
    expected = [pictures[0].flip(-1), *pictures[1:]]
    for position, picture in enumerate(together):
        assert torch.equal(picture, expected[position])
        assert torch.equal(together[position], expected[position])
        assert torch.equal(together[position - 3], expected[position])
        assert picture.untyped_storage().data_ptr() == together.pixels.untyped_storage().data_ptr()
    with pytest.raises(IndexError):
        together[3]


# -- the result of a step ----------------------------------------------------------------


def test_the_total_is_the_plain_sum() -> None:
    losses = {"original/box": torch.tensor(2.0), "augmented/box": torch.tensor(0.5)}
    assert StepResult(losses).total.item() == 2.5
    assert StepResult(losses).pseudo_labels == StepResult(losses).remaining_counts == {}
