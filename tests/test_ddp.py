"""Two processes compute what one computes on the same batches."""

import csv
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

from comining.runs.result import RunResult
from tests.ddp import TWO, free_port, train

# Sums of gradients in another order; Adam divides by their size, which magnifies the difference.
LOSSES = {"rel": 1e-5}
WEIGHTS = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """One process on everything, to compare with."""
    done = train(module_path, "hydra.run.dir=one", "tau=0.008")
    assert done.returncode == 0, done.stderr
    return module_path


def compare(
    one: Path,
    other: Path,
    mining: int = 60,
    rel: float = LOSSES["rel"],
    atol: float = WEIGHTS["atol"],
) -> None:
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["status"] == results[1]["status"] == "finished"
    assert results[1]["metrics"] == results[0]["metrics"]  # 5 images: shares of 3 and 2
    assert results[1]["test"] == results[0]["test"]
    assert results[1]["class_ap"] == results[0]["class_ap"]
    mined = [{k: math.nan if v is None else v for k, v in r["mining"].items()} for r in results]
    assert mined[1] == pytest.approx(mined[0], rel=rel, nan_ok=True)
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, other)]
    assert len(tables[0]) == len(tables[1])
    compared = 0
    for first, second in zip(*tables, strict=True):
        assert list(first) == list(second)
        for name in first:
            if name != "train/images_per_s" and first[name]:
                wanted = pytest.approx(float(first[name]), **{**LOSSES, "rel": rel})
                assert float(second[name]) == wanted, name
                compared += name.startswith("mining/")
    assert compared > mining
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, other)
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=atol)


def test_two_processes_train_the_same_network(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=two", "tau=0.008", *TWO)
    assert done.returncode == 0, done.stderr
    compare(folder / "one", folder / "two")
    assert done.stdout.count("written:") == 1  # the second process is silent
    assert done.stdout.count("run directory:") == 1
    assert done.stdout.count("validation\n") + done.stderr.count("validation\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["comining", "sparsedet"])
def test_two_processes_sample_the_same_in_both_stages(tmp_path: Path, method: str) -> None:
    options = ["detector=faster_rcnn", f"method={method}", "tau=0.1"]
    if method == "sparsedet":
        # After a few steps rounding decides which proposals are pseudo-positives.
        short = ["trainer.max_steps=2", "trainer.val_check_interval=2"]
        options += ["method.start=0", "method.objectness=0.3", *short]
    for name, more in (("one", ()), ("two", TWO)):
        done = train(tmp_path, f"hydra.run.dir={name}", *options, *more)
        assert done.returncode == 0, done.stderr
    # Rounding moves the proposals of the next step, which are samples of this detector, and turns
    # the sign of gradients near 0, of which AdamW makes steps as long as the learning rate, 0.004.
    compare(tmp_path / "one", tmp_path / "two", mining=0, rel=1e-3, atol=2e-2)


@pytest.mark.slow
def test_two_machines_by_torchrun(folder: Path) -> None:
    """``torchrun --nnodes=2``, both nodes here; the name of the directory is the first one's."""
    rendezvous = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1")
    port = f"--master_port={free_port()}"
    from concurrent.futures import ThreadPoolExecutor

    def node(rank: int) -> str:
        launcher = (
            sys.executable, "-m", "torch.distributed.run", *rendezvous, port, f"--node_rank={rank}",
        )  # fmt: skip
        options = ("trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp")
        time.sleep(1.5 * rank)  # so that their clocks name two directories
        done = train(folder, "tau=0.008", *options, launcher=launcher)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(node, range(2)))
    assert [text.count("written:") for text in outputs] == [1, 0]
    runs = list((folder / "runs").iterdir())
    assert len(runs) == 1
    assert RunResult.read(runs[0] / "result.json").hardware.startswith("2 x CPU")
    compare(folder / "one", runs[0])


def test_a_batch_that_cannot_be_shared_is_refused(folder: Path) -> None:
    done = train(folder, "hydra.run.dir=uneven", "data.batch_size=3", *TWO)
    assert done.returncode == 2
    assert "data.batch_size=3" in done.stderr
    assert not (folder / "uneven").exists()


@pytest.mark.slow
def test_a_sweep_over_several_processes_is_refused(folder: Path) -> None:
    done = train(folder, "-m", "seed=0,1", "hydra.sweep.dir=sweep", *TWO)
    assert done.returncode != 0
    assert "a sweep runs each of its runs on one device" in done.stdout + done.stderr
    assert "launcher=joblib" in done.stdout + done.stderr
    assert not list((folder / "sweep").glob("*/checkpoints"))


@pytest.mark.slow
def test_all_processes_stop_when_one_diverges(folder: Path) -> None:
    options = ("optimizer=sgd", "optimizer.lr=1e12", "checkpoint.every_n_steps=1")
    done = train(folder, "hydra.run.dir=diverged", *options, *TWO)
    assert done.returncode == 3, done.stderr
    result = json.loads((folder / "diverged" / "result.json").read_text())
    assert result["status"] == "diverged"
    state = torch.load(folder / "diverged" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == result["step"]  # that of the step before
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
