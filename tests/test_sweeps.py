"""Sweeps as a user starts them: cells that diverge or fail, and starting again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from comining.config import CONFIG_FOLDER
from comining.runs.gpu import claim_gpu
from comining.runs.result import RunResult
from tests.helpers import composed_with_hydra

ROOT = CONFIG_FOLDER.parent
TINY = [
    "data.prepare.train_images=12",
    "data.prepare.val_images=4",
    "data.prepare.test_images=2",
    "data.batch_size=4",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
    "hydra.sweep.dir=sweep",
]


def sweep(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def results(cwd: Path) -> dict[str, dict[str, Any]]:
    files = sorted((cwd / "sweep").glob("*/result.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


@pytest.mark.slow
def test_a_sweep_survives_its_cells(tmp_path: Path) -> None:
    """A learning rate that explodes diverges, a GPU that is not there fails, the others finish."""
    done = sweep(tmp_path, "optimizer=sgd", "optimizer.lr=1e-3,1e12,1e-4", "method=original")
    found = results(tmp_path)
    statuses = sorted(r["status"] for r in found.values())
    assert statuses == ["diverged", "finished", "finished"], done.stderr
    diverged = next(r for r in found.values() if r["status"] == "diverged")
    assert "not finite" in diverged["error"]
    assert diverged["step"] < 3
    assert len(diverged["divergence"]["image_ids"]) == 4
    assert diverged["metrics"] is None
    assert diverged["data"]["train"]["images"] == 12
    assert diverged["hardware"].startswith("CPU")
    assert "2 runs finished, 1 runs diverged, 0 runs failed" in done.stdout
    assert "NaN" in done.stdout
    assert done.returncode == 0  # a diverged cell is a result

    done = sweep(tmp_path, "method=original", "data.batch_size=4,0", "hydra.sweep.dir=sweep2")
    files = sorted((tmp_path / "sweep2").glob("*/result.json"))
    statuses = [json.loads(file.read_text()) for file in files]
    failed, finished = statuses  # batch_size=0 sorts before batch_size=4
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "data.batch_size=0 must be a whole number of at least 1" in failed["error"]
    assert done.returncode == 1
    assert "1 of the runs failed" in done.stderr


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    overrides = ["experiment=table2", "hydra.sweep.dir=sweep", "skip_finished=true"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *overrides],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 300
        while len(results(tmp_path)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "sweep").glob("*/result.json")}
    assert 2 <= len(before) < 4

    # Without a word on what to do with them, the cells that are there are nobody else's to take.
    refused = sweep(tmp_path, *overrides, "skip_finished=false")
    assert refused.returncode == 2
    assert "holds another run (finished); run only what is not finished with" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(results(tmp_path)) == len(before)
    # A cell that failed is run again, too, and what it left is no second result.
    failed = next(iter(before)).parent
    record = RunResult.read(failed / "result.json")
    record.status = "failed"
    record.write(failed / "result.json")
    del before[failed / "result.json"]

    done = sweep(tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped, already has a result") == len(before)
    methods = {"original", "self_mining", "joint", "comining"}
    assert {r["method"] for r in results(tmp_path).values()} == methods
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    assert "Missing" not in done.stdout
    assert "4 runs finished, 0 runs diverged, 0 runs failed" in done.stdout
    aside = list((tmp_path / "sweep" / "replaced").glob(f"{failed.name}_*/result.json"))
    assert [RunResult.read(file).status for file in aside] == ["failed"]

    # The sweep grows: other options are other runs, and nothing is written over.
    done = sweep(tmp_path, *overrides, "method=original,joint", "seed=0,1")
    assert done.stdout.count("skipped, already has a result") == 2
    assert len(results(tmp_path)) == 6
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    assert done.stdout.count(" ± ") >= 2


@pytest.mark.slow
def test_the_rivals_table_labels_with_the_original_beside_it(tmp_path: Path) -> None:
    overrides = ["experiment=table6", "hydra.sweep.dir=sweep", "tau=0.05"]
    done = sweep(tmp_path, *overrides, "method=original,pseudo_label")
    found = results(tmp_path)
    assert [r["status"] for r in found.values()] == ["finished"] * 2, done.stderr
    student = next(name for name, r in found.items() if r["method"] == "pseudo_label")
    labels = json.loads((tmp_path / "sweep" / student / "pseudo_labels.json").read_text())
    assert isinstance(labels, list)
    assert found[student]["mining"]["pseudo_labels_per_image"] is not None

    done = sweep(tmp_path, "method=pseudo_label", "hydra.sweep.dir=alone")
    result = json.loads(next((tmp_path / "alone").glob("*/result.json")).read_text())
    assert result["status"] == "failed"
    assert "method.teacher is not set" in result["error"]


def test_a_single_diverged_run_has_its_own_exit_code(tmp_path: Path) -> None:
    tiny = [option for option in TINY if "sweep" not in option]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *tiny, "optimizer=sgd", "optimizer.lr=1e12",
         "hydra.run.dir=out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "diverged: the loss at step" in done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "diverged"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_several_runs_at_once(tmp_path: Path, launcher: str) -> None:
    """submitit_local stands in for SLURM: the same plugin, a process instead of a job."""
    done = sweep(tmp_path, f"launcher={launcher}", "method=original,joint")
    assert done.returncode == 0, done.stderr
    assert {r["method"]: r["status"] for r in results(tmp_path).values()} == {
        "original": "finished",
        "joint": "finished",
    }
    assert "2 runs finished, 0 runs diverged, 0 runs failed" in done.stdout


def test_every_process_claims_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert claim_gpu(tmp_path) == 0
    assert claim_gpu(tmp_path) == 0  # again the same for the next run of this process
    code = (
        "import sys, torch; from pathlib import Path; from comining.runs.gpu import claim_gpu; "
        f"torch.cuda.device_count = lambda: 2; print(claim_gpu(Path({str(tmp_path)!r})))"
    )
    other = [sys.executable, "-c", code]
    for _ in range(2):  # the claim ends with the process
        done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert claim_gpu(tmp_path / "..") is None


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert claim_gpu(tmp_path) == 0
    code = (
        "import torch; from pathlib import Path; from comining.runs.gpu import claim_gpu; "
        f"torch.cuda.device_count = lambda: 1; claim_gpu(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "n_jobs is larger than the number of GPUs, 1" in done.stderr


@pytest.mark.parametrize(
    ("table", "cells"),
    [("table1", 16), ("table2", 4), ("table3", 5), ("table4", 4), ("table5", 16), ("table6", 6)],
)
def test_every_table_is_one_command(table: str, cells: int) -> None:
    """The sweep has as many cells as the paper's table (and one more in Table 6), no two alike."""
    cfg = composed_with_hydra(f"experiment={table}")
    params = cfg.hydra.sweeper.params
    count = 1
    for key, value in params.items():
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
        count *= len(list(parsed.sweep_string_iterator()))
    assert count == cells
    assert cfg.table == table
    paper = composed_with_hydra(f"experiment=[coco,{table}]", "data.root=/nowhere")
    assert paper.table == table
    assert paper.trainer.max_steps == 90000
    assert paper.hydra.sweeper.params == params
