"""What loggers are told: metrics.csv, TensorBoard's events, and an offline W&B run read back."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comining.config import CONFIG_FOLDER
from comining.errors import ConfigError
from comining.tracking.loggers import MetricsFile, csv_only, wandb
from tests.helpers import composed

ROOT = CONFIG_FOLDER.parent
TINY = [
    "data.prepare.train_images=12",
    "data.prepare.val_images=4",
    "data.prepare.test_images=2",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "pictures.every_n_steps=3",
    "pictures.images=2",
    "pictures.judged_images=4",
    "tau=0.008",  # an untrained network is sure of nothing
]


def rows_of(file: Path) -> list[dict[str, float]]:
    with file.open() as lines:
        return [
            {name: float(value) for name, value in row.items() if value != ""}
            for row in csv.DictReader(lines)
        ]


# -- metrics.csv -------------------------------------------------------------------------


def test_columns_grow_and_earlier_rows_stay(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.begin(0)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0, "b": 0.1}, step=2)
    logger.log_metrics({"b": 0.3}, step=2)
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": 1, "a": 1}, {"step": 2, "a": 2, "b": 0.1}, {"step": 2, "b": 0.3},
    ]  # fmt: skip


def test_a_resumed_run_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    killed = MetricsFile(tmp_path)
    killed.begin(0)
    for step in (1, 2, 3, 4):
        killed.log_metrics({"a": step * 0.1}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5")  # it died while it wrote a row
    resumed = MetricsFile(tmp_path)
    resumed.begin(2)  # there were two rows at the last checkpoint
    for step in (3, 4, 5):
        resumed.log_metrics({"a": step * 0.1, "c": 1.0}, step=step)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["a"] for row in rows] == [step * 0.1 for step in (1, 2, 3, 4, 5)]
    MetricsFile(tmp_path).begin(0)
    assert not (tmp_path / "metrics.csv").exists()  # a new run in an old directory


# -- TensorBoard -------------------------------------------------------------------------


def train(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py")]
    command += [one for one in overrides if one == "-m"]  # hydra wants it ahead of all options
    data = f"data.root={tmp_path / 'shapes'}"
    options = [one for one in overrides if one != "-m"]  # behind TINY's, which they replace
    return subprocess.run(
        [*command, data, *TINY, *options], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_tensorboard_gets_what_metrics_csv_has(tmp_path: Path) -> None:
    done = train(tmp_path, "logger=tensorboard", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    for row in rows_of(tmp_path / "out" / "metrics.csv"):
        for name, value in row.items():
            if name == "step":
                continue
            logged = {event.step: event.value for event in events.Scalars(name)}
            assert logged[int(row["step"])] == pytest.approx(value, rel=1e-6)
    assert {"pictures/mined", "pictures/detections", "pictures/wrong"} <= set(
        events.Tags()["images"]
    )


# -- Weights & Biases --------------------------------------------------------------------


def records(run: Path) -> list[Any]:
    """The records of an offline run that was never stopped."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    return records_of(file)


def records_of(file: Path) -> list[Any]:
    """The records of a file of W&B: LevelDB's log format behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    found, position, part = [], 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def values(items: Any) -> dict[str, Any]:
    """Keys and decoded values of history, config or summary items."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_sweep_is_read_back(tmp_path: Path) -> None:
    done = train(
        tmp_path, "-m", "method=comining,original", "logger=wandb", "hydra.sweep.dir=sweeps/mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(file.parent for file in (tmp_path / "sweeps" / "mine").glob("*/result.json"))
    assert len(runs) == 2
    ids = set()
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        of_kind: dict[str, list[Any]] = {}
        for record in records(run):
            of_kind.setdefault(record.WhichOneof("record_type"), []).append(record)
        begun = of_kind["run"][0].run
        ids.add(begun.run_id)
        assert (begun.run_group, begun.project, begun.display_name) == (
            "mine",
            "comining",
            run.name,
        )
        config: dict[str, Any] = {}
        for record in (*of_kind["run"], *of_kind.get("config", [])):
            update = (
                record.config if record.WhichOneof("record_type") == "config" else record.run.config
            )
            config |= values(update.update)
        assert config["tau"] == 0.008
        assert config["trainer"]["max_steps"] == 6
        assert config["detector"]["_target_"].endswith("RetinaNetDetector")

        history: dict[int, dict[str, Any]] = {}
        for record in of_kind["history"]:
            row = values(record.history.item)
            history.setdefault(int(row["trainer/global_step"]), {}).update(row)
        for row in rows_of(run / "metrics.csv"):
            for name, value in row.items():
                if name != "step":
                    assert history[int(row["step"])][name] == value
        mined = [name for row in history.values() for name in row if name.startswith("mining/")]
        assert bool(mined) == (result["method"] == "comining")

        summary: dict[str, Any] = {}
        for record in of_kind["summary"]:
            summary |= values(record.summary.update)
        assert summary["final/AP"] == result["metrics"]["AP"]
        assert summary["best/AP"] == max(row["AP"] for row in result["history"])
        assert of_kind["exit"][-1].exit.exit_code == 0

        pictures = [row for row in history.values() if "pictures/detections/all_boxes" in row]
        assert len(pictures) == 2  # steps 3 and 6
        if result["method"] == "comining":
            boxes = history[6]["pictures/mined/all_boxes"][0]
            assert set(boxes) == {
                "annotated", "erased", "mined_by_original", "mined_by_augmented",
            }  # fmt: skip
            media = next(run.glob("wandb/offline-run-*/files"))
            layer = json.loads((media / boxes["mined_by_original"]["path"]).read_text())
            assert layer["class_labels"]["0"] == "circle"
            assert layer["box_data"]
            assert layer["box_data"][0]["domain"] == "pixel"
    assert len(ids) == 2  # each run of the sweep is a run of its own


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    """Uploaded one after the other, the parts are one run whose steps do not overlap."""
    assert train(tmp_path, "logger=wandb", "hydra.run.dir=out").returncode == 0
    first = set((tmp_path / "out").glob("wandb/offline-run-*/*.wandb"))
    done = train(tmp_path, "resume=out", "trainer.max_steps=9", "allow_changes=true")
    assert done.returncode == 0, done.stderr
    second = set((tmp_path / "out").glob("wandb/offline-run-*/*.wandb")) - first
    parts = [records_of(file) for file in (*first, *second)]
    assert len(parts) == 2
    begun = [next(r.run for r in part if r.WhichOneof("record_type") == "run") for part in parts]
    assert begun[0].run_id == begun[1].run_id == (tmp_path / "out" / "wandb_id").read_text()
    steps = [
        [
            json.loads(item.value_json)
            for record in part
            if record.WhichOneof("record_type") == "history"
            for item in record.history.item
            if "trainer/global_step" in (item.key, *item.nested_key)
        ]
        for part in parts
    ]
    assert max(steps[0]) == 6
    assert min(steps[1]) > 6
    assert max(steps[1]) == 9


def test_a_run_that_fails_is_finished_as_failed(tmp_path: Path) -> None:
    done = train(
        tmp_path, "logger=wandb", "optimizer=sgd", "optimizer.lr=1e12", "hydra.run.dir=out",
    )  # fmt: skip
    assert done.returncode == 3
    exits = [r.exit for r in records(tmp_path / "out") if r.WhichOneof("record_type") == "exit"]
    assert [one.exit_code for one in exits] == [1]


def test_going_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed(run=tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    options: dict[str, Any] = {"project": "p", "entity": None, "tags": []}
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        wandb(str(tmp_path), mode="online", **options)
    assert not (tmp_path / "wandb").exists()


def test_csv_alone_imports_no_wandb(tmp_path: Path) -> None:
    assert [type(one) for one in csv_only(str(tmp_path))] == [MetricsFile]
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--cfg', 'job'];\n"
        "import comining.tracking.loggers, comining.training.callbacks.pictures\n"
        "assert 'wandb' not in sys.modules, 'wandb was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
