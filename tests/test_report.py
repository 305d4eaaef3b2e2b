"""Tables out of records that runs wrote, worked out by hand."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from comining.config import CONFIG_FOLDER
from comining.report import main
from comining.reports.cells import CELL_COUNTS, cell_text, number, paired_text, summarise
from comining.reports.markdown import table
from comining.reports.paper_tables import ResultTable, report_text, result_tables
from comining.reports.published import LAYOUTS
from comining.reports.records import find_results, read_results, runs_frame, validations_frame
from comining.reports.sweep import SweepReport
from comining.runs.neighbours import find_settled
from comining.select import main as select
from tests.helpers import edit_json
from tests.recorded import RunFolder

Trained = tuple[Path, dict]


def frame(folder: Path) -> pd.DataFrame:
    return runs_frame(read_results(find_results([folder])[0]))


def report(runs: RunFolder) -> str:
    return report_text(frame(runs.root), [runs.root])


def tables(runs: RunFolder) -> list[ResultTable]:
    return result_tables(frame(runs.root), [runs.root])


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def cell(values: list[float], usual_seeds: int | None = None, **counts: int) -> str:
    """The text of a cell of finished runs with these values, and of others by status."""
    statuses = ["finished"] * len(values)
    statuses += [status for status, count in counts.items() for _ in range(count)]
    values = values + [np.nan] * (len(statuses) - len(values))
    runs = pd.DataFrame({"cell": "x", "status": statuses, "value": values, "setting": "s"})
    return cell_text(summarise(runs, ["cell"]).loc["x"], usual_seeds)


def test_a_cell_is_mean_and_sample_deviation_over_seeds() -> None:
    assert cell([30.0, 32.0, 34.0]) == "32.0 ± 2.0"
    assert cell([30.04]) == "30.0"
    assert cell([], diverged=1) == "NaN"
    assert cell([30.0, 31.0], diverged=1) == "NaN (1 of 3)"
    assert cell([], failed=2) == "failed"
    assert cell([30.0], failed=1) == "30.0 (1 failed)"
    assert cell([], interrupted=1) == "interrupted"
    assert cell([], interrupted=1, failed=1) == "failed, interrupted"
    assert cell([30.0, 31.0], interrupted=2, failed=1) == "30.5 ± 0.7 (1 failed, 2 interrupted)"
    assert cell([30.0], diverged=1, interrupted=1) == "NaN (1 of 3)"
    assert cell([np.nan]) == "-"  # finished, and nothing of the kind is annotated
    assert cell([30.0], 3) == "30.0 (1 seed)"
    assert cell([30.0, 30.0], 3, failed=1) == "30.0 ± 0.0 (2 seeds, 1 failed)"
    assert cell([30.0, 30.0, 30.0], 3) == "30.0 ± 0.0"
    assert cell_text(pd.Series(dict.fromkeys(CELL_COUNTS, 0))) == "missing"


def test_statistics_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({
        "cell": rng.integers(0, 5, 60), "value": rng.uniform(0, 100, 60),
        "status": "finished", "setting": "s",
    })  # fmt: skip
    for name, cells in summarise(runs, ["cell"]).iterrows():
        values = runs.loc[runs["cell"] == name, "value"].to_numpy()
        assert cells["mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert cells["spread"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert cells["seeds"] == cells["runs"] == cells["finished"] == len(values)


def test_differences_are_of_seeds_that_both_cells_have() -> None:
    ours = pd.Series([43.0, 45.0, 99.0], index=[2, 0, 7])
    other = pd.Series([40.0, 41.0, 41.5], index=[0, 1, 2])
    assert paired_text(ours, other) == "+3.2 (+5.0, +1.5)"  # 3.25, by seed
    assert paired_text(ours, other[other.index == 1]) == "-"
    assert paired_text(ours.replace(45.0, np.nan), other) == "NaN (NaN, +1.5)"
    assert (number(float("nan")), number(0.125, ".1%")) == ("-", "12.5%")


def test_every_status_is_read_into_one_row(trained: Trained) -> None:
    """Records as the program wrote them, without any change."""
    found = frame(trained[0]).set_index(["status", "method"]).sort_index()
    counts = found.index.get_level_values("status").value_counts().to_dict()
    assert counts == {"finished": 2, "diverged": 2, "failed": 4, "interrupted": 1}
    assert found.loc["finished", "AP"].notna().all()
    for status in ("diverged", "failed", "interrupted"):
        assert found.loc[status, ["AP", "test_AP"]].isna().all(axis=None)
    assert "not finite" in found.loc[("diverged", "comining"), "error"]
    assert "data.batch_size" in found.loc[("failed", "original"), "error"].iloc[0]
    assert "SIGTERM" in found.loc[("interrupted", "comining"), "error"]
    record = trained[1]["finished", "comining"]
    finished = found.loc[("finished", "comining")]
    assert finished["AP75"] == record.metrics["AP75"]
    assert finished["test_AP"] == record.test["AP"]
    assert finished["score_threshold"] == 0.5
    assert np.isnan(found.loc[("finished", "original"), "score_threshold"])
    assert finished["pseudo_labels_per_image"] == record.mining["pseudo_labels_per_image"]
    validations = validations_frame({Path("a"): record})
    assert validations["step"].tolist() == [3, 6] == [row["step"] for row in record.history]


def test_a_report_of_every_status(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained[0]), "--output", str(trained[0].parent / "report")]) == 0
    text = capsys.readouterr().out
    assert "2 runs finished, 2 runs diverged, 4 runs failed, 1 runs interrupted" in text
    assert "| hard | NaN | NaN |" in text
    assert "| hard | interrupted |" in text
    assert "| hard | failed | failed |" in text
    assert text.count("stopped by SIGTERM") == 1


def test_a_lower_bound_is_marked_and_explained(runs: RunFolder) -> None:
    """Recall stands below the table, and a bound is never the best of a row."""
    for seed, (ap, recall) in enumerate([(20.0, 40.0), (22.0, 44.0)]):
        file = runs.add(ap, method="comining", seed=seed, table="table1", ap_is_lower_bound=True)
        edit_json(file, lambda c, recall=recall: c["metrics"].update(AR1=1.0, AR100=recall))
    runs.add(30.0, method="original", table="table1")
    text = report(runs)
    assert "≥ 21.0 ± 1.4" in row(text, "Hard")
    assert "30.0" in row(text, "Hard")
    assert "**" not in text
    assert text.count("≥: a lower bound, because objects may be missing") == 1
    assert "| Hard | comining | val | 1.0 | 21.0 | 42.0 |" in text
    assert "Hard | original" not in text


def test_of_metrics_only_ap_is_a_lower_bound(runs: RunFolder) -> None:
    runs.add(20.0, method="comining", table="table6", ap_is_lower_bound=True)
    text = report(runs)
    assert row(text, "Co-mining")[:5:2] == ["≥ 20.0"] * 3
    assert "| Co-mining | val | 20.0 | 20.0 | 20.0 |" in text
    assert frame(runs.root)["ap_is_lower_bound"].tolist() == [True]


def test_without_a_lower_bound_nothing_is_said(runs: RunFolder) -> None:
    """Also of runs that an earlier version recorded, and of one that did not finish."""
    file = runs.add(20.0, table="table1")
    runs.add(21.0, table="table1", test_ap_is_lower_bound=True, seed=1)  # the table is of val
    runs.add(status="failed", method="joint", table="table1", ap_is_lower_bound=True)
    edit_json(file, lambda content: [content.pop(f"{p}ap_is_lower_bound") for p in ("", "test_")])
    assert "≥" not in report(runs)
    assert "lower bound" not in report(runs)


def test_a_cell_with_a_diverged_seed_is_not_the_best(runs: RunFolder) -> None:
    """Nor do figures of an earlier step count, or a reason of several lines break the page."""
    runs.add(90.0, seed=0)
    runs.add(80.0, seed=1, status="diverged", metrics={"AP": 80.0}, error="not finite:\n  nan")
    runs.add(method="original", status="failed", seed=2, metrics={"AP": 80.0}, error="lost")
    for seed, ap in enumerate((30.0, 32.0)):
        runs.add(ap, method="original", seed=seed)
        runs.add(ap - 1, method="joint", seed=seed)
    cells = tables(runs)[0].cells
    assert cells.loc[("hard", "original"), ["mean", "spread"]].tolist() == [31.0, 2**0.5]
    assert cells.loc[("hard", "comining"), ["mean", "spread"]].isna().all()
    text = report(runs)
    assert "NaN (1 of 2)" in row(text, "hard")
    assert "**31.0 ± 1.4 (1 failed)**" in row(text, "hard")
    assert any(line.endswith(": not finite: nan") for line in text.splitlines())


def test_a_single_run_is_enough(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained[0] / "interrupted"
    assert main([str(run)]) == 0
    assert row(capsys.readouterr().out, "hard") == ["interrupted"]
    assert (run / "report.md").exists()


def test_a_run_without_a_result_is_named(trained: Trained, tmp_path: Path) -> None:
    """Of a run that is under way there is the configuration."""
    source = trained[0] / "interrupted" / "config.yaml"
    (tmp_path / "under way" / ".hydra").mkdir(parents=True)
    (tmp_path / "under way" / "config.yaml").write_text(source.read_text())
    (tmp_path / "under way" / ".hydra" / "config.yaml").write_text("")
    files, waiting = find_results([tmp_path])
    assert (files, waiting) == ([], [tmp_path / "under way"])
    text = report_text(runs_frame({}), [tmp_path], waiting)
    assert "without a result" in text
    assert f"* {tmp_path / 'under way'}\n" in text


def test_copies_of_the_options_that_wandb_keeps_are_no_runs(
    trained: Trained, tmp_path: Path
) -> None:
    source = trained[0] / "interrupted" / "config.yaml"
    inside = tmp_path / "run" / "wandb" / "offline-run-1" / "files"
    inside.mkdir(parents=True)
    for folder in (tmp_path / "run", inside):
        (folder / "config.yaml").write_text(source.read_text())
    assert find_results([tmp_path]) == ([], [tmp_path / "run"])


def test_a_folder_whose_name_is_no_text(
    runs: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.add(30.0)
    file.parent.rename(file.parent.with_name(os.fsdecode(b"caf\xe9")))
    (runs.root / os.fsdecode(b"l\xe0")).mkdir()
    (runs.root / os.fsdecode(b"l\xe0") / "config.yaml").write_text("{}")
    assert main([str(runs.root), "--html"]) == 0
    assert "l?" in (runs.root / "report.md").read_text()
    assert "./caf%E9/" in (runs.root / "report.html").read_text()


def test_a_cell_with_a_bar_or_a_line_break_stays_one_cell() -> None:
    assert table(pd.DataFrame({"class": ["a|b\nc"], "AP": ["1.0"]})) == [
        "| class | AP |", "|---|---|", r"| a\|b c | 1.0 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 10**30}, "seed"),
        ({"max_steps": -(10**30)}, "max_steps"),
        ({"history": [{"AP": 1.0}]}, "history"),
        ({"metrics": {"AP": math.nan}}, "NaN"),
    ],
)
def test_records_that_no_run_writes_are_refused(
    runs: RunFolder, changes: dict[str, Any], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.add(30.0)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert main([str(runs.root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: not a result of comining (")
    assert field in error
    assert error.count("\n") == 1


def test_table_1_in_the_papers_layout(runs: RunFolder) -> None:
    for method, values in {"original": (50.0, 54.0), "comining": (60.0, 61.0)}.items():
        for seed, ap in enumerate(values):
            runs.add(ap, table="table1", method=method, seed=seed)
    runs.add(40.0, table="table1", method="joint", sparsity="extreme")
    text = report(runs)
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


def test_cells_without_numbers_are_shown_and_explained(runs: RunFolder) -> None:
    for tau, ap in ((0.5, 30.0), (0.6, 31.0)):
        runs.add(ap, table="table3", tau=tau)
    for tau, status in ((0.4, "diverged"), (0.8, "failed"), (0.7, "interrupted")):
        runs.add(table="table3", status=status, tau=tau)
    text = report(runs)
    assert row(text, "0.4") == ["NaN", "*NaN*"]
    assert row(text, "0.5") == ["30.0", "*30.6*"]
    assert row(text, "0.6") == ["**31.0**", "*31.8*"]
    assert row(text, "0.7") == ["interrupted", "*30.7*"]
    assert row(text, "0.8") == ["failed", "*30.7*"]
    assert "Missing" not in text
    reasons = text.split("### Runs without numbers")[1]
    assert [line.split(":")[0] for line in reasons.strip().splitlines()] == [
        "* diverged", "* failed", "* interrupted",
    ]  # fmt: skip


def test_table_4_tells_the_baseline_from_the_views(runs: RunFolder) -> None:
    runs.add(30.0, table="table4", method="original")
    runs.add(33.0, table="table4", view="blur")
    text = report(runs)
    assert row(text, "baseline")[:4] == ["30.0", "*30.4*", "30.0", "*49.4*"]
    assert row(text, "blur")[0] == "**33.0**"
    assert row(text, "blur")[-2:] == ["-", "*42.4*"]  # no large object is annotated
    assert "Missing: w/o aug, color." in text


def test_titles_name_the_split(runs: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    runs.add(30.0, test_ap=20.0)
    runs.add(31.0, table="table3")
    assert main([str(runs.root), "--html"]) == 0
    titles = ["AP, validation split", "Table 3: score thresholds, hard set, validation split"]
    for text in (capsys.readouterr().out, (runs.root / "report.md").read_text()):
        assert [line.removeprefix("### ") for line in text.splitlines() if "### " in line] == titles
    page = (runs.root / "report.html").read_text()
    assert [f"<h3>{title}</h3>" in page for title in titles] == [True, True]
    heads = [head for head in re.findall(r"<th>([^<]*)</th>", page) if head.endswith(" AP")]
    assert heads == ["validation AP", "test AP"]
    assert '<td class="number">30.0</td><td class="number">20.0</td>' in page


def test_means_that_read_alike_are_all_bold(runs: RunFolder) -> None:
    for method, ap in (("original", 33.34), ("joint", 33.26), ("comining", 33.24)):
        runs.add(ap, method=method)
    runs.add(33.31, seed=1)  # of comining: 33.275 together
    assert row(report(runs), "hard") == ["**33.3**", "**33.3**", "**33.3 ± 0.0**"]


def test_runs_of_different_kinds_are_never_averaged(runs: RunFolder) -> None:
    runs.add(30.0, table="table2")
    runs.add(40.0, table="table2", max_steps=200)
    runs.add(50.0, table="table2", detector="fcos")
    means = [table.cells.loc[("comining", "AP"), "mean"] for table in tables(runs)]
    assert means == [50.0, 40.0, 30.0]  # fcos, 200 steps, 6 steps


def test_different_settings_in_one_cell_are_named_and_not_averaged(runs: RunFolder) -> None:
    """For example sparsity.fraction=0.3,0.5: the same protocol by name."""
    for number_, variant in enumerate("ab"):
        runs.add(30.0 + number_, variant=variant)
    runs.add(status="interrupted", variant="c", seed=1)
    assert row(report(runs), "hard") == ["mixed: 2 settings"]
    assert tables(runs)[0].cells["mean"].isna().all()


def test_a_table_of_mixed_settings_says_what_lists_them(
    runs: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for number_, gamma in enumerate((1.0, 2.0, 3.0)):
        runs.add(30.0 + number_, options={"gamma": gamma})
    runs.add(20.0, sparsity="extreme", max_steps=7)  # another table, without such a cell
    renamed = runs.root.rename(runs.root.parent / "my sweep")
    assert main([str(renamed), "--html"]) == 0
    text = capsys.readouterr().out
    note = f"mixed: `python -m comining.select '{renamed}'` lists the runs by their options."
    assert [line for line in text.splitlines() if "comining.select" in line] == [note]
    assert select([str(renamed)]) == 0
    listed = capsys.readouterr().out
    assert [f"gamma={gamma}" in listed for gamma in (1.0, 2.0, 3.0)].count(True) >= 2
    page = (renamed / "report.html").read_text()
    assert page.count("<code>python -m comining.select &#x27;") == 1


def test_the_same_run_found_twice_counts_once(runs: RunFolder) -> None:
    for seed in (0, 1, 1):
        runs.add(30.0 + 2 * seed, seed=seed)
    assert row(report(runs), "hard") == ["31.0 ± 1.4"]


def test_a_run_that_was_made_again_counts_as_finished(runs: RunFolder) -> None:
    for status in ("interrupted", "finished", "failed"):
        runs.add(30.0 if status == "finished" else None, status=status)
    assert row(report(runs), "hard") == ["30.0"]


def test_a_folder_named_twice_is_read_once(runs: RunFolder) -> None:
    file = runs.add(30.0)
    files, _ = find_results([runs.root, file.parent, file.parent / ".." / file.parent.name])
    assert len(files) == 1


def test_other_recipes_are_other_tables(runs: RunFolder) -> None:
    for place, recipe in enumerate("rs"):
        runs.add(30.0 + place, table="table2", variant=recipe, recipe=recipe)
    found = tables(runs)
    assert [table.cells.loc[("comining", "AP"), "mean"] for table in found] == [30.0, 31.0]
    assert found[0].kind.endswith("recipe r")


def test_what_the_paper_does_not_have_gets_its_own_place(runs: RunFolder) -> None:
    runs.add(30.0, table="table6", method="mine")
    runs.add(20.0, table="table6")
    runs.add(40.0, table="table1", method="mine", sparsity="miss30")
    text = report(runs)
    assert row(text, "mine")[:2] == ["**30.0**", "-"]
    assert row(text, "miss30")[-1] == "40.0"


def test_a_threshold_sweep_by_hand_has_a_row_each_and_a_plot(runs: RunFolder) -> None:
    for tau in (0.4, 0.5):
        runs.add(26.0 + 10 * tau, tau=tau)
    runs.add(25.0, method="original")
    text = report(runs)
    assert row(text, "hard, τ = 0.5") == ["31.0", "missing"]
    assert row(text, "hard") == ["missing", "25.0"]
    main([str(runs.root)])
    assert (runs.root / "ap_by_threshold.png").exists()


def test_plots_take_protocols_of_ones_own_and_runs_without_mining(runs: RunFolder) -> None:
    runs.add(30.0, sparsity="miss30")
    runs.add(31.0)
    nothing = dict.fromkeys(("pseudo_labels_per_image", "precision", "recall"))
    runs.add(32.0, mining=nothing, seed=1)
    assert main([str(runs.root)]) == 0
    assert (runs.root / "ap_by_sparsity.png").exists()


def test_runs_of_no_table_are_listed_by_sparsity_and_method(runs: RunFolder) -> None:
    runs.add(30.0, method="original")
    runs.add(20.0, method="original", sparsity="extreme")
    text = report(runs)
    assert row(text, "hard")[0] == "30.0"
    assert row(text, "extreme")[0] == "20.0"


def test_the_papers_numbers() -> None:
    """Every table has all its rows and columns; a number from each, as the paper prints it."""
    shapes = {name: layout.numbers.shape for name, layout in LAYOUTS.items()}
    assert shapes == {"table1": (4, 4), "table2": (4, 3), "table3": (5, 1), "table4": (4, 6),
                      "table5": (4, 4), "table6": (6, 6)}  # fmt: skip
    assert all(layout.numbers.notna().all(axis=None) for layout in LAYOUTS.values())
    assert LAYOUTS["table1"].numbers.loc["hard", "comining"] == "31.8"
    assert LAYOUTS["table2"].numbers.loc["self_mining", "AP75"] == "32.6"
    assert LAYOUTS["table2"].labels["joint"] == "Siamese network"
    assert LAYOUTS["table3"].numbers["AP"].tolist() == ["NaN", "30.6", "31.8", "30.7", "30.7"]
    assert LAYOUTS["table4"].numbers.loc["color", "APl"] == "43.3"
    assert LAYOUTS["table5"].numbers.loc["extreme", "augmented"] == "22.3"
    assert LAYOUTS["table6"].numbers.loc["part_aware", "APs"] == "15.3"
    assert LAYOUTS["table6"].numbers.loc["original", "APl"] == "-"


def test_files_are_written(runs: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for tau, ap in ((0.4, 30.0), (0.5, 31.0), (0.6, 32.0)):
        runs.add(ap, table="table3", tau=tau)
    runs.add(20.0, sparsity="extreme", method="joint")
    runs.add(21.0, sparsity="easy", method="joint")
    assert main([str(runs.root)]) == 0
    assert (runs.root / "report.md").read_text() in capsys.readouterr().out
    rows = list(csv.DictReader((runs.root / "report.csv").open()))
    cell = next(r for r in rows if r["row"] == "0.5")
    assert (cell["table"], cell["mean"], cell["published"], cell["seeds"], cell["spread"]) == (
        "table3", "31.0", "30.6", "1", "",
    )  # fmt: skip
    assert (cell["diverged"], cell["failed"], cell["interrupted"]) == ("0", "0", "0")
    plots = ["ap_by_threshold.png", "ap_by_sparsity.png"]
    first = [(runs.root / name).read_bytes() for name in plots]
    assert all(len(content) > 5000 for content in first)
    main([str(runs.root)])
    assert [(runs.root / name).read_bytes() for name in plots] == first


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("finished", 0, ""),
        ("diverged", 0, ""),
        ("interrupted", 0, "1 of the runs were interrupted"),
        ("failed", 1, "1 of the runs failed"),
    ],
)
def test_the_exit_code_of_a_sweep(
    runs: RunFolder, capsys: pytest.CaptureFixture[str], status: str, code: int, message: str
) -> None:
    runs.add(30.0, seed=1)
    runs.add(30.0 if status == "finished" else None, status=status)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(runs.root)}}})
    if code:
        with pytest.raises(SystemExit) as stop:
            SweepReport().on_multirun_end(config)
        assert stop.value.code == code
    else:
        SweepReport().on_multirun_end(config)
    assert capsys.readouterr().err.strip() == message
    assert (runs.root / "report.md").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"status": "finished"}', "\x00", "[" * 100_000]
)
def test_foreign_files_are_named(
    runs: RunFolder, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs.add(30.0)
    file.write_text(content)
    assert main([str(runs.root)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {file}: not a result of comining")
    assert captured.err.count("\n") == 1
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(runs.root)}}})
    with pytest.raises(SystemExit) as stop:
        SweepReport().on_multirun_end(config)
    assert stop.value.code == 2


def test_a_run_whose_options_are_damaged_is_no_neighbour(
    runs: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"seed": 0, "method": {"score_threshold": 0.5}, "tau": 0.5}
    for text in ("{", "- seed", "", "seed: 0\nmethod: {score_threshold: 0.5}\ntau: 0.9"):
        (runs.add(30.0).with_name("config.yaml")).write_text(text)
    found = find_settled(runs.root / "new", config)
    assert found == runs.root / "3"  # whose method does not use tau
    assert caplog.text.count("config.yaml: ") == 2


def test_a_failed_run_may_have_options_that_make_no_sense(runs: RunFolder) -> None:
    """As with ``tau=abc trainer.max_steps=many seed=x``: the record says what was given."""
    options = {"score_threshold": "abc"}
    runs.add(status="failed", options=options, max_steps=None, seed=None, variant="", recipe="")
    runs.add(30.0)
    text = report(runs)
    assert "1 runs finished, 0 runs diverged, 1 runs failed" in text
    assert sorted(row(part, "hard")[0] for part in text.split("###")[1:3]) == ["30.0", "failed"]


def test_an_empty_folder_an_absent_one_and_an_output_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    assert "0 runs finished" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such directory\n"
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path), "--output", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("command", ["comining.report", "comining.study"])
def test_the_commands_need_nothing_of_the_training_code(command: str) -> None:
    code = (
        f"import sys, {command}; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'hydra')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CONFIG_FOLDER.parent, check=True)


def test_what_overwrite_moved_aside_is_in_no_report(runs: RunFolder) -> None:
    """`overwrite=true` and `skip_finished=true` leave old runs in a folder `replaced`."""
    kept = runs.add(41.0)
    aside = kept.parent.parent / "replaced" / "old"
    aside.mkdir(parents=True)
    (aside / "result.json").write_bytes(kept.read_bytes())
    (aside / "config.yaml").write_text("")
    files, waiting = find_results([kept.parent.parent])
    assert [file.resolve() for file in files] == [kept.resolve()]
    assert waiting == []
