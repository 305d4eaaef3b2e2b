"""A run directory has one owner: runs at once, reused directories, resumed ones, several nodes."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from comining.errors import ConfigError
from comining.runs import ranks
from comining.runs.checkpoint import read_checkpoint
from comining.runs.claiming import OutputDirectory
from comining.runs.directory import DirectoryTakenError, RunDirectory
from comining.runs.environment import hardware
from comining.runs.gpu import claim_gpu
from comining.runs.outcome import identity
from comining.runs.ranks import Meeting, meeting, refuse_several_processes
from comining.runs.result import RunResult, find_files
from tests.ddp import ROOT, TINY, free_port, train
from tests.helpers import composed, composed_with_hydra

SHORT = ("trainer.max_steps=2", "trainer.val_check_interval=2")


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A finished run, ``whole``, and its data."""
    done = train(module_path, *SHORT, "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    return module_path


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(folder / "whole", tmp_path / "whole"))


def python(code: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def at_once(script: str, cwd: Path, *commands: list[str]) -> list[int]:
    """The exit codes of a script that is started several times in the same moment.

    All are forks of a process that has imported everything.
    """
    code = (
        "import json, sys; from pathlib import Path; from tests import killed; "
        f"killed.SCRIPT = Path({str(ROOT / script)!r}); "
        "ids = [killed.start(Path(f'{n}.log'), *c) for n, c in enumerate(json.loads(sys.argv[1]))];"
        "print(json.dumps([killed.wait(i) for i in ids]))"
    )
    done = python(code, cwd, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


def contents(run: Path) -> dict[str, bytes]:
    """All files of a directory but the owner's, whose lock ends where its process closes it."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in run.rglob("*")
        if file.is_file() and file.name != ".owner"
    }


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


# -- runs at once ------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (7, 7, 7, 7)], ids=["four seeds", "one seed"])
def test_four_runs_at_once_are_four_runs(
    folder: Path, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    options = [f"data.root={folder / 'shapes'}", *TINY, *SHORT, "trainer.log_every_n_steps=1"]
    codes = at_once("train.py", tmp_path, *([*options, f"seed={seed}"] for seed in seeds))
    logs = [(tmp_path / f"{number}.log").read_text() for number in range(4)]
    assert codes == [0] * 4, logs
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 4
    results = [RunResult.read(run / "result.json") for run in runs]
    assert [result.status for result in results] == ["finished"] * 4
    assert sorted(str(result.seed) for result in results) == sorted(map(str, seeds))
    for run, result in zip(runs, results, strict=True):
        assert re.search(rf"_comining_retinanet_hard_seed{result.seed}(_\d)?$", run.name)
        # Nothing of another run is in it: two training rows and a validation, three checkpoints.
        assert len((run / "metrics.csv").read_text().splitlines()) == 4
        saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
        assert saved["comining"]["config"]["seed"] == result.seed
        assert sum(str(run / "result.json") in log for log in logs) == 1
    ids = {(run / "wandb_id").read_text() for run in runs}
    assert len(ids) == 4
    assert all(re.fullmatch("[0-9a-f]{8}", one) for one in ids)


def test_two_evaluations_at_once_have_a_directory_each(whole: Path, tmp_path: Path) -> None:
    checkpoint = whole / "checkpoints" / "last.ckpt"
    options = [
        f"checkpoint={checkpoint}", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    codes = at_once("evaluate.py", tmp_path, options, options)
    assert codes == [0, 0], (tmp_path / "0.log").read_text() + (tmp_path / "1.log").read_text()
    assert len(list((tmp_path / "runs").glob("*_evaluate*/evaluation.json"))) == 2


def test_two_sweeps_of_one_second_have_a_directory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed_with_hydra("seed=0")
    name = cfg.hydra.sweep.dir  # from here on its clock stands still
    copies = [copy.deepcopy(cfg) for _ in range(2)]
    for one in copies:
        OutputDirectory().on_multirun_start(one)
    assert [one.hydra.sweep.dir for one in copies] == [name, f"{name}_2"]
    assert copies[1].hydra.overrides.hydra[-1] == f"hydra.sweep.dir='{name}_2'"
    assert Path(f"{name}_2").is_dir()
    fixed = composed_with_hydra("hydra.sweep.dir=mine")
    OutputDirectory().on_multirun_start(fixed)
    assert fixed.hydra.sweep.dir == "mine"


def test_only_one_of_many_gets_a_directory(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from comining.runs.directory import RunDirectory, "
        "DirectoryTakenError\nfor n in range(40):\n"
        "    try: RunDirectory.claim(Path(f'{n}'), held='refuse'); print(n)\n"
        "    except DirectoryTakenError: pass\n"
        "input()"
    )
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:  # each keeps what it has until both have tried all
        outputs = list(pool.map(lambda process: process.communicate("\n", timeout=120), processes))
    owners = sorted(int(number) for out, _ in outputs for number in out.split())
    assert set(owners) == set(range(40))


# -- a directory that is used again ------------------------------------------------------


def test_a_directory_that_holds_a_run_is_refused(whole: Path, folder: Path) -> None:
    before = contents(whole)
    done = train(folder, *SHORT, f"hydra.run.dir={whole}")
    advice = (f"resume={whole}", "another hydra.run.dir", "overwrite=true")
    assert_one_line(done, f"{whole} holds another run (finished)", *advice)
    assert contents(whole) == before


@pytest.mark.slow
def test_overwrite_moves_the_old_content_aside(whole: Path, folder: Path) -> None:
    before = contents(whole)
    done = train(folder, "trainer.max_steps=1", "overwrite=true", f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    (aside,) = (whole.parent / "replaced").iterdir()
    assert aside.name.startswith("whole_")
    assert f"the earlier content of {whole} is in {aside}" in done.stdout
    assert contents(aside) == before
    assert RunResult.read(whole / "result.json").steps == 1
    assert (whole / "wandb_id").read_bytes() != before["wandb_id"]
    # And the next one aside again; no report counts either.
    done = train(folder, "trainer.max_steps=1", "overwrite=true", f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    assert len(list((whole.parent / "replaced").iterdir())) == 2
    assert find_files(whole.parent, "result.json") == [whole / "result.json"]


@pytest.mark.slow
def test_bad_input_moves_nothing(whole: Path, folder: Path) -> None:
    before = contents(whole)
    done = train(folder, "optimizer.lr=x", "overwrite=true", f"hydra.run.dir={whole}")
    assert_one_line(done, "optimizer.lr='x'")
    assert contents(whole) == before
    assert os.listdir(whole.parent) == ["whole"]
    done = train(folder, "overwrite=true", f"resume={whole}")
    assert_one_line(done, f"resume={whole}", "overwrite=true")
    assert contents(whole) == before


@pytest.mark.slow
def test_a_run_that_is_alive_is_left_alone(whole: Path, folder: Path) -> None:
    owner = RunDirectory.claim(whole, held="resume")
    before = contents(whole)
    alive = f"{whole} belongs to a run that is still running (process {os.getpid()} on "
    try:
        for options in ([f"resume={whole}"], [f"hydra.run.dir={whole}", "overwrite=true"]):
            assert_one_line(train(folder, *SHORT, *options), alive)
        with pytest.raises(DirectoryTakenError, match="another run of this process"):
            RunDirectory.claim(whole, held="resume")
        assert contents(whole) == before
    finally:
        owner.release()
    RunDirectory.claim(whole, held="resume").release()
    assert (whole / "wandb_id").read_bytes() == before["wandb_id"]


def test_a_killed_owner_is_no_owner(tmp_path: Path) -> None:
    """Not even while workers that it has forked live on."""
    code = (
        "import os, time; from pathlib import Path; "
        "from comining.runs.directory import RunDirectory; "
        "RunDirectory.claim(Path('a'), held='refuse')\n"
        "if os.fork() == 0:\n    os.close(1); os.close(2); time.sleep(20); os._exit(0)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = python(code, tmp_path)
    assert done.returncode == -9, done.stderr
    RunDirectory.claim(tmp_path / "a", held="refuse").release()


# -- what is no run leaves nothing ---------------------------------------------------------


@pytest.mark.slow
def test_bad_input_leaves_no_directory(tmp_path: Path, folder: Path) -> None:
    data = f"data.root={folder / 'shapes'}"
    (tmp_path / "file").write_text("")
    code = (
        "import runpy, sys; sys.argv[0] = 'train.py'; "
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    cases = {
        ("resume=TYPO",): "TYPO is not a run directory",
        ("optimizer.lr=x",): "optimizer.lr='x'",
        ("seed=-1", "hydra.run.dir=a/b/c"): "seed=-1",
        ("trainer.max_steps=x", "hydra.run.dir=a/b/c", "logger=wandb"): "trainer.max_steps='x'",
        ("hydra.run.dir=file",): "file: cannot be a run directory",
        ("hydra.run.dir=file/below",): "cannot be a run directory",
    }
    for options, words in cases.items():
        assert_one_line(python(code, tmp_path, data, *TINY, *options), words)
        assert os.listdir(tmp_path) == ["file"], options
    for options in (["--help"], ["--cfg", "all", "--resolve"], ["--info", "plugins"]):
        done = python(code, tmp_path, data, *options)
        assert done.returncode == 0, done.stderr
        assert os.listdir(tmp_path) == ["file"], options


# -- every end is recorded -----------------------------------------------------------------


def test_a_single_run_that_fails_is_recorded(tmp_path: Path, folder: Path) -> None:
    data = f"data.root={folder / 'shapes'}"
    done = train(tmp_path, data, "method=pseudo_label", "hydra.run.dir=a")
    assert_one_line(done, "method.teacher is not set")
    result = RunResult.read(tmp_path / "a" / "result.json")
    assert (result.status, result.method, result.seed) == ("failed", "pseudo_label", 0)
    assert "method.teacher is not set" in str(result.error)
    assert result.data["train"]["images"] == 16
    assert torch.__version__.startswith(result.versions["torch"])


def test_what_no_record_can_hold_is_none(tmp_path: Path) -> None:
    composed("hydra.mode=RUN")
    config = {
        "seed": "abc", "trainer": {"max_steps": "${oc.env:NOWHERE}"}, "table": 5,
        "method": {"_target_": "x", "score_threshold": float("nan"), "ratios": [1, float("inf")]},
    }  # fmt: skip
    for hostile in (config, {"seed": True, "trainer": None, "method": "text", 1: 2, "a": 3}):
        result = RunResult(status="failed", **identity(hostile))
        result.write(tmp_path / "result.json")
        assert RunResult.read(tmp_path / "result.json") == result
        assert result.seed is None
        assert result.max_steps is None
    result = RunResult(status="failed", **identity(config))
    assert result.method_options == {"score_threshold": None, "ratios": [1, None]}
    assert result.table == "5"


@pytest.mark.slow
def test_a_cell_whose_options_make_no_sense_is_recorded(tmp_path: Path, folder: Path) -> None:
    data = f"data.root={folder / 'shapes'}"
    options = ("seed=abc,0", "tau=${nowhere}", "hydra.sweep.dir=sweep")
    done = train(tmp_path, "-m", data, *options)
    assert done.returncode == 1, done.stderr
    results = [RunResult.read(file) for file in find_files(tmp_path / "sweep", "result.json")]
    assert [result.status for result in results] == ["failed"] * 2
    assert {result.seed for result in results} == {None, 0}


def test_the_hardware_is_what_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Accelerator")
    threads = torch.get_num_threads()
    assert hardware(torch.device("cpu"), 1) == f"CPU, {threads} threads"
    assert hardware(torch.device("cpu"), 2) == f"2 x CPU, {threads} threads"
    assert hardware(torch.device("cuda", 3), 2) == "2 x Accelerator"


# -- several processes ---------------------------------------------------------------------


@pytest.mark.parametrize("devices", ["auto", -1, "-1", [0, 1], "0,1", 2])
def test_a_sweep_over_several_gpus_is_refused(
    devices: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "gpu"}
    with pytest.raises(ConfigError, match=r"these options use 2 .* set trainer\.devices=1"):
        refuse_several_processes(L.Trainer(devices=devices, **options))  # type: ignore[arg-type]
    for one in (1, "1", [1], "1,"):
        refuse_several_processes(L.Trainer(devices=one, **options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_refusal_of_rank_0_ends_all_ranks(whole: Path, folder: Path) -> None:
    launcher = (
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
        f"--master_port={free_port()}",
    )  # fmt: skip
    options = ("trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={whole}")
    before = contents(whole)
    done = train(folder, *SHORT, *options, launcher=launcher, timeout=200)
    assert done.returncode != 0
    assert f"error: {whole} holds another run (finished)" in done.stderr
    assert "rank 0 at" not in done.stderr  # nobody waited in vain
    assert contents(whole) == before


def test_ranks_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "WAIT", 1.0)
    port = free_port()
    with pytest.raises(ConfigError, match=rf"rank 1 found no rank 0 at 127.0.0.1:{port} within"):
        Meeting(1, "127.0.0.1", port, hosted=False).agree(dict)
    decided = Meeting(0, "127.0.0.1", port, hosted=False).agree(lambda: {"directory": "here"})
    assert decided == {"directory": "here"}
    received = Meeting(1, "127.0.0.1", port, hosted=False).agree(lambda: pytest.fail("not rank 0"))
    assert received == decided


def test_nodes_without_a_shared_file_system_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not see the run directory of rank 0; all nodes"):
        RunDirectory.join(tmp_path / "elsewhere", wait_s=0.2)


def test_the_place_of_a_process_is_read_from_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "MASTER", "LOCAL_RANK", "NODE_RANK", "RANK")):
            monkeypatch.delenv(name)
    assert meeting(1) is None
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2: .*NODE_RANK, MASTER_ADDR"):
        meeting(2)
    for name, value in (("NODE_RANK", "1"), ("MASTER_ADDR", "first"), ("MASTER_PORT", "5000")):
        monkeypatch.setenv(name, value)
    assert meeting(2) == Meeting(1, "first", 5000, hosted=False)
    monkeypatch.setenv("LOCAL_RANK", "1")  # Lightning started it, and gave it the directory
    assert meeting(2) is None
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("TORCHELASTIC_RUN_ID", "none")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert meeting(2) == Meeting(3, "first", 5000, hosted=True)


@pytest.mark.slow
def test_processes_of_a_slurm_job_share_a_directory(folder: Path, tmp_path: Path) -> None:
    def task(rank: int) -> subprocess.CompletedProcess[str]:
        slurm = {
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank), "SLURM_NODELIST": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        nodes = ("trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp")
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), f"data.root={folder / 'shapes'}", *TINY,
             *SHORT, *nodes],
            cwd=tmp_path, env={**os.environ, **slurm}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

    port = str(free_port())
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(task, range(2)))
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert RunResult.read(result).status == "finished"


# -- systems without file locks ------------------------------------------------------------


@pytest.mark.slow
def test_without_file_locks_new_directories_are_exclusive_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    run = RunDirectory.claim(tmp_path / "a", held="refuse")
    second = RunDirectory.claim(tmp_path / "a", held="refuse", numbered=True)
    assert second.path == tmp_path / "a_2"
    run.release()
    second.release()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="own_gpu=true needs file locks"):
        claim_gpu(tmp_path)
    done = python("import sys; sys.modules['fcntl'] = None; import train, evaluate", ROOT)
    assert done.returncode == 0, done.stderr


def test_the_configuration_still_has_hydras_own_names() -> None:
    """What refers to the directory refers to the claimed one."""
    cfg = composed("logger=wandb", run=Path("/somewhere"))
    assert HydraConfig.get().runtime.output_dir == "/somewhere"
    assert cfg.logger.folder == "/somewhere"
