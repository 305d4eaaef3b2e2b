"""The page of results: every figure comes out of a file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from comining.reports.study_results import collect, read

from comining.errors import DataError
from comining.study import main

ROOT = Path(__file__).resolve().parents[1]


def result(method: str, seed: int, ap: float, **changes: Any) -> dict[str, Any]:
    tau = changes.pop("tau", 0.5)
    options = {"score_threshold": tau} if method == "comining" else {}
    return {
        "status": "finished", "method": method, "detector": "retinanet", "sparsity": "hard",
        "view": "color", "seed": seed, "variant": f"{method}{tau}", "max_steps": 600,
        "method_options": options, "metrics": {"AP": ap + 1}, "test": {"AP": ap},
        "mining": {"pseudo_labels_per_image": 0.5, "precision": 0.75, "recall": None},
        "history": [{"step": 300, "precision": 0.5, "recall": 0.25}],
        "data": {"train": {"annotations": "/home/me/secret/train.json", "fingerprint": "f"}},
        "versions": {"torch": "2"}, "hardware": "CPU", "wall_time_s": 3600, **changes,
    }  # fmt: skip


def runs(folder: Path, results: list[dict[str, Any]]) -> Path:
    for number, one in enumerate(results):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "result.json").write_text(json.dumps(one))
    return folder


def page_of(tmp_path: Path, results: list[dict[str, Any]]) -> str:
    collect([runs(tmp_path / "runs", results)], tmp_path / "results" / "set")
    main(["write", str(tmp_path / "results"), str(tmp_path / "R.md")])
    return (tmp_path / "R.md").read_text()


def test_means_pairs_and_the_closed_gap(tmp_path: Path) -> None:
    results = [result("original", seed, ap) for seed, ap in enumerate((40.0, 41.0, 42.0))]
    results += [result("comining", seed, ap) for seed, ap in enumerate((43.0, 43.0, 43.0))]
    results += [result("original", 0, 51.0, sparsity="full"), result("joint", 2, 45.0)]
    page = page_of(tmp_path, results)
    assert "| hard | `joint` | 45.0 (1 seed) | +3.0 (+3.0) | -2.0 (-2.0) | 30% |" in page
    assert "| hard | `original` | 41.0 ± 1.0 |  | +2.0 (+3.0, +2.0, +1.0) |  |" in page
    assert "| hard | `comining` | 43.0 ± 0.0 | +2.0 (+3.0, +2.0, +1.0) |  | 20% |" in page
    assert "| full | `original` | 51.0 (1 seed) |" in page
    assert "8 runs of 600 steps, 8.0 hours" in page


def test_the_threshold_is_chosen_by_validation_and_others_make_no_seeds(tmp_path: Path) -> None:
    better = result("comining", 0, 45.0, tau=0.6, metrics={"AP": 30.0})  # on the test split only
    page = page_of(tmp_path, [result("comining", 0, 43.0), better, result("original", 0, 41.0)])
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.6 | 30.0 | 45.0 | 0.50 | 0.75 | - |" in page
    assert "| hard | `comining` | 43.0 (1 seed) | +2.0 (+2.0) |" in page


def test_what_is_collected_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    failed = result("joint", 0, 1.0, status="failed")
    count = collect([runs(tmp_path / "runs", [result("original", 0, 4.0), failed])], tmp_path / "r")
    assert count == 1
    (one,) = read(tmp_path / "r")
    assert one["data"]["train"] == {"annotations": "train.json", "fingerprint": "f"}


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"a/result\.json: not a result"):
        collect([tmp_path], tmp_path / "r")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no results"):
        main(["write", str(tmp_path / "none"), str(tmp_path / "R.md")])


def test_every_sparse_set_has_a_threshold_of_its_own_where_several_were_tried(
    tmp_path: Path,
) -> None:
    results = [
        result("comining", 0, 43.0),
        result("comining", 0, 40.0, tau=0.6),
        result("comining", 0, 20.0, sparsity="extreme", variant="a"),
        result("comining", 0, 22.0, sparsity="extreme", tau=0.4, variant="b"),
        result("comining", 1, 24.0, sparsity="extreme", tau=0.4, variant="b"),
        result("comining", 0, 50.0, sparsity="easy"),  # one alone: that of hard
    ]
    page = page_of(tmp_path, results)
    assert "| hard | `comining` | 43.0 (1 seed) |" in page
    assert "| extreme | `comining` | 23.0 ± 1.4 (2 seeds) |" in page
    assert "| easy | `comining` | 50.0 (1 seed) |" in page
    assert page.count("### Score thresholds") == 2


def test_second_views_are_compared_in_a_table_of_their_own(tmp_path: Path) -> None:
    results = [result("comining", seed, 43.0 + seed) for seed in (0, 1)]
    results += [result("comining", 1, 41.0, view="blur")]
    page = page_of(tmp_path, results)
    assert "| `blur` | 41.0 (1 seed) | -3.0 (-3.0) |" in page
    assert "| hard | `comining` | 43.5 ± 0.7 (2 seeds) |" in page  # blur is no seed of it


def test_a_run_made_again_is_kept_beside_the_first_and_is_no_seed(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "set"
    for number, ap in enumerate((50.0, 51.0, 51.0, 52.0)):
        # An option that did not exist before changes the variant, and not what is compared.
        one = result("original", 2, ap, variant=f"v{number}")
        collect([runs(tmp_path / str(number), [one])], folder)
    assert len(list(folder.glob("*.json"))) == 3  # the same outcome twice is one file
    assert [one["test"]["AP"] for one in read(folder)] == [50.0]
    main(["write", str(tmp_path / "results"), str(tmp_path / "R.md")])
    page = (tmp_path / "R.md").read_text()
    assert "| hard | `original` | 50.0 (1 seed) |" in page
    assert "| hard | `original` | 2 | 50.0 | 51.0 |" in page
    assert "| hard | `original` | 2 | 50.0 | 52.0 |" in page
    assert "3 runs of 600 steps, 3.0 hours" in page


def test_a_run_with_an_option_changed_is_shown_and_is_no_seed(tmp_path: Path) -> None:
    options = {"score_threshold": 0.5, "start_step": 300}
    results = [result("comining", 0, 43.0), result("original", 0, 41.0)]
    results += [result("comining", 1, 44.0), result("original", 1, 41.0)]
    results += [result("comining", 0, 47.0, method_options=options, variant="later")]
    results += [result("original", 0, 48.0, max_steps=1200, variant="longer")]
    page = page_of(tmp_path, results)
    assert "| hard | `comining` | 43.5 ± 0.7 (2 seeds) |" in page
    assert "| hard | `original` | 41.0 ± 0.0 (2 seeds) |" in page
    row = (
        "| retinanet | hard | `comining` | 0.5 | `start_step=300` | 0 | 48.0 | 47.0 | 0.50 | 0.75 |"
    )
    assert row in page
    assert "| retinanet | hard | `original` | - | `max_steps=1200` | 0 | 49.0 | 48.0 |" in page
    assert "6 runs of 600 steps (where no other length is said), 6.0 hours" in page


def test_thresholds_that_have_as_many_seeds_are_compared_by_their_mean(tmp_path: Path) -> None:
    results = [
        result("comining", 0, 43.0),
        result("comining", 1, 43.0),
        result("comining", 0, 44.0, tau=0.4),
        result("comining", 1, 0.0, tau=0.4),
        result("comining", 0, 45.0, tau=0.6),  # no seed 1: no finalist
    ]
    page = page_of(tmp_path, results)
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.4 | 45.0, 1.0 | 44.0, 0.0 | 0.50, 0.50 | 0.75, 0.75 | -, - |" in page


def test_a_runaway_is_shown_with_the_class_that_it_is_of(tmp_path: Path) -> None:
    mining = {"pseudo_labels_per_image": 80.0, "precision": 0.02, "recall": 0.5, "duplicate": 0.0,
              "wrong_class": 0.125, "poor_localisation": 0.5, "background": 0.355}  # fmt: skip
    classes = {"cell": {"pseudo_labels_per_image": 60.0}, "dot": {"pseudo_labels_per_image": 20.0}}
    away = result("comining", 0, 1.0, tau=0.4, mining=mining, mining_classes=classes)
    few = result("comining", 1, 1.0, tau=0.4, mining=mining | {"pseudo_labels_per_image": 0.5})
    page = page_of(tmp_path, [result("comining", 0, 43.0), away, few])
    assert "| retinanet | hard | `comining` | 0.4 |  | 0 | 80.0 | cell: 75% | 0.02 |" in page
    section = page.split("### Runs in which mining ran away")[1].split("##")[0]
    assert section.count("| `comining` |") == 1
    assert "ran away" not in page_of(tmp_path / "other", [result("comining", 0, 43.0)])


def test_a_diverged_run_is_the_worst_of_a_threshold_and_is_shown(tmp_path: Path) -> None:
    results = [result("comining", 0, 43.0), result("comining", 0, 99.0, tau=0.4)]
    results[1] |= {"status": "diverged", "metrics": {"AP": None}, "test": None}
    page = page_of(tmp_path, results)
    assert "τ = 0.5 has the best validation AP" in page
    assert "| 0.4 | diverged | diverged | 0.50 | 0.75 | - |" in page


def test_plots_are_drawn_and_the_same_results_draw_the_same(tmp_path: Path) -> None:
    results = [result("comining", 0, 43.0), result("comining", 0, 42.0, tau=0.6)]
    page = page_of(tmp_path, results)
    names = ["set-ap.svg", "set-hard-mining.svg"]
    plots = tmp_path / "results" / "plots"
    assert sorted(file.name for file in plots.iterdir()) == names
    assert all(f"(results/plots/{name})" in page for name in names)
    first = [(plots / name).read_bytes() for name in names]
    main(["write", str(tmp_path / "results"), str(tmp_path / "R.md")])
    assert [(plots / name).read_bytes() for name in names] == first


def test_the_page_in_the_project_is_what_its_results_say(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    main(["write", str(tmp_path / "results"), str(tmp_path / "RESULTS.md")])
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "RESULTS.md").read_text()
    for plot in (tmp_path / "results" / "plots").iterdir():
        assert (ROOT / "results" / "plots" / plot.name).is_file()
