"""Whole runs on data of which something is known: what they print, two processes, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from comining.runs.outcome import knowledge_lines
from tests.ddp import TWO, train
from tests.test_ddp import compare
from tests.test_resume import call, same

KNOWN = ("sparsity=classes", "sparsity.regions=0.3", "tau=0.008", "checkpoint.every_n_steps=1")


def test_the_lines_about_what_is_known() -> None:
    def of(complete: int, unlooked: int, partial: int) -> dict[str, int]:
        return {"complete": complete, "not_looked_for": unlooked, "partial": partial}

    plain = {**of(0, 0, 6), "classes": {"a": of(0, 0, 3), "b": of(0, 0, 3)}, "ignored_regions": 0}
    assert knowledge_lines(plain) == ["annotation of 6 (image, class) pairs: 6 partial"]
    some = {**of(2, 1, 3), "classes": {"a": of(2, 1, 0), "b": of(0, 0, 3)}, "ignored_regions": 4}
    assert knowledge_lines(some) == [
        "annotation of 6 (image, class) pairs: 2 complete, 1 not looked for, 3 partial; 4 regions "
        "to ignore",
        "a: 2 complete, 1 not looked for",
        "b: 3 partial",
    ]
    many = {**of(25, 25, 0), "classes": {f"c{n}": of(1, 1, 0) for n in range(25)}}
    lines = knowledge_lines({**many, "ignored_regions": 0})
    assert len(lines) == 22
    assert lines[-1] == "and 5 more classes, see result.json"


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A run of 6 steps in one process, with a checkpoint of each."""
    done = train(module_path, "hydra.run.dir=one", *KNOWN)
    assert done.returncode == 0, done.stderr
    (module_path / "stdout.txt").write_text(done.stdout)
    return module_path


@pytest.mark.slow
def test_a_run_says_what_is_known(folder: Path) -> None:
    result = json.loads((folder / "one" / "result.json").read_text())
    known = result["data"]["train"]["known"]
    names = list(known["classes"])
    images = result["data"]["train"]["images"]
    assert known["not_looked_for"] == images * (len(names) // 2)
    assert known["complete"] == images * (len(names) - len(names) // 2)
    assert known["ignored_regions"] > 0
    lines = (folder / "stdout.txt").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("train: "))
    assert lines[start + 1] == (
        f"  annotation of {images * len(names)} (image, class) pairs: "
        f"{known['complete']} complete, "
        f"{known['not_looked_for']} not looked for; {known['ignored_regions']} regions to ignore"
    )
    assert lines[start + 2].startswith(f"  {names[0]}: ")
    assert result["data"]["val"]["known"]["complete"] == 5 * len(names)
    assert result["mining"]["pseudo_labels_per_image"] > 0


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", *KNOWN, *TWO)
    assert done.returncode == 0, done.stderr
    compare(folder / "one", folder / "two", mining=20)
    known = [
        json.loads((folder / run / "result.json").read_text())["data"] for run in ("one", "two")
    ]
    assert known[0] == known[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_killed_and_resumed_equals_never_stopped(folder: Path, step: int) -> None:
    run = folder / f"again{step}"
    shutil.copytree(folder / "one", run)
    (run / "result.json").unlink()
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / f"step_{step:06d}.ckpt", checkpoints / "last.ckpt")
    done = call(folder, f"resume={run.name}")
    assert done.returncode == 0, done.stderr
    same(folder / "one", run)
