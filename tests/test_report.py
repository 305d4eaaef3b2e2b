"""Tables out of result files, worked out by hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comining.reports.tables import Cell, main, read_results, summary, tables

from comining.config import CONFIG_FOLDER
from comining.reports.published import LAYOUTS

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def write(root: Path, number: int, ap: float | None = None, **changes: Any) -> None:
    result: dict[str, Any] = {
        "status": "finished",
        "method": "comining",
        "detector": "retinanet",
        "sparsity": "hard",
        "backbone": "slim",
        "view": "color",
        "dataset": "shapes",
        "optimizer": "adamw",
        "experiment": None,
        "table": None,
        "seed": 0,
        "max_steps": 100,
        "method_options": {"score_threshold": 0.5},
    }
    if ap is not None:
        result["metrics"] = {**dict.fromkeys(NAMES, ap), "APl": None}
        result["mining"] = {"pseudo_labels_per_image": 0.4, "precision": 0.9, "recall": 0.3}
    else:
        result["error"] = "ValueError: out of luck"
    folder = root / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({**result, **changes}))


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_cell_is_mean_and_sample_deviation_over_seeds() -> None:
    assert Cell([30.0, 32.0, 34.0]).text() == "32.0 ± 2.0"
    assert Cell([30.04]).text() == "30.0"
    assert Cell().text() == "missing"
    assert Cell(diverged=1).text() == "NaN"
    assert Cell([30.0, 31.0], diverged=1).text() == "NaN (1 of 3)"
    assert Cell(failed=2).text() == "failed"
    assert Cell([30.0], failed=1).text() == "30.0 (1 failed)"
    assert Cell(without=1).text() == "-"


def test_table_1_in_the_papers_layout(tmp_path: Path) -> None:
    number = 0
    for method, values in {"original": (50.0, 54.0), "comining": (60.0, 61.0)}.items():
        for seed, ap in enumerate(values):
            write(tmp_path, number, ap, table="table1", method=method, seed=seed)
            number += 1
    write(tmp_path, number, 40.0, table="table1", method="joint", sparsity="extreme")
    text = summary(read_results([tmp_path]))
    assert row(text, "Hard") == [
        "52.0 ± 2.8", "*30.4*", "missing", "*30.8*", "missing", "*30.6*",
        "**60.5 ± 0.7**", "*31.8*",
    ]  # fmt: skip
    assert row(text, "Extreme")[4] == "40.0"  # the only one of its row is not the best of anything
    missing = next(line for line in text.splitlines() if line.startswith("Missing:"))
    assert missing.count(",") == 16 - 3 - 1
    assert "Hard augmented" in missing
    assert "Hard original" not in missing
    assert "5 runs finished, 0 runs diverged, 0 runs failed" in text


def test_diverged_and_failed_cells_are_shown_and_explained(tmp_path: Path) -> None:
    for number, (tau, ap) in enumerate([(0.5, 30.0), (0.6, 31.0)]):
        write(tmp_path, number, ap, table="table3", method_options={"score_threshold": tau})
    low = {"score_threshold": 0.4}
    write(tmp_path, 2, table="table3", status="diverged", method_options=low)
    write(tmp_path, 3, table="table3", status="failed", method_options={"score_threshold": 0.8})
    text = summary(read_results([tmp_path]))
    assert row(text, "0.4") == ["NaN", "*NaN*"]
    assert row(text, "0.5") == ["30.0", "*30.6*"]
    assert row(text, "0.6") == ["**31.0**", "*31.8*"]
    assert row(text, "0.8") == ["failed", "*30.7*"]
    assert "Missing: 0.7." in text
    assert text.count("ValueError: out of luck") == 2


def test_table_4_tells_the_baseline_from_the_views(tmp_path: Path) -> None:
    write(tmp_path, 0, 30.0, table="table4", method="original", method_options={})
    write(tmp_path, 1, 33.0, table="table4", view="blur")
    text = summary(read_results([tmp_path]))
    assert row(text, "baseline")[:4] == ["30.0", "*30.4*", "30.0", "*49.4*"]
    assert row(text, "blur")[0] == "**33.0**"
    assert row(text, "blur")[-2:] == ["-", "*42.4*"]  # no large object is annotated
    assert "Missing: w/o aug, color." in text


def test_runs_of_different_kinds_are_never_averaged(tmp_path: Path) -> None:
    write(tmp_path, 0, 30.0, table="table2")
    write(tmp_path, 1, 40.0, table="table2", max_steps=200)
    write(tmp_path, 2, 50.0, table="table2", detector="fcos")
    found = tables(read_results([tmp_path]))
    assert [table.cells["comining", "AP"].values for _, table in found] == [[50.0], [30.0], [40.0]]


def test_different_settings_in_one_cell_are_named_and_not_averaged(tmp_path: Path) -> None:
    """For example sparsity.fraction=0.3,0.5: the same protocol by name."""
    for number, variant in enumerate("ab"):
        write(tmp_path, number, 30.0 + number, variant=variant, recipe="r")
    text = summary(read_results([tmp_path]))
    assert row(text, "hard") == ["mixed: 2 settings"]


def test_the_same_run_found_twice_counts_once(tmp_path: Path) -> None:
    for number, seed in enumerate((0, 1, 1)):
        write(tmp_path, number, 30.0 + 2 * seed, variant="a", recipe="r", seed=seed)
    assert row(summary(read_results([tmp_path])), "hard") == ["31.0 ± 1.4"]


def test_other_recipes_are_other_tables(tmp_path: Path) -> None:
    for number, recipe in enumerate("rs"):
        write(tmp_path, number, 30.0 + number, table="table2", variant=recipe, recipe=recipe)
    found = tables(read_results([tmp_path]))
    assert [table.cells["comining", "AP"].values for _, table in found] == [[30.0], [31.0]]
    assert found[0][1].kind.endswith("recipe r")


def test_what_the_paper_does_not_have_gets_its_own_place(tmp_path: Path) -> None:
    write(tmp_path, 0, 30.0, table="table6", method="mine")
    write(tmp_path, 1, 20.0, table="table6")
    write(tmp_path, 2, 40.0, table="table1", method="mine", sparsity="miss30")
    text = summary(read_results([tmp_path]))
    assert row(text, "mine")[:2] == ["**30.0**", "-"]
    assert row(text, "miss30")[-1] == "40.0"


def test_a_threshold_sweep_by_hand_has_a_row_each_and_a_plot(tmp_path: Path) -> None:
    for number, tau in enumerate((0.4, 0.5)):
        write(tmp_path, number, 30.0 + number, method_options={"score_threshold": tau})
    write(tmp_path, 2, 25.0, method="original", method_options={})
    text = summary(read_results([tmp_path]))
    assert row(text, "hard, τ = 0.5") == ["31.0", "missing"]
    assert row(text, "hard") == ["missing", "25.0"]
    main([str(tmp_path)])
    assert (tmp_path / "ap_by_threshold.png").exists()


def test_plots_take_protocols_of_ones_own_and_runs_without_mining(tmp_path: Path) -> None:
    write(tmp_path, 0, 30.0, sparsity="miss30")
    write(tmp_path, 1, 31.0, sparsity="hard")
    nothing = dict.fromkeys(("pseudo_labels_per_image", "precision", "recall"))
    write(tmp_path, 2, 32.0, sparsity="hard", mining=nothing, seed=1)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "ap_by_sparsity.png").exists()


def test_runs_of_no_table_are_listed_by_sparsity_and_method(tmp_path: Path) -> None:
    write(tmp_path, 0, 30.0, method="original", method_options={})
    write(tmp_path, 1, 20.0, method="original", method_options={}, sparsity="extreme")
    text = summary(read_results([tmp_path]))
    assert row(text, "hard")[0] == "30.0"
    assert row(text, "extreme")[0] == "20.0"


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_tables_are_whole(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.published.keys() == layout.rows.keys()
    assert {len(numbers) for numbers in layout.published.values()} == {len(layout.columns)}


def test_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, tau in enumerate((0.4, 0.5, 0.6)):
        options = {"score_threshold": tau}
        write(tmp_path, number, 30.0 + number, table="table3", method_options=options)
    write(tmp_path, 3, 20.0, sparsity="extreme", method="joint")
    write(tmp_path, 4, 21.0, sparsity="easy", method="joint")
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    cell = next(r for r in rows if r["row"] == "0.5")
    assert (cell["table"], cell["mean"], cell["published"], cell["seeds"]) == (
        "table3", "31.0", "30.6", "1",
    )  # fmt: skip
    for name in ("ap_by_threshold.png", "ap_by_sparsity.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_the_return_value_counts_failures(tmp_path: Path) -> None:
    write(tmp_path, 0, status="failed")
    write(tmp_path, 1, status="diverged")
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"status": "finished"}'])
def test_foreign_files_are_named(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"{tmp_path / 'result.json'}: not a result of comining" in capsys.readouterr().err


def test_an_empty_folder_and_an_absent_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    assert "0 runs finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])


def test_the_report_needs_nothing_of_the_training_code() -> None:
    code = (
        "import sys, comining.report; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'hydra')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CONFIG_FOLDER.parent, check=True)
