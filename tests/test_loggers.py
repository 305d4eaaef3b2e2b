"""What trackers receive: metrics.csv, TensorBoard's events, an offline W&B run, one of a user."""

import csv
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comining.config import CONFIG_FOLDER, instantiate, locate, resolve
from comining.errors import ConfigError
from comining.tracking.metrics_csv import MetricsFile
from comining.tracking.tensorboard_events import TensorBoardEvents
from comining.tracking.tracker import LabelledImage, NoTracker, Tracker, TrackerGroup
from comining.tracking.wandb_run import WandbRun, run_id
from tests import ddp
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
    tracker = MetricsFile(tmp_path)
    tracker.start({}, step=0, rows=0)
    tracker.figures({"a": 1.0}, step=1)
    tracker.figures({"a": 2.0, "b": 0.1}, step=2)
    tracker.figures({"b": 0.3}, step=2)
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": 1, "a": 1}, {"step": 2, "a": 2, "b": 0.1}, {"step": 2, "b": 0.3},
    ]  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    killed = MetricsFile(tmp_path)
    killed.start({}, step=0, rows=0)
    for step in (1, 2, 3, 4):
        killed.figures({"a": step * 0.1}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5")  # it died while it wrote a row
    resumed = MetricsFile(tmp_path)
    resumed.start({}, step=2, rows=2)
    for step in (3, 4, 5):
        resumed.figures({"a": step * 0.1, "c": 1.0}, step=step)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["a"] for row in rows] == [step * 0.1 for step in (1, 2, 3, 4, 5)]
    MetricsFile(tmp_path).start({}, step=0, rows=0)
    assert not (tmp_path / "metrics.csv").exists()  # a new run in an old directory


# -- TensorBoard -------------------------------------------------------------------------


def train(
    folder: Path,
    *overrides: str,
    root: Path = ROOT,
    launcher: tuple[str, ...] = (sys.executable,),
) -> subprocess.CompletedProcess[str]:
    """``python train.py`` of the project in ``root`` on a tiny embedded set in ``folder``."""
    flags = [one for one in overrides if one == "-m"]  # Hydra wants it ahead of all options
    options = [one for one in overrides if one != "-m"]  # behind TINY's, which they replace
    data = f"data.root={folder / 'shapes'}"
    return subprocess.run(
        [*launcher, str(root / "train.py"), *flags, data, *TINY, *options], cwd=folder,
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
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
    config, summary = (
        events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("config", "summary")
    )
    assert "\ntau: 0.008\n" in config
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert f"| final/AP | {result['metrics']['AP']:.6g} |" in summary


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    killed = TensorBoardEvents(tmp_path)
    killed.start({}, step=0, rows=0)
    for step in (1, 2, 3, 4):
        killed.figures({"a": 10.0 + step}, step)
    killed.close(failed=True)
    resumed = TensorBoardEvents(tmp_path)
    resumed.start({}, step=2, rows=2)
    for step in (3, 4, 5):
        resumed.figures({"a": 20.0 + step}, step)
    resumed.close(failed=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("a")]
    assert shown == [(1, 11), (2, 12), (3, 23), (4, 24), (5, 25)]


# -- Weights & Biases --------------------------------------------------------------------


def wandb_run_in(folder: Path, **options: Any) -> WandbRun:
    defaults: dict[str, Any] = {
        "mode": "offline", "project": "p", "entity": None, "group": None, "name": None,
        "directory": str(folder), "tags": [],
    }  # fmt: skip
    return WandbRun(folder, **{**defaults, **options})


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_fails_is_finished_as_failed(tmp_path: Path) -> None:
    done = train(
        tmp_path, "logger=wandb", "optimizer=sgd", "optimizer.lr=1e12", "hydra.run.dir=out",
    )  # fmt: skip
    assert done.returncode == 3
    exits = [r.exit for r in records(tmp_path / "out") if r.WhichOneof("record_type") == "exit"]
    assert [one.exit_code for one in exits] == [1]


def test_going_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        wandb_run_in(tmp_path, mode="online", entity=None)
    assert not (tmp_path / "wandb").exists()


# What the environment says, what the command line says, and what holds then.
VARIABLES = [
    ({}, (), {"mode": "offline", "project": "comining", "entity": None, "group": None}),
    ({"WANDB_MODE": "disabled"}, (), {"mode": "disabled"}),
    ({"WANDB_MODE": "dryrun"}, (), {"mode": "offline"}),
    ({"WANDB_MODE": "run"}, (), {"mode": "online"}),
    ({"WANDB_MODE": ""}, (), {"mode": "offline"}),
    ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, (), {"mode": "disabled"}),
    ({"WANDB_DISABLED": "false"}, (), {"mode": "offline"}),
    ({"WANDB_DISABLED": "true"}, ("mode=offline",), {"mode": "offline"}),
    ({"WANDB_MODE": "online"}, ("mode=disabled",), {"mode": "disabled"}),
    ({"WANDB_PROJECT": "2024", "WANDB_ENTITY": "us"}, (), {"project": "2024", "entity": "us"}),
    ({"WANDB_PROJECT": "theirs"}, ("project=ours",), {"project": "ours"}),
    ({"WANDB_RUN_GROUP": "g", "WANDB_NAME": "n"}, (), {"group": "g", "name": "n"}),
    ({"WANDB_RUN_GROUP": "g"}, ("group=null",), {"group": None}),
    ({"WANDB_DIR": "/a b"}, (), {"directory": "/a b"}),
]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(("variables", "given", "expected"), VARIABLES)
def test_variables_of_wandb_hold_unless_an_option_is_given(
    variables: dict[str, str],
    given: tuple[str, ...],
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = composed("logger=wandb", *(f"logger.{one}" for one in given), run=Path("/runs/x"))
    options = resolve(cfg.logger)
    assert {name: options[name] for name in expected} == expected
    if "WANDB_DIR" not in variables:
        assert options["directory"] == "/runs/x"


@pytest.mark.usefixtures("no_variables")
def test_a_variable_that_cannot_be_honoured_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "live")
    with pytest.raises(ConfigError, match=r"^logger.mode='live' must be one of .*WANDB_MODE"):
        instantiate(composed("logger=wandb").logger, "logger")
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            with pytest.raises(ConfigError, match=f"^{name}='x' cannot be used: .* unset {name}$"):
                wandb_run_in(tmp_path)
            wandb_run_in(tmp_path, mode="disabled")


@pytest.mark.usefixtures("no_variables")
def test_what_wandb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    told: list[dict[str, Any]] = []

    def refuse(**options: Any) -> None:
        told.append(options)
        raise wandb.errors.CommError("enough")

    monkeypatch.setattr(wandb, "init", refuse)
    composed(run=tmp_path)
    elsewhere = tmp_path / "made" / "here"
    for options in ({}, {"group": "g", "name": "n", "directory": str(elsewhere)}):
        with pytest.raises(ConfigError, match="enough"):
            wandb_run_in(tmp_path, **options).start({}, step=0, rows=0)
    names = ("dir", "group", "name", "project", "mode")
    assert [told[0][name] for name in names] == [str(tmp_path), None, tmp_path.name, "p", "offline"]
    assert [told[1][name] for name in names[:3]] == [str(elsewhere), "g", "n"]
    assert elsewhere.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^logger=wandb: .*file"):
        wandb_run_in(tmp_path, directory=str(tmp_path / "file")).start({}, step=0, rows=0)


@pytest.mark.usefixtures("no_variables")
def test_a_disabled_run_writes_nothing(tmp_path: Path) -> None:
    composed(run=tmp_path)
    tracker = wandb_run_in(tmp_path, mode="disabled")
    tracker.start({"a": 1}, step=0, rows=0)
    tracker.figures({"train/loss": 1.0}, step=1)
    tracker.boxes("pictures/x", [LabelledImage(torch.zeros(3, 4, 4).byte(), [], [])], 1, ["a"])
    tracker.summary({"final/AP": 1.0})
    tracker.close(failed=False)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["wandb_id"]


@pytest.mark.parametrize("option", ["mode=live", "mode=null", "project=null", "tags=5", "entity=5"])
def test_a_wrong_option_is_named(option: str) -> None:
    cfg = composed("logger=wandb", f"logger.{option}")
    with pytest.raises(ConfigError, match=f"^logger.{option.split('=')[0]}="):
        instantiate(cfg.logger, "logger")


def test_processes_agree_on_the_id_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 11: each of them drew an id, logged under it, and wrote it over that of another."""
    numbers = itertools.count(1)

    def slow(size: int) -> str:
        number = next(numbers)
        time.sleep(0.05 * number)
        return f"{number:0{2 * size}x}"

    monkeypatch.setattr("comining.tracking.wandb_run.secrets.token_hex", slow)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(run_id, [tmp_path] * 4))
    assert ids == {(tmp_path / "wandb_id").read_text()} == {"00000001"}
    assert run_id(tmp_path) == "00000001"


@pytest.mark.parametrize("content", [b"", b"../../x", b"1234567", b"12345678\n", b"\xff" * 8])
def test_a_damaged_id_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb_id").write_bytes(content)  # W&B makes it part of a path
    with pytest.raises(ConfigError, match=r"wandb_id: .* is not a run id"):
        run_id(tmp_path)
    assert (tmp_path / "wandb_id").read_bytes() == content


def test_what_wandb_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**options: Any) -> None:
        raise wandb.errors.CommError("no\nsuch entity")

    composed(run=tmp_path)
    monkeypatch.setattr(wandb, "init", refuse)
    tracker = wandb_run_in(tmp_path, mode="offline", entity="nobody")
    with pytest.raises(ConfigError, match=r"^logger=wandb: no such entity$"):
        tracker.start({}, step=0, rows=0)


# -- all of them -------------------------------------------------------------------------


@pytest.mark.slow
def test_only_what_is_asked_for_is_imported(tmp_path: Path) -> None:
    """A whole run with ``logger=csv`` imports neither W&B nor TensorBoard."""
    (tmp_path / "watched.py").write_text(
        "import runpy, sys\n"
        "sys.argv[0] = sys.argv.pop(1)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print('imported:', *{'wandb', 'tensorboard'} & set(sys.modules))\n"
    )
    outputs = []
    for logger in ("csv", "tensorboard"):
        done = train(
            tmp_path, f"logger={logger}", f"hydra.run.dir={logger}", "trainer.max_steps=2",
            launcher=(sys.executable, "watched.py"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines()[-1].split())
        assert len(rows_of(tmp_path / logger / "metrics.csv")) == 2
    assert outputs == [["imported:"], ["imported:", "tensorboard"]]


def test_a_constructor_leaves_no_trace(tmp_path: Path) -> None:
    """A configuration may come out of somebody else's checkpoint, and name any folder."""
    MetricsFile(tmp_path)
    TensorBoardEvents(tmp_path)
    wandb_run_in(tmp_path, mode="offline", entity=None)
    NoTracker()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["wandb_run.run_id", "drawing.panel", "drawing.sheet"])
def test_functions_beside_the_trackers_cannot_be_built(function: str) -> None:
    with pytest.raises(ConfigError, match="whose objects may be built"):
        locate(f"comining.tracking.{function}", "logger")


def test_tensorboard_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e \"\.\[tensorboard\]\""):
        TensorBoardEvents(tmp_path)


@pytest.mark.slow
def test_two_processes_log_one_run(tmp_path: Path) -> None:
    done = ddp.train(tmp_path, "hydra.run.dir=two", "logger=wandb", *ddp.TWO)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two").glob("wandb/offline-run-*/*.wandb"))) == 1
    kinds = [record.WhichOneof("record_type") for record in records(tmp_path / "two")]
    rows = rows_of(tmp_path / "two" / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6]
    assert kinds.count("exit") == 1
    assert kinds.count("history") == len({row["step"] for row in rows})


# -- the protocol ------------------------------------------------------------------------


class Remembers(Tracker):
    """Keeps the names of the calls, and raises in one of them."""

    def __init__(self, calls: list[Any], raises_in: str = ""):
        self.calls = calls
        self.raises_in = raises_in

    def _note(self, name: str, *values: Any) -> None:
        self.calls.append((name, *values))
        if name == self.raises_in:
            raise RuntimeError(f"{name} raises")

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        self._note("start", config, step, rows)

    def figures(self, row: Mapping[str, float], step: int) -> None:
        self._note("figures", row, step)

    def close(self, failed: bool) -> None:
        self._note("close", failed)


def test_a_tracker_needs_figures_only() -> None:
    class Least(Tracker):
        def figures(self, row: Mapping[str, float], step: int) -> None:
            self.seen = (row, step)

    tracker = Least()
    tracker.start({"seed": 0}, step=0, rows=0)
    tracker.figures({"a": 1.0}, step=1)
    picture = Image.new("RGB", (4, 4))
    tracker.picture("pictures/mined", picture, step=1)
    image = LabelledImage(torch.zeros(3, 4, 4, dtype=torch.uint8), [], [])
    tracker.boxes("pictures/mined", [image], step=1, class_names=["x"])
    tracker.summary({"a": 1.0})
    tracker.close(failed=False)
    assert vars(tracker) == {"seen": ({"a": 1.0}, 1)}
    with pytest.raises(TypeError, match="figures"):
        Tracker()  # type: ignore[abstract]


def test_a_group_is_silent_until_it_is_started() -> None:
    calls: list[Any] = []
    with TrackerGroup([Remembers(calls), Remembers(calls)]) as group:
        group.figures({"a": 1.0}, step=1)
        assert calls == []
        group.start({"seed": 3}, step=4, rows=5)
        group.figures({"a": 1.0}, step=5)
    assert calls == [
        *[("start", {"seed": 3}, 4, 5)] * 2,
        *[("figures", {"a": 1.0}, 5)] * 2,
        *[("close", False)] * 2,
    ]
    group.close(failed=True)  # there is nothing left to close
    assert len(calls) == 6


def test_a_tracker_that_does_not_start_closes_those_before_it() -> None:
    first: list[Any] = []
    second: list[Any] = []
    group = TrackerGroup([Remembers(first), Remembers(second, raises_in="start")])
    with pytest.raises(RuntimeError, match="start raises"), group:
        group.start({}, step=0, rows=0)
    assert first == [("start", {}, 0, 0), ("close", True)]
    assert second == [("start", {}, 0, 0)]


def test_all_are_closed_even_if_one_of_them_cannot_be() -> None:
    calls: list[Any] = []
    trackers = [Remembers(calls, raises_in="close"), Remembers(calls, raises_in="close")]
    group = TrackerGroup([*trackers, Remembers(calls)])
    with pytest.raises(RuntimeError, match="close raises"), group:
        group.start({}, step=0, rows=0)
    assert calls[3:] == [("close", False)] * 3


def test_the_error_that_ended_a_run_outlives_a_failed_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = TrackerGroup([Remembers([], raises_in="close")])

    def run() -> None:
        with group:
            group.start({}, step=0, rows=0)
            raise KeyError("of the run")

    with pytest.raises(KeyError, match="of the run"):
        run()
    assert "a logger could not be closed" in caplog.text
    assert "close raises" in caplog.text


# -- a tracker of one's own --------------------------------------------------------------

RECORDER = """
import json
from pathlib import Path

from comining.tracking.tracker import Tracker


class Recorder(Tracker):
    def __init__(self, folder: str, crash_at: int = -1):
        self.file = Path(folder) / "recorded.jsonl"
        self.crash_at = crash_at

    def _write(self, name, **values):
        with self.file.open("a") as file:
            file.write(json.dumps({"call": name, **values}) + "\\n")

    def start(self, config, step, rows):
        self._write("start", seed=config["seed"], step=step, rows=rows)

    def figures(self, row, step):
        self._write("figures", row=dict(row), step=step)
        if step == self.crash_at:
            raise RuntimeError("the recorder is full")

    def picture(self, key, picture, step):
        self._write("picture", key=key, size=picture.size, step=step)

    def boxes(self, key, images, step, class_names):
        layers = [[layer.style.name for layer in one.layers] for one in images]
        counts = [[len(layer.boxes) for layer in one.layers] for one in images]
        assert counts == [[len(labels) for labels in one.labels] for one in images]
        self._write("boxes", key=key, layers=layers, step=step, class_names=class_names)

    def summary(self, values):
        self._write("summary", values=values)

    def close(self, failed):
        self._write("close", failed=failed)
"""
RECORDER_YAML = """
_target_: comining.tracking.recorder.Recorder
folder: ${hydra:runtime.output_dir}
"""


@pytest.fixture(scope="module")
def project(module_path: Path) -> Path:
    """A copy of the project, with one Python file and one yaml added."""
    copy = module_path / "project"
    for name in ("comining", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    (copy / "comining" / "tracking" / "recorder.py").write_text(RECORDER)
    (copy / "conf" / "logger" / "recorder.yaml").write_text(RECORDER_YAML)
    return copy


def recorded(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_tracker_of_ones_own_receives_everything_in_order(project: Path) -> None:
    done = train(project, "logger=recorder", "seed=7", "hydra.run.dir=out", root=project)
    assert done.returncode == 0, done.stderr
    calls = recorded(project / "out" / "recorded.jsonl")
    assert calls[0] == {"call": "start", "seed": 7, "step": 0, "rows": 0}
    names = [call["call"] for call in calls]
    assert list(dict.fromkeys(names)) == [
        "start", "figures", "picture", "boxes", "summary", "close",
    ]  # fmt: skip
    assert names[-2:] == ["summary", "close"]
    assert names.count("start") == names.count("close") == 1
    assert calls[-1]["failed"] is False

    rows = [{"step": c["step"], **c["row"]} for c in calls if c["call"] == "figures"]
    assert rows == rows_of(project / "out" / "metrics.csv")
    assert {"train/loss", "mining/precision", "val/AP"} <= {name for row in rows for name in row}

    pictures = [(c["key"], c["step"]) for c in calls if c["call"] == "picture"]
    both = [(f"pictures/{name}", step) for step in (3, 6) for name in ("mined", "detections")]
    assert pictures == [*both, ("pictures/wrong", 6)]
    boxes = [c for c in calls if c["call"] == "boxes"]
    assert [(c["key"], c["step"]) for c in boxes] == both
    assert boxes[0]["layers"] == [
        ["annotated", "erased", "mined by original", "mined by augmented"]
    ] * 2  # fmt: skip
    assert boxes[1]["layers"] == [["annotated", "detected"]] * 2
    assert boxes[0]["class_names"][0] == "circle"

    result = json.loads((project / "out" / "result.json").read_text())
    assert calls[-2]["values"]["final/AP"] == result["metrics"]["AP"]
    assert calls[-2]["values"]["best/AP"] == max(row["AP"] for row in result["history"])

    done = train(project, "resume=out", "trainer.max_steps=8", "allow_changes=true", root=project)
    assert done.returncode == 0, done.stderr
    resumed = recorded(project / "out" / "recorded.jsonl")[len(calls) :]
    assert resumed[0] == {"call": "start", "seed": 7, "step": 6, "rows": len(rows)}
    rows += [{"step": c["step"], **c["row"]} for c in resumed if c["call"] == "figures"]
    assert rows == rows_of(project / "out" / "metrics.csv")
    assert rows[-1]["step"] == 8


def test_a_crash_in_training_closes_as_failed(project: Path) -> None:
    done = train(
        project, "logger=recorder", "+logger.crash_at=4", "hydra.run.dir=crashed", root=project
    )
    assert done.returncode == 1
    assert "the recorder is full" in done.stderr
    calls = recorded(project / "crashed" / "recorded.jsonl")
    assert [call["call"] for call in calls[-2:]] == ["figures", "close"]
    assert calls[-1]["failed"] is True
    rows = [{"step": c["step"], **c["row"]} for c in calls if c["call"] == "figures"]
    assert rows == rows_of(project / "crashed" / "metrics.csv")
