"""Paths as the shell hands them over, names of the folders that sweeps make, and closed pipes."""

import errno
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import lightning as L
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from omegaconf import DictConfig

from comining.config import CONFIG_FOLDER
from comining.errors import ConfigError, OutputError
from comining.runs import command_line
from comining.runs.cell_names import cell_name
from comining.runs.command_line import absolute, readable, text_of
from comining.runs.directory import RunDirectory
from comining.runs.result import RunResult
from tests.ddp import ROOT, TINY, train
from tests.helpers import composed, composed_with_hydra

README = (ROOT / "README.md").read_text()
HOSTILE = [
    "a=b", "/x/pictures (1)", "[a]", "[a,b]/c", "{a}", "a,b", "it's", "'a'b'", '"a"b"', "a#b",
    "a;b", "a&b", "a!b", "a\nb", "Bücher", "日本", "2024", "2024_01", "1e5", "true", "nan",
    "tag(a)", "$HOME", "{$x}", "a'\\", "a\\'b=", "(", "a b=c d", "100%", "-x=y", "C:\\d=1", "a<b>c",
    "a=b,c=d", "^", "`",
]  # fmt: skip


def value_of(*arguments: str) -> str | None:
    (override,) = [one for one in readable(arguments) if not one.startswith("-")]
    return text_of(override)


# -- paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_arrives_as_it_was_written(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it exists or not; in a sweep it exists, or holds no comma."""
    monkeypatch.chdir(tmp_path)
    assert value_of(f"data.root={path}") == path
    assert value_of(f"hydra.run.dir={path}") == path
    if "," not in path:
        assert value_of("-m", f"sparsity.path={path}") == path
    if not path.startswith("/"):
        Path(path).mkdir(parents=True)
        assert value_of("-m", f"sparsity.path={path}") == path
        assert value_of("-m", f"+method.teacher={path}") == path


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_what_exists_is_taken_as_it_is(text: str) -> None:
    if text in ("", "null") or text.lower() == "null" or "${" in text or text.startswith("~"):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "_exists", lambda base, path: True)
        for flags in ([], ["-m"]):
            override = readable([*flags, f"checkpoint={text}"])[-1]
            assert text_of(override) == text
            # A sweep writes it down again for each of its runs.
            parsed = OverridesParser.create().parse_override(override)
            assert text_of(f"checkpoint={parsed.get_value_element_as_str()}") == text


def test_every_path_option_is_one() -> None:
    """With its own type of value in the configuration, and no other option named like one."""
    cfg: Any = composed_with_hydra("sparsity=file", "sparsity.path=x", "method=pseudo_label")
    wandb: Any = composed("logger=wandb")
    evaluation: Any = composed(name="evaluate")
    for name in command_line.PATHS | command_line.BELOW_ROOT:
        group, _, key = name.rpartition(".")
        places: list[DictConfig] = [
            place
            for one in (cfg, wandb, evaluation)
            if (place := one if not group else select(one, group)) is not None and key in place
        ]
        assert places, name


def select(cfg: Any, group: str) -> Any:
    for part in group.split("."):
        if cfg is None or part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


def test_what_hydra_reads_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = [
        "data.root='a b'", 'data.root="a=b"', "data.root=a b", "data.root=a\\,b", "resume=null",
        "resume=auto", "hydra.run.dir=runs/${now:%Y}", "data.root=", "data.root=???", "tau=0.5",
        "experiment=[coco,table1]", "+method.hierarchy={person: [tie]}", "~logger", "seed=0",
    ]  # fmt: skip
    assert readable(kept) == kept
    swept = ["-m", "data.root=a,b", "data.root=choice(a,b)", "seed=0,1", "method=glob(*)"]
    assert readable(swept) == swept


def test_the_commands_of_the_pages_mean_what_they_meant() -> None:
    pages = [README, *(page.read_text() for page in (CONFIG_FOLDER.parent / "docs").rglob("*.md"))]
    commands = re.findall(r"`(?:\w+=1 )?python (train|evaluate)\.py([^`\n]*)`", "\n".join(pages))
    assert len(commands) > 25
    parser = OverridesParser.create()
    for program, words in commands:
        arguments = [word for word in shlex.split(words) if word != "..."]
        for before, after in zip(arguments, readable(arguments), strict=True):
            if "=" not in before:
                assert before == after
                continue
            first, second = parser.parse_override(before), parser.parse_override(after)
            assert first.key_or_group == second.key_or_group, program
            assert first.value() == second.value(), program


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert value_of("data.root=~/my set") == f"{tmp_path}/my set"
    assert value_of("-m", "ckpt=~") == str(tmp_path)
    assert value_of("data.root=./~") == "./~"
    assert readable(["-m", "data.root=~/a,b"]) == ["-m", f"data.root='{tmp_path}/a',b"]


def test_commas_in_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A list, unless the whole is a path that exists; also one relative to data.root."""
    monkeypatch.chdir(tmp_path)

    def values(*arguments: str) -> list[Any]:
        override = OverridesParser.create().parse_override(readable(["-m", *arguments])[-1])
        assert override.is_sweep_override()
        return [text_of(f"x={value}") for value in override.sweep_string_iterator()]

    assert values("data.root=/a (1),b=c,2024") == ["/a (1)", "b=c", "2024"]
    assert values("checkpoint='a,b',c d=1") == ["a,b", "c d=1"]
    (tmp_path / "a,b").mkdir()
    assert value_of("-m", "data.root=a,b") == "a,b"
    (tmp_path / "set" / "x,y.json").mkdir(parents=True)
    root = ["-m", "data.root=set"]
    assert readable([*root, "data.val_annotations=x,y.json"])[-1] == (
        "data.val_annotations='x,y.json'"
    )
    assert readable([*root, "data.val_annotations=x,z.json"])[-1] == "data.val_annotations=x,z.json"
    # Where files go to is the same for all runs.
    assert value_of("-m", "hydra.sweep.dir=p,q") == "p,q"


def test_a_reference_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert value_of("data.root=/my set (1)/${seed}") == "/my set (1)/${seed}"
    (tmp_path / "${seed}").mkdir()
    for path in ("${seed}", "${seed"):
        with pytest.raises(ConfigError, match=r"^data.root=\$\{seed.*: a path cannot contain \$\{"):
            readable([f"data.root={path}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tau=["], "tau=[: cannot be read"),
        (["data.hint=a=b"], "data.hint=a=b: cannot be read"),
        (["table=it's"], "table=it's: cannot be read"),
        (["seed=0,1"], "seed=0,1: several values need a sweep"),
        (["seed=range(0,2)"], "seed=range(0,2): several values need a sweep"),
        (["data.root=/my", "set"], "set: cannot be read"),
        (["tau=0.5", "data.hint=a (1)", "b"], "data.hint=a (1): cannot be read"),
        (["word"], "word: cannot be read"),
        (["data root=x"], "data root=x: cannot be read"),
    ],
)
def test_a_refusal_is_one_line_with_a_command_that_works(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        readable(arguments)
    message = str(refused.value)
    assert message.startswith(words)
    assert "\n" not in message
    shown = re.split(r"python \S*\.?\w+ (?=['\w-])", message)[1:]
    assert shown
    for words in shown:
        given = shlex.split(words.partition("; put a single text")[0])
        assert readable(given), words


def test_options_that_a_checkpoint_has_are_replaced() -> None:
    given = [
        "checkpoint=x",
        "data.root=/a b=c",
        "+data.prepare.seed=1",
        "+data_override.min_size=5",
    ]
    assert readable(given, data_of_checkpoint=True) == [
        "checkpoint=x", "++data_override.root='/a b=c'", "++data_override.prepare.seed=1",
        "++data_override.min_size=5",
    ]  # fmt: skip
    chosen = ["checkpoint=x", "data=coco", "data.root=y"]
    assert readable(chosen, data_of_checkpoint=True) == chosen
    cfg = composed(*readable(given, data_of_checkpoint=True), name="evaluate")
    assert cfg.data_override == {"root": "/a b=c", "prepare": {"seed": 1}, "min_size": 5}


def test_what_lightning_adds_for_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It puts the run directory in quotes, whatever is in it; the rest it hands on."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    for path in ("/a b", '/a"b', "/a=b,'c'"):
        first = readable([f"hydra.run.dir={path}", f"data.root={path}"])
        again = readable([*first[1:], f'hydra.run.dir="{path}"'])
        assert [text_of(one) for one in again] == [path, path]


def test_relative_paths_from_elsewhere() -> None:
    assert text_of(absolute("ckpt='a b'", Path("/x y"))) == "/x y/a b"
    assert text_of(absolute("weights=a.ckpt", Path("/x"))) == "/x/a.ckpt"
    for kept in (
        "resume=auto",
        "weights=coco",
        "ckpt=null",
        "seed=1",
        "data.train_images=x",
        "ckpt=/a",
    ):
        assert text_of(absolute(kept, Path("/x"))) == text_of(kept)


# -- the folders of a sweep --------------------------------------------------------------


def test_a_name_says_what_was_swept() -> None:
    assert cell_name(["seed=0", "method.score_threshold=0.4"]) == (
        "method.score_threshold-0.4_seed-0"
    )
    assert cell_name(["method=self_mining", "launcher=joblib"], ["launcher"]) == (
        "method-self_mining"
    )
    assert cell_name(["experiment=[coco,table1]", "+a.b=true", "c=null", "lr=1e-5"]) == (
        "a.b-true_c-null_experiment-coco+table1_lr-1e-05"
    )
    assert cell_name([]) == "default"
    path = cell_name(["data.root='/x y/coco,2017'", "seed=0"])
    assert re.fullmatch(r"data\.root-coco_2017_seed-0-[0-9a-f]{8}", path)


def test_no_two_runs_share_a_name() -> None:
    values = [
        "a", "b_c", "-1", "1e-3", "x-y_z", "x_y-z", "'a'", "[a,b]", "'a+b'", "a+b", "null", "true",
        "'null'", "/x/a", "/y/a", "'é'", "'è'", "'a_seed-1'", "a_seed-1", "", "''",
    ]  # fmt: skip
    cells = [["table=" + one, "seed=" + two] for one, two in itertools.product(values, "01")]
    cells += [["table=" + one] for one in values] + [["+table=a", "~seed"], ["seed=1"]]
    long = [f"group.{'o' * 20}_{number}={number}" for number in range(30)]
    cells += [[*long, f"seed={number}"] for number in range(5)]
    cells += [[f"table={'x' * 300}{number}"] for number in range(5)]
    names = [cell_name(cell) for cell in cells]
    same = [set(map(str, cell)) for cell in cells]
    for (first, one), (second, other) in itertools.combinations(zip(names, same), 2):
        assert first != second or equal_values(one, other), (first, one, other)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._+-]{1,200}", name), name
        for option in ("checkpoint", "resume", "ckpt", "method.teacher"):
            given = f"{option}=runs/sweep/{name}/checkpoints/last.ckpt"
            assert readable([given]) == readable(["-m", given])[1:] == [given]


def equal_values(one: set[str], other: set[str]) -> bool:
    """Whether overrides are the same but for a way of writing them."""
    parser = OverridesParser.create()

    def read(overrides: set[str]) -> set[tuple[str, str]]:
        parsed = map(parser.parse_override, overrides)
        return {(p.key_or_group, repr(p.value())) for p in parsed}

    return read(one) == read(other)


def test_the_values_of_many_options_stay_in_the_name() -> None:
    options = [f"group.option_{number}={number}" for number in range(20)]
    name = cell_name([*options, "method.score_threshold=0.4", f"data.root={'/x' * 200}"])
    assert "-0.4" in name
    assert len(name) < 200


def test_options_are_told_apart_in_a_name() -> None:
    """``a_b-1`` is one option: no option has the name of another with a word before it."""
    names: set[str] = set()

    def collect(node: Any, prefix: str) -> None:
        for key, value in node.items():
            names.add(prefix + str(key))
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    for file in CONFIG_FOLDER.rglob("*.yaml"):
        if file.stem == "evaluate":
            continue
        content = yaml.safe_load(file.read_text()) or {}
        whole = "@package _global_" in file.read_text() or file.parent == CONFIG_FOLDER
        content.pop("hydra", None)
        collect(content, "" if whole else f"{file.parent.name}.")
        names |= set() if whole else {file.parent.name}
    names -= {"published_tau", "published_start"}  # of experiment=coco; no run sets them
    for one in names:
        assert not [other for other in names if other.endswith(f"_{one}")], one


# -- end to end --------------------------------------------------------------------------


def python(program: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / program), *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=500, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_odd_folders_from_training_to_evaluation(tmp_path: Path) -> None:
    """Trained by relative paths, gone on with from elsewhere, evaluated with the data elsewhere."""
    folder = tmp_path / "a b (1)=x,y#é'[]{}$ \\"
    folder.mkdir()
    done = train(folder, "data.root=set =1", "hydra.run.dir=run =1,2", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    run = folder / "run =1,2"
    before = RunResult.read(run / "result.json")
    done = python("train.py", tmp_path, f"resume={folder.name}/run =1,2")
    assert done.returncode == 0, done.stderr
    assert RunResult.read(run / "result.json").variant == before.variant
    assert sorted(os.listdir(tmp_path)) == [folder.name]
    (folder / "set =1").rename(tmp_path / "moved, too")
    done = python(
        "evaluate.py", tmp_path, f"checkpoint={run}/checkpoints/last.ckpt", "data.root=moved, too",
        "hydra.run.dir=[out]", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "[out]" / "evaluation.json").read_text())
    assert facts["data"]["val"]["annotations"] == "moved, too/annotations/val.json"
    assert facts["metrics"] == before.metrics


@pytest.mark.slow
def test_folders_of_a_sweep_are_found_and_go_back_in(tmp_path: Path) -> None:
    """Also under the names that sweeps gave them earlier."""
    sweep = ("-m", "method=original,joint", "hydra.sweep.dir=s 1", "trainer.max_steps=1")
    done = train(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    runs = sorted(file.parent for file in (tmp_path / "s 1").glob("*/result.json"))
    assert ["method-" in run.name for run in runs] == [True, True]
    assert not re.search("[=,]", "".join(run.name for run in runs))
    runs[0].rename(runs[0].with_name("method=joint,seed=0"))
    done = train(tmp_path, *sweep, "skip_finished=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped, already has a result") == 2
    checkpoint = runs[1] / "checkpoints" / "last.ckpt"
    done = train(
        tmp_path, "method=pseudo_label", f"method.teacher={checkpoint}", "trainer.max_steps=1",
        "hydra.run.dir=student",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away_stops_the_run(tmp_path: Path) -> None:
    """As ``| head -1`` does: one line, a checkpoint, and the exit code of SIGPIPE."""
    options = [
        *TINY, "trainer.enable_progress_bar=true", "trainer.max_steps=1000",
        "trainer.val_check_interval=1000", "hydra.run.dir=out", "method=original",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *options], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if line.startswith("step="):
            break
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(300) == 141, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    lines = [line for line in err.splitlines() if "SIGPIPE" in line]
    assert len(lines) == 1, err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["step"] == 200  # the second line of the progress, whose step is saved
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_sweep_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "/proc/below"):
        done = train(tmp_path, "-m", "seed=0,1", f"hydra.sweep.dir={place}")
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {place}: cannot be the directory of a sweep, ")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DIR: cannot be written, No space left"),
        (OSError(errno.EACCES, "Permission denied", "DIR/metrics.csv"), "DIR/metrics.csv: cannot"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: cannot be written, Read-only"),
        (OSError(errno.ENOENT, "No such file", "/x"), None),
        (ValueError("x"), None),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(
    tmp_path: Path, error: Exception, says: str | None
) -> None:
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.replace("DIR", str(tmp_path))
    directory = RunDirectory.claim(tmp_path / ".", held="refuse")
    try:
        explained = directory.explained(error)
        if says is None:
            assert explained is error
        else:
            assert isinstance(explained, OutputError)
            assert str(explained).startswith(says.replace("DIR", str(tmp_path)))
    finally:
        directory.release()


def test_a_full_disk_ends_training_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    import train as program

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(L.Trainer, "fit", full)
    config = ["--config-path", str(CONFIG_FOLDER)]
    for flags in ([], ["-m"]):
        place = f"hydra.{'sweep' if flags else 'run'}.dir=out{len(flags)}"
        monkeypatch.setattr(sys, "argv", ["train.py", *config, *flags, *TINY, place])
        with pytest.raises(SystemExit) as stop:
            program.main()
        assert stop.value.code == (1 if flags else 2)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "cannot be written, No space left on device" in (out if flags else err)
    (result,) = (tmp_path / "out1").glob("*/result.json")
    assert RunResult.read(result).status == "failed"
