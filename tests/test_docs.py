"""The documentation: its site builds, its links lead somewhere, and its commands can be run."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from comining.config import CONFIG_FOLDER
from comining.runs.command_line import readable
from tests.helpers import composed

ROOT = CONFIG_FOLDER.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "RESULTS.md", "benchmarks/README.md")
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in OUTSIDE)])
# What a command begins with, and what it is.
COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:srun |torchrun (?:--\S+ )*)?(?:\.venv/bin/)?(?:python )?"
    r"(?P<words>(?:train|evaluate)\.py\b.*|-m (?:comining|benchmarks)\..*)$"
)


def commands(page: Path) -> Iterator[str]:
    """Every command of a page, in code blocks and in code inside of lines."""
    text = page.read_text(encoding="utf-8")
    variables = dict(re.findall(r'\b([A-Z]+)="([^"]*)"', text))
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [one for block in blocks for one in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", outside)]
    for line in lines:
        for part in line.split(" && "):
            whole = re.sub(r"\$([A-Z]+)\b", lambda match: variables[match[1]], part.strip())
            found = COMMAND.match(whole)
            if found and not found["words"].startswith("train.py  "):  # a list of files
                yield found["words"]


COMMANDS = sorted(
    {(page.relative_to(ROOT).as_posix(), one) for page in PAGES for one in commands(page)}
)


class ParsedError(Exception):
    """The arguments of a command are right."""


def one_of_a_sweep(override: str) -> str:
    """The first value where commas separate several."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_can_be_run(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs of Hydra compose what it says, the others parse it."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    if words[0] == "-m":
        module = importlib.import_module(words[1])
        if len(words) == 2:  # it is only mentioned
            assert callable(module.main)
            return
        parse = argparse.ArgumentParser.parse_args

        def parse_and_stop(self: Any, *given: Any, **more: Any) -> None:
            parse(self, *given, **more)
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(ParsedError):
            module.main()
        return
    options = [one for one in words[1:] if not one.startswith("-")]
    sweep = "-m" in words
    if words[0] == "evaluate.py":
        given = [one.replace("...", "last.ckpt") for one in options]
        cfg = composed(*readable(given, data_of_checkpoint=True), name="evaluate")
        assert OmegaConf.to_container(cfg, resolve=True)
        return
    if "--cfg" in words:
        options.remove(words[words.index("--cfg") + 1])
    if "method=light_background" in options:  # see test_the_example_of_a_method_trains
        return
    given = readable([*(["-m"] if sweep else []), *options])
    chosen = [one_of_a_sweep(one) for one in given if one != "-m"]
    cfg = composed(*chosen)
    assert OmegaConf.to_container(cfg, resolve=True)


def test_the_commands_are_found() -> None:
    """Of every kind, on many pages."""
    assert len(COMMANDS) > 100
    assert len({page for page, _ in COMMANDS}) > 12
    words = [one for _, one in COMMANDS]
    assert any(one.startswith("evaluate.py") for one in words)
    assert any("-m experiment=table1" in one for one in words)
    assert any("comining.complete judge" in one for one in words)
    assert any("hydra.run.dir=runs/mine resume=auto" in one for one in words)


def test_every_choice_is_documented() -> None:
    """Each file of a group, on the page of that group."""
    pages = {
        "method": "methods/index.md", "detector": "training.md", "backbone": "training.md",
        "sparsity": "data.md", "view": "training.md", "data": "training.md",
        "launcher": "training.md", "logger": "training.md", "optimizer": "training.md",
        "schedule": "training.md",
    }  # fmt: skip
    for group, page in pages.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for file in (CONFIG_FOLDER / group).glob("*.yaml"):
            if file.stem != "base":
                assert f"`{file.stem}`" in text, f"{file.stem} is missing in docs/{page}"
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for file in (CONFIG_FOLDER / "experiment").glob("*.yaml"):
        assert f"`{file.stem}`" in text or file.stem.startswith("table"), file


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: every link and anchor leads somewhere, and every page is in the navigation."""
    pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not included in the" not in done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="methods/"' in start
    assert "mined.png" in start
    assert "AnnotationRate" in (tmp_path / "site" / "api" / "methods" / "index.html").read_text()


def test_lines_are_short() -> None:
    """Outside of tables and code, 120 characters at the most."""
    for page in PAGES:
        if page.name == "RESULTS.md":  # written by a program
            continue
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        long = [one for one in text.splitlines() if len(one) > 120 and not one.startswith("|")]
        assert not long, (page, long[0])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
