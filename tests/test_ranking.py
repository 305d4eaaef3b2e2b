"""Rankings of runs, out of records that runs wrote, with numbers worked out by hand."""

from pathlib import Path

import pytest

from comining.evaluation.recall_among import MULTIPLES
from comining.reports.ranking import agreement, ranked
from comining.reports.records import find_results, read_results, runs_frame
from comining.select import main
from tests.recorded import RunFolder


def rows_of(runs: RunFolder, by: str = "AP") -> list[tuple[str, str, int, float]]:
    frame = runs_frame(read_results(find_results([runs.root])[0]))
    rows = ranked(frame, by)
    columns = [rows[name].tolist() for name in ("method", "threshold", "seeds", "value")]
    return list(zip(*columns, strict=True))


def test_settings_are_ranked_by_their_mean(runs: RunFolder) -> None:
    for seed, (low, high, other) in enumerate([(30.0, 34.0, 32.0), (32.0, 31.0, 34.0)]):
        runs.add(low, tau=0.4, seed=seed)
        runs.add(high, tau=0.6, seed=seed)
        runs.add(other, method="original", seed=seed)
    assert rows_of(runs) == [
        ("original", "-", 2, 33.0),
        ("comining", "0.6", 2, 32.5),
        ("comining", "0.4", 2, 31.0),
    ]


def test_only_common_seeds_are_compared(runs: RunFolder) -> None:
    """The second seed of one setting alone would make it the first."""
    runs.add(30.0, tau=0.4, seed=0)
    runs.add(90.0, tau=0.4, seed=1)
    runs.add(31.0, tau=0.6, seed=0)
    assert rows_of(runs) == [("comining", "0.6", 1, 31.0), ("comining", "0.4", 1, 30.0)]


def test_records_from_before_the_hash_of_options_are_not_averaged(runs: RunFolder) -> None:
    runs.add(40.0, seed=0, variant="")
    runs.add(42.0, seed=1, variant="")
    runs.add(50.0, seed=0, tau=0.6, variant="")
    runs.add(30.0, seed=0, method="original", variant="")
    assert rows_of(runs) == [
        ("comining", "0.6", 1, 50.0),
        ("comining", "0.5", 1, 40.0),
        ("original", "-", 1, 30.0),
    ]


def test_settings_without_a_common_seed(runs: RunFolder) -> None:
    runs.add(30.0, tau=0.4, seed=0)
    runs.add(31.0, tau=0.6, seed=1)
    assert rows_of(runs) == [("comining", "0.6", 1, 31.0), ("comining", "0.4", 1, 30.0)]


def test_a_diverged_run_counts_as_0_and_a_failed_one_not(runs: RunFolder) -> None:
    runs.add(30.0, tau=0.4, seed=0)
    runs.add(status="diverged", tau=0.6, seed=0)
    runs.add(status="failed", tau=0.7, seed=0)
    assert rows_of(runs) == [("comining", "0.4", 1, 30.0), ("comining", "0.6", 1, 0.0)]


@pytest.mark.parametrize(
    ("test_aps", "expected"),
    [([10.0, 20.0, 30.0], 1.0), ([30.0, 20.0, 10.0], -1.0), ([20.0, 10.0, 30.0], 0.5)],
)
def test_the_correlation_with_test_ap(
    runs: RunFolder, test_aps: list[float], expected: float
) -> None:
    for ap, test_ap in zip([1.0, 2.0, 3.0], test_aps, strict=True):
        runs.add(ap, tau=ap / 10, test_ap=test_ap, seed=0)
    frame = runs_frame(read_results(find_results([runs.root])[0]))
    assert agreement(ranked(frame, "AP")) == pytest.approx(expected)
    assert agreement(ranked(frame, "AP").iloc[:2]) is None


def test_the_command(runs: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        runs.add(30.0 + seed, tau=0.4, seed=seed)
        runs.add(31.0 + seed, tau=0.6, seed=seed)
        runs.add(20.0 + seed, method="original", seed=seed)
    assert main([str(runs.root)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| comining | 0.6 | - | 2 | 31.5 | 31.0 to 32.0 | 31.5 |")
    assert "overlap with those of 1 more (comining)" in printed
    assert "(Spearman): 1.00" in printed


def test_where_annotations_are_missing_recall_decides(
    runs: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """AP would choose 0.4; recall among as many detections as there are objects, 0.6."""
    for tau, ap, among in ((0.4, 40.0, [10.0, 20.0, 60.0]), (0.6, 30.0, [20.0, 30.0, 40.0])):
        recalls = dict(zip(("2", "3", "16"), among, strict=True)) | {"4": 50.0, "8": 50.0}
        runs.add(ap, tau=tau, seed=0, ap_is_lower_bound=True, recall_among=recalls)

    def first(*arguments: str) -> list[str]:
        assert main([str(runs.root), *arguments]) == 0
        printed = capsys.readouterr().out
        row = next(line for line in printed.splitlines() if line.startswith("| comining"))
        return [cell.strip() for cell in row.strip("|").split("|")]

    assert first("--annotated", "0.5")[1:5] == ["0.6", "-", "1", "20.0"]
    assert first("--annotated", "0.4")[1:5] == ["0.6", "-", "1", "30.0"]
    assert first()[1:5] == ["0.4", "-", "1", "42.5"]
    assert first("--by", "AP")[1:5] == ["0.4", "-", "1", "≥ 40.0"]
    assert first("--by", "AR100")[4] == "40.0"


def test_sparse_sets_are_not_mixed(runs: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for sparsity in ("hard", "extreme"):
        runs.add(30.0, sparsity=sparsity, seed=0)
    assert main([str(runs.root)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("### ") == 2
    assert "One seed each" in printed


def test_without_a_test_split_a_diverged_run_has_no_test_ap(runs: RunFolder) -> None:
    runs.add(30.0, test=None)
    runs.add(status="diverged", tau=0.6)
    rows = ranked(runs_frame(read_results(find_results([runs.root])[0])), "AP")
    assert rows["value"].tolist() == [30.0, 0.0]
    assert rows["test_AP"].isna().all()


def test_a_share_below_the_recorded_ones_is_said(
    runs: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        runs.add(30.0, seed=seed, recall_among={f"{m:g}": 20.0 for m in MULTIPLES})
    assert main([str(runs.root), "--annotated", "0.01"]) == 0
    words = f"1% are annotated (at most {MULTIPLES[-1]:g} for each annotated object"
    assert words in capsys.readouterr().out
    assert main([str(runs.root), "--annotated", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "50% are annotated." in printed
    assert "(at most" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "mAP"], "--by mAP: must be one of AP, AP50"),
        (["--by", "APl"], "has finished with APl"),
        (["--annotated", "0"], "--annotated 0: must be above 0 and at most 1"),
        (["--annotated", "0.5", "--by", "AP"], "exclude each other"),
        ([], "no result.json in it or below it"),
    ],
)
def test_what_cannot_be_ranked(
    runs: RunFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    runs.root.mkdir(exist_ok=True)
    if arguments:
        runs.add(30.0, seed=0)
    assert main([str(runs.root), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "no such directory" in capsys.readouterr().err
