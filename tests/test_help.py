"""What --help lists, and what is said of names that do not exist."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from comining.config import CONFIG_FOLDER
from comining.errors import ConfigError
from comining.runs.help_text import OPTIONS, check_names, group_choices, help_text

ROOT = CONFIG_FOLDER.parent


def lines_of(text: str, first: str) -> list[str]:
    """The indented lines below one that begins so."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first)) + 1
    end = next(number for number in range(start, len(lines)) if not lines[number].strip())
    return lines[start:end]


def test_every_group_and_choice_is_listed() -> None:
    listed: dict[str, list[str]] = {}
    group = ""
    for line in lines_of(help_text("train"), "Groups"):
        words = line.split()
        if not line.startswith("   "):
            group, *words = words
        listed.setdefault(group, []).extend(words)
    for folder in (path for path in CONFIG_FOLDER.iterdir() if path.is_dir()):
        if folder.name == "table4_row":  # for experiment=table4 alone
            continue
        choices = {file.stem for file in folder.glob("*.yaml")} - {"base"}
        assert {word.rstrip("*") for word in listed.pop(folder.name)} == choices
    assert not listed


def test_defaults_are_marked() -> None:
    marked = {word for word in help_text("train").split() if word.endswith("*") and word != "*"}
    assert {"comining*", "shapes*", "hard*", "retinanet*", "csv*"} <= marked
    assert len(marked) == 10  # the groups but for experiment and launcher


def test_ten_options_have_a_line_each() -> None:
    assert len(OPTIONS["train"]) == 10
    for program, options in OPTIONS.items():
        lines = lines_of(help_text(program), "Options")
        assert [line.split()[0] for line in lines] == list(options)
        assert all(len(line) < 120 for line in help_text(program).splitlines())
        check_names(program, [f"{name}=1" for name in options])  # all of them exist
    lines = lines_of(help_text("train"), "Options")
    assert next(line for line in lines if "trainer.max_steps" in line).endswith("[1800]")
    assert next(line for line in lines if "seed" in line).endswith("[0]")


@pytest.mark.parametrize("program", ["train", "evaluate"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_programs_print_it(tmp_path: Path, program: str, flag: str) -> None:
    done = run(tmp_path, f"{program}.py", flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == help_text(program) + "\n"
    assert not list(tmp_path.iterdir())


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / program), *arguments], cwd=folder, capture_output=True,
        text=True, timeout=300, check=False, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_name_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "train.py", "trainer.max_step=3")
    assert done.returncode == 2
    assert done.stderr == (
        "error: trainer.max_step=3: there is no option trainer.max_step; "
        "did you mean trainer.max_steps?\n"
    )
    assert not list(tmp_path.iterdir())  # nothing has begun


WRONG = [
    ("method=cominin", "did you mean comining?"),
    ("method=comining,joinr", "method=joinr: there is no such choice; did you mean joint?"),
    ("detector=fco", "did you mean fcos? (detector is one of faster_rcnn, fcos, retinanet)"),
    ("logger=zzz", "there is no such choice (logger is one of csv, tensorboard, wandb)"),
    ("metod=comining", "did you mean method?"),
    ("seeed=1", "did you mean seed?"),
    ("skip_finishd=true", "did you mean skip_finished?"),
    ("method.score_treshold=0.4", "did you mean method.score_threshold?"),
    ("max_steps=5", "did you mean trainer.max_steps?"),
    ("score_threshold=0.5", "did you mean method.score_threshold?"),
    ("trainer.batch_size=4", "did you mean data.batch_size?"),
    ("data.prepare.train_image=4", "did you mean data.prepare.train_images?"),
    ("seed.x=1", "there is no option seed.x"),
]


@pytest.mark.parametrize(("override", "said"), WRONG)
def test_the_nearest_name_is_said(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_names("train", [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("train", ["--max-steps", "40"], "--max-steps: {}; did you mean trainer.max_steps?"),
        ("train", ["seed=1", "--trainer.max_steps=40"],
         "--trainer.max_steps=40: {}; did you mean trainer.max_steps?"),
        ("train", ["-m", "--lr", "0.1"], "--lr: {}; did you mean optimizer.lr?"),
        ("train", ["-seed", "3"], "-seed: {}; did you mean seed?"),
        ("train", ["-max_steps=40"], "-max_steps=40: {}; did you mean trainer.max_steps?"),
        ("train", ["-max-steps", "40"], "-max-steps: {}; did you mean trainer.max_steps?"),
        ("train", ["-method", "joint"], "-method: {}; did you mean method?"),
        ("train", ["-m", "-ckpt", "x"], "-ckpt: {}; did you mean ckpt?"),
        ("train", ["--data", "coco"], "--data: {}; did you mean data?"),
        ("train", ["--xyzzy"], "--xyzzy: {}"),
        ("evaluate", ["--checkpoint=x.ckpt"], "--checkpoint=x.ckpt: {}; did you mean checkpoint?"),
        ("evaluate", ["images=x", "--score-threshold", "0.3"],
         "--score-threshold: {}; did you mean score_threshold?"),
    ],
)  # fmt: skip
def test_options_with_dashes_are_one_line(
    program: str,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(program).main()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {said.format('options are written NAME=VALUE, without dashes')}\n"


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-c", "job", "--resolve"], ["-cjob"]])
def test_flags_of_hydra_still_work(tmp_path: Path, flags: list[str]) -> None:
    done = run(tmp_path, "train.py", *flags, "seed=7")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed: 7" in done.stdout.splitlines()


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    for override in ("xyzzy=1", "data.foo=1"):
        with pytest.raises(ConfigError, match=r"there is no option \S+$"):
            check_names("train", [override])


def test_an_option_of_another_choice_is_said_to_be_one() -> None:
    with pytest.raises(ConfigError) as error:
        check_names("train", ["method=original", "method.score_threshold=0.4"])
    choices = str(error.value).split("it exists in ")[1].split(", ")
    assert {"comining", "self_mining", "pseudo_label"} <= set(choices)
    assert "original" not in choices


RIGHT = [
    ["+foo=1"], ["++foo.bar=1"], ["~seed"], ["hydra.run.dir=x"], ["experiment=null"],
    ["table4_row=color"], ["logger=wandb", "logger.tags=[a]"], ["weights=a.ckpt"],
    ["experiment=table3", "seed=0,1"], ["method=comining,original", "tau=0.1"],
    ["data=yolo", "data.names=[a,b]"], ["method=choice(comining,joint)"],
    ["data.prepare.train_images=2"], ["method=part_aware", "method.hierarchy=x"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", RIGHT, ids=" ".join)
def test_what_exists_is_let_through(overrides: list[str]) -> None:
    check_names("train", overrides)


def test_every_option_of_every_choice_is_let_through() -> None:
    """Whatever a yaml says may be said on the command line, too."""
    from comining.runs.help_text import _composed, _leaves

    for group in ("method", "data", "detector", "sparsity", "optimizer", "schedule", "logger"):
        for choice in group_choices()[group]:
            chosen = f"{group}={choice}"
            leaves = _leaves(_composed("train", [chosen]))
            check_names("train", [chosen, *(f"{leaf}=1" for leaf in leaves)])
