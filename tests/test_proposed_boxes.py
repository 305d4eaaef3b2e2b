"""Proposed boxes that nobody has corrected: read, kept, and never pasted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comining import complete
from comining.data.formats.coco import read_coco
from comining.data.merged_sets import merge
from comining.data.set_export import coco_content
from comining.runs.outcome import print_start
from tests.helpers import edit_json
from tests.proposal_folders import write_decisions, write_folder
from tests.test_datamodule import coco_data
from tests.test_pasting import samples, stream, write

# -- in files ----------------------------------------------------------------------------


def proposed_set(root: Path) -> Path:
    """Two images with two boxes each; the second of the first image is a proposed one."""
    return write(
        root, [(0, 0, 20, 20, 1), (40, 30, 20, 20, 1)], [(10, 10, 20, 20, 2), (50, 8, 9, 20, 1)],
        proposed=[None, True, None, None],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"proposed": True}, True),
        ({"proposed": True, "reviewed": True, "probability": 0.9, "score": 0.8}, True),
        ({"proposed": True, "proposed_category_id": 2}, True),
        ({"proposed": True, "proposed_bbox": [1, 1, 5, 5]}, False),  # corrected
        ({"proposed": False}, False),
        ({"proposed": None}, False),
        ({"proposed": "by Ann"}, False),  # somebody else's field
        ({"proposed": 1}, False),
    ],
)
def test_which_boxes_count_as_proposed(
    tmp_path: Path, change: dict[str, Any], expected: bool
) -> None:
    file = write(tmp_path, [(0, 0, 20, 20, 1), (40, 30, 20, 20, 1)])
    edit_json(file, lambda content: content["annotations"][1].update(change))
    assert read_coco(file).proposed.tolist() == [False, expected]


def test_the_mark_survives_selecting_writing_and_merging(tmp_path: Path) -> None:
    read = read_coco(proposed_set(tmp_path / "a"))
    assert read.proposed.tolist() == [False, True, False, False]
    assert read.of_rows(read.proposed).proposed.tolist() == [True]
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(coco_content(read)))
    again = read_coco(copy)
    assert again.proposed.tolist() == [False, True, False, False]
    assert again.fingerprint() == read.fingerprint()
    other = read_coco(write(tmp_path / "b", [(0, 0, 20, 20, 1)]))
    joined, _ = merge([(read, tmp_path / "a" / "train"), (other, tmp_path / "b" / "train")])
    assert joined.proposed.tolist() == [False, True, False, False, False]
    exact = replace(read, proposed=read.proposed & False)
    assert exact.fingerprint() != read.fingerprint()


def test_what_a_review_accepts_counts_as_proposed_unless_corrected(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    decisions = write_decisions(tmp_path / "decisions.json", {1: "accept", 3: 1, 4: "accept"})

    def correct(content: dict[str, Any]) -> None:
        next(one for one in content["decisions"] if one["id"] == 4)["bbox"] = [20, 3, 12, 11]

    edit_json(decisions, correct)
    out = tmp_path / "reviewed.json"
    assert complete.main(["apply", str(folder), str(decisions), "--out", str(out)]) == 0
    read = read_coco(out)
    assert read.proposed.tolist() == [False] * 4 + [True, True, False]


# -- in training -------------------------------------------------------------------------


def test_proposed_boxes_are_trained_on_but_never_pasted(tmp_path: Path) -> None:
    data = stream(proposed_set(tmp_path))
    assert data.paster is not None
    assert [rows.tolist() for rows in data.paster.rows_of_class] == [[0, 3], [2]]
    own = samples(data, 1)[0].annotated[:2]
    assert own.boxes.tolist() == [[0, 0, 20, 20], [40, 30, 60, 50]]


def test_a_class_with_nothing_but_proposed_boxes_is_not_pasted(tmp_path: Path) -> None:
    file = write(tmp_path, [(0, 0, 20, 20, 1), (40, 30, 20, 20, 2)], proposed=[None, True])
    data = stream(file)
    assert data.paster is not None
    assert data.paster.never_pasted == [1]


def test_their_number_is_said_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("val", "test"):
        write(tmp_path, [(0, 0, 20, 20, 1), (40, 30, 20, 20, 2)], split=split)
    proposed_set(tmp_path)
    data = coco_data(tmp_path)
    data.setup("fit")
    print_start(tmp_path, data.summary(), torch.device("cpu"))
    printed = capsys.readouterr().out
    assert "4 annotations kept (1 with a proposed box that nobody has corrected)" in printed
