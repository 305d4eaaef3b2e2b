"""A run that is stopped and goes on ends where one ends that was never stopped."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from comining.config import instantiate
from comining.errors import CheckpointError
from comining.runs.checkpoint import read_checkpoint
from comining.runs.result import RunResult
from comining.training.callbacks.saving import WholeCheckpoints, draft_of, keep_as
from tests.ddp import ROOT, TINY, train
from tests.helpers import composed

KILLS = 20


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        del row["train/images_per_s"]
    return rows


def same(whole: Path, other: Path) -> None:
    """Weights, optimizer, metrics.csv and results agree to the last bit."""
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, other)
    ]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, value in states[0]["state_dict"].items():
        other_value = states[1]["state_dict"][name]
        torch.testing.assert_close(other_value, value, rtol=0, atol=0, equal_nan=True)
    moments = [one["optimizer_states"][0]["state"] for one in states]
    for number, of_parameter in moments[0].items():
        for name, value in of_parameter.items():
            assert torch.equal(moments[1][number][name], value)
    assert rows_of(other) == rows_of(whole)
    results = [json.loads((run / "result.json").read_text()) for run in (whole, other)]
    for result in results:
        del result["wall_time_s"]
    assert results[1] == results[0]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "name"), [(0, "SIGKILL"), (2, "SIGKILL"), (0, "SIGTERM")])
def test_twenty_kills_at_random_moments_change_nothing(
    tmp_path: Path, workers: int, name: str
) -> None:
    assert len(kills_change_nothing(tmp_path, workers, name, KILLS)) == KILLS


@pytest.mark.parametrize(("workers", "name"), [(2, "SIGKILL"), (0, "SIGTERM")])
@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path, workers: int, name: str) -> None:
    assert len(kills_change_nothing(tmp_path, workers, name, 3)) == 3


def kills_change_nothing(tmp_path: Path, workers: int, name: str, kills: int) -> list[int]:
    """Check a run that was killed so often against a whole one; the exit codes of its starts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path), str(workers), name, str(kills)],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    log = (tmp_path / "killed.log").read_text()
    assert outcome["whole"] == outcome["end"] == 0, log[-3000:]
    codes: list[int] = outcome["codes"]
    if name == "SIGKILL":
        assert set(codes) == {-signal.SIGKILL}
        assert set(outcome["statuses"]) == {None}
    else:
        # Before Python is up and after the last step the signal has its plain effect.
        assert set(codes) <= {143, -signal.SIGTERM, 0}
        assert codes.count(143) > kills / 2
        assert "interrupted" in outcome["statuses"]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))  # leftovers are swept
    same(tmp_path / "whole", tmp_path / "killed")
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("method", ["comining", "sparsedet"])
def test_a_resumed_run_of_two_stages_draws_the_same_samples(tmp_path: Path, method: str) -> None:
    options = ["detector=faster_rcnn", f"method={method}", "tau=0.1", "checkpoint.every_n_steps=1"]
    if method == "sparsedet":
        options += ["method.start=0.5", "method.objectness=0.3"]
    done = train(tmp_path, "hydra.run.dir=whole", *options)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()
    checkpoints = tmp_path / "again" / "checkpoints"
    shutil.copy(checkpoints / "step_000002.ckpt", checkpoints / "last.ckpt")
    done = train(tmp_path, "resume=again")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "whole", tmp_path / "again")


# -- stopping on request -----------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run of 6 steps, with a checkpoint of each."""
    done = train(module_path, "hydra.run.dir=whole", "checkpoint.every_n_steps=1", "tau=0.008")
    assert done.returncode == 0, done.stderr
    return module_path


def stop(
    folder: Path, signum: int, *overrides: str, group: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start a long run, and send it, or all its processes, a signal after its first steps."""
    data = f"data.root={folder / 'shapes'}"
    options = [one for one in TINY if "max_steps" not in one]
    flags = [one for one in overrides if one.startswith("-")]
    rest = [one for one in overrides if not one.startswith("-")]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags, data, *options, "trainer.max_steps=100000",
         "trainer.val_check_interval=100000", "checkpoint.every_n_steps=2", *rest],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=group,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("stopped*/**/last.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if group:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.slow
def test_a_signal_saves_and_exits_with_its_code(
    folder: Path, tmp_path: Path, name: str, code: int
) -> None:
    shutil.copytree(folder / "shapes", tmp_path / "shapes")
    done = stop(tmp_path, signal.Signals[name], "hydra.run.dir=stopped")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "resume with: python train.py resume=" in done.stderr
    result = json.loads((tmp_path / "stopped" / "result.json").read_text())
    assert result["status"] == "interrupted"
    state = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == result["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["main process", "all processes"])
def test_a_signal_ends_a_sweep(folder: Path, tmp_path: Path, group: bool) -> None:
    """Schedulers send it to all processes, and workers of a loader must outlive the step."""
    shutil.copytree(folder / "shapes", tmp_path / "shapes")
    options = ["-m", "seed=0,1", "hydra.sweep.dir=stopped", "data.num_workers=2"]
    done = stop(tmp_path, signal.SIGTERM, *options, group=group)
    assert done.returncode == 143, done.stderr
    results = list((tmp_path / "stopped").glob("*/result.json"))
    assert [json.loads(file.read_text())["status"] for file in results] == ["interrupted"]


@pytest.mark.slow
def test_slurm_queues_the_job_again_and_it_goes_on_in_the_same_directory(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "shapes", tmp_path / "shapes")
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    options = ("hydra.run.dir=stopped", "resume=auto")
    done = stop(tmp_path, signal.SIGUSR1, *options, PATH=path, SLURM_JOB_ID="77")
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "job 77 is queued again" in done.stderr
    step = json.loads((tmp_path / "stopped" / "result.json").read_text())["step"]
    again = stop_again(tmp_path, *options)
    assert again > step


def stop_again(folder: Path, *options: str) -> int:
    """Start a stopped run again as a scheduler would; the step at which it is stopped then."""
    last = folder / "stopped" / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("kept.ckpt"))  # so that stop() waits for the next one
    shutil.copy(last.with_name("kept.ckpt"), last)
    before = last.stat().st_mtime_ns
    data = f"data.root={folder / 'shapes'}"
    rest = [one for one in TINY if "max_steps" not in one]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), data, *rest, "trainer.max_steps=100000",
         "trainer.val_check_interval=100000", "checkpoint.every_n_steps=2", *options],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while last.stat().st_mtime_ns == before and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    step: int = json.loads((folder / "stopped" / "result.json").read_text())["step"]
    return step


# -- by which options --------------------------------------------------------------------


def resumed(folder: Path, name: str, from_step: int) -> Path:
    """A copy of the finished run as if it had been killed after a step."""
    run = folder / name
    shutil.copytree(folder / "whole", run)
    (run / "result.json").unlink()
    shutil.copy(
        run / "checkpoints" / f"step_{from_step:06d}.ckpt", run / "checkpoints" / "last.ckpt"
    )
    return run


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, capture_output=True,
        text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_directory_alone_says_how_to_go_on(folder: Path) -> None:
    run = resumed(folder, "again", from_step=3)  # a step that was validated
    with (run / "overrides.yaml").open("a") as file:
        file.write("- pictures.folder=gone\n")  # an option of earlier versions
    done = call(folder, "resume=again")
    assert done.returncode == 0, done.stderr
    same(folder / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [3, 4], ids=["validated last", "not validated last"])
def test_a_run_that_was_killed_after_its_last_step_is_evaluated(
    folder: Path, tmp_path: Path, interval: int
) -> None:
    """Nothing is left to train; what was mined is still told, and no row is written twice."""
    shutil.copytree(folder / "shapes", tmp_path / "shapes")
    done = train(tmp_path, "hydra.run.dir=whole", f"trainer.val_check_interval={interval}")
    assert done.returncode == 0, done.stderr
    resumed_run = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", resumed_run)
    (resumed_run / "result.json").unlink()
    done = call(tmp_path, "resume=again")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "whole", resumed_run)


@pytest.mark.slow
def test_other_options_are_refused_by_name_unless_allowed(folder: Path) -> None:
    run = resumed(folder, "other", from_step=4)
    done = call(folder, "resume=other", "optimizer.lr=0.001", "method=joint")
    assert done.returncode == 2
    for words in ("optimizer.lr was 0.004, is 0.001", "method._target_ was", "allow_changes=true"):
        assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = call(folder, "resume=other", "trainer.max_steps=8", "allow_changes=true")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["steps"] == 8
    steps = [int(row["step"]) for row in rows_of(run)]
    assert steps == sorted(steps)
    assert steps[-1] == 8


@pytest.mark.slow
def test_what_changes_no_result_may_change(folder: Path) -> None:
    run = resumed(folder, "quiet", from_step=4)
    done = call(folder, "resume=quiet", "data.num_workers=1", "checkpoint.every_n_steps=0")
    assert done.returncode == 0, done.stderr
    states = [
        torch.load(one / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for one in (folder / "whole", run)
    ]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_ckpt_begins_a_new_directory_from_a_checkpoint(folder: Path) -> None:
    checkpoint = folder / "step_4_and_a_better_one_before.ckpt"
    content = read_checkpoint(folder / "whole" / "checkpoints" / "step_000004.ckpt")
    content["callbacks"]["StepCheckpoint"]["best"] = 99.0
    torch.save(content, checkpoint)
    done = train(folder, "hydra.run.dir=new", "tau=0.008", f"ckpt={checkpoint}")
    assert done.returncode == 0, done.stderr
    assert (folder / "new" / "checkpoints" / "best.ckpt").exists()  # the best of this directory
    states = [
        torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "new")
    ]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize("kind", ["no run", "no checkpoint", "damaged"])
@pytest.mark.slow
def test_what_cannot_be_resumed_is_named(folder: Path, kind: str) -> None:
    name = kind.replace(" ", "_")
    if kind != "no run":
        run = resumed(folder, name, from_step=2)
        last = run / "checkpoints" / "last.ckpt"
        content = last.read_bytes()
        last.unlink()
        if kind == "damaged":
            last.write_bytes(content[: len(content) // 2])
    done = call(folder, f"resume={name}")
    assert done.returncode == 2
    expected = "is not a run directory" if kind == "no run" else "last.ckpt"
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / name / "result.json").exists()


# -- files -------------------------------------------------------------------------------

DESCRIPTION = {
    "config": {"backbone": {}, "detector": {}, "data": {}},
    "category_ids": [1],
    "category_names": ["one"],
}
CONTENT: dict[str, Any] = {"comining": DESCRIPTION, "state_dict": {"a": torch.ones(20_000)}}


def test_a_save_that_fails_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.ckpt"
    files = WholeCheckpoints()
    files.save_checkpoint(CONTENT, target)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written, No space left"):
        files.save_checkpoint({**CONTENT, "state_dict": {"a": torch.zeros(20_000)}}, target)
    assert torch.equal(read_checkpoint(target)["state_dict"]["a"], torch.ones(20_000))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """On a real tmpfs of 1 MB, where one may be mounted; a run that fills it says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here: " + mounted.stderr.decode().strip())
    try:
        small = {
            **CONTENT,
            "state_dict": {"a": torch.ones(100_000)},
        }  # 0.4 MB: fits once, not twice
        files = WholeCheckpoints()
        files.save_checkpoint(small, disk / "last.ckpt")
        (disk / "other").write_bytes(b"0" * 300_000)
        with pytest.raises(
            CheckpointError, match=r"No space left.*0\.4 MB were needed.*is unchanged"
        ):
            files.save_checkpoint(small, disk / "last.ckpt")
        assert torch.equal(
            read_checkpoint(disk / "last.ckpt")["state_dict"]["a"], torch.ones(100_000)
        )
        assert sorted(file.name for file in disk.iterdir()) == ["last.ckpt", "other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_what_happened(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (folder / "whole" / "checkpoints" / "last.ckpt").stat().st_size
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size) + 100_000}", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here: " + mounted.stderr.decode().strip())
    try:
        done = train(
            folder, f"hydra.run.dir={disk / 'run'}", "checkpoint.every_n_steps=2",
        )  # fmt: skip
        assert done.returncode == 2
        assert "cannot be written, No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        result = RunResult.read(disk / "run" / "result.json")
        assert result.status == "failed"
        assert "No space left on device" in str(result.error)
        assert (
            read_checkpoint(disk / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
        )  # the first that fitted
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_name_is_a_whole_file_of_its_own(tmp_path: Path) -> None:
    files = WholeCheckpoints()
    files.save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    keep_as(tmp_path / "last.ckpt", tmp_path / "step.ckpt")
    files.save_checkpoint({**CONTENT, "state_dict": {}}, tmp_path / "last.ckpt")
    assert len(read_checkpoint(tmp_path / "step.ckpt")["state_dict"]) == 1
    assert not draft_of(tmp_path / "step.ckpt").exists()


def test_the_best_checkpoint_is_that_of_the_best_validation(folder: Path) -> None:
    history = json.loads((folder / "whole" / "result.json").read_text())["history"]
    best = max(history, key=lambda row: row["AP"])  # the first of equals
    content = read_checkpoint(folder / "whole" / "checkpoints" / "best.ckpt")
    assert content["global_step"] == best["step"]


def contents(run: Path) -> dict[Path, bytes]:
    """Every file of a run but the one that says which process has it."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name != ".owner"]
    return {file: file.read_bytes() for file in files}


def test_new_options_of_schedule_and_optimizer_are_used(folder: Path) -> None:
    """A checkpoint holds those that it was trained with."""
    run = resumed(folder, "slower", from_step=4)
    options = ["optimizer.lr=0.001", "optimizer.weight_decay=0.5", "trainer.max_steps=8"]
    done = call(folder, "resume=slower", *options, "allow_changes=true")
    assert done.returncode == 0, done.stderr
    schedule = instantiate(composed("trainer.max_steps=8").schedule, "schedule")
    rates = {row["step"]: float(row["train/lr"]) for row in rows_of(run) if row["train/lr"]}
    assert rates["8"] == pytest.approx(0.001 * schedule(7))
    (group,) = read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0][
        "param_groups"
    ]
    assert (group["initial_lr"], group["weight_decay"]) == (0.001, 0.5)


def test_a_failure_before_the_run_begins_leaves_the_result_of_a_sweep(folder: Path) -> None:
    run = resumed(folder, "swept", from_step=4)
    (run / "result.json").write_bytes((folder / "whole" / "result.json").read_bytes())
    before = contents(run)
    sweep = ["-m", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=swept", "resume=auto"]
    done = train(folder, *sweep, "optimizer=sgd", "allow_changes=true")
    assert "has the state of another optimizer" in done.stderr + done.stdout
    assert (
        contents(run).items()
        >= {file: content for file, content in before.items() if file.name != "train.log"}.items()
    )


@pytest.mark.parametrize(
    "text", ["", "seed: 1", "- [seed=1", "- no_such.option=1", "- hydra.runtime.cwd='x"]
)
def test_a_damaged_list_of_options_is_named(folder: Path, text: str) -> None:
    run = resumed(folder, f"damaged{len(text)}", from_step=4)
    (run / "overrides.yaml").write_text(text)
    done = call(folder, f"resume={run}")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {run}/overrides.yaml: ")


def renamed_class(file: Path) -> None:
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "comet"
    file.write_text(json.dumps(content))


def test_other_classes_are_refused_and_the_earlier_result_stays(folder: Path) -> None:
    """The options are the same: only the annotation files have changed."""
    run = resumed(folder, "classes", from_step=4)
    (run / "result.json").write_bytes((folder / "whole" / "result.json").read_bytes())
    before = contents(run)
    files = sorted((folder / "shapes" / "annotations").glob("*.json"))
    whole = [file.read_bytes() for file in files]
    try:
        for file in files:
            renamed_class(file)
        done = call(folder, "resume=classes")
    finally:
        for file, content in zip(files, whole, strict=True):
            file.write_bytes(content)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        f"error: {run}/checkpoints/last.ckpt was trained for 6 classes, the annotations have 6: "
        "without "
    )
    assert "with comet" in line
    assert f"weights={run}/checkpoints/last.ckpt" in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["optimizer=sgd"], "optimizer._target_ was 'torch.optim.AdamW', is 'torch.optim.SGD'"),
        (["backbone.out_channels=64"], "has the weights of another network"),
        (["parameter_groups.backbone_lr_factor=0.1"], "has the state of an optimizer for ["),
    ],
)
def test_what_does_not_fit_is_refused_even_if_changes_are_allowed(
    folder: Path, options: list[str], words: str
) -> None:
    run = resumed(folder, "_".join(options), from_step=4)
    before = contents(run)
    done = call(folder, f"resume='{run}'", *options, "allow_changes=true")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"{run}/checkpoints/last.ckpt" in line
    assert words in line
    assert contents(run) == before
