"""The page of results: every figure comes out of a record that a run wrote."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from comining.config import CONFIG_FOLDER, resolve
from comining.reports import plots
from comining.reports.records import read_results, runs_frame
from comining.reports.study_files import collect, read_study
from comining.reports.study_selection import WITH_TAU, with_changed_options
from comining.runs.options import changed_options, options_hash, recipe_options
from comining.runs.result import RunResult
from comining.study import main
from tests.helpers import composed
from tests.recorded import RunFolder

ROOT = Path(__file__).resolve().parents[1]
MINING = {"pseudo_labels_per_image": 0.5, "precision": 0.75, "recall": None}


def add(runs: RunFolder, method: str, seed: int, test_ap: float | None, **changes: Any) -> None:
    """A run that took an hour; validation AP is one above test AP unless said."""
    if test_ap is None:
        changes = {"wall_time_s": 3600.0, "max_steps": 600, **changes}
        runs.add(status="diverged", method=method, seed=seed, **changes)
        return
    ap = changes.pop("val_ap", test_ap + 1)
    changes = {"mining": MINING, "wall_time_s": 3600.0, "max_steps": 600, **changes}
    runs.add(ap, test_ap=test_ap, method=method, seed=seed, **changes)


def page_of(runs: RunFolder) -> str:
    folder = runs.root.parent / "results"
    collect([runs.root], folder / "set")
    assert main(["write", str(folder), str(folder.parent / "R.md")]) == 0
    return (folder.parent / "R.md").read_text()


def test_means_pairs_and_the_closed_gap(runs: RunFolder) -> None:
    for seed, ap in enumerate((40.0, 41.0, 42.0)):
        add(runs, "original", seed, ap)
        add(runs, "comining", seed, 43.0)
    add(runs, "original", 0, 51.0, sparsity="full")
    add(runs, "joint", 2, 45.0)
    page = page_of(runs)
    assert "| hard | `joint` | 45.0 (1 seed) | +3.0 (+3.0) | -2.0 (-2.0) | 30% |" in page
    assert "| hard | `original` | 41.0 ± 1.0 |  | +2.0 (+3.0, +2.0, +1.0) |  |" in page
    assert "| hard | `comining` | 43.0 ± 0.0 | +2.0 (+3.0, +2.0, +1.0) |  | 20% |" in page
    assert "| full | `original` | 51.0 (1 seed) |" in page
    assert "8 runs of 600 steps, 8.0 hours" in page
    methods = [line.split("`")[1] for line in page.splitlines() if line.startswith("| hard | `")]
    assert methods == ["original", "joint", "comining"]  # the order of the paper


def test_the_statistics_of_a_page_are_those_of_numpy(runs: RunFolder) -> None:
    rng = np.random.default_rng(1)
    ours, original = rng.uniform(20, 60, (2, 5))
    for seed in range(5):
        add(runs, "comining", seed, float(ours[seed]))
        add(runs, "original", seed, float(original[seed]))
    each = ", ".join(f"{difference:+.1f}" for difference in ours - original)
    expected = (
        f"| hard | `comining` | {ours.mean():.1f} ± {ours.std(ddof=1):.1f} (5 seeds) | "
        f"{(ours - original).mean():+.1f} ({each}) |"
    )
    assert expected in page_of(runs)


def test_the_threshold_is_chosen_by_validation_and_others_make_no_seeds(runs: RunFolder) -> None:
    add(runs, "comining", 0, 43.0)
    add(runs, "comining", 0, 45.0, tau=0.6, val_ap=30.0)  # better on the test split only
    add(runs, "original", 0, 41.0)
    page = page_of(runs)
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.6 | 30.0 | 45.0 | 0.50 | 0.75 | - |" in page
    assert "| hard | `comining` | 43.0 (1 seed) | +2.0 (+2.0) |" in page


def test_a_method_with_a_threshold_of_its_own_is_compared_at_it(runs: RunFolder) -> None:
    add(runs, "comining", 0, 43.0)
    add(runs, "original", 0, 41.0)
    add(runs, "calibrated_teacher", 0, 42.0, options={"score_threshold": 0.4})
    assert "| hard | `calibrated_teacher` | 42.0 (1 seed) | +1.0 (+1.0) |" in page_of(runs)


def test_these_methods_take_tau() -> None:
    names = sorted(file.stem for file in (CONFIG_FOLDER / "method").glob("*.yaml"))
    found = [
        name
        for name in names
        if name != "base"
        and composed(f"method={name}", "tau=0.123").method.get("score_threshold") == 0.123
    ]
    assert found == sorted(WITH_TAU)


def test_what_is_collected(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished and diverged runs, without the paths of the machine; what is left out is named."""
    assert main(["collect", str(trained[0]), "--to", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"4 results in {tmp_path / 'r'}, 5 left out"
    assert sorted(line.split(":")[0] for line in lines[1:]) == [
        *["left out, failed"] * 4, "left out, interrupted",
    ]  # fmt: skip
    assert all(Path(line.split(": ", 1)[1]).is_file() for line in lines[1:])
    results, repeats = read_study(tmp_path / "r")
    # The diverged ones have another learning rate: they repeat none of the others.
    assert (len(results), len(repeats)) == (4, 0)
    statuses = [result.status for result in (results | repeats).values()]
    assert sorted(statuses) == ["diverged", "diverged", "finished", "finished"]
    for file, result in (results | repeats).items():
        assert str(trained[0].parent) not in file.read_text()
        original = trained[1][result.status, result.method]
        assert result.metrics == original.metrics
        assert result.error == original.error
        for split, facts in result.data.items():
            assert facts == original.data[split] | {"annotations": f"{split}.json"}


def test_a_teacher_is_named_without_its_path(runs: RunFolder, tmp_path: Path) -> None:
    runs.add(3.0, method="pseudo_label", options={"teacher": "/home/me/runs/best.ckpt"})
    collect([runs.root], tmp_path / "r")
    (result,) = read_study(tmp_path / "r")[0].values()
    assert result.method_options["teacher"] == "best.ckpt"


def test_a_run_without_a_result_is_left_out_by_name(runs: RunFolder, tmp_path: Path) -> None:
    file = runs.add(3.0)
    file.rename(file.with_name("config.yaml"))
    assert collect([runs.root], tmp_path / "r") == ([], {file.parent: "no result"})


def test_bad_input_is_one_line(
    runs: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.add(3.0)
    good = file.read_text()
    file.write_text("{")
    (tmp_path / "none").mkdir()
    commands = {
        f"{file}: not a result": ["collect", str(runs.root), "--to", str(tmp_path / "r")],
        f"{tmp_path / 'absent'}: no such directory": [
            "collect", str(tmp_path / "absent"), "--to", str(tmp_path / "r"),
        ],
        f"{tmp_path / 'none'}: no results": ["write", str(tmp_path / "none"), "R.md"],
        f"{tmp_path / 'gone'}: no such directory": ["write", str(tmp_path / "gone"), "R.md"],
    }  # fmt: skip
    (tmp_path / "s" / "set").mkdir(parents=True)
    (tmp_path / "s" / "set" / "a-repeat1.json").write_text(good)
    missing = f"{tmp_path / 's' / 'set' / 'a-repeat1.json'}: a repeat, but "
    commands[missing] = ["write", str(tmp_path / "s"), "R.md"]
    for message, command in commands.items():
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_two_records_of_one_run_are_refused(runs: RunFolder, tmp_path: Path) -> None:
    """Not one of them taken, nor both averaged: with collect the second becomes a repeat."""
    folder = tmp_path / "results" / "set"
    for name in ("a", "b"):
        RunResult.read(runs.add(3.0)).write(folder / f"{name}.json")
    assert main(["write", str(folder.parent), str(tmp_path / "R.md")]) == 2


def test_every_sparse_set_has_a_threshold_of_its_own_where_several_were_tried(
    runs: RunFolder,
) -> None:
    add(runs, "comining", 0, 43.0)
    add(runs, "comining", 0, 40.0, tau=0.6)
    add(runs, "comining", 0, 20.0, sparsity="extreme")
    add(runs, "comining", 0, 22.0, sparsity="extreme", tau=0.4)
    add(runs, "comining", 1, 24.0, sparsity="extreme", tau=0.4)
    add(runs, "comining", 0, 50.0, sparsity="easy")  # one alone: that of hard
    add(runs, "comining", 0, 50.0, sparsity="miss50", tau=0.6)
    page = page_of(runs)
    assert "| hard | `comining` | 43.0 (1 seed) |" in page
    assert "| extreme | `comining` | 23.0 ± 1.4 (2 seeds) |" in page
    assert "| easy | `comining` | 50.0 (1 seed) |" in page
    assert "| miss50 |" not in page
    assert page.count("### Score thresholds") == 2


def test_every_detector_has_a_threshold_of_its_own_where_several_were_tried(
    runs: RunFolder,
) -> None:
    add(runs, "comining", 0, 43.0)
    add(runs, "comining", 0, 40.0, tau=0.6)
    add(runs, "comining", 0, 60.0, detector="faster_rcnn")
    add(runs, "comining", 0, 61.0, detector="faster_rcnn", tau=0.6)
    add(runs, "comining", 0, 62.0, detector="fcos")  # one alone
    add(runs, "self_mining", 0, 50.0, detector="ssd", tau=0.6)  # none: that of RetinaNet
    add(runs, "self_mining", 0, 51.0, detector="ssd")
    add(runs, "comining", 0, 30.0, detector="yolo", sparsity="extreme", tau=0.4)  # hard: none
    page = page_of(runs)
    ours = [line for line in page.splitlines() if line.startswith("| hard | `")]
    assert [line.split(" | ")[1:3] for line in ours] == [
        ["`comining`", f"{ap} (1 seed)"] for ap in ("43.0", "62.0", "61.0")
    ] + [["`self_mining`", "51.0 (1 seed)"]]
    assert "\n| extreme | `comining` | 30.0 (1 seed) |" in page
    assert page.count("### Score thresholds") == 2
    assert "### Score thresholds, faster_rcnn, `hard`" in page
    assert "τ = 0.6 has the best validation AP" in page


def test_methods_that_were_trained_for_another_length_are_not_compared(runs: RunFolder) -> None:
    add(runs, "original", 0, 41.0)
    add(runs, "joint", 0, 42.0)
    for seed in (0, 1):
        add(runs, "comining", seed, 50.0, max_steps=1200)
        add(runs, "original", seed + 1, 41.0)
    page = page_of(runs)
    assert "\n| hard | `comining` |" not in page
    row = "| retinanet | hard | `comining` | 0.5 | `max_steps=1200` | 0 | 51.0 | 50.0 |"
    assert row in page


def test_second_views_are_compared_in_a_table_of_their_own(runs: RunFolder) -> None:
    for seed in (0, 1):
        add(runs, "comining", seed, 43.0 + seed)
    assert "Second views" not in page_of(runs)
    add(runs, "comining", 1, 41.0, view="blur")
    page = page_of(runs)
    assert "| `blur` | 41.0 (1 seed) | -3.0 (-3.0) |" in page
    assert "| `color` | 43.5 ± 0.7 (2 seeds) |  |" in page
    assert "| hard | `comining` | 43.5 ± 0.7 (2 seeds) |" in page  # blur is no seed of it


def test_a_run_made_again_is_kept_beside_the_first_and_is_no_seed(runs: RunFolder) -> None:
    folder = runs.root.parent / "results" / "set"
    for place, ap in enumerate((50.0, 51.0, 51.0, 52.0, None, None)):
        again = RunFolder(runs.root.parent / f"again{place}", runs.records)
        # An option that did not exist before changes the variant, and not what is compared.
        add(again, "original", 2, ap, variant=f"v{place}")
        collect([again.root], folder)
    results, repeats = read_study(folder)
    assert [result.test_ap for result in results.values()] == [50.0]
    assert len(repeats) == 3  # the same outcome twice is one file
    assert main(["write", str(folder.parent), str(runs.root.parent / "R.md")]) == 0
    page = (runs.root.parent / "R.md").read_text()
    assert "| hard | `original` | 50.0 (1 seed) |" in page
    assert "| hard | `original` | 2 | 50.0 | 51.0 |" in page
    assert "| hard | `original` | 2 | 50.0 | 52.0 |" in page
    assert "| hard | `original` | 2 | 50.0 | diverged |" in page
    assert "4 runs of 600 steps, 4.0 hours" in page


def test_a_run_with_an_option_changed_is_shown_and_is_no_seed(runs: RunFolder) -> None:
    for seed in (0, 1):
        add(runs, "comining", seed, 43.0 + seed)
        add(runs, "original", seed, 41.0)
    add(runs, "comining", 0, 47.0, options={"start_step": 300})
    add(runs, "original", 0, 48.0, max_steps=1200)
    page = page_of(runs)
    assert "| hard | `comining` | 43.5 ± 0.7 (2 seeds) |" in page
    assert "| hard | `original` | 41.0 ± 0.0 (2 seeds) |" in page
    row = (
        "| retinanet | hard | `comining` | 0.5 | `start_step=300` | 0 | 48.0 | 47.0 | 0.50 | 0.75 |"
    )
    assert row in page
    assert "| retinanet | hard | `original` | - | `max_steps=1200` | 0 | 49.0 | 48.0 |" in page
    assert "6 runs of 600 steps (where no other length is said), 6.0 hours" in page


def test_a_recipe_changed_is_shown_and_is_neither_seed_nor_repeat(runs: RunFolder) -> None:
    usual = {"optimizer.lr": 0.002, "data.min_size": 96, "optimizer.momentum": 0.9}
    for seed in (0, 1):
        add(runs, "original", seed, 41.0, recipe_options=usual)
        add(runs, "comining", seed, 43.0, recipe_options=usual)
    add(runs, "original", 0, 48.0, recipe_options=usual | {"optimizer.lr": 0.004})
    add(runs, "joint", 0, 49.0, recipe_options=usual | {"data.min_size": 64})
    add(runs, "joint", 0, 30.0, recipe_options=usual, backbone="resnet18", variant="r")
    # Records from before an option do not know it.
    add(runs, "joint", 1, 44.0, recipe_options={})
    add(runs, "original", 2, 42.5, recipe_options={"data.min_size": 96, "data.later": 1})
    page = page_of(runs)
    assert "| hard | `original` | 41.5 ± 0.9 |" in page
    row = "| retinanet | hard | `original` | - | `optimizer.lr=0.004` | 0 | 49.0 | 48.0 |"
    assert row in page
    assert "| retinanet | hard | `joint` | - | `data.min_size=64` | 0 | 50.0 | 49.0 |" in page
    assert "| retinanet | hard | `joint` | - | `backbone=resnet18` | 0 | 31.0 | 30.0 |" in page
    assert "| hard | `joint` | 44.0 (1 seed) |" in page
    assert "a second time" not in page


def test_an_option_of_mining_changes_nothing_where_nothing_is_mined(runs: RunFolder) -> None:
    nothing = dict.fromkeys(MINING)
    for seed, count in enumerate((32, 32, 100)):
        recipe = {"detector.candidate_proposals": count}
        add(runs, "original", seed, 41.0 + seed, recipe_options=recipe, mining=nothing)
        add(runs, "comining", seed, 43.0, recipe_options=recipe)
    page = page_of(runs)
    assert "| hard | `original` | 42.0 ± 1.0 |" in page
    assert "| hard | `comining` | 43.0 ± 0.0 (2 seeds) |" in page
    assert "`detector.candidate_proposals=100`" in page


@pytest.mark.parametrize(
    ("first", "second", "repeats"),
    [
        ({"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}, 0),
        ({"optimizer.lr": 0.1}, {"optimizer.lr": 0.1}, 1),
        ({"optimizer.lr": 0.1}, {}, 1),
        ({"optimizer.lr": 0.1, "data.flip": 0.5}, {"optimizer.lr": 0.1}, 1),
    ],
)
def test_a_repeat_has_the_same_recipe_as_far_as_both_records_know_it(
    runs: RunFolder, first: dict[str, Any], second: dict[str, Any], repeats: int
) -> None:
    for place, recipe in enumerate((first, second)):
        one = RunFolder(runs.root.parent / f"run{place}", runs.records)
        add(one, "original", 0, 50.0 + place, variant=f"v{place}", recipe_options=recipe)
        collect([one.root], runs.root.parent / "results" / "set")
    assert len(read_study(runs.root.parent / "results" / "set")[1]) == repeats


def test_no_result_is_written_over_another(runs: RunFolder) -> None:
    """A record that knows no recipe is the same as each of two that differ."""
    folder = runs.root.parent / "results" / "set"
    recipes: list[dict[str, Any]] = [{}, {"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}]
    for place, recipe in enumerate(recipes):
        one = RunFolder(runs.root.parent / f"run{place}", runs.records)
        add(one, "original", 0, 50.0 + place, variant=f"v{place}", recipe_options=recipe)
        collect([one.root], folder)
    results, repeats = read_study(folder)
    kept = sorted(one.test_ap for one in (results | repeats).values() if one.test_ap is not None)
    assert kept == [50.0, 51.0, 52.0]


def test_records_from_before_the_hash_of_options_are_all_kept(runs: RunFolder) -> None:
    folder = runs.root.parent / "results" / "set"
    for ap, tau in ((50.0, 0.4), (51.0, 0.5), (52.0, 0.6)):
        add(runs, "comining", 0, ap, tau=tau, variant="")
    collect([runs.root], folder)
    collect([runs.root], folder)  # the same once more
    results, repeats = read_study(folder)
    assert sorted(str(one.test_ap) for one in results.values()) == ["50.0", "51.0", "52.0"]
    assert not repeats


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["weights=coco"], "weights=coco"),
        (["optimizer=sgd", "optimizer.lr=0.004"], "optimizer=SGD"),
        (["schedule=multistep"], "schedule=WarmupMultiStep"),
        (["data.val_fraction=0.1"], "data.val_fraction=0.1"),
        (["data.min_size=64"], "data.min_size=64"),
        (["detector.anchor_scale=8"], "detector.anchor_scale=8"),
        (["head.anchor_scale=8"], "head.anchor_scale=8"),
        (["data.num_workers=0", "data.root=/elsewhere", "trainer.val_check_interval=7"], ""),
        (["method=joint", "sparsity=extreme", "seed=4", "tau=0.3", "trainer.max_steps=9"], ""),
    ],
)
def test_what_of_a_recipe_was_changed(runs: RunFolder, options: list[str], shown: str) -> None:
    recipes = [
        recipe_options(OmegaConf.to_container(composed("data.root=/x", *more), resolve=True))
        for more in ([], options)
    ]
    for seed in (0, 1):
        add(runs, "original", seed, 41.0, recipe_options=recipes[0])
    runs.add(48.0, method="original", seed=2, max_steps=600, recipe_options=recipes[1])
    found = with_changed_options(runs_frame(read_results(sorted(runs.root.glob("*/*.json")))))
    assert found["changed"].tolist() == ["", "", shown]


def test_another_sparse_set_is_neither_seed_nor_repeat(runs: RunFolder) -> None:
    for seed in (0, 1):
        add(runs, "original", seed, 41.0)
    add(runs, "original", 0, 48.0, sparsity_options={"regions": 1.0}, variant="other")
    page = page_of(runs)
    assert "| hard | `original` | 41.0 ± 0.0 (2 seeds) |" in page
    row = "| retinanet | hard | `original` | - | `sparsity.regions=1.0` | 0 | 49.0 | 48.0 |"
    assert row in page
    assert "a second time" not in page


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["sparsity=hard"], {}),
        (["sparsity=hard", "sparsity.regions=1.0"], {"regions": 1.0}),
        (["sparsity=classes", "sparsity.known=false"], {"known": False}),
        (["sparsity=file", "sparsity.path=/x/y.json"], {}),
    ],
)
def test_options_of_a_sparse_set_that_differ_from_its_choice(
    options: list[str], changed: dict[str, Any]
) -> None:
    config: Any = OmegaConf.to_container(composed("data.root=/x", *options), resolve=True)
    choice = options[0].partition("=")[2]
    assert changed_options("sparsity", choice, config) == changed
    assert changed_options("sparsity", "my_own", config) == {}


def test_a_threshold_that_a_method_does_not_use_makes_no_other_setting() -> None:
    hashes = {
        method: {options_hash(resolve(composed(f"method={method}", f"tau={tau}")), ("seed",))
                 for tau in (0.4, 0.5)}
        for method in ("original", "comining", "sparsedet")
    }  # fmt: skip
    assert [len(found) for found in hashes.values()] == [1, 2, 1]


def test_a_run_records_its_recipe_without_what_is_studied(runs: RunFolder) -> None:
    recipe = runs.records["finished", "comining"].recipe_options
    known = {"optimizer.lr": 0.001, "data.batch_size": 4, "schedule.rise": 0.3}
    assert {name: recipe.get(name) for name in known} == known
    groups = {name.partition(".")[0] for name in recipe}
    assert groups.isdisjoint(
        {"seed", "method", "view", "sparsity", "tau", "checkpoint", "pictures"}
    )
    assert not any(isinstance(value, str) and "/" in value for value in recipe.values())


def test_thresholds_that_have_as_many_seeds_are_compared_by_their_mean(runs: RunFolder) -> None:
    for seed in (0, 1):
        add(runs, "comining", seed, 43.0)
        add(runs, "comining", seed, (44.0, 0.0)[seed], tau=0.4)
    add(runs, "comining", 0, 45.0, tau=0.6)  # no seed 1: not compared
    add(runs, "comining", 1, 99.0, tau=0.7)  # no seed 0, which all have in common: not shown
    page = page_of(runs)
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.4 | 45.0, 1.0 | 44.0, 0.0 | 0.50, 0.50 | 0.75, 0.75 | -, - |" in page
    assert "| 0.7 |" not in page


def test_mining_over_time_is_that_of_seed_0(runs: RunFolder) -> None:
    def history(precision: float | None) -> list[dict[str, float | None]]:
        return [{"step": 300, "precision": precision, "recall": 0.25},
                {"step": 1200, "precision": 0.5, "recall": None}]  # fmt: skip

    add(runs, "comining", 0, 43.0, history=history(0.125))
    add(runs, "comining", 1, 43.0, history=history(0.875))
    add(runs, "comining", 0, 42.0, tau=0.6, history=history(None)[:1])
    page = page_of(runs)
    assert "| τ | step 300 | step 1200 |" in page
    assert "| 0.5 | 0.12 / 0.25 | 0.50 / - |" in page
    assert "| 0.6 | - / 0.25 | - / - |" in page


def test_many_wrong_pseudo_labels_are_shown_with_their_class(runs: RunFolder) -> None:
    add(runs, "comining", 0, 43.0)
    heading = "### Runs with many wrong pseudo-labels"
    assert heading not in page_of(runs)
    mining = {"pseudo_labels_per_image": 80.0, "precision": 0.02, "recall": 0.5, "duplicate": 0.0,
              "wrong_class": 0.125, "poor_localisation": 0.5, "background": 0.355}  # fmt: skip
    classes = {"cell": {"pseudo_labels_per_image": 60.0}, "dot": {"pseudo_labels_per_image": 20.0}}
    add(runs, "comining", 0, 1.0, tau=0.4, mining=mining, mining_classes=classes)
    few = mining | {"pseudo_labels_per_image": 0.99}
    right = mining | {"precision": 0.1}
    add(runs, "comining", 1, 1.0, tau=0.4, mining=few, mining_classes=classes)
    add(runs, "comining", 2, 1.0, tau=0.4, mining=right, mining_classes=classes)
    section = page_of(runs).split(heading)[1].split("##")[0]
    row = (
        "| retinanet | hard | `comining` | 0.4 |  | 0 | 80.0 | cell: 75% | 0.02 | 0.00 | 0.12 | "
        "0.50 | 0.35 |"
    )
    assert row in section
    assert section.count("| `comining` |") == 1


def test_a_lower_bound_is_marked_with_its_recall(runs: RunFolder) -> None:
    for seed in (0, 1):
        add(runs, "original", seed, 40.0 + seed, test_ap_is_lower_bound=True)
        add(runs, "comining", seed, 50.0, ap_is_lower_bound=True)
    page = page_of(runs)
    assert "| hard | `original` | ≥ 40.5 ± 0.7 (2 seeds) |" in page
    assert "| hard | `comining` | 50.0 ± 0.0 (2 seeds) |" in page
    assert page.count("≥: a lower bound, because objects may be missing") == 1
    assert "| retinanet | hard | original | - | test | 40.5 | 40.5 | 40.5 |" in page
    assert "| retinanet | hard | comining | 0.5 | val | 51.0 | 51.0 | 51.0 |" in page
    assert page.count("| val |") == page.count("| test |") == 1


def test_a_lower_bound_is_marked_in_tables_of_single_runs(runs: RunFolder) -> None:
    for tau in (0.4, 0.5):
        for seed in (0, 1):
            changes: dict[str, Any] = {"val_ap": 50.0 + tau, "tau": tau}
            add(runs, "comining", seed, 40.0, ap_is_lower_bound=seed == 1, **changes)
    rows = [line for line in page_of(runs).splitlines() if line.startswith("| 0.4 |")]
    assert "50.4, ≥ 50.4 | 40.0, 40.0" in rows[0]


def test_a_diverged_run_is_the_worst_of_a_threshold_and_is_shown(runs: RunFolder) -> None:
    add(runs, "comining", 0, 0.5)
    add(runs, "comining", 0, None, tau=0.4)
    page = page_of(runs)
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.4 | diverged | diverged | - | - | - |" in page


def test_a_diverged_seed_leaves_no_mean(runs: RunFolder) -> None:
    for seed, ap in enumerate((43.0, None, 45.0)):
        add(runs, "comining", seed, ap)
        add(runs, "original", seed, 40.0)
    add(runs, "original", 0, 50.0, sparsity="full")
    page = page_of(runs)
    assert "| hard | `comining` | NaN (1 of 3) | NaN (+3.0, NaN, +5.0) |  | NaN |" in page
    assert "| hard | `original` | 40.0 ± 0.0 |  | NaN (+3.0, NaN, +5.0) |  |" in page


def test_where_all_diverged(runs: RunFolder) -> None:
    add(runs, "comining", 0, None)
    add(runs, "original", 0, None)
    page = page_of(runs)
    assert "| hard | `comining` | NaN | NaN (NaN) |  | - |" in page


def test_records_of_runs_that_did_not_end_are_counted_and_in_no_table(
    runs: RunFolder, tmp_path: Path
) -> None:
    """Such as a person has copied by hand."""
    folder = tmp_path / "results" / "set"
    for status in ("interrupted", "failed"):
        RunResult.read(runs.add(status=status)).write(folder / f"{status}.json")
    assert main(["write", str(folder.parent), str(tmp_path / "R.md")]) == 0
    page = (tmp_path / "R.md").read_text()
    assert "Not in the tables: 1 failed, 1 interrupted." in page
    assert "-ap.svg" not in page
    RunResult.read(runs.add(30.0, method="original")).write(folder / "finished.json")
    assert main(["write", str(folder.parent), str(tmp_path / "R.md")]) == 0
    page = (tmp_path / "R.md").read_text()
    assert "1 runs of 6 steps" in page
    assert "Not in the tables: 1 failed, 1 interrupted." in page
    assert "| hard | `original` | 30.0 (1 seed) |" in page


def test_a_set_without_a_test_split(runs: RunFolder) -> None:
    for method in ("original", "comining"):
        runs.add(30.0, method=method, test=None)
    for file in runs.root.glob("*/result.json"):
        assert RunResult.read(file).test_ap is None
    page = page_of(runs)
    assert "| hard | `comining` | - | - |  | - |" in page


def test_methods_and_sets_of_ones_own_come_last(runs: RunFolder) -> None:
    for method in ("zebra", "original", "antelope"):
        add(runs, method, 0, 30.0)
    add(runs, "original", 0, 30.0, sparsity="miss30")
    lines = [line for line in page_of(runs).splitlines() if "(1 seed)" in line]
    cells = [tuple(line.strip("| ").split(" | ")[:2]) for line in lines]
    assert cells == [("hard", "`original`"), ("hard", "`antelope`"), ("hard", "`zebra`"),
                     ("miss30", "`original`")]  # fmt: skip


def test_plots_are_drawn_and_the_same_results_draw_the_same(runs: RunFolder) -> None:
    add(runs, "comining", 0, 43.0)
    add(runs, "comining", 0, 42.0, tau=0.6)
    add(runs, "comining", 1, None)
    page = page_of(runs)
    names = ["set-ap.svg", "set-retinanet-hard-mining.svg"]
    folder = runs.root.parent / "results" / "plots"
    assert sorted(file.name for file in folder.iterdir()) == names
    assert all(f"(results/plots/{name})" in page for name in names)
    first = [(folder / name).read_bytes() for name in names]
    page_of(runs)
    assert [(folder / name).read_bytes() for name in names] == first


def test_without_matplotlib_there_is_a_page(
    runs: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "MATPLOTLIB_IS_INSTALLED", False)
    add(runs, "comining", 0, 43.0)
    assert "| hard | `comining` | 43.0 (1 seed) |" in page_of(runs)
    assert "no plots: matplotlib is missing" in capsys.readouterr().err


def test_the_page_in_the_project_is_what_its_results_say(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    assert main(["write", str(tmp_path / "results"), str(tmp_path / "RESULTS.md")]) == 0
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "RESULTS.md").read_text()
    for plot in (tmp_path / "results" / "plots").iterdir():
        assert (ROOT / "results" / "plots" / plot.name).is_file()
