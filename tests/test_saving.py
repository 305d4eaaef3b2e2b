"""A checkpoint is written before a validation, and a resumed run validates first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.ddp import train
from tests.test_resume import call, same


@pytest.mark.slow
def test_an_error_in_validation_loses_no_training(tmp_path: Path) -> None:
    """A validation image whose pixels are broken; when it is mended, the run goes on."""
    options = ("tau=0.008", "checkpoint.every_n_steps=0")
    done = train(tmp_path, "hydra.run.dir=whole", *options)
    assert done.returncode == 0, done.stderr
    picture = sorted((tmp_path / "shapes" / "val").glob("*.jpg"))[-1]
    content = picture.read_bytes()
    picture.write_bytes(content[:700])
    done = train(tmp_path, "hydra.run.dir=stopped", *options)
    assert done.returncode == 2, done.stderr
    assert picture.name in done.stderr
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["status"] == "failed"

    picture.write_bytes(content)
    shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    done = call(tmp_path, "resume=again")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "whole", tmp_path / "again")
    best = [
        torch.load(tmp_path / run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
        for run in ("whole", "again")
    ]
    assert best[0] == best[1]


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_validates_and_keeps_the_best(tmp_path: Path) -> None:
    done = train(tmp_path, "hydra.run.dir=whole", "tau=0.008", "checkpoint.every_n_steps=0")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", run)
    (run / "result.json").unlink()
    (run / "checkpoints" / "best.ckpt").unlink()  # killed between the two
    done = call(tmp_path, "resume=again")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "whole", run)
    history = json.loads((run / "result.json").read_text())["history"]
    assert len(history) == 2
