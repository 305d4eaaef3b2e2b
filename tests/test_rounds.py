"""AP after a round of review: what a reviewer without mistakes decides, and the runs on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from comining.complete import main
from comining.completion.judge import Truth
from comining.completion.proposal_folder import ProposalFolder
from comining.completion.reviewed_set import reviewed_set
from comining.completion.rounds import Round, perfect_decisions, round_lines
from comining.data.knowledge import COMPLETE
from tests.ddp import TINY, train
from tests.test_propose import PROPOSALS, complete_file, folder_of


def test_decisions_without_mistakes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PROPOSALS)
    truth = Truth.of_file(complete_file(tmp_path), folder)
    everything, found = perfect_decisions(folder, truth, "score", 100)
    assert len(everything.of_proposal) == len(PROPOSALS)
    reviewed = reviewed_set(folder, everything)
    before = len(folder.content["annotations"])
    assert len(reviewed.content["annotations"]) == before + found
    assert 0 < found < len(PROPOSALS)
    one, of_one = perfect_decisions(folder, truth, "score", 1)
    best = max(PROPOSALS, key=lambda proposal: (proposal.score, -proposal.id))
    assert set(one.of_proposal) == {best.id}
    assert of_one == (one.of_proposal[best.id].decision != "reject")
    none, of_none = perfect_decisions(folder, truth, "random", 0)
    assert (none.of_proposal, of_none) == ({}, 0)


def test_an_object_is_given_back_once(tmp_path: Path) -> None:
    """The second proposal of the same object is rejected, in whatever order they come."""
    twice = [PROPOSALS[0], PROPOSALS[0].model_copy(update={"id": 99})]
    folder = folder_of(tmp_path, twice)
    truth = Truth.of_file(complete_file(tmp_path), folder)
    for order in ("score", "uncertain", "random"):
        decisions, found = perfect_decisions(folder, truth, order, 2)
        said = sorted(one.decision for one in decisions.of_proposal.values())
        assert (said, found) == (["accept", "reject"], 1)


def test_a_reviewer_who_corrects_boxes_gives_the_true_ones(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PROPOSALS)
    truth = Truth.of_file(complete_file(tmp_path), folder)
    corrected, found = perfect_decisions(folder, truth, "score", 100, correct_boxes=True)
    as_proposed, also_found = perfect_decisions(folder, truth, "score", 100)
    assert found == also_found == 3
    boxes = {one.id: one.bbox for one in corrected.of_proposal.values()}
    assert boxes == {1: (20, 2, 8, 12), 2: None, 3: (20, 20, 10, 10), 4: (30, 30, 9, 9), 5: None}
    assert all(one.bbox is None for one in as_proposed.of_proposal.values())
    before = len(folder.content["annotations"])
    added = reviewed_set(folder, corrected).content["annotations"][before:]
    third = next(one for one in added if one["proposed_bbox"] == [21, 20, 10, 10])
    assert (third["bbox"], third["area"]) == ([20, 20, 10, 10], 100)
    assert not any(
        "proposed_bbox" in one for one in reviewed_set(folder, as_proposed).content["annotations"]
    )


def test_lines_of_rounds() -> None:
    lines = round_lines(
        "test", [Round(None, 0, 0, {0: 10.0, 2: 12.5}), Round("score", 50, 20, {0: 11.0, 2: 14.0})]
    )
    assert "AP (test)" in lines[1]
    assert "accepts boxes as they are proposed" in lines[1]
    assert "corrects boxes" in round_lines("val", [Round(None, 0, 0, {0: 1.0})], True)[1]
    assert "seeds 0, 2" in lines[1]
    assert lines[-2:] == [
        "| - | 0 | 0 | 10.0, 12.5 | 11.2 |", "| score | 50 | 20 | 11.0, 14.0 | 12.5 |",
    ]  # fmt: skip


def test_decisions_without_trainings_to_go_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path, PROPOSALS)
    truth = ["--truth", str(complete_file(tmp_path))]
    assert main(["judge", str(tmp_path), *truth, "--decisions", "2"]) == 2
    assert "no finished training in it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["judge", str(tmp_path), *truth, "--decisions", "0"])
    assert "0 must be at least 1" in capsys.readouterr().err
    assert main(["judge", str(tmp_path), *truth, "--correct-boxes"]) == 2
    assert "--correct-boxes needs --decisions" in capsys.readouterr().err
    assert main(["judge", str(tmp_path), *truth]) == 0
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def losses(run: Path) -> list[tuple[str, ...]]:
    rows = csv.DictReader((run / "metrics.csv").open())
    names = ("train/loss", "train/original/classification", "train/original/box")
    return [tuple(row[name] for name in names) for row in rows]


@pytest.mark.slow
def test_a_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a decision training is the same as on the split itself; with all it knows more."""
    monkeypatch.chdir(tmp_path)
    options = ["data.root=shapes", *TINY, "method=annotation_rate", "data.paste=1", "seed=3"]
    assert main(["propose", *options, "sparsity=classes", "--out", "out", "--quiet"]) == 0
    folder = ProposalFolder.read(Path("out"))
    # Short trainings find nothing: proposals are made up, all of them missing objects.
    truth = json.loads((tmp_path / "shapes" / "annotations" / "train.json").read_text())
    known = {one["id"] for one in folder.content["annotations"]}
    missing = [one for one in truth["annotations"] if one["id"] not in known]
    assert len(missing) > 5
    (tmp_path / "out" / "proposals.json").write_text(
        json.dumps(
            [
                {
                    "id": number, "image_id": one["image_id"], "category_id": one["category_id"],
                    "bbox": one["bbox"], "score": 0.5, "probability": 0.5,
                }
                for number, one in enumerate(missing, start=1)
            ]
        )
    )  # fmt: skip
    judged = ["judge", "out", "--decisions", "4", "1000", "--orders", "score", "--seeds", "3"]
    assert main(judged) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [one for one in printed if one.startswith(("| - |", "| score"))]
    counts = [tuple(int(cell) for cell in row.split("|")[2:4]) for row in rows]
    assert counts == [(0, 0), (4, 4), (len(missing), len(missing))]

    plain = ("method=annotation_rate", "data.paste=1", "seed=3", "sparsity=classes")
    done = train(tmp_path, *plain, "hydra.run.dir=plain")
    assert done.returncode == 0, done.stderr
    (none,) = (tmp_path / "out" / "rounds" / "none").glob("*/result.json")
    assert losses(none.parent) == losses(tmp_path / "plain")
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (none.parent, tmp_path / "plain")
    )
    assert first.keys() == second.keys()
    for name, weights in second.items():
        torch.testing.assert_close(first[name], weights, rtol=0, atol=0, equal_nan=True)
    results = [json.loads(file.read_text()) for file in (none, tmp_path / "plain" / "result.json")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["test"] == results[1]["test"]

    # With every missing object given back, what is trained on is the complete file.
    (whole,) = (tmp_path / "out" / "rounds" / "score_1000").glob("*/result.json")
    trained = json.loads(whole.read_text())["data"]["train"]
    assert trained["kept"] == len(truth["annotations"])
    times = whole.stat().st_mtime_ns
    assert main(judged) == 0  # and nothing is trained again
    assert whole.stat().st_mtime_ns == times
    assert COMPLETE in folder.annotations.status
