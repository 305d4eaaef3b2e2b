"""The W&B workspace and TensorBoard's custom scalars, against what real runs have logged."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from comining.config import CONFIG_FOLDER
from comining.dashboard import main
from comining.methods.calibration import Calibration
from comining.reports.wandb_workspace import workspace_from_json, workspace_json
from comining.tracking.panels import SECTIONS, matching, sections_of
from comining.tracking.wandb_run import STEP, choices
from tests.helpers import composed
from tests.test_loggers import records, train, values

METHODS = sorted(path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml"))
# An untrained network is sure of nothing, and methods that wait for something begin at once.
RATE = [
    "method.held_back=0.3", "method.estimate_from=0.5", "method.estimate_until=0.8",
    # Long enough for scores that can be counted.
    "trainer.max_steps=60", "trainer.val_check_interval=60", "data.paste=1",
]  # fmt: skip
EARLY = {
    "costudent": ["method.score_threshold=0.008", "method.teacher_score_threshold=0.008"],
    "annotation_rate": RATE,
    "comining_rate": [
        *RATE, "method.mine_from=0.6", "method.least_score=0.005", "method.precision=0.1",
    ],
    "sparsedet": [
        "detector=faster_rcnn", "method.start=0.0", "method.objectness=0.0",
        "method.score_threshold=0.0",
    ],
    "calibrated_teacher": [
        "method.refit_every=2", "method.score_threshold=0.008", "method.right_overlap=0.01",
        "method.fitted_overlap=0.005", "method.any_class_overlap=0.01", "method.inside=0.01",
        "method.min_box_size=1", "method.calibrated_threshold=0.0001",
    ],
}  # fmt: skip
DETECTORS = ("fcos", "faster_rcnn")  # beside the one of the methods
# Of which methods these must be among the figures; others may have them.
MINE = {
    "calibrated_teacher", "comining", "comining_rate", "costudent", "mean_teacher", "pseudo_label",
    "self_mining", "sparsedet",
}  # fmt: skip
HAVE = {
    "mining/pseudo_labels_per_image": MINE,
    "mining/agreement": MINE,  # 0 where there is no other view
    "mining/augmented/pseudo_labels_per_image": {"comining", "costudent"},
    "rate/.+": {"annotation_rate", "comining_rate"},
    "threshold/.+": {"calibrated_teacher", "comining_rate"},
    "train/[^/]+/confusion": {"background_recalibration"},
    "train/[^/]+/consistency": {"sparsedet"},
    **{one: set(METHODS) for one in ("val/AP", "val/class/.+", "train/loss", "train/images_per_s")},
}  # fmt: skip


def json_of(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces")
    file = tmp_path / "workspace.json"
    assert main(["--project", "p", "--json", str(file), *arguments]) == 0
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def panels_of(workspace: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, configuration) of every panel."""
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return [(one["viewType"], one["config"]) for section in sections for one in section["panels"]]


def plotted(workspace: dict[str, Any]) -> Iterator[str]:
    """Regular expressions of all figures that line plots name."""
    for kind, config in panels_of(workspace):
        if kind == "Run History Line Plot":
            assert config["xAxis"] == STEP
            assert bool(config["metrics"]) != bool(config.get("metricRegex"))
            yield from map(re.escape, config["metrics"])
            if config.get("metricRegex"):
                assert config["useMetricRegex"] is True
                yield config["metricRegex"]


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


# -- the JSON ----------------------------------------------------------------------------


def test_the_json_round_trips(tmp_path: Path) -> None:
    first = json_of(tmp_path, "--entity", "us")
    again = json.loads(
        workspace_json(workspace_from_json((tmp_path / "workspace.json").read_text()))
    )
    assert again == first
    assert (first["project"], first["entity"]) == ("p", "us")
    runs = first["spec"]["section"]["runSets"][0]
    assert [key["name"] for key in runs["grouping"]] == [
        "group", "method_name.value", "sparsity_name.value", "score_threshold.value",
    ]  # fmt: skip
    assert "config:seed.value" in runs["runFeed"]["columnOrder"]


def test_every_panel_is_in_the_json(tmp_path: Path) -> None:
    workspace = json_of(tmp_path)
    titles = [config.get("chartTitle") for _, config in panels_of(workspace)]
    for section in SECTIONS:
        for panel in section.panels:
            assert titles.count(panel.title) == 1, panel
    stacked = [config for _, config in panels_of(workspace) if config.get("plotType")]
    assert [(config["plotType"], len(config["metrics"])) for config in stacked] == [
        ("stacked-area", 5)
    ]
    media = [
        key for kind, c in panels_of(workspace) if kind == "Media Browser" for key in c["mediaKeys"]
    ]
    assert media == ["pictures/mined", "pictures/detections"]


def test_only_what_the_runs_have_logged(tmp_path: Path) -> None:
    for name, head in (("a", "step,train/loss,val/class/dog"), ("b", "step,mining/precision")):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        (tmp_path / "sweep" / name / "metrics.csv").write_text(head + "\n1,2,3\n")
    left_behind = tmp_path / "sweep" / "replaced" / "c"
    left_behind.mkdir(parents=True)
    (left_behind / "metrics.csv").write_text("step,mining/recall\n")
    workspace = json_of(tmp_path, "--runs", str(tmp_path / "sweep"))
    assert sorted(plotted(workspace)) == sorted(
        # Precision alone, and as a part of the stacked area.
        ["mining/precision", "mining/precision", "train/loss", "^val/class/.+$"]
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["train/loss"], ["train/loss"]),
        (["train/losses", "xtrain/loss", "val/APs"], []),  # whole names only
        (["mining/a/precision"], []),
        (["mining/class/a/b/precision"], ["mining/class/.+/precision"]),
        (["mining/class/a/pseudo_labels_per_image"], ["mining/class/.+/pseudo_labels_per_image"]),
    ],
)
def test_whole_names_are_matched(names: list[str], expected: list[str]) -> None:
    panels = [panel for section in sections_of(names) for panel in section.panels]
    assert [figure for panel in panels for figure in panel.figures] == expected


# -- one line for what is missing --------------------------------------------------------


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--project", "p", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    file.write_text("mine")
    error = error_of(capsys, "--json", str(file))
    assert error == f"error: {file}: already exists; nothing is overwritten\n"
    assert file.read_text() == "mine"


def test_no_key_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "WANDB_API_KEY" in error_of(capsys)


def test_a_key_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert "WANDB_API_KEY invalid" in error_of(capsys)


def test_the_missing_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    assert '".[dashboard]"' in error_of(capsys, "--json", str(tmp_path / "x.json"))
    assert '".[dashboard]"' in error_of(capsys)


def test_bad_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in error_of(capsys, "--runs", str(tmp_path / "nowhere"))
    assert "no metrics.csv" in error_of(capsys, "--runs", str(tmp_path))


# -- what real runs have logged ----------------------------------------------------------


@pytest.fixture(scope="module")
def runs_of_all_methods(module_path: Path) -> dict[str, Path]:
    """A short real run of every method, and of the other detectors: name -> directory."""
    methods = {name: [f"method={name}", *EARLY.get(name, [])] for name in METHODS}
    runs = {}
    names = ["original", *(name for name in METHODS if name != "original")]  # the teacher first
    for name in [*names, *DETECTORS]:
        options = [f"detector={name}"] if name in DETECTORS else methods[name]
        done = train(
            module_path, f"hydra.run.dir=runs/{name}", "pictures.every_n_steps=0",
            "data.prepare.train_images=16", "detector.score_threshold=0.0", "trainer.max_steps=10",
            *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        runs[name] = module_path / "runs" / name
    return runs


@pytest.mark.slow
def test_every_figure_of_a_panel_is_logged_by_a_run_that_has_it(
    runs_of_all_methods: dict[str, Path], tmp_path: Path
) -> None:
    logged = {name: columns(run) for name, run in runs_of_all_methods.items()}
    everything = set().union(*logged.values())
    for pattern in plotted(json_of(tmp_path)):
        assert matching(pattern, everything), pattern
    for pattern, methods in HAVE.items():
        assert {name for name in METHODS if matching(pattern, logged[name])} == methods, pattern
    assert matching("train/[^/]+/centerness", logged["fcos"])
    assert matching("train/[^/]+/rpn_.+", logged["faster_rcnn"])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_dashboard_of_one_method_names_nothing_else(
    runs_of_all_methods: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run = runs_of_all_methods[name]
    patterns = list(plotted(json_of(tmp_path, "--runs", str(run))))
    for pattern in patterns:
        assert matching(pattern, columns(run)), pattern
    mines = any(pattern.startswith("mining/") for pattern in patterns)
    assert mines == (name in MINE)
    text = (tmp_path / "workspace.json").read_text()
    assert json.loads(workspace_json(workspace_from_json(text))) == json.loads(text)


@pytest.mark.slow
def test_an_offline_sweep_has_every_key_of_its_dashboard(tmp_path: Path) -> None:
    done = train(
        tmp_path, "-m", "tau=0.004,0.006,0.008", "logger=wandb", "hydra.sweep.dir=sweeps/mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(file.parent for file in (tmp_path / "sweeps/mine").glob("*/result.json"))
    assert len(runs) == 3
    of_others = ("centerness", "confusion", "rpn_.+", "consistency")
    losses = (f"train/[^/]+/{name}" for name in of_others)
    without = {"rate/.+", "threshold/.+", *losses}
    workspace = json_of(tmp_path)
    thresholds = set()
    for run in runs:
        history: set[str] = set()
        summary: dict[str, Any] = {}
        config: dict[str, Any] = {}
        for record in records(run):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                history |= set(values(record.history.item))
            elif kind == "summary":
                summary |= values(record.summary.update)
            elif kind in ("run", "config"):
                config |= values((record.config if kind == "config" else record.run.config).update)
        assert STEP in history
        missing = {p.strip("^$") for p in plotted(workspace) if not matching(p, history)}
        assert missing == without
        for kind, panel in panels_of(workspace):
            if kind == "Media Browser":
                assert all(f"{key}/all_boxes" in history for key in panel["mediaKeys"])
            if kind == "Parallel Coordinates Plot":
                keys = [column["accessor"] for column in panel["columns"]]
                for key in keys:
                    where, name = key.split(":", 1)
                    if where == "config":
                        assert name.removesuffix(".value") in config
                    else:
                        assert name in summary
                assert len(keys) == 7
        assert (config["method_name"], config["sparsity_name"]) == ("comining", "hard")
        thresholds.add(config["score_threshold"])
    assert thresholds == {0.004, 0.006, 0.008}


def test_tensorboard_gets_the_same_sections(tmp_path: Path) -> None:
    done = train(tmp_path, "logger=tensorboard", "hydra.run.dir=out", "pictures.every_n_steps=0")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    shown = {
        (category.title, chart.title): tuple(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }
    assert shown == {
        (section.title, panel.title): tuple(f"^{figure}$" for figure in panel.figures)
        for section in SECTIONS
        for panel in section.panels
    }
    tags = events.Tags()["scalars"]
    for pattern in ("^mining/precision$", "^val/class/.+$", "^train/[^/]+/box$"):
        assert any(re.match(pattern, tag) for tag in tags)


# -- what was added for it ---------------------------------------------------------------


def test_choices_of_a_run() -> None:
    config = {"method": {"score_threshold": 0.4}, "seed": 1}
    chosen = {"method": "comining", "sparsity": "hard", "detector": "fcos", "view": "blur"}
    assert choices(config, chosen) == {
        "method_name": "comining", "sparsity_name": "hard", "detector_name": "fcos",
        "score_threshold": 0.4,
    }  # fmt: skip
    assert choices({"method": {}}, {})["score_threshold"] is None
    # None of them is an option already.
    assert not choices(config, chosen).keys() & composed().keys()


def test_the_score_of_a_calibrated_score() -> None:
    calibration = Calibration()
    assert calibration.score_of(0.7) is None  # nothing is fitted yet
    calibration.fitted.fill_(True)
    assert calibration.score_of(0.7) == pytest.approx(0.7)  # slope 1, offset 0
    calibration.slope.fill_(2.0)
    calibration.offset.fill_(-1.0)
    score = calibration.score_of(0.7)
    assert score is not None
    assert calibration(calibration.slope.new_tensor([score])).item() == pytest.approx(0.7, abs=1e-6)
    assert calibration.score_of(0.0) == 0.0
    calibration.slope.fill_(-1.0)
    assert calibration.score_of(0.7) is None  # higher scores are worth less
