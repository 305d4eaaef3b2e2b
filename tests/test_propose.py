"""Proposals: who trains, what is found, in which order it is asked about, and how it is judged."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from comining.complete import COMMANDS, main
from comining.completion.cross_fitting import Recipe, _note_recipe
from comining.completion.judge import Truth, judge, right_ones
from comining.completion.proposal_folder import ProposalFolder, ProposalSource
from comining.completion.proposals import Proposal, write_proposals
from comining.completion.review_order import ORDERS, in_order
from comining.config import instantiate
from comining.data.formats.coco import read_coco
from comining.errors import ConfigError, DataError
from comining.runs.command_line import readable
from tests.ddp import TINY
from tests.helpers import composed, edit_json, write_coco


def proposal(
    number: int, probability: float, image: int = 1, category: int = 1, *,
    box: tuple[float, float, float, float] = (1, 2, 8, 12), score: float = 0.5,
) -> Proposal:  # fmt: skip
    return Proposal(
        id=number, image_id=image, category_id=category, bbox=box, score=score,
        probability=probability,
    )  # fmt: skip


# -- how folds are trained ---------------------------------------------------------------


def test_a_recipe_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.of(["data.root=here", "method=original"])
    assert recipe == Recipe(("data.root=here", "method=original"), tmp_path)


def test_a_recipe_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run was started, by its options, but for those that say where it was written."""
    started, run = tmp_path / "started", tmp_path / "run"
    for folder in (started, run):
        folder.mkdir()
    options = [
        "data.root=shapes", "seed=3", "method=original", "hydra.run.dir=runs/x", "launcher=joblib",
        "data.left_out_fold=[0,3]", f"hydra.runtime.cwd={started}",
    ]  # fmt: skip
    (run / "overrides.yaml").write_text(yaml.safe_dump(options))
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.of([str(run), "seed=4", "sparsity.path=mine.json"])
    assert recipe.folder == started
    assert recipe.overrides == (
        "data.root=shapes", "method=original", "seed=4", f"sparsity.path='{tmp_path}/mine.json'"
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        ["RUN", "a.b=1", "--out", "x=y", "--quiet"],
        ["--out", "x=y", "RUN", "a.b=1", "--quiet"],
        ["RUN", "--quiet", "--out", "x=y", "a.b=1"],
        ["--out", "x=y", "RUN", "--quiet", "a.b=1"],
    ],
)
def test_the_run_and_options_may_stand_anywhere(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    words, add_options, _ = COMMANDS["propose"]
    monkeypatch.setitem(COMMANDS, "propose", (words, add_options, seen.append))
    assert main(["propose", *given]) == 0
    assert (seen[0].run, seen[0].out, seen[0].quiet) == (["RUN", "a.b=1"], Path("x=y"), True)


def test_values_of_a_recipe_are_compared_as_values(tmp_path: Path) -> None:
    sweep = tmp_path / "folds"
    first = ("data.root=%odd", "logger.name=2026-11-30", "detector.compile=False", "seed=1")
    _note_recipe(sweep, Recipe(first, tmp_path), 2)
    (sweep / "run").mkdir()
    (sweep / "run" / "config.yaml").touch()
    same = ("seed=1", "detector.compile=false", "data.root=%odd", "logger.name=2026-11-30")
    _note_recipe(sweep, Recipe(same, tmp_path), 2)
    for other, folds, said in (
        ((*same[1:],), 2, "seed: 1, now not given"), (same, 3, "folds: 2, now 3"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            _note_recipe(sweep, Recipe(other, tmp_path), folds)


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one run, not 2"):
        Recipe.of([str(tmp_path), str(tmp_path / "other")])
    with pytest.raises(DataError, match="not the directory of a run: no overrides"):
        Recipe.of([str(tmp_path / "nowhere")])
    (tmp_path / "overrides.yaml").write_text("a: 1")
    with pytest.raises(DataError, match=r"overrides\.yaml: must be a list of options"):
        Recipe.of([str(tmp_path)])


# -- the order of questions --------------------------------------------------------------


def test_uncertain_ones_first_spread_over_images_and_classes() -> None:
    asked = in_order(
        [
            proposal(1, 0.99, image=1),
            proposal(2, 0.50, image=1),
            proposal(3, 0.52, image=1),
            proposal(4, 0.60, image=2),
            proposal(5, 0.90, image=3, category=2),
        ],
        "uncertain",
    )
    # One of each image: of class 1 first 2, then 4; of class 2 first 5. Then the rest of image 1.
    assert [one.id for one in asked] == [2, 5, 4, 3, 1]


def test_the_other_orders() -> None:
    proposals = [proposal(n, 0.5, score=n / 10) for n in range(1, 8)]
    assert [one.id for one in in_order(proposals, "score")] == [7, 6, 5, 4, 3, 2, 1]
    once = [one.id for one in in_order(proposals, "random")]
    assert once == [one.id for one in in_order(proposals[::-1], "random")]
    assert sorted(once) == [*range(1, 8)]
    assert once != sorted(once)
    for order in ORDERS:
        assert in_order([], order) == []


# -- how good they are -------------------------------------------------------------------


def folder_of(tmp_path: Path, proposals: list[Proposal]) -> ProposalFolder:
    """Proposals for three images with one annotation each."""
    file = write_coco(tmp_path, [[(1, 2, 8, 12, 1)] for _ in range(3)])
    classes = ["class 1", "class 2", "class 3"]
    source = ProposalSource(
        annotations=str(file), images=str(tmp_path / "train"), classes=classes,
        rates={"class 1": {"rate": 0.5, "interval": (0.3, 0.7)}},  # type: ignore[dict-item]
    )  # fmt: skip
    source.write(tmp_path)
    write_proposals(tmp_path / "proposals.json", proposals)
    return ProposalFolder.read(tmp_path)


def complete_file(tmp_path: Path) -> Path:
    """The first image has three objects more, two of class 1, and the second one of class 2."""
    more = [[(20, 2, 8, 12, 1), (20, 20, 10, 10, 1), (40, 20, 10, 10, 2)], [(30, 30, 9, 9, 2)], []]
    rows = [[(1, 2, 8, 12, 1), *others] for others in more]
    return write_coco(tmp_path / "truth", rows)


PROPOSALS = [
    proposal(1, 0.95, box=(20, 2, 8, 12), score=0.9),  # right
    proposal(2, 0.90, box=(20, 2, 8, 11), score=0.8),  # the same again
    proposal(3, 0.80, box=(21, 20, 10, 10), score=0.7),  # right
    proposal(4, 0.40, image=2, box=(30, 30, 9, 9), score=0.6),  # right but for the class
    proposal(5, 0.30, image=3, category=2, box=(5, 30, 9, 9), score=0.5),  # wrong
]


def test_a_reviewer_without_mistakes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PROPOSALS)
    truth = Truth.of_file(complete_file(tmp_path), folder)
    assert truth.number == 4
    assert truth.missing == {"class 1": 2, "class 2": 2, "class 3": 0}
    assert truth.annotated == {"class 1": 3, "class 2": 0, "class 3": 0}
    right, decisions = right_ones(PROPOSALS, truth)
    assert right.tolist() == [True, False, True, False, False]
    said = [(one.decision, one.category_id) for one in decisions]
    assert said == [
        ("accept", None), ("reject", None), ("accept", None), ("class", 2), ("reject", None)
    ]  # fmt: skip


def test_a_judgement_by_hand(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PROPOSALS)
    judged = judge(folder, Truth.of_file(complete_file(tmp_path), folder))
    assert (judged.count, judged.number_missing, judged.number_right) == (5, 4, 2)
    # The mean of the first two is 0.925, of three 0.883, of four 0.7625, of all 0.67.
    assert judged.cuts[0.9] == (2, 0.5, 0.25)
    assert judged.cuts[0.75] == (4, 0.5, 0.5)
    assert judged.cuts[0.5] == (5, 0.4, 0.5)
    # Bins of a tenth: 0.3 (0 of 1), 0.4 (0 of 1), 0.8 (1 of 1), 0.9 and above (1 of 2).
    error = (abs(0.3) + abs(0.4) + abs(0.8 - 1) + 2 * abs(0.925 - 0.5)) / 5
    assert judged.calibration_error == pytest.approx(error)
    true, estimate = judged.rates["class 1"]
    assert true == pytest.approx(3 / 5)
    assert estimate is not None
    assert estimate.rate == 0.5
    assert judged.rates["class 2"] == (0.0, None)


def test_the_judge_without_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path, PROPOSALS)
    assert main(["judge", str(tmp_path)]) == 2
    assert "no finished training in it; --truth FILE names the truth" in capsys.readouterr().err
    file = complete_file(tmp_path)
    edit_json(file, lambda c: c["categories"][0].update(name="other"))
    assert main(["judge", str(tmp_path), "--truth", str(file)]) == 2
    assert "its categories are not those of" in capsys.readouterr().err


# -- from one end to the other -----------------------------------------------------------

SMALL = [one for one in TINY if "max_steps" not in one and "val_check" not in one]


@pytest.mark.slow
def test_propose_judge_and_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second call trains nothing again; judge and review find everything from elsewhere."""
    monkeypatch.chdir(tmp_path)
    options = [
        "data.root=shapes", *SMALL, "data.prepare.train_images=40",
        "trainer.max_steps=120", "trainer.val_check_interval=120", "method=annotation_rate",
        "data.paste=2", "optimizer.lr=0.004", "sparsity=hard",
    ]  # fmt: skip
    out = tmp_path / "out"
    assert main(["propose", *options, "--out", str(out), "--quiet"]) == 0
    first = (out / "proposals.json").read_text()
    results = sorted((out / "folds").glob("*/result.json"))
    assert len(results) == 2
    parts = {json.loads(file.read_text())["data"]["train"]["images"] for file in results}
    assert parts == {20}
    folder = ProposalFolder.read(out)
    assert folder.proposals
    known = folder.annotations
    for one in folder.proposals:
        assert 0.01 <= one.probability <= 1
        image = known.image_ids.tolist().index(one.image_id)
        own = (known.image == image) & (known.labels == one.category_id - 1)
        left, top, width, height = one.bbox
        box = np.array([left, top, left + width, top + height])
        for other in known.boxes[own]:
            corner, end = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
            shared = np.prod(np.clip(end - corner, 0, None))
            areas = width * height + np.prod(other[2:] - other[:2])
            assert shared / (areas - shared) <= 0.51
    times = [file.stat().st_mtime_ns for file in results]
    capsys.readouterr()
    other = ["propose", "--out", str(out), "--quiet", *options, "optimizer.lr=0.002"]
    assert main(other) == 2  # options may follow, too
    said = capsys.readouterr().err
    assert "holds trainings with other options (optimizer.lr: 0.004, now 0.002)" in said
    assert main(["propose", *options, "--out", str(out), "--quiet"]) == 0
    assert (out / "proposals.json").read_text() == first
    assert [file.stat().st_mtime_ns for file in results] == times
    capsys.readouterr()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = tmp_path / "again"
    run = next((out / "folds").glob("*/result.json")).parent
    (again / "folds").parent.mkdir()
    (again / "folds").symlink_to(out / "folds")
    assert main(["propose", str(run), "--out", str(again), "--quiet"]) == 0
    assert (again / "proposals.json").read_text() == first
    assert ProposalFolder.read(again).images.samefile(tmp_path / "shapes" / "train")
    capsys.readouterr()
    assert main(["judge", str(out)]) == 0
    printed: Any = capsys.readouterr().out
    assert "Expected calibration error" in printed
    assert "| circle | 0." in printed
    assert main(["review", str(out), "--quiet"]) == 0
    assert (out / "review.html").exists()

    # What is printed trains like the run, and is evaluated on the same split.
    capsys.readouterr()
    assert main(["export", str(out), "--precision", "0.5"]) == 0
    command = shlex.split(capsys.readouterr().out.split("train with: python train.py ")[1])
    cfg = composed(*readable(command))
    assert cfg.method.form == "fading"
    assert (cfg.trainer.max_steps, cfg.optimizer.lr, cfg.data.paste) == (120, 0.004, 2)
    trained = yaml.safe_load((run / "config.yaml").read_text())["data"]
    for name in ("batch_size", "min_size", "max_size", "flip", "num_workers"):
        assert cfg.data[name] == trained[name]
    data = instantiate(cfg.data, "data", sparsity=instantiate(cfg.sparsity, "sparsity"), seed=0)
    data.setup("fit")
    assert len(data.train_set.annotations.labels) > len(known.labels)
    before = read_coco(tmp_path / "shapes" / "annotations" / "val.json")
    assert np.array_equal(data.val_set.annotations.boxes, before.boxes)
    assert not data.val_set.annotations.is_partial
