"""docs/watching.md: its commands work, and its list of sections is that of the dashboard."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from comining.config import CONFIG_FOLDER
from comining.dashboard import main as dashboard
from comining.report import main as report
from comining.runs.command_line import readable
from comining.runs.help_text import check_names
from comining.tracking.panels import SECTIONS
from tests.helpers import composed
from tests.recorded import RunFolder

PAGE = (CONFIG_FOLDER.parent / "docs" / "watching.md").read_text()


def test_its_commands_work(
    runs: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.add(10.0)
    (tmp_path / "runs").rename(tmp_path / "DIR")
    (tmp_path / "runs").mkdir()
    (tmp_path / "DIR").rename(tmp_path / "runs" / "DIR")
    monkeypatch.chdir(tmp_path)
    commands = {*re.findall(r"`(python [^`]+)`", PAGE), *re.findall(r"^python .*", PAGE, re.M)}
    seen = set()
    for command in sorted(commands):
        _, *words = shlex.split(command)
        if words[0] == "train.py":
            given = [word for word in words[1:] if word != "-m"]
            check_names("train", readable(words[1:])[-len(given) :])
            composed(*(one for one in given if "," not in one))
            seen.add("train")
        elif words[1] == "comining.report":
            assert report(words[2:]) == 0
            assert (tmp_path / "runs" / "DIR" / "report.html").is_file()
            seen.add("report")
        else:
            assert words[1] == "comining.dashboard"
            pytest.importorskip("wandb_workspaces")
            assert dashboard([*words[2:], "--json", "workspace.json"]) == 0
            seen.add("dashboard")
    assert seen == {"train", "report", "dashboard"}


def test_its_sections_are_those_of_the_dashboard() -> None:
    table = PAGE.split("| section |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.M)
    assert rows[0] == "Runs compared"
    for row, section in zip(rows[1:], SECTIONS, strict=True):
        assert section.title.startswith(row)


def test_its_options_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dashboard(["--help"])
    usage = capsys.readouterr().out
    for option in re.findall(r"^\| `(--\w+)", PAGE, re.M):
        assert option in usage
