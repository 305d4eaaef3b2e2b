"""Parts of the training images that are left out in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comining.data.folds import fold_of
from comining.data.formats.coco import read_coco
from comining.errors import ConfigError
from tests.helpers import write_coco
from tests.test_datamodule import coco_data


@pytest.mark.parametrize("count", [2, 3, 7])
def test_folds_are_equal_parts_that_do_not_depend_on_the_order(tmp_path: Path, count: int) -> None:
    annotations = read_coco(write_coco(tmp_path, [[(1, 2, 8, 12, 1)] for _ in range(20)]))
    chosen = np.arange(20) != 4
    folds = fold_of(annotations, chosen, count)
    assert folds[4] == -1
    sizes = np.bincount(folds[chosen], minlength=count)
    assert sizes.sum() == 19
    assert sizes.max() - sizes.min() <= 1
    turned = replace(annotations, file_names=annotations.file_names[::-1])
    assert fold_of(turned, chosen[::-1], count).tolist() == folds[::-1].tolist()


def test_what_is_left_out_is_trained_on_by_the_others_alone(tmp_path: Path) -> None:
    """Nor is it pasted; what sparsity erases is the same in every fold."""
    rows = [[(1, 2, 8, 12, 1), (20, 2, 8, 12, 2)] for _ in range(9)]
    for split in ("train", "val", "test"):
        write_coco(tmp_path, rows, split=split)
    whole = coco_data(tmp_path)
    whole.setup("fit")
    seen: list[int] = []
    for part in range(3):
        data = coco_data(tmp_path, left_out_fold=[part, 3], paste=1)
        data.setup("fit")
        assert data.train_set is not None
        ids = data.train_set.annotations.image_ids.tolist()
        assert len(ids) == len(data.train_set) == 6
        seen += ids
    assert whole.train_set is not None
    assert sorted(seen) == sorted(2 * whole.train_set.annotations.image_ids.tolist())


@pytest.mark.parametrize("fold", [[2, 2], [0, 1], [0], [0, 2, 3]])
def test_a_fold_that_there_is_not(tmp_path: Path, fold: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"data\.left_out_fold=\[.*\] must be a part"):
        coco_data(tmp_path, left_out_fold=fold)
